"""How many losses a model of loss allows among a number of packets.

The bounds are Chernoff's (1952): for any t > 0, P(S >= k) <= E[exp(t S)] exp(-t k), and the same
downwards with t < 0. E[exp(t S)] of a Markov chain is a power of a small matrix, so the bounds hold
for every model, few packets and long bursts included, where a normal distribution would not. They
are about a tenth wider than the narrowest bounds of the same confidence.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shaping.loss_model import Chain

Floats = NDArray[np.float64]

CONFIDENCE = 0.999999
# The values of t that are tried; any of them gives a bound that holds, the best one the narrowest.
_TRIED_LEAST, _TRIED_MOST, _TRIED = 1e-9, 40.0, 600


def loss_bounds(
    chain: Chain | None, packets: int, confidence: float = CONFIDENCE
) -> tuple[int, int]:
    """(least, most) losses among `packets` packets that follow each other: the model has fewer or
    more with a probability of at most 1 - confidence. It may begin in its first state or be in the
    long run. None: no packet is lost."""
    if chain is None or packets == 0:
        return 0, 0
    tried = np.geomspace(_TRIED_LEAST, _TRIED_MOST, _TRIED)
    rare = math.log(2 / (1 - confidence))
    most = np.min((_log_moments(chain, packets, tried) + rare) / tried)
    least = np.max((_log_moments(chain, packets, -tried) + rare) / -tried)
    return max(math.ceil(least - 1e-6), 0), min(math.floor(most + 1e-6), packets)


def _log_moments(chain: Chain, packets: int, tried: Floats) -> Floats:
    """log E[exp(t S)] of the number of losses S, for each t."""
    loss, moves = np.array(chain.loss), np.array(chain.moves)
    # One packet: its loss by the state, then the change of the state.
    step = (1 - loss + np.outer(np.exp(tried), loss))[:, :, None] * moves
    log_scale = np.zeros(len(tried))
    power, log_power = np.broadcast_to(np.eye(len(loss)), step.shape), log_scale
    while packets:
        if packets & 1:
            power, log_power = _scaled(power @ step, log_power + log_scale)
        step, log_scale = _scaled(step @ step, 2 * log_scale)
        packets >>= 1
    begins = np.array([[1.0] + [0.0] * (len(loss) - 1), chain.long_run])
    sums: Floats = np.log((power.sum(axis=2) @ begins.T).max(axis=1)) + log_power
    return sums


def _scaled(matrices: Floats, log_scale: Floats) -> tuple[Floats, Floats]:
    """Matrices with entries of at most 1, and the logarithms of what they were divided by."""
    most = matrices.max(axis=(1, 2))
    return matrices / most[:, None, None], log_scale + np.log(most)
