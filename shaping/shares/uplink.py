"""An uplink: a capacity that groups share, each with a bandwidth function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shaping.shares.allocate import fair_share
from shaping.shares.function import (
    BandwidthFunction,
    Number,
    Piece,
    level_ends,
    of_levels,
    total,
)

LEAST_BPS = 1000  # the lowest rate that can be set
LEAST_PART = 100  # at most the hundredth part of the capacity is kept for groups that get nothing
EXACT_MOST = 64  # more groups are computed in floats


@dataclass(frozen=True)
class Uplink:
    """capacity_bps: what all groups together may use. functions: of each group, without its
    demand."""

    capacity_bps: int
    functions: Mapping[str, BandwidthFunction]

    @property
    def least_bps(self) -> int:
        """What each group may use at least, so that its demand can be seen: the hundredth part of
        the capacity is for this, at most."""
        return max(self.capacity_bps // (LEAST_PART * max(len(self.functions), 1)), LEAST_BPS)

    def least_of(self, group: str) -> int:
        """`least_bps`, unless the group's function is bounded below that."""
        return int(max(min(self.least_bps, self.functions[group].limit), LEAST_BPS))

    def rates(self, demands: Mapping[str, float]) -> dict[str, int]:
        """The rate of each group in whole bit/s, which is at least `least_of`; together at most the
        capacity, where that is enough for the least of all. demands: bit/s, infinite where a group
        uses all that it gets. What is left over when all demands are met is divided in proportion
        to the rates, so that a group can grow.

        Up to EXACT_MOST groups are computed in fractions; more in floats, whose relative error of
        at most 1e-9 is left unused.
        """
        exact = len(self.functions) <= EXACT_MOST
        wanted: dict[str, BandwidthFunction] = {}
        for group, function in self.functions.items():
            demand = demands[group]
            if not exact:
                function = function.as_floats()
            wanted[group] = function if math.isinf(demand) else function.capped(int(demand))
        left: Number = self.capacity_bps if exact else self.capacity_bps * (1 - 1e-9)
        found: dict[str, Number] = {}
        while True:
            # Groups whose part would be too small get the least; the others divide the rest.
            share = fair_share(left, wanted)
            rates = {group: function(share) for group, function in wanted.items()}
            low = {group for group, rate in rates.items() if rate < self.least_of(group)}
            if not low:
                break
            for group in low:
                found[group] = self.least_of(group)
                left = max(left - found[group], 0)
                del wanted[group]
        used = sum(rates.values())
        for group, rate in rates.items():
            grown = rate * left / used if used < left else rate
            found[group] = min(grown, self.functions[group].limit)
        return {group: max(int(found[group]), LEAST_BPS) for group in self.functions}

    @property
    def unit(self) -> int:
        """What fair shares are shown in: 1, a thousand, a million ... bit/s for a weight of 1."""
        return int(1000 ** ((len(str(int(self.capacity_bps))) - 1) // 3))

    def points(self) -> dict[str, list[tuple[float, float]]]:
        """(fair share in `unit`, bit/s) of each group's function, and of their sum under "total",
        to be drawn: a quarter farther than the last share at which a function changes its slope."""
        end = max((float(each.shares[-1]) for each in self.functions.values()), default=0.0)
        drawn = {**self.functions, "total": total(self.functions.values())}
        found = {}
        for group, function in drawn.items():
            last = 1.25 * end if end else float(self.unit)
            points = [*function.points, (last, function(last))]
            found[group] = [(float(share) / self.unit, float(bps)) for share, bps in points]
        return found


def make_uplink(
    capacity_bps: int,
    groups: Mapping[str, Mapping[str, Sequence[Piece]]],
    levels: Sequence[str],
    limits: Mapping[str, int],
) -> Uplink:
    """groups: the pieces of each group by level. limits: of groups that have one besides. Of more
    than EXACT_MOST groups the functions are in floats."""
    given = {group: dict(pieces) for group, pieces in groups.items()}
    if len(groups) > EXACT_MOST:
        given = {
            group: {level: [each.as_floats() for each in own] for level, own in pieces.items()}
            for group, pieces in given.items()
        }
    ends = level_ends(given.values(), levels)
    functions = {group: of_levels(pieces, ends) for group, pieces in given.items()}
    return Uplink(
        int(capacity_bps),
        {
            group: each.capped(limits[group]) if group in limits else each
            for group, each in functions.items()
        },
    )


def all_busy(groups: Iterable[str]) -> dict[str, float]:
    """The demands of groups of which each uses all that it gets."""
    return dict.fromkeys(groups, math.inf)
