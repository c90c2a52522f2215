"""Hierarchies (BwE, section 5.3, figure 8): groups within a group.

A group of groups has a function of its own, and the groups in it have theirs, by which they divide
what it gets. `effective` gives each of these one function with which it competes in place of all:
then the links are divided among the smallest groups only, and a limit of one of them leaves the
rest of its bandwidth to its neighbours first, as it should.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from shaping.shares.function import BandwidthFunction, Number, Point, total

Group = TypeVar("Group", bound=Hashable)


def transform(inner: BandwidthFunction, outer: BandwidthFunction) -> list[tuple[Number, Number]]:
    """The points of the transformation T, which maps the fair share of a group's members to that of
    the group: at T(s) the group, of function `outer`, gets what its members together, of function
    `inner`, get at s.

    T is linear between the points, and jumps at two points of the same share, over a range in which
    the group gets no more. After the last point it is infinite where one of the functions is flat;
    else its slope is that of `inner` divided by that of `outer`.
    """
    limit = min(inner.limit, outer.limit)
    shares = {share for share in inner.shares if inner(share) <= limit}
    shares |= {inner.share_for(each.bandwidth) for each in outer.points if each.bandwidth <= limit}
    found: list[tuple[Number, Number]] = []
    for share in sorted(shares):
        bandwidth = inner(share)
        found.append((share, outer.share_for(bandwidth)))
        # the last share at which the group has no more
        flat = [each.share for each in outer.points if each.bandwidth == bandwidth]
        if len(flat) > 1 and flat[-1] > found[-1][1]:
            found.append((share, flat[-1]))
    return found


def effective(
    members: Mapping[Group, BandwidthFunction], outer: BandwidthFunction
) -> dict[Group, BandwidthFunction]:
    """The functions with which the members compete in place of their group: B_e(T(s)) = B(s). Each
    has points for those of all members."""
    inner = total(members.values())
    mapped = transform(inner, outer)
    last, rises = mapped[-1][0], bool(inner.slope and outer.slope)
    # T between its points, at those of the members
    shares = {share for function in members.values() for share in function.shares}
    for share in shares - {each for each, _ in mapped}:
        if share < last or rises:
            mapped.append((share, outer.share_for(inner(share))))
    mapped.sort()
    found: dict[Group, BandwidthFunction] = {}
    for group, function in members.items():
        points: list[Point] = []
        for share, outer_share in mapped:
            # where T is constant, so are all members
            if not points or outer_share > points[-1].share:
                points.append(Point(outer_share, function(share)))
        slope = function.slope * outer.slope / inner.slope if rises else 0
        found[group] = BandwidthFunction(tuple(points), slope)
    return found
