"""Axes: the numbers at their ticks, and the units."""

from __future__ import annotations

import math
from dataclasses import dataclass

PREFIXES = ("", "k", "M", "G", "T")
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """An axis from 0 to `most`, with a tick each `step`. unit: of the ticks' texts, whose numbers
    are divided by `divisor`."""

    most: float
    step: float
    unit: str
    divisor: float

    @property
    def ticks(self) -> list[float]:
        return [self.step * number for number in range(round(self.most / self.step) + 1)]

    def text(self, value: float) -> str:
        return f"{value / self.divisor:.3g}"


def scale_to(most: float, unit: str, *, ticks: int = 4, prefixes: bool = True) -> Scale:
    """The axis for values from 0 to `most`, with at most about `ticks` ticks besides 0. prefixes:
    whether the unit takes k, M and so on."""
    if not math.isfinite(most) or most <= 0:
        most = 1.0
    raw = most / ticks
    power = 10 ** math.floor(math.log10(raw))
    step = next(each * power for each in STEPS if each * power >= raw * (1 - 1e-9))
    top = step * math.ceil(most / step - 1e-9)
    place = 0
    while prefixes and place + 1 < len(PREFIXES) and top >= 1000 ** (place + 1):
        place += 1
    return Scale(top, step, f"{PREFIXES[place]}{unit}", 1000.0**place)


def time_ticks(begin: float, end: float, most: int) -> list[float]:
    """Whole seconds between two times, evenly spaced, at most `most` of them."""
    for step in (1, 2, 5, 10, 15, 20, 30, 60):
        first = -(-math.ceil(begin) // step) * step
        found = [float(each) for each in range(first, math.floor(end) + 1, step)]
        if len(found) <= most:
            return found
    return []
