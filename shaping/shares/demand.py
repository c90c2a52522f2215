"""Estimates of what a group of flows wants (BwE, section 4.1)."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

WINDOW_NS = 120 * 10**9
SCALE = 1.1
LEAST_BPS = 10 * 10**6


@dataclass
class Demand:
    """The demand of a group: the most that it used within a window, and some more, so that it can
    grow; not less than a minimum.

    window_ns, scale, least_bps: as in BwE, 120 s, 1.1 and 10 Mbit/s.
    """

    window_ns: int = WINDOW_NS
    scale: float = SCALE
    least_bps: float = LEAST_BPS
    # Usages within the window, each less than those before it: the first one is the most.
    _usages: deque[tuple[int, float]] = field(default_factory=deque)

    def note(self, now_ns: int, used_bps: float) -> None:
        """Notes what was used up to now; times must not go back."""
        while self._usages and self._usages[-1][1] <= used_bps:
            self._usages.pop()
        self._usages.append((now_ns, used_bps))

    def estimate(self, now_ns: int) -> float:
        """The demand in bit/s."""
        while self._usages and self._usages[0][0] <= now_ns - self.window_ns:
            self._usages.popleft()
        most = self._usages[0][1] if self._usages else 0.0
        return max(most * self.scale, self.least_bps)


@dataclass
class DarkBandwidth:
    """What a link carries besides the known groups, smoothed; to be subtracted from its capacity.

    half_ns: the time in which a difference is halved.
    """

    half_ns: int = 10 * 10**9
    bps: float = 0.0
    _noted_ns: int | None = None

    def note(self, now_ns: int, link_bps: float, known_bps: float) -> None:
        """Notes what the link carried up to now, and the groups' part of it."""
        dark = max(link_bps - known_bps, 0.0)
        if self._noted_ns is None:
            self.bps = dark
        else:
            keep = math.exp2(-(now_ns - self._noted_ns) / self.half_ns)
            self.bps = keep * self.bps + (1 - keep) * dark
        self._noted_ns = now_ns
