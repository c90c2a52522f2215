"""Curves as text: columns of block elements. They need no colours to be told apart, since each
curve has rows of its own."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

from vnic.cli.curves import Curve, Recorded
from vnic.cli.plot_svg import clock
from vnic.cli.scale import scale_to, time_ticks

BLOCKS = " \N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}" \
    "\N{LOWER HALF BLOCK}\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}" \
    "\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"  # fmt: skip
PLAIN = " .:-=+*%#"  # where the terminal has no block elements
GAP, BAR = "\N{MIDDLE DOT}", "\N{BOX DRAWINGS LIGHT VERTICAL}"  # GAP: nothing was measured
COLOURS = {"rate": "36", "delay": "33", "drops": "31", "lost": "35"}
SIDE = 18  # columns at the left of a chart
TICKS_EACH = 16  # columns for each time below the chart


def has_blocks() -> bool:
    """Whether what is written can have block elements."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeError):
        return False
    return True


def has_colours() -> bool:
    """See https://no-color.org."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and sys.stdout.isatty()


def columns_of(width: int) -> int:
    """The columns of a chart in a terminal of this width."""
    return max(width - SIDE, 10)


def draw_text(recorded: Recorded, width: int, *, blocks: bool = True, colours: bool = False) -> str:
    """Rate, delay and drops of each curve below each other, with the time below the last one."""
    columns = columns_of(width)
    rows = {1: 6, 2: 3, 3: 2}.get(len(recorded.curves), 1)
    lines = []
    for curve in recorded.curves:
        head = curve.label + (" (gone)" if curve.ended is not None else "")
        lines.append(f"{head}  {curve.asked}".rstrip()[:width])
        for name, unit, values, prefixes in _charts(curve):
            found = chart(
                name, unit, resampled(values, recorded.bounds, columns), rows,
                prefixes=prefixes, blocks=blocks,
            )  # fmt: skip
            code = COLOURS[name] if colours else ""
            lines += [
                f"{side}\033[{code}m{drawn}\033[0m" if code else f"{side}{drawn}"
                for side, drawn in found
            ]
        lines.append("")
    return "\n".join(
        [*lines[:-1], *_marked(recorded, columns), _times(recorded.bounds, columns), ""]
    )


def _charts(
    curve: Curve,
) -> list[tuple[str, str, Sequence[float | None], bool]]:
    found: list[tuple[str, str, Sequence[float | None], bool]] = [
        ("rate", "bit/s", curve.rate_bps, True),
        ("delay", "ms", curve.delay_ms, False),
    ]
    for name, rates in (("drops", curve.drops), ("lost", curve.lost)):
        if name == "drops" or any(rates):
            found.append((name, "/s", rates, True))
    return found


def chart(
    name: str,
    unit: str,
    values: Sequence[float | None],
    rows: int,
    *,
    prefixes: bool = True,
    blocks: bool = True,
) -> list[tuple[str, str]]:
    """Rows of a chart, each with what stands at its left: in the first one the name and the axis'
    highest number. One row where nothing is above 0."""
    levels = BLOCKS if blocks else PLAIN
    gap, bar = (GAP, BAR) if blocks else (" ", "|")
    highest = max((each for each in values if each is not None), default=0.0)
    rows = rows if highest > 0 else 1
    scale = scale_to(highest, unit, prefixes=prefixes)
    found = []
    for row in range(rows):
        label = name if row == 0 else ""
        number = "0" if row == rows - 1 else ""
        if row == 0 and highest > 0:
            number = f"{scale.text(scale.most)} {scale.unit}"
        drawn = "".join(
            (gap if row == rows - 1 else " ")
            if value is None
            else _cell(value / scale.most, row, rows, levels)
            for value in values
        )
        found.append((f"{label:6}{number:>11}{bar}", drawn.rstrip()))
    return found


def _cell(share: float, row: int, rows: int, levels: str) -> str:
    """The part of a column that is in a row, from above. What is above 0 shows in the last row."""
    eighths = share * rows * 8 - (rows - 1 - row) * 8
    if row == rows - 1 and share > 0:
        eighths = max(eighths, 1)
    return levels[min(max(round(eighths), 0), 8)]


def resampled(
    values: Sequence[float | None], bounds: Sequence[float], columns: int
) -> list[float | None]:
    """The means over as many equal parts of the time as there are columns."""
    begin, span = bounds[0], bounds[-1] - bounds[0]
    found: list[float | None] = []
    at = 0
    for column in range(columns):
        left, right = begin + span * column / columns, begin + span * (column + 1) / columns
        while at + 1 < len(values) and bounds[at + 1] <= left:
            at += 1
        total = weight = 0.0
        here = at
        while here < len(values) and bounds[here] < right:
            value = values[here]
            overlap = min(bounds[here + 1], right) - max(bounds[here], left)
            if value is not None and overlap > 0:
                total, weight = total + value * overlap, weight + overlap
            here += 1
        found.append(total / weight if weight > 0 else None)
    return found


def sparkline(
    values: Sequence[float | None], highest: float | None = None, *, blocks: bool = True
) -> str:
    """A row of block elements. highest: what fills one; default: the highest value."""
    levels = BLOCKS if blocks else PLAIN
    most = highest or max((each for each in values if each is not None), default=0.0)
    return "".join(
        " "
        if not each or most <= 0 or math.isnan(each)
        else _cell(min(each / most, 1), 0, 1, levels)
        for each in values
    )


def _marked(recorded: Recorded, columns: int) -> list[str]:
    """A row with the numbers of the scenario's steps at the columns where they began."""
    if not recorded.marks:
        return []
    line = list("steps".ljust(SIDE + columns))
    begin, end = recorded.bounds[0], recorded.bounds[-1]
    for mark in recorded.marks:
        place = SIDE + min(int((mark.at - begin) / (end - begin) * columns), columns - 1)
        text = str(mark.number)[: len(line) - place]
        line[place : place + len(text)] = text
    return ["".join(line).rstrip()]


def _times(bounds: Sequence[float], columns: int) -> str:
    """Times of the day below the columns that they are at."""
    line = [" "] * (SIDE + columns)
    begin, end = bounds[0], bounds[-1]
    for at in time_ticks(begin, end, max(columns // TICKS_EACH, 1)):
        text = clock(at)
        place = SIDE + round((at - begin) / (end - begin) * columns)
        place = min(max(place, SIDE), len(line) - len(text))
        line[place : place + len(text)] = text
    return "".join(line).rstrip()
