"""WaterFill (BwE, section 3.3, figure 7): divides a bandwidth among demands, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from shaping.shares.function import Number


class Filling(NamedTuple):
    """level: what each gets whose demand is not met; None: all are. allocations: in the order of
    the demands. bonus: what is left, of which each may have a part in proportion to its
    allocation."""

    level: Number | None
    allocations: list[Number]
    bonus: Number


def water_fill(amount: Number, demands: Sequence[Number]) -> Filling:
    """Each gets its demand, but none more than a level that is the same for all and as high as the
    amount allows."""
    left, level = amount, None
    ascending = sorted(demands)
    for number, demand in enumerate(ascending):
        even = (
            left / (len(ascending) - number)
            if isinstance(left, float)
            else (Fraction(left) / (len(ascending) - number))
        )
        if demand > even:
            level = even
            break
        left -= demand
    allocations = list(demands) if level is None else [min(each, level) for each in demands]
    return Filling(level, allocations, left if level is None else 0)
