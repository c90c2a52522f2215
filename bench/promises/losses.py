"""Losses: their share, how they follow each other, and that each seed has its own, against closed forms.

Of each model 10^6 packets are replayed. The expected values are those of the literature, computed here
from the model's parameters and not by vnic's own chains: E. N. Gilbert (1960), E. O. Elliott (1963), and
for the four states S. Salsano and others (2010)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.promises import Outcome, Promise, Run
from bench.promises._replays import numbered
from shaping.loss_bounds import loss_bounds
from shaping.loss_model import Value, chain_of

SUBJECT = "Losses"
RARE = "10^-6"
BLOCKS = 100  # of a sequence, for the deviation of an estimate
STUDENT = 5.3  # of a t distribution with 99 degrees of freedom: two-sided 10^-6
DEVIATIONS = 4.9  # of a normal distribution, likewise
CELL_LEAST = 50  # runs in a cell of the chi-square test
LAGS = 50

Indicator = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """loss: as in a policy. share, mean_run, correlation: closed forms; None: there is no simple one. geometric: runs of losses
    have a geometric distribution."""

    name: str
    loss: Value
    share: float
    correlation: float
    mean_run: float | None = None

    @property
    def text(self) -> str:
        return self.loss if isinstance(self.loss, str) else str(self.loss).replace("'", "")


def _gilbert(name: str, loss: Value, p: float, r: float) -> Model:
    return Model(name, loss, p / (p + r), 1 - p - r, 1 / r)


def _elliott(p: float, r: float, bad: float, good: float) -> Model:
    loss: Value = {"to_bad": f"{100 * p:g}%", "to_good": f"{100 * r:g}%", "bad": f"{100 * bad:g}%", "good": f"{100 * good:g}%"}
    in_bad = p / (p + r)
    share = in_bad * bad + (1 - in_bad) * good
    covariance = in_bad * (1 - in_bad) * (1 - p - r) * (bad - good) ** 2
    return Model("Gilbert-Elliott", loss, share, covariance / (share * (1 - share)))


def _four_states(p13: float, p31: float, p32: float, p23: float, p14: float) -> Model:
    names = {"p13": p13, "p31": p31, "p32": p32, "p23": p23, "p14": p14}
    a = p13 / p31
    b = a * p32 / p23
    one = 1 / (1 + a + b + p14)
    share = (a + p14) * one
    # A loss follows a loss within a burst only: the packet after a single loss passes.
    correlation = (a * one * (1 - p31 - p32) - share**2) / (share * (1 - share))
    return Model("four states", {name: f"{100 * value:g}%" for name, value in names.items()}, share, correlation)


def _burst(share: float, burst: float) -> Model:
    return _gilbert(
        f"bursts of {burst:g}", {"share": f"{100 * share:g}%", "burst": int(burst)}, share / (1 - share) / burst, 1 / burst
    )


def _correlated(share: float, c: float) -> Model:
    loss: Value = {"share": f"{100 * share:g}%", "correlation": f"{100 * c:g}%"}
    return _gilbert(f"correlation {100 * c:g} %", loss, share * (1 - c), (1 - share) * (1 - c))


MODELS = (
    Model("independent, 0.3 %", "0.3%", 0.003, 0.0, 1 / 0.997),
    Model("independent, 10 %", "10%", 0.1, 0.0, 1 / 0.9),
    _burst(0.01, 4),
    _correlated(0.003, 0.25),  # with which netem loses nothing
    _gilbert("Gilbert", {"to_bad": "1%", "to_good": "25%"}, 0.01, 0.25),
    _elliott(0.01, 0.25, 0.5, 0.001),
    _four_states(0.01, 0.20, 0.10, 0.30, 0.005),
    _four_states(0.01, 0.25, 0.0, 1.0, 0.0),
)


def lost(run: Run, model: Model, more: str = "") -> Indicator:
    """1 for each packet that is lost, else 0."""

    def measure() -> Indicator:
        came, _ = numbered(f"{{loss: {model.text}{more}}}", run.packets, 10_000)
        found = np.ones(run.packets)
        found[came] = 0
        return found

    return run.once(f"losses {model.text} {more}", measure)


def correlation_of(values: NDArray[np.float64], lag: int = 1) -> float:
    """The correlation of a sequence and itself, `lag` later."""
    centred = values - values.mean()
    return float((centred[:-lag] * centred[lag:]).mean() / (centred**2).mean())


def runs_of(found: Indicator) -> NDArray[np.int64]:
    """Lengths of runs of losses, without one at an end."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0.0], found, [0.0]))))
    lengths: NDArray[np.int64] = edges[1::2] - edges[::2]
    return lengths[1:-1]


def _share(model: Model, run: Run) -> Outcome:
    found = lost(run, model)
    least, most = loss_bounds(chain_of(model.name, model.loss), run.packets)
    count = int(found.sum())
    return Outcome(
        f"{100 * model.share:.4g} %",
        f"{100 * count / run.packets:.4g} %",
        f"{100 * least / run.packets:.4g} to {100 * most / run.packets:.4g} % ({RARE})",
        least <= count <= most and least <= model.share * run.packets <= most,
        {"expected": model.share, "measured": count / run.packets, "packets": run.packets},
    )


def _correlation(model: Model, run: Run) -> Outcome:
    found = lost(run, model)
    parts = [correlation_of(part) for part in np.array_split(found, BLOCKS) if part.any()]
    bound = STUDENT * float(np.std(parts, ddof=1)) / math.sqrt(len(parts)) + 1 / math.sqrt(run.packets)
    measured = correlation_of(found)
    return _within(model.correlation, measured, bound)


def _mean_run(model: Model, run: Run) -> Outcome:
    assert model.mean_run is not None
    lengths = runs_of(lost(run, model))
    # of a geometric distribution with this mean
    deviation = math.sqrt(model.mean_run * (model.mean_run - 1))
    return _within(model.mean_run, float(lengths.mean()), DEVIATIONS * deviation / math.sqrt(len(lengths)) + 1e-9, "packets")


def _geometric(model: Model, run: Run) -> Outcome:
    """Chi-square of the lengths of runs."""
    assert model.mean_run is not None
    lengths = runs_of(lost(run, model))
    stay, cells = 1 - 1 / model.mean_run, []
    length = 1
    while len(lengths) * stay ** (length - 1) * (1 - stay) >= CELL_LEAST:
        cells.append(((lengths == length).sum(), len(lengths) * stay ** (length - 1) * (1 - stay)))
        length += 1
    cells.append(((lengths >= length).sum(), len(lengths) * stay ** (length - 1)))
    statistic = float(sum((seen - wanted) ** 2 / wanted for seen, wanted in cells))
    freedom = len(cells) - 1
    # Wilson and Hilferty (1931): the quantile of chi-square
    most = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    figures = {"measured": statistic, "bound": most, "cells": len(cells)}
    return Outcome(f"about {freedom}", f"{statistic:.1f}", f"at most {most:.1f} ({RARE})", statistic <= most, figures)


def _independent(model: Model, run: Run) -> Outcome:
    found = lost(run, model)
    worst = max((correlation_of(found, lag) for lag in range(1, LAGS + 1)), key=abs)
    # one of so many is further off than a single one
    bound = (DEVIATIONS + 0.6) / math.sqrt(run.packets)
    return _within(0.0, worst, bound)


def _own_stream(model: Model, run: Run) -> Outcome:
    alone = lost(run, model)
    more = lost(run, model, ", delay: {mean: 1ms, jitter: 1ms, order: any}, reorder: 0.1%")
    differ = int((alone != more).sum())
    return Outcome("the same packets", f"{differ} differ", "exact", differ == 0, {"differ": differ, "lost": int(alone.sum())})


def _within(expected: float, measured: float, bound: float, unit: str = "") -> Outcome:
    unit = f" {unit}" if unit else ""
    return Outcome(
        f"{expected:.4f}{unit}",
        f"{measured:.4f}{unit}",
        f"+-{bound:.4f} ({RARE})",
        abs(measured - expected) <= bound,
        {"expected": expected, "measured": measured, "bound": bound},
    )


def _promises() -> list[Promise]:
    def promise(what: str, measure: Callable[[Model, Run], Outcome], model: Model, source: str = "") -> Promise:
        return Promise(SUBJECT, f"{model.name} ({model.text}): {what}", partial(measure, model), source)

    found = []
    for model in MODELS:
        found.append(promise("share of packets that are lost", _share, model, "long run of the chain"))
        if model.correlation:
            found.append(promise("correlation of one packet and the next", _correlation, model))
        if model.mean_run is not None:
            found.append(promise("mean run of losses", _mean_run, model, "1 / P(loss ends)"))
            if model.mean_run > 2:
                found.append(promise("runs have a geometric distribution (chi-square)", _geometric, model))
    found.append(promise(f"no correlation at any of {LAGS} lags, the worst", _independent, MODELS[1]))
    found.append(promise("the same losses with a delay and reordering", _own_stream, MODELS[2]))
    return found


PROMISES = _promises()
