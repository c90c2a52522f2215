"""What `vnic top` shows, and what its keys do; without a terminal, see top_screen.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vnic.cli.plot_text import sparkline
from vnic.cli.top_rows import KINDS, SORTS, Row, ordered

VIEWS = ("all", *KINDS)
TITLES = {"line": "LINE", "class": "CLASS", "nic": "NIC"}
COUNTED = {"line": "lines", "class": "classes", "nic": "NICs"}
LEAST = 30, 6  # columns and lines that there is a table in
NAME, PAST = 18, 10  # columns of a name; of the least sparkline
COLUMNS = (  # name, columns
    ("rate", 8), ("second", 8), ("packets", 7), ("queue", 7), ("delay", 7), ("drops", 7),
)  # fmt: skip
HEADS = {
    "rate": "BIT/S", "packets": "PKT/S", "queue": "QUEUE", "delay": "DELAY", "drops": "DROP/S",
}  # fmt: skip
SECONDS = {"line": "ASKED", "class": "", "nic": "IN"}
KEYS = "q quit  p pause  s sort  r reverse  / filter  Tab view  e rate  ? help"
HELP = (
    "up, down, j, k    select a row; PgUp, PgDn, Home, End",
    "Tab               all, lines, classes or NICs",
    "s, r              sort by the next column; the other way round",
    "/                 show rows whose name has a text; Esc ends it",
    "e, Enter          change the rate of the selected line, or of what the selected",
    "                  NIC sends, as `vnic shape set` does",
    "p, space          pause",
    "q, Ctrl-C         quit",
    "",
    "BIT/S of a line with a rate is what the rate counts; of a NIC it is what its",
    "container sends, and IN what it receives. DELAY is the mean wait in queues.",
    "All are means of the last second; the curve is the last minute.",
)


class Part(NamedTuple):
    """A piece of a line of the screen. style: "", "bold", "reverse", "dim" or "alarm"."""

    text: str
    style: str = ""


Line = list[Part]


@dataclass
class View:
    """What the user has chosen. mode: what keys mean: "" (a table), "filter" or "rate" (a text is
    typed) or "help"."""

    instance: str = "default"
    sort: str = "rate"
    reverse: bool = False
    view: str = "all"
    filter: str = ""
    paused: bool = False
    mode: str = ""
    typed: str = ""
    message: str = ""
    selected: tuple[str, str] | None = None
    offset: int = 0
    page: int = 1  # rows that were shown
    clock: str = ""
    rows: list[Row] = field(default_factory=list)

    def shown(self) -> list[Row]:
        """The rows that the user wants to see, in their order."""
        found = [
            row
            for row in self.rows
            if self.view in ("all", row.kind) and self.filter.lower() in row.name.lower()
        ]
        return ordered(found, self.sort, reverse=self.reverse)

    # -- keys --------------------------------------------------------------------------------------

    def press(self, key: str) -> str:
        """Does what a key means: a character, or a name such as "down". Returns "quit", "rate" (the
        typed rate is to be set for `line`), or ""."""
        if self.mode in ("filter", "rate"):
            return self._type(key)
        if self.mode == "help":
            self.mode = ""
            return ""
        self.message = ""
        match key:
            case "q":
                return "quit"
            case "p" | " ":
                self.paused = not self.paused
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            case "r":
                self.reverse = not self.reverse
            case "tab":
                self.view = VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)]
            case "?" | "h":
                self.mode = "help"
            case "/":
                self.mode, self.typed = "filter", self.filter
            case "esc":
                self.filter = ""
            case "e" | "enter":
                self._begin_rate()
            case _:
                self._move(key)
        return ""

    def _type(self, key: str) -> str:
        done = ""
        if key == "enter":
            done = self.mode if self.mode == "rate" and self.typed.strip() else ""
            self.mode = ""
        elif key == "esc":
            self.filter = "" if self.mode == "filter" else self.filter
            self.mode = ""
            return ""
        elif key == "backspace":
            self.typed = self.typed[:-1]
        elif len(key) == 1 and key.isprintable() and len(self.typed) < 60:
            self.typed += key
        if self.mode == "filter":
            self.filter = self.typed
        return done

    @property
    def line(self) -> str:
        """The line whose rate is changed: the selected one, or that of all that a NIC sends."""
        kind, name = self.selected or ("", "")
        return name if kind == "line" else f"{name} -> any"

    def _begin_rate(self) -> None:
        shown = {row.key for row in self.shown()}  # what a filter hides is not meant
        kind = self.selected[0] if self.selected in shown and self.selected is not None else ""
        if kind in ("line", "nic"):
            self.mode, self.typed = "rate", ""
        else:
            self.message = "select a line or a NIC first: a class has its numbers in the policy"

    def _move(self, key: str) -> None:
        steps = {"down": 1, "j": 1, "up": -1, "k": -1, "pgdn": self.page, "pgup": -self.page,
                 "end": 1 << 30, "home": -(1 << 30)}  # fmt: skip
        keys = [row.key for row in self.shown()]
        if key in steps and keys:
            if self.selected in keys:
                at = keys.index(self.selected) + steps[key]
            else:
                at = len(keys) - 1 if key == "end" else 0
            self.selected = keys[min(max(at, 0), len(keys) - 1)]

    # -- the picture -------------------------------------------------------------------------------

    def visible(self, height: int) -> list[Row]:
        """The rows for a screen of this height, scrolled so that the selected one is among them."""
        rows = self.shown()
        heads = len({row.kind for row in rows})
        self.page = max(height - 2 - 2 * heads, 1)
        keys = [row.key for row in rows]
        if self.selected in keys:
            at = keys.index(self.selected)
            self.offset = min(max(self.offset, at - self.page + 1), at)
        self.offset = min(max(self.offset, 0), max(len(rows) - self.page, 0))
        return rows[self.offset : self.offset + self.page]

    def draw(self, width: int, height: int, *, blocks: bool = True) -> list[Line]:
        """The lines of the screen, none wider than it."""
        if width < LEAST[0] or height < LEAST[1]:
            return [[Part("too small"[:width])]][:height]
        lines = [self._title(width)]
        if self.mode == "help":
            lines += [[Part(text[:width])] for text in ("", *HELP)]
        else:
            rows = self.visible(height)
            lines += table(rows, width, sort=self.sort, selected=self.selected, blocks=blocks)
            if not rows:
                lines.append([Part("nothing to show"[:width], "dim")])
        lines = lines[: height - 1]
        lines += [[]] * (height - 1 - len(lines))
        return [*lines, self._status(width)]

    def _title(self, width: int) -> Line:
        count = {kind: sum(row.kind == kind for row in self.rows) for kind in KINDS}
        parts = [f"vnic top, {self.instance}", self.clock]
        parts += ["PAUSED"] if self.paused else []
        parts.append(f"by {self.sort}{', reversed' if self.reverse else ''}")
        parts += [f"filter {self.filter!r}"] if self.filter else []
        parts += [f"{count[kind]} {COUNTED[kind]}" for kind in KINDS if count[kind]]
        return [Part("  ".join(filter(None, parts))[:width], "bold")]

    def _status(self, width: int) -> Line:
        if self.mode == "filter":
            return [Part(f"show names with: {self.typed}_"[-width:], "bold")]
        if self.mode == "rate":
            text = f"rate of {self.line}, such as 10mbit or none: {self.typed}_"
            return [Part(text[-width:], "bold")]
        return [Part((self.message or KEYS)[:width], "bold" if self.message else "dim")]


def table(
    rows: Sequence[Row],
    width: int,
    *,
    sort: str = "",
    selected: tuple[str, str] | None = None,
    blocks: bool = True,
) -> list[Line]:
    """Rows under the heads of their kinds."""
    columns = _columns(width)
    room = width - NAME - sum(wide for _, wide in columns)
    longest = max((len(row.name) for row in rows), default=0)
    name_wide = NAME + min(max(longest + 1 - NAME, 0), max(room - PAST, 0))
    past = max(width - name_wide - sum(wide for _, wide in columns) - 1, 0)
    lines: list[Line] = []
    before = ""
    for row in rows:
        if row.kind != before:
            lines += [[]] if before else []
            lines.append(_head(row.kind, columns, name_wide, width, sort))
            before = row.kind
        lines.append(_row(row, columns, name_wide, past, width, row.key == selected, blocks))
    return lines


def past_columns(width: int) -> int:
    """The most columns that a sparkline can have."""
    return max(width - NAME - sum(wide for _, wide in _columns(width)) - 1, 0)


def _columns(width: int) -> list[tuple[str, int]]:
    """The columns that there is room for, the first ones first."""
    found, left = [], width - NAME
    for name, wide in COLUMNS:
        if wide > left:
            break
        found.append((name, wide))
        left -= wide
    return found


def _head(
    kind: str, columns: Sequence[tuple[str, int]], name_wide: int, width: int, sort: str
) -> Line:
    text = f"{TITLES[kind]:{name_wide}}"
    for name, wide in columns:
        head = SECONDS[kind] if name == "second" else HEADS[name]
        text += f"{'*' + head if name == sort else head:>{wide}}"
    return [Part(f"{text} last 60 s"[:width].ljust(width), "reverse")]


def _row(
    row: Row,
    columns: Sequence[tuple[str, int]],
    name_wide: int,
    past: int,
    width: int,
    selected: bool,
    blocks: bool,
) -> Line:
    second = row.limit_bps if row.kind == "line" else row.in_bps
    cells = {
        "rate": short(row.rate_bps),
        "second": "" if row.kind == "class" else short(second),
        "packets": short(row.packets),
        "queue": short(row.queue_bytes),
        "delay": "-" if row.delay_ms is None else _milliseconds(row.delay_ms),
        "drops": short(row.drops),
    }
    name = row.name if len(row.name) < name_wide else f"{row.name[: name_wide - 2]}~"
    mark = "reverse" if selected else ""
    parts = [Part(f"{name:{name_wide}}", mark or "bold")]
    for column, wide in columns:
        alarm = column == "drops" and row.drops > 0
        parts.append(Part(f"{cells[column]:>{wide}}", mark or ("alarm" if alarm else "")))
    curve = sparkline(row.past_bps, row.limit_bps, blocks=blocks) if past else ""
    parts.append(Part(f" {curve:>{past}}"[: past + 1] if past else "", mark))
    return parts


def short(value: float | None) -> str:
    """At most three digits and a prefix: 9.98M; "-" for None."""
    if value is None:
        return "-"
    if value < 0.995:
        return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            return f"{value:.3g}{prefix}" if prefix or value % 1 else f"{value:.0f}"
        value /= 1000
    return ""


def _milliseconds(value: float) -> str:
    if value < 0.9995:
        return f"{value * 1000:.3g}us" if value else "0"
    return f"{value:.3g}ms" if value < 999.5 else f"{value / 1000:.3g}s"


def text_of(lines: Sequence[Line]) -> str:
    """Lines without their styles."""
    return "".join("".join(part.text for part in line).rstrip() + "\n" for line in lines)
