"""Whether a line has kept what its policy promises, by what its elements counted.

A rate is judged in windows: in none of them more is sent than the rate allows, and in those in
which packets waited all the time, not less. Both bounds are one packet wide, since packets are
whole. Shares of packets are judged by the bounds of loss_bounds.py, with a probability of 10^-6
that a promise that is kept is taken for broken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from shaping.loss_bounds import loss_bounds
from shaping.loss_model import Chain, random_chain
from shaping.policy.compile import queue_of
from shaping.policy.figures import line_bytes, percent_text, queue_ns, rate_text, time_text
from shaping.policy.places import Line
from shaping.policy.schema import DelayConfig
from shaping.settings import NO_MEMORY

WINDOW_NS = 100_000_000
QUANTUM_NS = 1_000_000  # a longer GSO frame is sent in pieces
DEVIATIONS = 4.9  # of a normal distribution: 10^-6
EXACT_NS = 1  # of rounding: a constant delay is exact to the nanosecond

RATED = ("Link", "TraceLink")

Counted = Mapping[str, Any]  # an element in Stats: type, counters, dropped


def steady_rate(line: Line) -> int:
    """The rate that a line has all the time; 0: none, or it varies, by a trace or a scenario."""
    return 0 if line.trace is not None or "rate" in line.variants else line.rate


@dataclass
class RateWindows:
    """What a Link sent in windows of WINDOW_NS that follow each other.

    longest_bytes     of one packet on the line
    busy              windows in which packets waited all the time
    least, most       bytes in a busy window, and in any
    broken            what the first window that breaks the rate's promise had; "" for none
    """

    rate_bps: int
    longest_bytes: int
    busy: int = 0
    least: int | None = None
    most: int = 0
    broken: str = ""
    _sent: int = 0
    _passed: int = 0
    _waits: bool = False

    @classmethod
    def of(cls, line: Line, frame_bytes: int) -> RateWindows:
        """Of a line with a steady rate. frame_bytes: of the longest frame that is not a GSO
        frame."""
        longest = line_bytes(frame_bytes, line.value("overhead"))
        return cls(line.rate, max(longest, line.rate * QUANTUM_NS // (8 * 10**9)))

    def note(self, start_ns: int, counters: Mapping[str, int]) -> None:
        """A window that began at `start_ns` has ended; the Link has counted this much so far."""
        sent, self._sent = counters["sent_bytes"] - self._sent, counters["sent_bytes"]
        waits, self._waits = self._waits, counters["queue_bytes"] > 0
        passed, self._passed = counters["passed"] - self._passed, counters["passed"]
        self.most = max(self.most, sent)
        allowed = Fraction(self.rate_bps * WINDOW_NS, 8 * 10**9)
        if sent > allowed + self.longest_bytes:
            self._break(start_ns, sent, "at most")
        # A packet that finds the line free is counted as passed.
        if waits and self._waits and not passed:
            self.busy += 1
            self.least = sent if self.least is None else min(self.least, sent)
            if sent < allowed - self.longest_bytes:
                self._break(start_ns, sent, "with packets waiting")

    def _break(self, start_ns: int, sent: int, how: str) -> None:
        found = rate_text(sent * 8 * 10**9 / WINDOW_NS)
        self.broken = self.broken or (
            f"{found} in the {time_text(WINDOW_NS)} from {time_text(start_ns)} on, expected {how} "
            f"{rate_text(self.rate_bps)} and one packet"
        )


@dataclass
class Kept:
    """What was measured of a line against what was asked for. why: how a promise was broken;
    empty: all are kept."""

    line: Line
    packets: int = 0
    rate: dict[str, float | int | None] | None = None
    queue: dict[str, int] | None = None
    delay: dict[str, float | int] | None = None
    shares: dict[str, dict[str, float | int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "line": str(self.line.place),
            "asked": {name: str(setting) for name, setting in self.line.settings.items()},
            "packets": self.packets,
            "rate": self.rate,
            "queue": self.queue,
            "delay": self.delay,
            "shares": self.shares,
            "dropped": self.dropped,
            "kept": not self.why,
            "why": self.why,
        }


def judge(
    line: Line, elements: Iterable[Counted], took_ns: int, windows: RateWindows | None
) -> Kept:
    """elements: the line's, as they are counted now; took_ns: since they were 0."""
    kept = Kept(line)
    for element in elements:
        for reason, count in element["dropped"].items():
            if count:
                kept.dropped[reason] = kept.dropped.get(reason, 0) + count
        if element["type"] in RATED:
            _judge_rate(kept, element["counters"], took_ns, windows)
            kept.packets = max(kept.packets, element["packets"])
        else:
            _judge_shares(kept, element["counters"])
            _judge_delay(kept, element["counters"])
            kept.packets = max(kept.packets, element["counters"]["wire_packets"])
    kept.why += [
        f"{count} packets dropped: {reason}: a larger pool: helps"
        for reason, count in kept.dropped.items()
        if reason in NO_MEMORY
    ]
    return kept


def _judge_rate(
    kept: Kept, counters: Mapping[str, int], took_ns: int, windows: RateWindows | None
) -> None:
    line, sent = kept.line, counters["sent_bytes"]
    kept.rate = {"mean_bps": sent * 8e9 / took_ns if took_ns else None}
    if windows is not None:
        kept.rate |= {
            "busy_windows": windows.busy,
            "least_busy_bps": None if windows.least is None else _bps(windows.least),
            "most_bps": _bps(windows.most),
        }
        if windows.broken:
            kept.why.append(windows.broken)
    packets = counters["passed"] + counters["delayed"]
    if not packets:
        return
    kept.queue = {
        "mean_ns": counters["sojourn_ns"] // packets,
        "max_ns": counters["sojourn_max_ns"],
    }
    if windows is None or queue_of(line).packets is not None:
        return  # a queue of packets has no bound in time
    # One packet is being sent when the queue is full.
    bound = queue_ns(line) + math.ceil(windows.longest_bytes * 8 * 10**9 / line.rate)
    if counters["sojourn_max_ns"] > bound:
        kept.why.append(
            f"a packet waited {time_text(counters['sojourn_max_ns'])} for the rate, expected at "
            f"most {time_text(bound)}"
        )


def _bps(window_bytes: int) -> float:
    return window_bytes * 8e9 / WINDOW_NS


class AskedShare(NamedTuple):
    """A share of its packets to which a line does something. counter: of its elements; exact:
    whether less breaks the promise, too."""

    setting: str
    counter: str
    chain: Chain | None
    exact: bool


def shares_of(line: Line) -> list[AskedShare]:
    """The shares that a line asks for."""
    asked = []
    if line.loss is not None:
        asked.append(AskedShare("loss", "lost", line.loss.chain, True))
    if (duplicate := line.value("duplicate")) is not None:
        asked.append(AskedShare("duplicate", "duplicated", random_chain(duplicate), True))
    # Of these, less is no broken promise: a packet may lack the part that is to be changed, and
    # a lost packet is neither changed nor late.
    if (corrupt := line.value("corrupt")) is not None:
        asked.append(AskedShare("corrupt", "corrupted", random_chain(corrupt.share), False))
    if (reorder := line.value("reorder")) is not None:
        asked.append(AskedShare("reorder", "reordered", random_chain(reorder.share), False))
    return asked


def mean_margin(delay: DelayConfig, count: int) -> tuple[float, bool]:
    """How far in ns the mean of `count` delays with jitter may be from the one that is asked for,
    and whether it may be longer than that besides: packets that wait for those before them, and
    delays that would be below 0, make it so. The mean of correlated delays varies more."""
    jitter, correlation = int(delay.jitter or 0), float(delay.correlation or 0)
    spread = math.sqrt((1 + correlation) / (1 - correlation) / count)
    deviation = jitter / math.sqrt(3) if delay.shape == "uniform" else jitter
    longer = delay.order != "any" or jitter > delay.mean or delay.shape != "uniform"
    return DEVIATIONS * deviation * spread + EXACT_NS, longer


def _judge_shares(kept: Kept, counters: Mapping[str, int]) -> None:
    line, packets = kept.line, counters["wire_packets"]
    for name, counter, chain, exact in shares_of(line):
        count = counters[counter]
        if name in line.variants:  # its packets had several shares
            share = count / packets if packets else 0.0
            kept.shares[name] = {"packets": count, "share": share}
            continue
        least, most = loss_bounds(chain, packets)
        least = least if exact else 0
        share = count / packets if packets else 0.0
        kept.shares[name] = {"packets": count, "share": share, "least": least, "most": most}
        if not least <= count <= most:
            wanted = 0.0 if chain is None else chain.share
            kept.why.append(
                f"{count} of {packets} packets {counter} ({percent_text(share)}), expected "
                f"{percent_text(wanted)}, {least} to {most} of them"
            )


def _judge_delay(kept: Kept, counters: Mapping[str, int]) -> None:
    delay, count = kept.line.delay, counters["delayed"]
    if delay is None or not count:
        return
    mean, longest = counters["delay_ns"] / count, counters["delay_max_ns"]
    kept.delay = {"mean_ns": mean, "max_ns": longest}
    if "delay" in kept.line.variants:
        return
    if not delay.jitter:
        if (mean, longest) != (delay.mean, delay.mean):
            kept.why.append(
                f"delays of {time_text(mean)} on average, {time_text(longest)} at most, expected "
                f"{time_text(delay.mean)} each"
            )
        return
    uncertain, longer = mean_margin(delay, count)
    if mean < delay.mean - uncertain or (not longer and mean > delay.mean + uncertain):
        kept.why.append(
            f"a mean delay of {time_text(mean)}, expected {time_text(delay.mean)} within "
            f"{time_text(uncertain)}"
        )
