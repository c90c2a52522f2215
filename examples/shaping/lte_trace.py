"""Writes lte.down, a synthetic trace in Mahimahi's format: a telephone's downlink for 20 s.

It was not measured: the logarithm of the rate wanders, as that of a moving telephone does, and from
12 s on nothing arrives for 900 ms.

    python examples/shaping/lte_trace.py > examples/shaping/lte.down
"""

from __future__ import annotations

import math
import random

SECONDS, MEAN_MBIT, OUTAGE_MS = 20, 5.0, range(12_000, 12_900)
OPPORTUNITY_BITS = 1504 * 8


def opportunities(seed: int = 7) -> list[int]:
    """The milliseconds of the opportunities."""
    rng = random.Random(seed)
    found: list[int] = []
    wander = owed = 0.0
    for ms in range(1, SECONDS * 1000 + 1):
        wander = 0.998 * wander + rng.gauss(0, 0.04)
        if ms not in OUTAGE_MS:
            owed += MEAN_MBIT * math.exp(wander) * 1000 / OPPORTUNITY_BITS * rng.expovariate(1)
        while owed >= 1:
            found.append(ms)
            owed -= 1
    return [*found, SECONDS * 1000]  # the last one ends the period


if __name__ == "__main__":
    print(*opportunities(), sep="\n")
