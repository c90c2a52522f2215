"""The order of a DelayLine compared with a sorted list, for packets released in any order."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.packet.pool import PacketPool
from tests.twins import compiled

NEVER = (1 << 64) - 1
SMALL, LARGE = 256, 64
SLOTS = 1024


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    kind = compiled("delay_line_twin", tmp_path_factory.mktemp("delay_line")).TwinLine
    pool = PacketPool(small=SMALL, large=LARGE)
    return lambda: kind(pool)


class Sorted:
    """The reference: packets by release time, those of the same time as they came."""

    def __init__(self) -> None:
        self.packets: list[tuple[int, int, int]] = []
        self.number = 0

    def put(self, index: int, release_ns: int) -> None:
        self.number += 1
        bisect.insort(self.packets, (release_ns, self.number, index))

    def take(self) -> tuple[int, int]:
        release_ns, _, index = self.packets.pop(0)
        return release_ns, index


# The time after which a packet is released: close together, in the same slot, slots apart, far out.
offsets = st.one_of(
    st.just(0),
    st.integers(0, 3),
    st.integers(0, 1 << 11),
    st.integers(0, 1 << 20),
    st.integers((1 << 20) - 2048, (1 << 20) + 2048),
    st.integers(0, 1 << 40),
    st.integers(0, (1 << 63)),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), offsets),
        st.tuples(st.just("put"), offsets),
        st.tuples(st.just("put"), st.integers(0, 1 << 21)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("pass"), st.integers(0, 1 << 22)),
        st.tuples(st.just("adopt"), st.just(0)),
    ),
    max_size=200,
)


@settings(max_examples=400, deadline=None)
@given(start=st.sampled_from([0, 1, 10**9, (1 << 62) - 5]), steps=steps)
def test_packets_leave_in_the_order_of_their_times(twin, start, steps):
    line, reference, now = twin(), Sorted(), start
    free = list(range(SMALL + LARGE))
    for step, value in steps:
        if step == "put" and free:
            index = free.pop(value % len(free))
            line.put(index, now + value)
            reference.put(index, now + value)
        elif step == "pass":
            now += value
        elif step == "adopt":
            packed = line.packed()
            line.clear()
            assert line.due_ns == NEVER
            line = twin()
            assert line.adopt(packed)
        else:
            for _ in range(min(value, len(reference.packets))):
                taken = reference.take()
                assert line.take() == taken
                now = max(now, taken[0]) if taken[0] < 1 << 61 else now
                free.append(taken[1])
        assert line.due_ns == (reference.packets[0][0] if reference.packets else NEVER)
        held = [index for _, _, index in reference.packets]
        assert line.counts == (sum(index < SMALL for index in held), sum(index >= SMALL for index in held))
    while reference.packets:
        assert line.take() == reference.take()
    assert line.due_ns == NEVER and line.counts == (0, 0)


def test_every_slot_of_the_circle_is_used(twin):
    """Times around the end of the circle of slots, from which a search goes on at its other end."""
    for first in range(0, SLOTS << 10, 61 << 10):
        line, reference = twin(), Sorted()
        for number in range(300):
            release_ns = (1 << 40) + first + (number * 7919 % 1022 << 10) + number % 3
            line.put(number, release_ns)
            reference.put(number, release_ns)
        assert [line.take() for _ in range(300)] == [reference.take() for _ in range(300)]


def test_slots_are_narrow_again_after_a_late_packet_has_left(twin):
    """Also while the line is never empty."""
    line = twin()
    line.put(0, 10**12)
    for number in range(1, 100):
        line.put(number, number * 1000)
    wide = line.shift
    assert 10**12 >> wide < SLOTS
    for _ in range(99):
        line.take()
    for number in range(1, 100):
        line.put(number, 10**12 + number * 1000)
    for number in range(100):
        line.take()
        line.put(number, 10**12 + 10**5 + number * 1000)
    assert line.shift < wide - 10
    assert [line.take()[1] for _ in range(100)] == list(range(100))


def test_packets_that_are_not_sorted_are_not_adopted(twin):
    """Their links may be right all the same: other elements' lists are in other orders."""
    line = twin()
    for number in range(3):
        line.put(number, 1000)
    packed = line.packed()
    line.clear()
    line.write_release(1, 1001)
    assert not line.adopt(packed)
    assert line.due_ns == NEVER and line.counts == (0, 0)
    line.write_release(2, 1001)
    assert line.adopt(packed) and [line.take() for _ in range(3)] == [(1000, 0), (1001, 1), (1001, 2)]
