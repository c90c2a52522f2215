"""Divides an uplink again and again, by what its groups were seen to use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from shaping.shares.demand import Demand
from shaping.shares.uplink import Uplink

WINDOW_NS = 10**9
NEARLY = 0.9  # a group that uses so much of its rate, and has packets waiting, would use more
NEAR = 0.01  # a rate that differs by less is left as it is, where the capacity allows it


class Sample(NamedTuple):
    """What an enforcer says of a group: the rate that it enforces, 0: none; bytes that it has sent,
    and packets that it has dropped for want of rate, since it began; whether packets wait."""

    rate_bps: int
    sent_bytes: int
    dropped: int
    waits: bool


class _Group:
    """The demand of a group: what it used lately and some more; without a bound while it has more
    to send than it may."""

    def __init__(self, least_bps: int) -> None:
        self.demand = Demand(WINDOW_NS, least_bps=least_bps)
        self.before: tuple[int, Sample] | None = None

    def note(self, now_ns: int, sample: Sample) -> float:
        """The demand in bit/s; infinite before it is known."""
        before, self.before = self.before, (now_ns, sample)
        if before is None or now_ns <= before[0]:
            return math.inf
        earlier_ns, earlier = before
        sent = sample.sent_bytes - earlier.sent_bytes
        if sent < 0:  # another element, whose counters begin at 0
            return math.inf
        used_bps = sent * 8 * 10**9 / (now_ns - earlier_ns)
        self.demand.note(now_ns, used_bps)
        busy = used_bps >= NEARLY * earlier.rate_bps or earlier.waits  # not only a moment's queue
        if sample.dropped > earlier.dropped or (sample.waits and busy):
            return math.inf
        return self.demand.estimate(now_ns)


class Allocator:
    """The leaves of an uplink, here called groups, and their demands."""

    def __init__(self, uplink: Uplink) -> None:
        self.uplink = uplink
        self.demands: dict[str, float] = {}
        self._groups = {group: _Group(uplink.least_bps) for group in uplink.leaves}

    def step(self, now_ns: int, samples: Mapping[str, Sample]) -> list[tuple[str, int]]:
        """The rates that change, (group, bit/s), in the order in which they are to be set, each
        when the one before it holds: those that fall, then those that rise. So all rates together
        never exceed the capacity, if they did not before. Groups without a sample have no rate, and
        what they could have is the others'."""
        self.demands = {
            group: self._groups[group].note(now_ns, sample) for group, sample in samples.items()
        }
        for group in self._groups.keys() - samples.keys():
            self._groups[group].before = None
        present = self.uplink.only(samples.keys())
        if not present.functions:
            return []
        return _changes(
            {group: sample.rate_bps or math.inf for group, sample in samples.items()},
            present.rates(self.demands),
            self.uplink.capacity_bps,
        )


def _changes(
    before: Mapping[str, float], wanted: Mapping[str, int], capacity_bps: int
) -> list[tuple[str, int]]:
    """The changes from the rates before to those that are wanted, see `Allocator.step`."""
    kept = {
        group for group, rate in wanted.items() if abs(rate - before[group]) <= NEAR * before[group]
    }
    together = sum(before[group] if group in kept else rate for group, rate in wanted.items())
    if together > capacity_bps:
        kept = {group for group in kept if wanted[group] >= before[group]}
    changed = [group for group in wanted if group not in kept and wanted[group] != before[group]]
    return [
        (group, wanted[group])
        for group in sorted(changed, key=lambda group: wanted[group] - before[group])
    ]
