"""Models of loss as users write them: shares in percent, and Markov chains for loss_chain.pxd.

A share is text in percent ("0.1%"), or 0: a bare number could mean a share or percent. Sources: E.
N. Gilbert, "Capacity of a burst-noise channel" (1960); E. O. Elliott, "Estimates of error rates for
codes on burst-noise channels" (1963); the 4-state model: S. Salsano and others, "Definition of a
general and intuitive loss model for packet networks" (2010), as in tc-netem(8).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from dataplane.config.convert import shown
from dataplane.errors import ConfigError

# As many digits as a policy's shares have: each of them can be applied.
_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{0,20})?|\.\d{1,20})\s*%\s*", re.ASCII)

Value = str | int | Mapping[str, str | int] | None  # of a setting


@dataclass(frozen=True)
class Chain:
    """A Markov chain: per state the probability of loss, and to each state that of a change from
    one packet to the next. It begins in the first state."""

    loss: tuple[float, ...]
    moves: tuple[tuple[float, ...], ...]

    @cached_property
    def long_run(self) -> tuple[float, ...]:
        """By state, the share of packets for which the chain is in it, in the long run."""
        if len(self.loss) == 1:
            return (1.0,)
        if len(self.loss) == 2:
            there, back = self.moves[0][1], self.moves[1][0]
            return (back / (there + back), there / (there + back)) if there + back else (1.0, 0.0)
        size = range(len(self.loss))
        # A chain that always changes its state would alternate for ever; half of each step, with
        # rest for the other half, has the same shares.
        matrix = [[(self.moves[i][j] + (i == j)) / 2 for j in size] for i in size]
        for _ in range(80):  # the matrix squared: 2^80 steps
            matrix = [[sum(matrix[i][k] * matrix[k][j] for k in size) for j in size] for i in size]
            matrix = [[each / sum(row) for each in row] for row in matrix]
        return tuple(matrix[0])

    @property
    def share(self) -> float:
        """The share of packets that are lost."""
        return sum(time * loss for time, loss in zip(self.long_run, self.loss, strict=True))

    @property
    def bursts(self) -> float:
        """The share of packets that are lost while the packet before was not."""
        states, long_run = range(len(self.loss)), self.long_run
        return sum(
            long_run[i] * (1 - self.loss[i]) * self.moves[i][j] * self.loss[j]
            for i in states
            for j in states
        )

    @property
    def mean_burst(self) -> float:
        """Packets that are lost in a row; 0 if none is lost, infinite if all are."""
        if not self.share:
            return 0.0
        return self.share / self.bursts if self.bursts else math.inf


def share_of(what: str, value: object) -> Fraction:
    """A share of packets, 0 to 1. Raises ConfigError."""
    if type(value) is int and value == 0:
        return Fraction(0)
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None or Fraction(match[1]) > 100:
        raise ConfigError(
            f"{what}: {shown(value)}: expected a share in percent, such as 0.1%, at most 100%"
        )
    return Fraction(match[1]) / 100


def random_chain(share: Fraction) -> Chain | None:
    """Each packet with the same probability, whatever happens to others; None: none at all."""
    return Chain((float(share),), ((1.0,),)) if share else None


def chain_of(what: str, value: Value) -> Chain | None:
    """The chain of a loss model; None: nothing is lost. Raises ConfigError."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return random_chain(share_of(what, value))
    names = set(value)
    if names == {"share"}:
        return random_chain(share_of(what, value["share"]))
    if names == {"share", "burst"}:
        return _bursts(what, value)
    if names == {"share", "correlation"}:
        return _correlated(what, value)
    if names >= {"to_bad", "to_good"} and names <= {"to_bad", "to_good", "bad", "good"}:
        return _two_states(what, value)
    if "p13" in names and names <= {"p13", "p31", "p32", "p23", "p14"}:
        return _four_states(what, value)
    given = ", ".join(sorted(map(str, names))) or "an empty mapping"
    raise ConfigError(
        f"{what}: {given}: expected share, share and burst, share and correlation, to_bad and "
        "to_good (and bad, good), or p13 (and p31, p32, p23, p14)"
    )


def _bursts(what: str, value: Mapping[str, str | int]) -> Chain | None:
    share = share_of(f"{what}: share", value["share"])
    length = _number(f"{what}: burst", value["burst"])
    if share == 0:
        return None
    if share == 1:
        return random_chain(share)
    leave = 1 / length
    enter = leave * share / (1 - share)
    if length < 1 or enter > 1:
        least = max(share / (1 - share), Fraction(1))
        raise ConfigError(
            f"{what}: burst {shown(value['burst'])}: expected the mean number of packets lost in a "
            f"row, at least {float(least):g} for a share of {float(share * 100):g}%"
        )
    return _gilbert(enter, leave)


def _correlated(what: str, value: Mapping[str, str | int]) -> Chain | None:
    share = share_of(f"{what}: share", value["share"])
    correlation = share_of(f"{what}: correlation", value["correlation"])
    if share == 0:
        return None
    if correlation == 1:
        raise ConfigError(
            f"{what}: correlation {value['correlation']}: expected less than 100%, with which the "
            "first packet would decide for all"
        )
    return _gilbert(share * (1 - correlation), (1 - share) * (1 - correlation))


def _gilbert(
    enter: Fraction, leave: Fraction, good: Fraction = Fraction(0), bad: Fraction = Fraction(1)
) -> Chain:
    return Chain(
        (float(good), float(bad)),
        ((float(1 - enter), float(enter)), (float(leave), float(1 - leave))),
    )


def _two_states(what: str, value: Mapping[str, str | int]) -> Chain | None:
    given = {"bad": "100%", "good": 0} | dict(value)
    shares = {name: share_of(f"{what}: {name}", each) for name, each in given.items()}
    if shares["good"] == 0 and (shares["bad"] == 0 or shares["to_bad"] == 0):
        return None
    return _gilbert(shares["to_bad"], shares["to_good"], shares["good"], shares["bad"])


def _four_states(what: str, value: Mapping[str, str | int]) -> Chain | None:
    """States 1 to 4 of the model, here 0 to 3: no loss; no loss within a burst; a burst's loss; a
    single loss."""
    shares = {name: share_of(f"{what}: {name}", each) for name, each in value.items()}
    p13, p14 = shares["p13"], shares.get("p14", Fraction(0))
    p31, p32 = shares.get("p31", 1 - p13), shares.get("p32", Fraction(0))
    p23 = shares.get("p23", Fraction(1))
    for names, total in (("p13 and p14", p13 + p14), ("p31 and p32", p31 + p32)):
        if total > 1:
            raise ConfigError(f"{what}: {names} are {float(total * 100):g}%: expected at most 100%")
    if p13 == 0 and p14 == 0:
        return None
    rows = ((1 - p13 - p14, 0, p13, p14), (0, 1 - p23, p23, 0), (p31, p32, 1 - p31 - p32, 0),
            (1, 0, 0, 0))  # fmt: skip
    return Chain((0.0, 0.0, 1.0, 1.0), tuple(tuple(float(each) for each in row) for row in rows))


def _number(what: str, value: object) -> Fraction:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,7}(\.\d{1,20})?", text, re.ASCII):
        raise ConfigError(f"{what} {shown(value)}: expected a number, such as 4")
    return Fraction(text)
