"""Delays: exact in virtual time, distributed and correlated as asked, and how late they are live."""

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.promises import Absent, Outcome, Promise, Run
from bench.promises._live import lives
from bench.promises._replays import numbered
from bench.promises.losses import DEVIATIONS, RARE, correlation_of
from bench.shaping import DELAY_MS

SUBJECT = "Delays"
KOLMOGOROV = 2.69  # of a Kolmogorov-Smirnov distribution: 10^-6, divided by the root of the number
GAP_NS = 20_000
MEAN_NS, JITTER_NS = 10_000_000, 1_000_000
SHAPES = ("uniform", "normal", "pareto")
LATE_P50_US, LATE_P99_US = 100, 1000

Delays = NDArray[np.float64]


def _constant(run: Run) -> Outcome:
    _, delays = numbered("{delay: 20ms}", run.packets, GAP_NS)
    wrong = int((delays != 20_000_000).sum())
    kept = wrong == 0 and len(delays) == run.packets
    return Outcome("20 ms for each packet", f"{wrong} of {run.packets} differ", "exact to 1 ns", kept, {"differ": wrong})


def _delays(run: Run, shape: str, more: str = "") -> Delays:
    def measure() -> Delays:
        line = f"{{delay: {{mean: 10ms, jitter: 1ms, shape: {shape}, order: any{more}}}}}"
        numbers, delays = numbered(line, run.packets, GAP_NS)
        found = np.empty(run.packets)
        found[numbers] = delays
        return (found - MEAN_NS) / JITTER_NS

    return run.once(f"delays {shape} {more}", measure)


def _below(shape: str, x: Delays) -> Delays:
    """The distribution function of the jitter in units of what was asked for."""
    if shape == "uniform":
        return np.clip((x + 1) / 2, 0, 1)
    if shape == "normal":
        normal: Delays = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return normal
    # Pareto with the exponent 3 and the minimum 1: mean 1.5, standard deviation sqrt(0.75)
    return np.where(x * math.sqrt(0.75) + 1.5 < 1, 0, 1 - np.maximum(x * math.sqrt(0.75) + 1.5, 1) ** -3.0)


def _distribution(shape: str, run: Run) -> Outcome:
    found = np.sort(_delays(run, shape))
    wanted = _below(shape, found)
    steps = np.arange(run.packets + 1) / run.packets
    distance = float(max(np.max(steps[1:] - wanted), np.max(wanted - steps[:-1])))
    bound = KOLMOGOROV / math.sqrt(run.packets)
    figures = {"distance": distance, "bound": bound}
    return Outcome(shape, f"{distance:.5f} off", f"at most {bound:.5f} ({RARE})", distance <= bound, figures)


def _correlated(run: Run) -> Outcome:
    found = _delays(run, "normal", ", correlation: 60%")
    measured, bound = correlation_of(found), DEVIATIONS * math.sqrt((1 - 0.36) / run.packets)
    figures = {"measured": measured, "bound": bound}
    return Outcome("0.6", f"{measured:.4f}", f"+-{bound:.4f} ({RARE})", abs(measured - 0.6) <= bound, figures)


def _in_order(run: Run) -> Outcome:
    """The default: jitter without reordering."""
    numbers, delays = numbered("{delay: {mean: 10ms, jitter: 5ms, shape: normal}}", run.packets, GAP_NS)
    late = int((np.diff(numbers) < 0).sum())
    figures = {"late": late, "spread_ns": int(delays.max() - delays.min())}
    return Outcome("no packet overtakes another", f"{late} of {run.packets} late", "exact", late == 0, figures)


def _live(run: Run, key: str, most: float, what: str) -> Outcome:
    measured = lives(run)[f"delay {DELAY_MS}"].median(key)
    path = lives(run)["delay 0"].median(key)
    if measured is None:
        raise Absent("no round succeeded")
    figures = {"measured_us": measured, "path_us": path, "bound_us": most}
    return Outcome(
        f"{DELAY_MS} ms", f"{measured:+.1f} us ({path:.1f} us without a delay)", what, 0 <= measured <= most, figures
    )


PROMISES = [
    Promise(SUBJECT, "a constant delay, in virtual time", _constant),
    *(Promise(SUBJECT, f"jitter, {each}: distribution (Kolmogorov-Smirnov)", partial(_distribution, each)) for each in SHAPES),
    Promise(SUBJECT, "jitter, normal, correlation 60 %: of one packet and the next", _correlated),
    Promise(SUBJECT, "jitter keeps the order of packets", _in_order),
    Promise(SUBJECT, "a delay, live: never early", lambda run: _live(run, "least", math.inf, "0 or more"), live=True),
    Promise(
        SUBJECT, "a delay, live: late by, median", lambda run: _live(run, "p50", LATE_P50_US, f"{LATE_P50_US} us"), live=True
    ),
    Promise(SUBJECT, "a delay, live: late by, 99 %", lambda run: _live(run, "p99", LATE_P99_US, f"{LATE_P99_US} us"), live=True),
]  # fmt: skip
