"""An uplink: a capacity that groups share, each with a bandwidth function. A group may be one of
groups, which divide what it gets by functions of their own (BwE's user, job and task)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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


Functions = Mapping[str, BandwidthFunction]


@dataclass(frozen=True)
class Uplink:
    """capacity_bps: what all groups together may use. functions: of each group, without its
    demand. members: the functions of the groups in a group, by its name; these are limited, as are
    the groups that have no members: together the leaves, whose names differ."""

    capacity_bps: int
    functions: Functions
    members: Mapping[str, Functions] = field(default_factory=dict)

    @cached_property
    def leaves(self) -> Functions:
        """The function of each leaf: of a member within its group."""
        found = {group: each for group, each in self.functions.items() if group not in self.members}
        return found | {leaf: each for own in self.members.values() for leaf, each in own.items()}

    @cached_property
    def groups(self) -> Mapping[str, str]:
        """The group of each leaf that is in one."""
        return {leaf: group for group, members in self.members.items() for leaf in members}

    def only(self, leaves: Collection[str]) -> Uplink:
        """The same with these leaves alone; a group without any of its members gets nothing."""
        members = {
            group: {leaf: each for leaf, each in inner.items() if leaf in leaves}
            for group, inner in self.members.items()
        }
        members = {group: inner for group, inner in members.items() if inner}
        functions = {
            group: each
            for group, each in self.functions.items()
            if group in leaves or group in members
        }
        return Uplink(self.capacity_bps, functions, members)

    @property
    def least_bps(self) -> int:
        """What each leaf may use at least, so that its demand can be seen: the hundredth part of
        the capacity is for this, at most."""
        return max(self.capacity_bps // (LEAST_PART * max(len(self.leaves), 1)), LEAST_BPS)

    def least_of(self, leaf: str) -> int:
        """`least_bps`, unless the leaf's function is bounded below that."""
        return int(max(min(self.least_bps, self.leaves[leaf].limit), LEAST_BPS))

    def rates(self, demands: Mapping[str, float]) -> dict[str, int]:
        """The rate of each leaf in whole bit/s, which is at least `least_of`; together at most the
        capacity, where that is enough for the least of all. demands: of the leaves in bit/s,
        infinite where one uses all that it gets. What is left over when all demands are met is
        divided in proportion to the rates, so that a leaf can grow. The groups divide the capacity,
        and members what their group gets: on one link that is the same as with the functions of
        `hierarchy.effective`, and takes less time.

        Up to EXACT_MOST leaves are computed in fractions; more in floats, whose relative error of
        at most 1e-9 is left unused.
        """
        exact = len(self.leaves) <= EXACT_MOST
        least = {leaf: self.least_of(leaf) for leaf in self.leaves}
        wanted = dict(demands)
        for group, members in self.members.items():
            wanted[group] = sum(
                min(demands[leaf], float(function.limit)) for leaf, function in members.items()
            )
            least[group] = sum(least[leaf] for leaf in members)
        capacity: Number = self.capacity_bps if exact else self.capacity_bps * (1 - 1e-9)
        outer = _divided(capacity, self.functions, wanted, least, exact)
        found = {group: rate for group, rate in outer.items() if group not in self.members}
        for group, members in self.members.items():
            found |= _divided(outer[group], members, demands, least, exact)
        return {leaf: max(int(found[leaf]), LEAST_BPS) for leaf in self.leaves}

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


def _divided(
    amount: Number,
    functions: Functions,
    demands: Mapping[str, float],
    least: Mapping[str, int],
    exact: bool,
) -> dict[str, Number]:
    """What each group gets of an amount, see `Uplink.rates`."""
    wanted: dict[str, BandwidthFunction] = {}
    for group, function in functions.items():
        function = function if exact else function.as_floats()
        demand = demands[group]
        wanted[group] = function if math.isinf(demand) else function.capped(int(demand))
    left, found = amount, dict[str, Number]()
    while True:
        # Groups whose part would be too small get the least; the others divide the rest.
        share = fair_share(left, wanted)
        rates = {group: function(share) for group, function in wanted.items()}
        low = {group for group, rate in rates.items() if rate < least[group]}
        if not low:
            break
        for group in low:
            found[group] = least[group]
            left = max(left - found[group], 0)
            del wanted[group]
    used = sum(rates.values())
    for group, rate in rates.items():
        grown = rate * left / used if used < left else rate
        found[group] = min(grown, functions[group].limit)
    return found


Pieces = Mapping[str, Sequence[Piece]]  # by level


def make_uplink(
    capacity_bps: int,
    groups: Mapping[str, Pieces],
    levels: Sequence[str],
    limits: Mapping[str, int],
    members: Mapping[str, Mapping[str, Pieces]] | None = None,
) -> Uplink:
    """groups: the pieces of each group by level; members: those of the groups in it. limits: of
    leaves that have one besides. Of more than EXACT_MOST leaves the functions are in floats."""
    inner = members or {}
    count = len(groups) - len(inner) + sum(map(len, inner.values()))

    def functions_of(given: Mapping[str, Pieces]) -> dict[str, BandwidthFunction]:
        exact: dict[str, dict[str, Sequence[Piece]]] = {
            group: {
                level: [each if count <= EXACT_MOST else each.as_floats() for each in own]
                for level, own in pieces.items()
            }
            for group, pieces in given.items()
        }
        ends = level_ends(exact.values(), levels)
        made = {group: of_levels(pieces, ends) for group, pieces in exact.items()}
        return {
            group: each.capped(limits[group]) if group in limits else each
            for group, each in made.items()
        }

    return Uplink(
        int(capacity_bps),
        functions_of(groups),
        {group: functions_of(given) for group, given in inner.items()},
    )


def all_busy(leaves: Iterable[str]) -> dict[str, float]:
    """The demands of leaves of which each uses all that it gets."""
    return dict.fromkeys(leaves, math.inf)
