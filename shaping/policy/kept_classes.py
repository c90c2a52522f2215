"""Whether classes have kept what their policy promises, by what their Scheduler counted.

In no window a class sends more than its ceiling, or that of a class around it, allows. In a window
in which it had packets all the time it sends at least its guarantee. It had them surely where it
sent and dropped fewer packets than waited at the beginning. Bounds are a few packets wide, as
packets are whole and each level of the tree is served packet by packet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from dataplane.units import format_rate
from shaping import settings
from shaping.class_settings import ClassSetting
from shaping.policy.figures import rate_text, time_text
from shaping.policy.kept import QUANTUM_NS, WINDOW_NS

PIECE_MOST_BYTES = 131_072  # of a GSO frame that a Scheduler sends
BURST_NS = 250_000  # of a Scheduler in a policy: credit after a pause

Row = Mapping[str, Any]  # of a class, as the handler `classes` has it


def asked_of(each: ClassSetting) -> dict[str, str]:
    """What a class is promised, by the names of settings."""
    if each.parent < 0:
        return {"rate": settings.rate_text(each.ceiling_bps)}
    said = {}
    if each.guarantee_bps:
        said["guarantee"] = format_rate(each.guarantee_bps)
    if each.ceiling_bps:
        said["ceiling"] = format_rate(each.ceiling_bps)
    if each.weight != 1:
        said["weight"] = str(each.weight)
    said["priority"] = str(each.priority)
    if each.queue is not None:
        said["queue"] = each.queue.discipline
    return said


@dataclass
class ClassWindows:
    """What a class sent in windows of WINDOW_NS that follow each other.

    longest_bytes     that the tree sends in one piece
    piece_ns          the time that this takes: a class that waited for pieces of others may make up
                      for that much
    busy              windows in which it had packets all the time
    least, most       bytes in a busy window, and in any
    why               what the first windows had that break its promises
    """

    setting: ClassSetting
    longest_bytes: int
    piece_ns: int
    busy: int = 0
    least: int | None = None
    most: int = 0
    why: dict[str, str] = field(default_factory=dict)
    _sent_bytes: int = 0
    _served: int = 0
    _waits: int = 0

    def note(self, start_ns: int, row: Row, active: int) -> None:
        """A window that began at `start_ns` has ended; the class has counted this much so far.
        active: classes of the tree that have sent anything so far."""
        sent, self._sent_bytes = row["sent_bytes"] - self._sent_bytes, row["sent_bytes"]
        total = row["sent_packets"] + sum(row["dropped"].values())
        served, self._served = total - self._served, total
        waited, self._waits = self._waits, row["waiting_packets"]
        self.most = max(self.most, sent)
        ceiling = self.setting.effective_bps
        waits_ns = (active + 1) * self.piece_ns if self.setting.path else 0
        if ceiling and (
            sent > _bytes(ceiling, WINDOW_NS + BURST_NS + waits_ns) + self.longest_bytes
        ):
            self._break(start_ns, sent, "at most", ceiling)
        if served >= waited:
            return
        self.busy += 1
        self.least = sent if self.least is None else min(self.least, sent)
        guarantee = min(self.setting.guarantee_bps, ceiling or self.setting.guarantee_bps)
        levels = self.setting.path.count("/") + 2
        if sent < _bytes(guarantee, WINDOW_NS) - levels * self.longest_bytes:
            self._break(start_ns, sent, "with packets waiting at least", guarantee)

    def _break(self, start_ns: int, sent: int, how: str, rate_bps: int) -> None:
        found = rate_text(sent * 8 * 10**9 / WINDOW_NS)
        self.why.setdefault(
            how,
            f"{found} in the {time_text(WINDOW_NS)} from {time_text(start_ns)} on, expected {how} "
            f"{rate_text(rate_bps)}",
        )

    def judged(self, name: str, row: Row, took_ns: int) -> dict[str, Any]:
        """The class as a row of a report. row: as it is now; took_ns: since all were 0."""
        why = list(self.why.values())
        if count := row["dropped"].get("over_memory"):
            why.append(f"{count} packets dropped: over_memory: a larger pool: helps")
        return {
            **row,
            "class": name,
            "asked": asked_of(self.setting),
            "mean_bps": row["sent_bytes"] * 8e9 / took_ns if took_ns else None,
            "busy_windows": self.busy,
            "least_busy_bps": None if self.least is None else self.least * 8e9 / WINDOW_NS,
            "most_bps": self.most * 8e9 / WINDOW_NS,
            "kept": not why,
            "why": why,
        }


def windows_of(setting: ClassSetting, rate_bps: int, frame_bytes: int) -> ClassWindows:
    """rate_bps: of the whole tree; 0: none. frame_bytes: of the longest frame that is no GSO frame,
    on the line."""
    if not rate_bps:
        return ClassWindows(setting, PIECE_MOST_BYTES, QUANTUM_NS)
    longest = max(frame_bytes, rate_bps * QUANTUM_NS // (8 * 10**9))
    return ClassWindows(setting, longest, math.ceil(longest * 8 * 10**9 / rate_bps))


def _bytes(rate_bps: int, time_ns: int) -> Fraction:
    return Fraction(rate_bps * time_ns, 8 * 10**9)
