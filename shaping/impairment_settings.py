"""Settings of an Impairment as users write them: shares, models of loss, and delays.

A share is text in percent ("0.1%"), or 0: a bare number could mean a share or percent. A model of
loss becomes a Chain for loss_chain.pxd. Sources: E. N. Gilbert, "Capacity of a burst-noise channel"
(1960); E. O. Elliott, "Estimates of error rates for codes on burst-noise channels" (1963); the
4-state model: S. Salsano and others, "Definition of a general and intuitive loss model for packet
networks" (2010), as in tc-netem(8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from dataplane.config.convert import shown
from dataplane.errors import ConfigError
from shaping.settings import nanoseconds_of

SHAPES = ("uniform", "normal", "pareto")
PARTS = ("any", "header", "payload")
BY_MOST = 64  # packets that may overtake one: as many may wait at once
JITTER_MOST_NS = 3600 * 10**9

_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{0,12})?|\.\d{1,12})\s*%\s*", re.ASCII)

Value = str | int | Mapping[str, str | int] | None  # of a setting


@dataclass(frozen=True)
class Chain:
    """A Markov chain: per state the probability of loss, and to each state that of a change from
    one packet to the next. It begins in the first state."""

    loss: tuple[float, ...]
    moves: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Delay:
    """A delay in ns and how it varies; jitter is half the range of "uniform", else the standard
    deviation."""

    mean_ns: int = 0
    jitter_ns: int = 0
    shape: str = "uniform"
    correlation: float = 0.0
    keep_order: bool = True


@dataclass(frozen=True)
class Corruption:
    """A share of packets of which one bit is changed, in a part of the frame; mend: their checksums
    are right all the same."""

    chain: Chain | None = None
    part: str = "any"
    mend: bool = False


@dataclass(frozen=True)
class Reordering:
    """A share of packets that `by` others overtake, within a time."""

    chain: Chain | None = None
    by: int = 1
    within_ns: int = 0


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
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text, re.ASCII):
        raise ConfigError(f"{what} {shown(value)}: expected a number, such as 4")
    return Fraction(text)


def loss_share(chain: Chain) -> float:
    """The share of packets that are lost in the long run."""
    size = range(len(chain.loss))
    # A chain that always changes its state would alternate for ever; half of each step, with rest
    # for the other half, has the same shares.
    matrix = [[(chain.moves[i][j] + (i == j)) / 2 for j in size] for i in size]
    for _ in range(80):  # the matrix squared: 2^80 steps
        matrix = [[sum(matrix[i][k] * matrix[k][j] for k in size) for j in size] for i in size]
        matrix = [[each / sum(row) for each in row] for row in matrix]
    return sum(matrix[0][i] * chain.loss[i] for i in size)


def delay_of(what: str, value: object) -> Delay:
    """A delay and its jitter. Raises ConfigError."""
    if value is None:
        return Delay()
    if not isinstance(value, Mapping):
        return Delay(mean_ns=_time(what, value))
    known = {"mean", "jitter", "shape", "correlation", "order"}
    _check_names(what, value, known, {"mean"})
    jitter_ns = _time(f"{what}: jitter", value.get("jitter", 0))
    correlation = share_of(f"{what}: correlation", value.get("correlation", 0))
    shape, order = value.get("shape", "uniform"), value.get("order", "keep")
    _check_word(f"{what}: shape", shape, SHAPES)
    _check_word(f"{what}: order", order, ("keep", "any"))
    if correlation == 1:
        raise ConfigError(
            f"{what}: correlation {value['correlation']}: expected less than 100%, with which all "
            "packets would have the first one's delay"
        )
    return Delay(_time(f"{what}: mean", value["mean"]), jitter_ns, str(shape), float(correlation),
                 order == "keep")  # fmt: skip


def corruption_of(what: str, value: object) -> Corruption:
    """Which packets are corrupted, and how. Raises ConfigError."""
    if not isinstance(value, Mapping):
        return Corruption(None if value is None else random_chain(share_of(what, value)))
    _check_names(what, value, {"share", "part", "checksum"}, {"share"})
    mend = value.get("checksum", "keep")
    _check_word(f"{what}: checksum", mend, ("keep", "mend"))
    part = value.get("part", "payload" if mend == "mend" else "any")
    _check_word(f"{what}: part", part, PARTS)
    if mend == "mend" and part != "payload":
        raise ConfigError(
            f"{what}: part {part}: only checksums of a changed payload can be mended; "
            "write part: payload"
        )
    chain = random_chain(share_of(f"{what}: share", value["share"]))
    return Corruption(chain, str(part), mend == "mend")


def reordering_of(what: str, value: object) -> Reordering:
    """Which packets are overtaken, and by how many. Raises ConfigError."""
    if not isinstance(value, Mapping):
        value = {"share": value} if value is not None else {"share": 0}
    _check_names(what, value, {"share", "by", "within"}, {"share"})
    by = value.get("by", 1)
    if type(by) is not int or not 1 <= by <= BY_MOST:
        raise ConfigError(f"{what}: by {shown(by)}: expected a number of packets, 1 to {BY_MOST}")
    within_ns = _time(f"{what}: within", value.get("within", "100ms"))
    return Reordering(random_chain(share_of(f"{what}: share", value["share"])), by, within_ns)


def _time(what: str, value: object) -> int:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ConfigError(f"{what}: {shown(value)}: expected a time such as 40ms")
    if isinstance(value, str):
        value = nanoseconds_of(what, "time", value)
    if not 0 <= value <= JITTER_MOST_NS:
        raise ConfigError(f"{what}: {shown(value)}: expected a time from 0 to 1h")
    return value


def _check_names(what: str, value: Mapping[str, object], known: set[str], needed: set[str]) -> None:
    names = set(value)
    if not needed <= names <= known:
        words = ", ".join(sorted(known))
        wrong = ", ".join(sorted(map(str, names - known))) or f"no {', '.join(needed - names)}"
        raise ConfigError(f"{what}: {wrong}: expected {' and '.join(needed)}, and of {words}")


def _check_word(what: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ConfigError(f"{what} {shown(value)}: expected {', '.join(words[:-1])} or {words[-1]}")
