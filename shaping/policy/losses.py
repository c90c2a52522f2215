"""What a loss model means: the share of packets that it loses in the long run, and how long its
bursts are. Closed forms of the chains that Impairment draws from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from shaping.policy.schema import LossConfig


class MarkovChain(NamedTuple):
    """A Markov chain of states, each with a probability that a packet is lost in it.

    moves      moves[i][j]: probability to go from state i to state j with a packet
    lost       by state, the share of packets that is lost
    long_run   by state, the share of packets for which the chain is in it
    """

    moves: list[list[float]]
    lost: list[float]
    long_run: list[float]

    @property
    def share(self) -> float:
        """Of all packets, those that are lost."""
        return sum(time * lost for time, lost in zip(self.long_run, self.lost, strict=True))

    @property
    def bursts(self) -> float:
        """Of all packets, those that are lost while the packet before was not: the number of
        bursts for each packet."""
        states = range(len(self.lost))
        return sum(
            self.long_run[i] * (1 - self.lost[i]) * self.moves[i][j] * self.lost[j]
            for i in states
            for j in states
        )

    @property
    def mean_burst(self) -> float:
        """Packets that are lost in a row; 0 if none is lost, infinite if all are."""
        if not self.share:
            return 0.0
        return self.share / self.bursts if self.bursts else math.inf


def chain_of(loss: LossConfig) -> MarkovChain:
    if loss.model == "p13":
        return _four_states(loss)
    if loss.model == "to_bad":
        return _two_states(
            *(float(each or 0) for each in (loss.to_bad, loss.to_good, loss.bad, loss.good))
        )
    share = float(loss.share or 0)
    if loss.burst is not None and 0 < share < 1:
        to_good = 1 / loss.burst
        return _two_states(min(1.0, share * to_good / (1 - share)), to_good, 1.0, 0.0)
    if loss.correlation is not None and 0 < share < 1:
        change = 1 - float(loss.correlation)
        return _two_states(share * change, (1 - share) * change, 1.0, 0.0)
    return MarkovChain([[1.0]], [share], [1.0])


def _two_states(to_bad: float, to_good: float, bad: float, good: float) -> MarkovChain:
    in_bad = to_bad / (to_bad + to_good) if to_bad else 0.0  # it begins in the good state
    return MarkovChain(
        [[1 - to_bad, to_bad], [to_good, 1 - to_good]], [good, bad], [1 - in_bad, in_bad]
    )


def _four_states(loss: LossConfig) -> MarkovChain:
    """States: 0 without losses, 1 passing within a burst, 2 losing in a burst, 3 a single loss."""
    p13, p31, p32, p23, p14 = (
        float(each or 0) for each in (loss.p13, loss.p31, loss.p32, loss.p23, loss.p14)
    )
    burst = p13 / p31 if p13 else 0.0
    between = burst * p32 / p23 if p32 else 0.0
    whole = 1 + burst + between + p14
    return MarkovChain(
        [
            [1 - p13 - p14, 0.0, p13, p14],
            [0.0, 1 - p23, p23, 0.0],
            [p31, p32, 1 - p31 - p32, 0.0],
            [1.0, 0.0, 0.0, 0.0],
        ],
        [0.0, 0.0, 1.0, 1.0],
        [1 / whole, between / whole, burst / whole, p14 / whole],
    )
