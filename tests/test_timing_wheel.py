"""The order of a TimingWheel compared with a sorted list, for packets released at any times."""

from __future__ import annotations

import bisect
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.packet.pool import PacketPool
from tests.twins import compiled

NEVER = (1 << 64) - 1
SMALL, LARGE = 256, 64


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    kind = compiled("timing_wheel_twin", tmp_path_factory.mktemp("timing_wheel")).TwinWheel
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


# The time after which a packet is released: at once, in the same slot, slots and levels apart, far out.
offsets = st.one_of(
    st.just(0),
    st.integers(0, 3),
    st.integers(0, 1 << 9),
    st.integers((1 << 16) - 300, (1 << 16) + 300),
    st.integers(0, 1 << 20),
    st.integers((1 << 24) - 2, (1 << 24) + 2),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 62),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), offsets),
        st.tuples(st.just("put"), offsets),
        st.tuples(st.just("put"), st.integers(0, 1 << 21)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("pass"), st.integers(0, 1 << 22)),
        st.tuples(st.just("adopt"), st.just(0)),
        st.tuples(st.just("late"), st.integers(0, 1 << 18)),
    ),
    max_size=200,
)


@settings(max_examples=400, deadline=None)
@given(start=st.sampled_from([0, 1, 10**9, (1 << 62) - 5, (1 << 56) - 1]), steps=steps)
def test_packets_leave_in_the_order_of_their_times(twin, start, steps):
    wheel, reference, now = twin(), Sorted(), start
    free = list(range(SMALL + LARGE))
    for step, value in steps:
        if step == "put" and free:
            index = free.pop(value % len(free))
            wheel.put(index, now + value, now)
            reference.put(index, now + value)
        elif step == "pass":
            # an engine takes what is due before it puts anything
            now += value
            while reference.packets and reference.packets[0][0] <= now:
                taken = reference.take()
                assert wheel.take() == taken
                free.append(taken[1])
        elif step == "late":
            # a late engine puts some of what it takes back, for times that may be past
            now += value
            number = 0
            while reference.packets and reference.packets[0][0] <= now:
                taken = reference.take()
                assert wheel.take() == taken
                number += 1
                if number % 3 and number < 60:
                    at = taken[0] + value * number % 5003
                    wheel.put(taken[1], at, now)
                    reference.put(taken[1], at)
                else:
                    free.append(taken[1])
        elif step == "adopt":
            packed = wheel.packed
            wheel.clear()
            assert wheel.due_ns == NEVER
            wheel = twin()
            wheel.adopt(now, packed)
        else:
            for _ in range(min(value, len(reference.packets))):
                if reference.packets[0][0] >= 1 << 63:
                    break
                taken = reference.take()
                assert wheel.take() == taken
                now = max(now, taken[0])
                free.append(taken[1])
        assert wheel.due_ns == (reference.packets[0][0] if reference.packets else NEVER)
        held = [index for _, _, index in reference.packets]
        assert wheel.counts == (sum(index < SMALL for index in held), sum(index >= SMALL for index in held))
    while reference.packets:
        assert wheel.take() == reference.take()
    assert wheel.due_ns == NEVER and wheel.counts == (0, 0)


@pytest.mark.parametrize("spread", [1, 1000, 10**6, 10**9, 10**12])
def test_packets_come_and_go_at_any_density(twin, spread):
    """Always 300 packets; each that is taken is put again."""
    chosen = random.Random(spread)
    wheel, reference, now = twin(), Sorted(), 10**9 + 7
    for number in range(300):
        at = now + chosen.randrange(spread)
        wheel.put(number, at, now)
        reference.put(number, at)
    for _ in range(5000):
        taken = reference.take()
        assert wheel.take() == taken
        now = taken[0]
        at = now + chosen.randrange(spread)
        wheel.put(taken[1], at, now)
        reference.put(taken[1], at)


def test_a_packet_may_be_put_for_a_time_that_is_past(twin):
    """As the rest of a GSO frame that is cut late: its next piece follows the packets that were due
    before it, and precedes those due after."""
    wheel = twin()
    for number in range(4):
        wheel.put(number, 1000 + 10 * number, 1000)
    assert wheel.take() == (1000, 0)
    wheel.put(0, 1015, 5000)
    assert [wheel.take() for _ in range(4)] == [(1010, 1), (1015, 0), (1020, 2), (1030, 3)]
    wheel.put(0, 4000, 5000)
    assert wheel.take() == (4000, 0)


def test_several_packets_may_be_put_for_times_that_are_past(twin):
    """The later ones of them earlier than the first one, though the wheel began with that."""
    wheel, now = twin(), 0x4000
    for number, at in enumerate((0x400, 0x401, 0x402, 0x9000)):  # the last one keeps what follows out of the list
        wheel.put(number, at, 0x300)
    assert wheel.take() == (0x400, 0)
    wheel.put(0, 0x50A, now)
    assert wheel.take() == (0x401, 1)
    wheel.put(1, 0x406, now)
    assert wheel.take() == (0x402, 2)
    assert wheel.take() == (0x406, 1)
    wheel.put(1, 0x40A, now)
    assert [wheel.take() for _ in range(3)] == [(0x40A, 1), (0x50A, 0), (0x9000, 3)]


def test_a_state_that_is_not_of_these_packets_is_refused(twin):
    wheel, now = twin(), 1000
    for number, at in enumerate([10**9, 2 * 10**9, 10**6, 10**6, 10**6 + 5, 10**8]):
        wheel.put(number, at, now)
    (listed, base), packets = packed = wheel.packed
    assert listed == 2 and struct.unpack("<6I", packets) == (0, 1, 2, 3, 4, 5)
    wheel.clear()

    def indices(*numbers: int) -> bytes:
        return struct.pack(f"<{len(numbers)}I", *numbers)

    for wrong in (
        ([listed, base], indices(0, 1, 3, 2, 4, 5)), ([listed, base], indices(1, 0, 2, 3, 4, 5)),
        ([listed, base], indices(0, 1, 2, 3, 5)), ([listed, base], indices(0, 1, 2, 3, 4, 5, 2)),
        ([listed, base], indices(0, 1, 2, 3, 4, SMALL + LARGE)), ([listed, base], packets[:-1]),
        ([1, base], packets), ([3, base], packets), ([7, base], packets), ([listed, now + 1], packets),
        ([listed, 10**6 + 1], packets), ([-1, base], packets), ([listed, "0"], packets), ([listed], packets),
        ([listed, base], "packets"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError, OverflowError)):
            wheel.adopt(now, wrong)
        assert wheel.due_ns == NEVER and wheel.counts == (0, 0)
    for number, release in ((4, 10**8), (1, 10**8), (2, 500)):
        before = wheel.write_release(number, release)
        with pytest.raises(ValueError, match="packets are not linked as in a wheel"):
            wheel.adopt(now, packed)
        wheel.write_release(number, before)
    wheel.adopt(now, packed)
    assert [wheel.take()[1] for _ in range(6)] == [2, 3, 4, 5, 0, 1]
