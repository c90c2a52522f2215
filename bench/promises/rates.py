"""Rates: exact in virtual time; live within 0.1 % over some seconds and within 1 % in every 100 ms, with 1, 10 and 1000 lines,
beside the kernel's tbf and htb in the same rounds. A window's bound has the time added for which the machine let a ready process of the
same priority wait meanwhile: the bench measures it with a thread of its own."""

import math
from fractions import Fraction
from functools import partial

import numpy as np

from bench.promises import Absent, Outcome, Promise, Run
from bench.promises._live import lives
from bench.promises._replays import numbered
from bench.shaping import LINES, ONE_LINE, TOTAL_BPS
from dataplane.units import format_rate

SUBJECT = "Rates"
WHOLE_PERCENT, WINDOW_PERCENT = 0.1, 1.0
STALL_OF = {"window_error_percent": "stall_percent", "window_error_p99_percent": "stall_p99_percent"}
PEERS = ("tbf", "htb")
VIRTUAL_PACKETS = 20_000
RATES = ("10mbit", "1.6mbit", "333.333kbit", "1gbit")


def _virtual(rate: str, run: Run) -> Outcome:
    """Each departure is that of t(n) = max(t(n-1), a(n)) + length / rate, as fractions."""
    from dataplane.units import parse_rate

    bps, size, gap_ns = parse_rate(rate), 1234, 777
    numbers, delays = numbered(f"{{rate: {rate}, queue: {{packets: 1048576}}}}", VIRTUAL_PACKETS, gap_ns, size)
    at, wrong = Fraction(0), 0
    for number in range(VIRTUAL_PACKETS):
        at = max(at, Fraction(number * gap_ns)) + Fraction(size * 8 * 10**9, bps)
        there = number < len(numbers) and numbers[number] == number
        wrong += not there or number * gap_ns + int(delays[number]) != math.ceil(at)
    measured = f"{wrong} of {VIRTUAL_PACKETS} departures differ"
    return Outcome(
        f"length / {rate} for each packet",
        measured,
        "exact to 1 ns",
        wrong == 0 and len(numbers) == VIRTUAL_PACKETS,
        {"differ": wrong},
    )


def _windows(run: Run) -> Outcome:
    """In each window of 100 ms, wherever it begins, the rate's bits and at most one packet more or less."""
    size, bps, window_ns = 1500, 10_000_000, 100_000_000
    numbers, delays = numbered("{rate: 10mbit, queue: 60s}", VIRTUAL_PACKETS, 1000, size)
    times = np.sort(numbers * 1000 + delays)
    starts = times[times + window_ns <= times[-1]]
    counts = np.searchsorted(times, starts + window_ns, "right") - np.searchsorted(times, starts, "right")
    off = np.abs(counts * size * 8 - bps * window_ns // 10**9).max() / (size * 8)
    figures = {"packets_off": float(off), "windows": len(starts)}
    return Outcome("1 Mbit in 100 ms", f"{off:.3f} packets off", "1 packet", bool(off <= 1), figures)


def _live(contestant: str, lines: int, key: str, bound: float, run: Run) -> Outcome:
    found = lives(run)
    name = f"{contestant} {lines}"
    if name not in found:
        raise Absent(f"{contestant} is not on this machine")
    measured, worst = found[name].median(key), found[name].worst(key)
    if measured is None or worst is None:
        raise Absent("; ".join(found[name].failures) or "no round succeeded")
    rate = format_rate(TOTAL_BPS // lines)
    shown, stall = f"{bound} %", 0.0
    if key in STALL_OF:
        # A process that the machine does not run is late by as much, and so is every packet that is due meanwhile.
        stall = found[name].median(STALL_OF[key]) or 0.0
        shown = f"{bound} %, and {stall:.2f} % for which the machine let a process wait"
    kept = None if contestant in PEERS else abs(measured) <= bound + stall
    figures = {"median_percent": measured, "worst_round_percent": worst, "bound_percent": bound, "stall_percent": stall,
               "rounds": run.rounds}  # fmt: skip
    return Outcome(f"{lines} x {rate}", f"{measured:+.4f} % (worst round {worst:+.4f} %)", shown, kept, figures)


def _lives() -> list[Promise]:
    found = []
    kinds = (
        ("rate_error_percent", WHOLE_PERCENT, "over all seconds, the line that is furthest off"),
        ("window_error_p99_percent", WINDOW_PERCENT, "in 99 % of all windows of 100 ms"),
        ("window_error_percent", WINDOW_PERCENT, "in every window of 100 ms, the worst of all lines"),
    )
    for lines in LINES:
        for key, bound, what in kinds:
            for contestant in ("vnic", "vnic-classes", *PEERS):
                if lines > 1 and contestant in ONE_LINE:
                    continue
                name = f"beside it, {contestant}: " if contestant in PEERS else ""
                kind = "class" if contestant == "vnic-classes" else "line"
                several = ("es" if kind == "class" else "s") if lines > 1 else ""
                label = f"{name}{lines} {kind}{several}, live, {what}"
                found.append(Promise(SUBJECT, label, partial(_live, contestant, lines, key, bound), live=True))
    return found


PROMISES = [
    *(Promise(SUBJECT, f"{each}, in virtual time: each departure", partial(_virtual, each)) for each in RATES),
    Promise(SUBJECT, "10mbit, in virtual time: each window of 100 ms", _windows),
    *_lives(),
]
