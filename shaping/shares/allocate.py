"""Max-min fair allocation by bandwidth functions: of one link, and of several (BwE, sections 3.3
and 5.2)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

from shaping.shares.function import BandwidthFunction, Number, total

Group = TypeVar("Group", bound=Hashable)
Link = TypeVar("Link", bound=Hashable)


class Allocation(NamedTuple):
    """A group's fair share, infinite where nothing limits it but its own function; and its
    bandwidth."""

    share: Number
    bandwidth: Number


def divide(capacity: Number, functions: Mapping[Group, BandwidthFunction]) -> dict[Group, Number]:
    """Divides the capacity of one link: the bandwidth of each group at the one fair share at which
    all together use the capacity, or all that they want of it. Also de-aggregation (section 3.3):
    of what a parent got among its children."""
    share = fair_share(capacity, functions)
    return {group: function(share) for group, function in functions.items()}


def fair_share(capacity: Number, functions: Mapping[Group, BandwidthFunction]) -> Number:
    """The least fair share at which the groups use the capacity; infinite if they never do."""
    return total(functions.values()).share_for(capacity)


def divide_links(
    capacities: Mapping[Link, Number],
    groups: Mapping[Group, tuple[BandwidthFunction, Mapping[Link, Number]]],
) -> dict[Group, Allocation]:
    """Multipath fair allocation (MPFA, section 5.2): of several links. A group has a function, and
    for each link that it uses the part of its bandwidth that takes it.

    The link that is full at the least fair share freezes its groups there; then the others are
    computed anew with what these use, until no link is full.
    """
    found: dict[Group, Allocation] = {}
    members: dict[Link, list[Group]] = {link: [] for link in capacities}
    frozen: dict[Group, BandwidthFunction] = {}
    for group, (_, parts) in groups.items():
        for link, part in parts.items():
            if part:
                members[link].append(group)
    full_at = {link: _full_at(link, capacities, members, groups, frozen) for link in capacities}
    while full_at:
        bottleneck = min(full_at, key=full_at.__getitem__)
        share = full_at.pop(bottleneck)
        if share == math.inf:
            break
        touched: set[Link] = set()
        for group in members[bottleneck]:
            if group in frozen:
                continue
            function, parts = groups[group]
            frozen[group] = function.frozen_at(share)
            found[group] = Allocation(share, function(share))
            touched.update(parts)
        for link in touched & full_at.keys():
            full_at[link] = _full_at(link, capacities, members, groups, frozen)
    for group, (function, _) in groups.items():
        found.setdefault(group, Allocation(math.inf, function.limit))
    return {group: found[group] for group in groups}


def _full_at(
    link: Link,
    capacities: Mapping[Link, Number],
    members: Mapping[Link, list[Group]],
    groups: Mapping[Group, tuple[BandwidthFunction, Mapping[Link, Number]]],
    frozen: Mapping[Group, BandwidthFunction],
) -> Number:
    """The fair share at which a link is full."""
    return total(
        frozen.get(group, groups[group][0]).scaled(groups[group][1][link])
        for group in members[link]
    ).share_for(capacities[link])
