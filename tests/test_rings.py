"""Rings compared with a deque, positions that wrap at 2^32, and several threads."""

from __future__ import annotations

import threading
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dataplane.packet.ring import MpscRing, SpscRing

NEAR_WRAP = [0, 2**31 - 3, 2**32 - 7, 2**32 - 1]


class RingModel(RuleBasedStateMachine):
    """The behaviour of a ring, modelled by a bounded deque."""

    kind = SpscRing

    @initialize(bits=st.integers(1, 5), start=st.sampled_from(NEAR_WRAP))
    def make(self, bits: int, start: int) -> None:
        self.capacity = 1 << bits
        self.ring = self.kind(self.capacity, start)
        self.model: deque[int] = deque()

    @rule(values=st.lists(st.integers(0, 2**32 - 1), max_size=40))
    def push(self, values: list[int]) -> None:
        fits = values[: self.capacity - len(self.model)]
        assert self.ring.push_many(values) == len(fits)
        self.model.extend(fits)

    @rule(count=st.integers(0, 40))
    def pop(self, count: int) -> None:
        assert self.ring.pop_many(count) == [self.model.popleft() for _ in range(min(count, len(self.model)))]

    @invariant()
    def length(self) -> None:
        assert len(self.ring) == len(self.model)


class MpscModel(RingModel):
    kind = MpscRing


TestSpscModel = RingModel.TestCase
TestMpscModel = MpscModel.TestCase
TestSpscModel.settings = TestMpscModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def exchange(ring: SpscRing | MpscRing, producers: int, each: int) -> list[int]:
    """`producers` threads push `each` numbers; returns what one consumer popped, in order."""

    def produce(first: int) -> None:
        numbers = list(range(first, first + each))
        at = 0
        while at < each:
            at += ring.push_many(numbers[at : at + 1 + at % 997])

    threads = [threading.Thread(target=produce, args=(i << 24,)) for i in range(producers)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    while len(taken) < producers * each:
        taken += ring.pop_many(1 + len(taken) % 661)
    for thread in threads:
        thread.join()
    return taken


@pytest.mark.parametrize("start", [0, 2**32 - 5000])
@pytest.mark.parametrize(("kind", "producers"), [(SpscRing, 1), (MpscRing, 1), (MpscRing, 4)])
@pytest.mark.parametrize(("capacity", "each"), [(2, 200), (1024, 20_000)])
def test_threads_lose_nothing_and_keep_order(kind, producers, capacity, each, start):
    taken = exchange(kind(capacity, start), producers, each)
    for i in range(producers):
        assert [value for value in taken if value >> 24 == i] == list(range(i << 24, (i << 24) + each))
    assert len(taken) == producers * each


@pytest.mark.parametrize("capacity", [0, 1, 3, 2**20 + 1, 2**21])
def test_a_capacity_is_a_power_of_two(capacity):
    for kind in (SpscRing, MpscRing):
        with pytest.raises(ValueError, match="power of two"):
            kind(capacity)
