"""Curves as an SVG picture, which needs nothing but itself, and a page around it.

Colours are in attributes, for programs that read no style sheets, and in a style sheet that
replaces them where the reader prefers dark pictures.
"""

from __future__ import annotations

import html
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vnic.cli.common import about
from vnic.cli.curves import Curve, Mark, Recorded
from vnic.cli.scale import Scale, scale_to, time_ticks

WIDTH, LEFT, RIGHT = 960, 62, 24
PANEL, GAP, TOP, LEGEND = 150, 46, 68, 20
CHARACTER = 7.2  # the width of one, about
TIME_TICKS = 8
LIMIT_SHOWN = 4  # a rate asked for is shown if it is not more than so many times what there was
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
# (light, dark); the first eight of the curves are distinct for people who are colour blind
INK = {
    "ground": ("#ffffff", "#14171c"),
    "text": ("#1f2430", "#e6e8ec"),
    "faint": ("#5c6573", "#9aa3af"),
    "grid": ("#e3e6ea", "#2c323b"),
    "c0": ("#0072b2", "#4aa8ff"),
    "c1": ("#d55e00", "#ff8a4c"),
    "c2": ("#009e73", "#2ec28a"),
    "c3": ("#b5518f", "#e79ac6"),
    "c4": ("#56a3d9", "#8fd3ff"),
    "c5": ("#b58900", "#f2c14e"),
    "c6": ("#6a4fb3", "#b39bff"),
    "c7": ("#666666", "#b0b0b0"),
}
CURVES_MOST = 8
ASKED_ROWS = 2  # of the legend, for what is asked of a curve


@dataclass(frozen=True)
class Line:
    """A line in a panel. style: "", "dashed" or "dotted"; name: of its colour."""

    values: Sequence[float | None]
    name: str
    style: str = ""
    filled: bool = False


@dataclass(frozen=True)
class Panel:
    """title: with {} for the unit."""

    title: str
    unit: str
    prefixes: bool
    bounds: Sequence[float]
    lines: list[Line]
    levels: list[tuple[float, str]]  # dashed lines across it, with the names of their colours


def draw_svg(recorded: Recorded, title: str, *, alone: bool = True) -> str:
    """The picture of at most CURVES_MOST curves. alone: a file of its own, with a background; else
    a part of a page, whose style sheet has STYLE."""
    panels = _panels(recorded)
    rows = legend_rows(recorded)
    height = TOP + len(panels) * (PANEL + GAP) + LEGEND * len(rows) + 8
    found = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="{html.escape(FONT)}" font-size="12" '
        f'role="img">',
        f"<title>{html.escape(title)}</title>",
    ]
    if alone:
        found += [
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height}" {_fill("ground")}/>',
        ]
    found.append(_text(LEFT, 24, title, "text", size=15, weight=600))
    found.append(_text(WIDTH - RIGHT, 24, _when(recorded.bounds), "faint", anchor="end"))
    for number, panel in enumerate(panels):
        top = TOP + number * (PANEL + GAP)
        found += _draw_panel(panel, top, recorded.marks, last=number + 1 == len(panels))
    found += _legend(rows, recorded, TOP + len(panels) * (PANEL + GAP))
    return "\n".join([*found, "</svg>", ""])


@dataclass(frozen=True)
class Row:
    """A row of the legend. curve: its number, at the beginning of what is said of it."""

    curve: int | None
    label: str
    text: str


def legend_rows(recorded: Recorded) -> list[Row]:
    """The curves with what is asked of them, then the scenario's steps."""
    labels = [_label(each) for each in recorded.curves]
    room = max(int((WIDTH - RIGHT - _asked_x(labels)) / CHARACTER), 20)
    rows = []
    for number, (curve, label) in enumerate(zip(recorded.curves, labels, strict=True)):
        asked = textwrap.wrap(
            curve.asked, room, max_lines=ASKED_ROWS, placeholder="\N{HORIZONTAL ELLIPSIS}"
        )
        rows += [Row(number, label, asked[0] if asked else "")]
        rows += [Row(None, "", each) for each in asked[1:]]
    whole = int((WIDTH - RIGHT - LEFT) / CHARACTER)
    rows += [
        Row(None, textwrap.shorten(f"step {each.number}: {each.text}", whole), "")
        for each in recorded.marks
    ]
    return rows


def _label(curve: Curve) -> str:
    return curve.label + (" (gone)" if curve.ended is not None else "")


def _asked_x(labels: Sequence[str]) -> float:
    return LEFT + 46 + CHARACTER * max(map(len, labels), default=0)


def _legend(rows: Sequence[Row], recorded: Recorded, top: float) -> Iterator[str]:
    asked_x = _asked_x([_label(each) for each in recorded.curves])
    for number, row in enumerate(rows):
        y = top + LEGEND * number
        if row.curve is not None:
            yield (
                f'<line x1="{LEFT}" x2="{LEFT + 22}" y1="{y - 4}" y2="{y - 4}" '
                f'{_stroke(f"c{row.curve}")} stroke-width="3"/>'
            )
            yield _text(LEFT + 30, y, row.label, "text")
        elif row.label:
            yield _text(LEFT, y, row.label, "faint")
        if row.text:
            yield _text(asked_x, y, row.text, "faint")


def _panels(recorded: Recorded) -> list[Panel]:
    curves, bounds = recorded.curves, recorded.bounds
    colours = [f"c{number}" for number in range(len(curves))]
    filled = len(curves) == 1
    highest = max((max(curve.rate_bps, default=0.0) for curve in curves), default=0.0)
    rates = [Line(each.rate_bps, c, filled=filled) for each, c in zip(curves, colours, strict=True)]
    levels = [
        (float(each.limit_bps), colour)
        for each, colour in zip(curves, colours, strict=True)
        if each.limit_bps and each.limit_bps <= LIMIT_SHOWN * highest
    ]
    delays = [
        Line(each.delay_ms, c, filled=filled) for each, c in zip(curves, colours, strict=True)
    ]
    # A drop is seldom: over the seconds there is something to see, over samples there are spikes.
    seconds, groups = by_second(bounds)
    drops = [
        Line(added_up(each.drops, bounds, groups), c, filled=filled)
        for each, c in zip(curves, colours, strict=True)
    ]
    drops += [
        Line(added_up(each.lost, bounds, groups), c, "dotted")
        for each, c in zip(curves, colours, strict=True)
        if any(each.lost)
    ]
    dashed = " (dashed: asked for)" if levels else ""
    dotted = " (dotted: lost, as asked)" if len(drops) > len(curves) else ""
    return [
        Panel("Rate, {}" + dashed, "bit/s", True, bounds, rates, levels),
        Panel("Delay in queues, {}", "ms", False, bounds, delays, []),
        Panel("Drops, {}" + dotted, "packets/s", True, seconds, drops, []),
    ]


def by_second(bounds: Sequence[float]) -> tuple[list[float], list[range]]:
    """Intervals put together to such of about a second: their bounds, and which are in each."""
    found, groups, first = [bounds[0]], [], 0
    for at in range(1, len(bounds)):
        if bounds[at] - bounds[first] >= 0.95 or at + 1 == len(bounds):
            found.append(bounds[at])
            groups.append(range(first, at))
            first = at
    return found, groups


def added_up(
    rates: Sequence[float], bounds: Sequence[float], groups: Sequence[range]
) -> list[float]:
    """The mean of rates over groups of intervals."""
    return [
        sum(rates[at] * (bounds[at + 1] - bounds[at]) for at in group)
        / max(bounds[group.stop] - bounds[group.start], 0.001)
        for group in groups
    ]


def _draw_panel(panel: Panel, top: float, marks: Sequence[Mark], *, last: bool) -> Iterator[str]:
    bounds = panel.bounds
    highest = [value for line in panel.lines for value in line.values if value is not None]
    highest += [level for level, _ in panel.levels]
    scale = scale_to(max(highest, default=0.0), panel.unit, prefixes=panel.prefixes)
    begin, end = bounds[0], bounds[-1]

    def x_of(at: float) -> float:
        return LEFT + (at - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return top + PANEL - value / scale.most * PANEL

    yield from _axes(scale, panel, top, x_of, y_of, last=last)
    title = panel.title.format(scale.unit)
    for mark in marks:
        x = x_of(mark.at)
        over = x > LEFT + CHARACTER * len(title) + 20  # beside the title
        yield (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 20 if over else top}" y2="{top + PANEL}" '
            f'{_stroke("faint")} stroke-dasharray="2 3"/>'
        )
        anchor = "end" if x > WIDTH - RIGHT - 60 else "start"
        yield _text(
            x - 5 if anchor == "end" else x + 5,
            top - 10 if over else top + PANEL - 6,
            f"step {mark.number}",
            "faint",
            anchor=anchor,
        )
    for level, name in panel.levels:
        y = y_of(level)
        yield (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'{_stroke(name)} stroke-dasharray="7 4" opacity="0.7"/>'
        )
    for line in panel.lines:
        for run in _runs(line.values):
            path = _steps(run, line.values, bounds, x_of, y_of)
            if line.filled:
                ends = x_of(bounds[run.stop]), x_of(bounds[run.start])
                area = f"{path}V{y_of(0):.1f}H{ends[1]:.1f}Z"
                yield f'<path d="{area}" {_fill(line.name)} fill-opacity="0.15"/>'
            dots = ' stroke-dasharray="1.5 3"' if line.style == "dotted" else ""
            yield (
                f'<path d="{path}" fill="none" {_stroke(line.name)} stroke-width="1.5" '
                f'stroke-linejoin="round"{dots}/>'
            )


def _axes(
    scale: Scale,
    panel: Panel,
    top: float,
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    *,
    last: bool,
) -> Iterator[str]:
    bounds = panel.bounds
    yield _text(LEFT, top - 10, panel.title.format(scale.unit), "text", weight=600)
    for value in scale.ticks:
        y = y_of(value)
        yield (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'{_stroke("faint" if value == 0 else "grid")} stroke-width="1"/>'
        )
        yield _text(LEFT - 8, y + 4, scale.text(value), "faint", anchor="end")
    for at in time_ticks(bounds[0], bounds[-1], TIME_TICKS):
        x = x_of(at)
        yield (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + PANEL + 4}" '
            f'{_stroke("grid")} stroke-width="1"/>'
        )
        if last:
            yield _text(x, top + PANEL + 18, clock(at), "faint", anchor="middle")


def _runs(values: Sequence[float | None]) -> Iterator[range]:
    """The intervals that follow each other and have values."""
    begin = 0
    for at, value in enumerate([*values, None]):
        if value is None:
            if at > begin:
                yield range(begin, at)
            begin = at + 1


def _steps(
    run: range,
    values: Sequence[float | None],
    bounds: Sequence[float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
) -> str:
    """A line that has each value from its interval's beginning to its end."""
    path = [f"M{x_of(bounds[run.start]):.1f},{y_of(values[run.start] or 0):.1f}"]
    for at in run:
        path.append(f"V{y_of(values[at] or 0):.1f}H{x_of(bounds[at + 1]):.1f}")
    return "".join(path)


def clock(at: float) -> str:
    """A time of the day: 10:20:30."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _when(bounds: Sequence[float]) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(bounds[-1]))
    return f"{day} {clock(bounds[0])} to {clock(bounds[-1])}"


def _fill(name: str) -> str:
    return f'class="f-{name}" fill="{INK[name][0]}"'


def _stroke(name: str) -> str:
    return f'class="s-{name}" stroke="{INK[name][0]}"'


def _text(
    x: float,
    y: float,
    text: str,
    name: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
) -> str:
    more = f' font-size="{size}"' if size != 12 else ""
    more += f' font-weight="{weight}"' if weight != 400 else ""
    more += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" {_fill(name)}{more}>{html.escape(text)}</text>'


def _style(which: int) -> str:
    return "".join(
        f".f-{name}{{fill:{colours[which]}}}.s-{name}{{stroke:{colours[which]}}}"
        for name, colours in INK.items()
    )


STYLE = f"{_style(0)}@media (prefers-color-scheme: dark){{{_style(1)}}}"


# -- the page --------------------------------------------------------------------------------------


def draw_page(recorded: Recorded, title: str) -> str:
    """A page with the picture and a table, which loads nothing else."""
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in summary(recorded)
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in SUMMARY)
    return PAGE.format(
        title=html.escape(title),
        style=f"{PAGE_STYLE}{STYLE}",
        picture=draw_svg(recorded, title, alone=False),
        head=head,
        rows=rows,
    )


SUMMARY = (
    "",
    "asked for",
    "mean rate",
    "highest rate",
    "mean delay",
    "longest delay",
    "dropped",
    "lost",
)


def summary(recorded: Recorded) -> list[list[str]]:
    """A row of SUMMARY for each curve. Delays are those of intervals: means of what left queues."""
    found = []
    for curve in recorded.curves:
        seconds, total_s = recorded.seconds, sum(recorded.seconds)
        delays = [each for each in curve.delay_ms if each is not None]
        found.append([
            curve.label,
            curve.asked or "-",
            about(8 * curve.octets / total_s, "bit/s"),
            about(max(curve.rate_bps), "bit/s"),
            f"{sum(delays) / len(delays):.3g} ms" if delays else "-",
            f"{max(delays):.3g} ms" if delays else "-",
            *(
                f"{sum(rate * long for rate, long in zip(rates, seconds, strict=True)):.0f}"
                for rates in (curve.drops, curve.lost)
            ),
        ])  # fmt: skip
    return found


PAGE_STYLE = (
    "body{margin:2rem auto;max-width:60rem;padding:0 1rem;font:14px/1.4 system-ui,sans-serif;"
    "background:#fff;color:#1f2430}svg{width:100%;height:auto}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #8884}"
    "th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}"
    "@media (prefers-color-scheme: dark){body{background:#14171c;color:#e6e8ec}}"
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{picture}
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""
