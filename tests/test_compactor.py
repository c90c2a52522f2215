"""The decisions of a compacting group's balancer for given loads and delays, without threads and
engines."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.engine.thread import ENGINES_MOST
from dataplane.errors import VnicError
from dataplane.groups.compactor import Compactor

LOOK_NS = 100_000
CALM_NS = 50_000_000
START_NS = 10**12


class World:
    """Simulated engines, on the threads that the balancer chooses. late(engine, number of others on
    its thread): whether the engine's packets wait too long."""

    def __init__(self, threads, places, loads, late):
        self.compactor = Compactor(period_ns=LOOK_NS)
        self.now_ns, self.threads, self.places, self.loads, self.late = START_NS, threads, list(places), loads, late
        self.history = [self.places]
        # a queue some time ago, so that nothing is packed before the second check
        for late in (True, True, False):
            self.compactor.consider(START_NS, 2, [(0, 0.0, late)] * len(self.places))
        self.now_ns += 2_000_000

    def look(self, times=1):
        for _ in range(times):
            self.now_ns += LOOK_NS
            seen = [
                (place, load, self.late(number, self.places.count(place) - 1))
                for number, (place, load) in enumerate(zip(self.places, self.loads, strict=True))
            ]
            self.places = self.compactor.consider(self.now_ns, self.threads, seen)
            if self.places != self.history[-1]:
                self.history.append(self.places)

    def calm(self):
        self.look(3)
        self.now_ns += CALM_NS
        self.look(3)


def test_late_engines_that_share_a_thread_part_though_a_fuller_thread_cannot_be_helped():
    """One engine is overloaded, alone on the fullest thread; two others share the second; a third
    CPU is empty."""
    world = World(3, [0, 1, 1], [1.0, 0.4, 0.4], lambda number, beside: number == 0 or beside > 0)
    world.look()
    assert world.places == [0, 1, 1]  # one late check may be an interrupt
    world.look()
    assert sorted(world.places) == [0, 1, 2] and world.places[0] == 0
    world.look(20)
    assert len(world.history) == 2


def test_who_can_be_helped_is_not_kept_from_it_by_a_fuller_thread_that_shares():
    """The fullest thread has a busy and a tiny engine; moving the busy one would not help anywhere.
    One of the second thread's engines may move."""
    loads = [0.9, 0.05, 0.25, 0.3, 0.1]
    world = World(3, [0, 0, 1, 1, 2], loads, lambda number, beside: beside > 0)
    world.look(2)
    assert world.places == [0, 0, 1, 2, 2]


def test_engines_are_packed_although_one_is_always_late_alone():
    world = World(4, [0, 1, 2, 3], [0.01, 1.0, 0.0, 0.01], lambda number, beside: number == 1)
    world.calm()
    assert world.places == [0, 1, 0, 0]
    changes = len(world.history)
    for _ in range(5):
        world.calm()
    assert len(world.history) == changes  # no engine moves back and forth


def test_who_shares_with_a_late_one_keeps_others_from_being_packed():
    """Until the effect of the late engine's move is known."""
    world = World(3, [0, 0, 1], [0.5, 0.4, 0.01], lambda number, beside: number == 0)
    world.look(2)
    assert world.places == [2, 0, 1]
    world.look(100)
    assert len(world.history) == 2
    world.calm()
    # Packed now; the engine that is late even alone has kept its thread.
    assert world.places == [2, 0, 0]


def test_after_a_move_loads_settle_first():
    world = World(4, [0, 0, 0, 0], [0.2] * 4, lambda number, beside: beside > 0)
    moved_at = []
    for number in range(60):
        world.look()
        if len(world.history) - 1 > len(moved_at):
            moved_at.append(number)
    assert sorted(world.places) == [0, 1, 2, 3]
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(moved_at))


def test_all_go_back_to_the_first_thread():
    world = World(3, [0, 1, 2], [0.1, 0.2, 0.3], lambda number, beside: False)
    world.calm()
    assert world.places == [0, 0, 0]
    assert world.compactor.status()["migrated_back"] == 2


situations = st.integers(2, 6).flatmap(
    lambda threads: st.tuples(
        st.just(threads),
        st.lists(st.tuples(st.integers(0, threads - 1), st.floats(0, 1), st.booleans()), min_size=2, max_size=10),
    )
)


@given(situations)
# an idle engine's thread has as little load as an empty one
@example((3, [(0, 0.0, False), (0, 0.0, True), (1, 0.0, False)]))
def test_a_late_engine_that_has_company_gets_room_where_a_thread_is_empty(situation):
    threads, seen = situation
    before, late = [place for place, _, _ in seen], [late for _, _, late in seen]
    world = World(threads, before, [load for _, load, _ in seen], lambda number, _: late[number])
    world.look(2)
    moved = [number for number, place in enumerate(world.places) if place != before[number]]
    crowded = {place for number, place in enumerate(before) if late[number] and before.count(place) > 1}
    empty = set(range(threads)) - set(before)
    if crowded and empty:
        (number,) = moved
        assert before[number] in crowded and world.places[number] in empty
    assert len(moved) <= 1 or not crowded


@given(situations)
def test_packing_frees_threads_and_overfills_none(situation):
    threads, seen = situation
    before, loads = [place for place, _, _ in seen], [load for _, load, _ in seen]
    alone = [late and before.count(place) == 1 for place, _, late in seen]
    world = World(threads, before, loads, lambda number, _: alone[number])
    world.calm()
    after = world.places
    assert len(set(after)) < len(set(before)) or after == before
    if after != before:
        for place in set(after):
            there = [number for number, each in enumerate(after) if each == place]
            weight = sum(loads[number] for number in there if loads[number] >= 0.005)
            assert weight <= 0.7 or len([number for number in there if loads[number] >= 0.005]) == 1
            assert not any(alone[number] for number in there) or len(there) == 1
    for number, kept in enumerate(alone):
        assert not kept or after[number] == before[number]


def test_what_cannot_be_considered():
    seen = [(0, 0.0, False)] * (ENGINES_MOST + 1)
    for threads, members in ((2, seen), (0, seen[:1]), (ENGINES_MOST + 1, seen[:1]), (2, [(2, 0.0, False)])):
        with pytest.raises(VnicError, match="compacting: "):
            Compactor().consider(START_NS, threads, members)
