"""Bandwidth functions (BwE, SIGCOMM'15, section 3.2): how much bandwidth a group of flows gets at a
fair share.

A fair share is a number without a unit. At the same fair share, all groups that compete have been
treated alike: what a group gets of it says its function, which is piece-wise linear and never
falls. Its slope is the group's weight, and a flat piece means that the group has enough for now.

Levels are ranges of fair shares: a group's pieces in the first level fill it before any group's
pieces in the second one begin, so that levels are strict priorities.

Numbers are Fractions, exact, or floats: all of a function are of the kind of its points. Floats
are 40 times as fast; their relative error stays below 1e-9 for 10,000 groups.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

Number = Fraction | float | int


class Point(NamedTuple):
    """A fair share, and the bandwidth at it."""

    share: Number
    bandwidth: Number


class Piece(NamedTuple):
    """A part of a group's pieces in a level: with this weight, until the group has `upto` in the
    level; None: without a bound, only as the last piece of the last level."""

    weight: Number
    upto: Number | None = None

    def as_floats(self) -> Piece:
        return Piece(float(self.weight), None if self.upto is None else float(self.upto))


class Level(NamedTuple):
    """A level: its name, and the fair share at which it ends; None: the last one, without an
    end."""

    name: str
    end: Number | None = None


@dataclass(frozen=True)
class BandwidthFunction:
    """A bandwidth function: linear between its points, which begin at (0, 0), and of the slope
    `slope` after the last one. Two points in a row have different shares."""

    points: tuple[Point, ...] = (Point(0, 0),)
    slope: Number = 0

    def __post_init__(self) -> None:
        if not self.points or self.points[0] != (0, 0) or self.slope < 0:
            raise ValueError("a bandwidth function begins at (0, 0) and never falls")
        for before, after in pairwise(self.points):
            if after.share <= before.share or after.bandwidth < before.bandwidth:
                raise ValueError(f"{after} cannot follow {before}")

    def __call__(self, share: Number) -> Number:
        """The bandwidth at a fair share, which may be infinite."""
        if share == math.inf:
            return self.limit
        at = bisect_right(self.points, share, key=lambda point: point.share) - 1
        first = self.points[at]
        return first.bandwidth + self._slope_after(at) * (share - first.share)

    @property
    def limit(self) -> Number:
        """The bandwidth at an infinite fair share; infinite for a function that goes on rising."""
        return math.inf if self.slope else self.points[-1].bandwidth

    @property
    def shares(self) -> list[Number]:
        """The shares of the points."""
        return [point.share for point in self.points]

    def share_for(self, bandwidth: Number) -> Number:
        """The least fair share at which there is this bandwidth; infinite if there is none."""
        at = bisect_left(self.points, bandwidth, key=lambda point: point.bandwidth)
        if at == 0:
            return self.points[0].share
        before = self.points[at - 1]
        slope = self._slope_after(at - 1)
        return before.share + _divided(bandwidth - before.bandwidth, slope) if slope else math.inf

    def capped(self, bandwidth: Number) -> BandwidthFunction:
        """The function, flat from this bandwidth on, such as a group's demand."""
        if self.limit <= bandwidth:
            return self
        end = self.share_for(bandwidth)
        kept = tuple(point for point in self.points if point.share < end)
        return BandwidthFunction((*kept, Point(end, bandwidth)) if end else kept or (Point(0, 0),))

    def scaled(self, factor: Number) -> BandwidthFunction:
        """The function times a factor, such as the part of a group's flows that takes a link."""
        points = tuple(Point(share, bandwidth * factor) for share, bandwidth in self.points)
        return BandwidthFunction(points, self.slope * factor)

    def frozen_at(self, share: Number) -> BandwidthFunction:
        """The function, flat from this share on."""
        if share == math.inf:
            return self
        kept = tuple(point for point in self.points if point.share < share)
        end = Point(share, self(share))
        return BandwidthFunction((*kept, end) if share else (Point(0, 0),))

    def as_floats(self) -> BandwidthFunction:
        """The function in floats; the function itself if it is."""
        if isinstance(self.slope, float) and isinstance(self.points[-1].bandwidth, float):
            return self
        points = tuple(Point(float(share), float(bandwidth)) for share, bandwidth in self.points)
        return BandwidthFunction(points, float(self.slope))

    def slopes(self) -> Iterator[tuple[Number, Number]]:
        """(share, slope from there on) at each point."""
        for at, point in enumerate(self.points):
            yield point.share, self._slope_after(at)

    def _slope_after(self, at: int) -> Number:
        if at == len(self.points) - 1:
            return self.slope
        before, after = self.points[at], self.points[at + 1]
        return _divided(after.bandwidth - before.bandwidth, after.share - before.share)


def _divided(a: Number, b: Number) -> Number:
    """a / b, exact for exact numbers."""
    return a / b if isinstance(a, float) or isinstance(b, float) else Fraction(a) / Fraction(b)


def total(functions: Iterable[BandwidthFunction]) -> BandwidthFunction:
    """The sum of functions: what they get together at the same fair share (section 3.3,
    aggregation)."""
    changes: dict[Number, Number] = {}
    last_slope: Number = 0
    for function in functions:
        before: Number = 0
        for share, after in function.slopes():
            if after != before:
                changes[share] = changes.get(share, 0) + after - before
                before = after
        last_slope += function.slope
    points = [Point(0, 0)]
    slope: Number = changes.pop(0, 0)
    for share in sorted(share for share, change in changes.items() if change):
        last = points[-1]
        points.append(Point(share, last.bandwidth + slope * (share - last.share)))
        slope += changes[share]
        if slope < 0:  # floats that nearly cancel out
            slope = 0
    # not what is left of the changes, which floats may not make 0
    return BandwidthFunction(tuple(points), last_slope)


def of_levels(
    pieces: dict[str, Sequence[Piece]], levels: Sequence[Level], demand: Number | None = None
) -> BandwidthFunction:
    """The function of a group with these pieces in each level (Table 1): from a level's begin on of
    the pieces' slopes, then flat to the level's end; flat for ever from the demand on. Raises
    ValueError for a level that ends before its pieces do."""
    points = [Point(0, 0)]
    slope: Number = 0
    begin: Number = 0
    for level in levels:
        base: Number = points[-1].bandwidth
        share: Number = begin
        if begin > points[-1].share:
            points.append(Point(begin, base))
        for piece in pieces.get(level.name, ()):
            if piece.upto is None:
                if level.end is not None:
                    raise ValueError(f"level {level.name} has an end, and a piece without one")
                slope = piece.weight
                break
            share += _divided(base + piece.upto - points[-1].bandwidth, piece.weight)
            points.append(Point(share, base + piece.upto))
        if level.end is None:
            break
        if share > level.end:
            raise ValueError(f"level {level.name} ends at {level.end}, its pieces at {share}")
        begin = level.end
    function = BandwidthFunction(tuple(points), slope)
    return function if demand is None else function.capped(demand)


def level_ends(groups: Iterable[dict[str, Sequence[Piece]]], names: Sequence[str]) -> list[Level]:
    """Levels that are just long enough for the pieces of all groups."""
    widths: dict[str, Number] = dict.fromkeys(names, 0)
    for pieces in groups:
        for name, own in pieces.items():
            width: Number = 0
            before: Number = 0
            for piece in own:
                if piece.upto is not None:
                    width += _divided(piece.upto - before, piece.weight)
                    before = piece.upto
            widths[name] = max(widths[name], width)
    levels: list[Level] = []
    end: Number = 0
    for name in names[:-1]:
        end += widths[name]
        levels.append(Level(name, end))
    return [*levels, Level(names[-1])]
