"""A queue without classes of tc as `queue` of a leaf: what a policy says, and what it cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataplane.units import format_time, parse_time
from shaping.class_settings import RTT_LEAST_NS
from shaping.imports.notes import Notes, unsupported

# What a queue of a policy can have.
BOUNDS = {"packets": (1, 1 << 20), "flows": (1, 1 << 16), "quantum": (64, 1 << 16)}
TIMES_NS = {"target": 1000, "interval": 1000, "rtt": RTT_LEAST_NS}  # the least ones
HOUR_NS = 3600 * 10**9


@dataclass
class Leaf:
    """settings: of `queue`, without the discipline; left_out: options without a counterpart; rate
    and overhead (bytes, least length, cells): cake's."""

    discipline: str
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    rate: int = 0
    overhead: tuple[int, int, str] | None = None

    def queue(self, kind: str, where: str, notes: Notes) -> str | dict[str, Any]:
        """The `queue` of a leaf."""
        for each in self.left_out:
            notes.note(where, f"{kind} {each}: left out")
        for name, (least, most) in BOUNDS.items():
            if name in self.settings and not least <= self.settings[name] <= most:
                raise unsupported(
                    f"{kind} {name} {self.settings[name]}", f"expected {least} to {most}"
                )
        for name, least_ns in TIMES_NS.items():
            if name in self.settings and not least_ns <= parse_time(self.settings[name]) <= HOUR_NS:
                raise unsupported(
                    f"{kind} {name} {self.settings[name]}",
                    f"expected {format_time(least_ns)} to 1h",
                )
        if kind == "sfq":
            notes.note(where, "sfq: becomes fq, which tells flows by addresses, protocol and ports")
        if not self.settings:
            return self.discipline
        return {"discipline": self.discipline, **self.settings}
