"""The rows of `vnic top`: NICs, lines and classes with what they do now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vnic.cli.curves import Curve, recorded

if TYPE_CHECKING:
    from vnic.api.client import Client

NOW_MS = 1000  # what `now` is the mean of
LAST_MS = 60_000
KINDS = ("line", "class", "nic")


@dataclass
class Row:
    """rate_bps  of a NIC what its container sends
    in_bps    of a NIC what its container receives
    limit_bps  of a line: the rate asked for
    delay_ms  in queues; of a NIC in those of the slower direction
    past_bps  over the last minute, of a NIC in both directions; empty: not asked
    """

    kind: str
    name: str
    rate_bps: float = 0.0
    in_bps: float | None = None
    limit_bps: float | None = None
    packets: float = 0.0
    queue_bytes: int = 0
    delay_ms: float | None = None
    drops: float = 0.0
    lost: float = 0.0
    asked: str = ""
    past_bps: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "name": self.name,
            "rate_bps": round(self.rate_bps),
        }
        if self.kind == "nic":
            found["in_bps"] = round(self.in_bps or 0)
        if self.kind == "line":
            found |= {"asked": self.asked, "limit_bps": self.limit_bps, "lost": round(self.lost, 3)}
        return found | {
            "packets": round(self.packets, 3),
            "queue_bytes": self.queue_bytes,
            "delay_ms": None if self.delay_ms is None else round(self.delay_ms, 6),
            "drops": round(self.drops, 3),
        }


def rows_now(client: Client) -> list[Row]:
    """Everything that is recorded now. Raises VnicError."""
    found = recorded(client, None, last_ms=NOW_MS, step_ms=NOW_MS)
    rows: dict[tuple[str, str], Row] = {}
    for curve in found.curves:
        if curve.ended is None:
            row = rows.setdefault((curve.kind, curve.name), Row(curve.kind, curve.name))
            if found.bounds:
                _add(row, curve)
            row.asked, row.limit_bps = curve.asked, curve.limit_bps
            if curve.kind == "nic" and row.in_bps is None:
                row.in_bps = 0.0
    return sorted(rows.values(), key=lambda row: KINDS.index(row.kind))


def _add(row: Row, curve: Curve) -> None:
    """Adds what a curve had in its last interval."""
    rate_bps, delay_ms = curve.rate_bps[-1], curve.delay_ms[-1]
    if curve.way == "ingress":
        row.in_bps = rate_bps
    else:
        row.rate_bps = rate_bps
    row.packets += curve.packets[-1]
    row.queue_bytes += curve.queue_bytes[-1]
    row.drops += curve.drops[-1]
    row.lost += curve.lost[-1]
    if delay_ms is not None:
        row.delay_ms = max(delay_ms, row.delay_ms or 0.0)


def add_past(client: Client, rows: Sequence[Row], columns: int) -> None:
    """Gives rows the rates of the last minute, in at most so many steps. Raises VnicError."""
    if not rows or columns < 1:
        return
    step_ms = -(-LAST_MS // columns // 100) * 100
    names = sorted({row.name for row in rows})
    found = recorded(client, names, last_ms=LAST_MS, step_ms=step_ms)
    past: dict[tuple[str, str], list[float]] = {}
    for curve in found.curves:
        before = past.setdefault((curve.kind, curve.name), [0.0] * len(curve.rate_bps))
        past[curve.kind, curve.name] = [a + b for a, b in zip(before, curve.rate_bps, strict=True)]
    for row in rows:
        row.past_bps = past.get(row.key, [])[-columns:]


SORTS = ("name", "rate", "packets", "queue", "delay", "drops")


def ordered(rows: Iterable[Row], sort: str, *, reverse: bool = False) -> list[Row]:
    """Rows by kind, and within it the highest first, or by name. reverse: the other way round."""
    value: Callable[[Row], float] = {
        "name": lambda row: 0,
        "rate": lambda row: row.rate_bps + (row.in_bps or 0),
        "packets": lambda row: row.packets,
        "queue": lambda row: row.queue_bytes,
        "delay": lambda row: row.delay_ms or 0,
        "drops": lambda row: row.drops,
    }[sort]
    found = sorted(rows, key=lambda row: (-value(row), row.name))
    if reverse:
        found.reverse()
    return sorted(found, key=lambda row: KINDS.index(row.kind))
