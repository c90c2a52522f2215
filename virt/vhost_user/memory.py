"""Guest memory as the front end describes it: which regions may be together, and whether a ring
lies in them. The bytes themselves are the device's affair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from virt.vhost_user.books import Region
from virt.vhost_user.messages import Area
from virt.vhost_user.protocol import Refused


def of_area(area: Area, role: str) -> Region:
    """The books' entry of an area."""
    return Region(area.guest_address, area.size, area.user_address, area.offset, role)


def area_of(region: Region) -> Area:
    """The area of an entry."""
    return Area(region.guest_address, region.size, region.user_address, region.offset)


def check_apart(name: str, areas: Sequence[Area]) -> None:
    """Raises Refused if two areas share an address: translation would depend on their order."""
    for what in ("guest_address", "user_address"):
        ordered = sorted(areas, key=lambda area: getattr(area, what))
        for one, other in pairwise(ordered):
            start, following = getattr(one, what), getattr(other, what)
            if start + one.size > following:
                kind = what.replace("_", " ")
                raise Refused(f"{name}: regions at {kind} {start:#x} and {following:#x} overlap")


def free_role(regions: Iterable[Region]) -> str:
    """A role that no region's descriptor has."""
    taken = {region.descriptor for region in regions}
    return next(
        role for role in (f"memory{index}" for index in range(len(taken) + 1)) if role not in taken
    )


def holds(regions: Iterable[Region], user_address: int, size: int) -> bool:
    """Whether one region has all of the bytes. Two that are neighbours do not count: they need not
    be neighbours where the device maps them."""
    return any(
        region.user_address <= user_address
        and user_address + size <= region.user_address + region.size
        for region in regions
    )
