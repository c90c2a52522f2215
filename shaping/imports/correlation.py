"""What netem's `correlation` makes of a share.

netem compares a share with a moving average of random numbers, x' = (1 - rho) u + rho x, whose
distribution is not uniform: it is narrower around one half. So a share below 50% is met less often
than asked for, and a small one nearly never (sch_netem.c, get_crandom).
"""

from __future__ import annotations

import functools
import itertools
import math

CELLS = 2048  # of the distribution function: 0.05% of its range each
STEPS_MOST = 300


def met_share(share: float, correlation: float) -> float:
    """The share of packets that netem loses (duplicates, ...) when asked for `share` with
    `correlation`, both 0 to 1, in the long run. With a correlation of 1 the first random number
    decides for all: on average the share asked for."""
    if correlation <= 0 or correlation >= 1 or share <= 0 or share >= 1:
        return min(max(share, 0.0), 1.0)
    return _at_share(_distribution(min(max(round(100 * correlation), 1), 99)), share)


# By whole percent, so that a file with a thousand different correlations costs seconds at most.
@functools.cache
def _distribution(percent: int) -> list[float]:
    """F(x), the distribution function of the average, at CELLS + 1 points.

    It is found by iteration: F(x) is the mean of F((x - (1 - rho) u) / rho) over u. The start is a
    normal distribution with the right mean and deviation, and each step multiplies what the higher
    moments are off by rho^4 or less.
    """
    rho, step = percent / 100, 1 / CELLS
    deviation = math.sqrt((1 - rho) / (1 + rho) / 12)
    function = [
        0.5 * (1 + math.erf((i * step - 0.5) / (deviation * math.sqrt(2))))
        for i in range(CELLS + 1)
    ]
    for _ in range(min(math.ceil(8 + 4 / (1 - rho)), STEPS_MOST)):
        integral = _integral(function, step)
        function = [
            min(rho / (1 - rho) * (_at(integral, i * step / rho, step)
                - _at(integral, (i * step - (1 - rho)) / rho, step)), 1.0)
            for i in range(CELLS + 1)
        ]  # fmt: skip
    return function


def _integral(function: list[float], step: float) -> list[float]:
    """From 0 to each point, by the trapezoidal rule."""
    pairs = itertools.pairwise(function)
    return list(itertools.accumulate(((a + b) / 2 * step for a, b in pairs), initial=0.0))


def _at(integral: list[float], x: float, step: float) -> float:
    """The integral up to x; the function is 0 below 0 and 1 above 1."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return integral[-1] + (x - 1)
    cell = int(x / step)
    part = x / step - cell
    return integral[cell] + part * (integral[min(cell + 1, CELLS)] - integral[cell])


def _at_share(function: list[float], share: float) -> float:
    cell = min(int(share * CELLS), CELLS - 1)
    part = share * CELLS - cell
    return function[cell] + part * (function[cell + 1] - function[cell])


def share_text(share: float) -> str:
    """A share that was computed, in the precision of the computation."""
    percent = 100 * share
    if percent < 0.00005:
        return "less than 0.0001%"
    return f"{percent:.3g}%" if percent >= 0.01 else f"{percent:.1g}%"
