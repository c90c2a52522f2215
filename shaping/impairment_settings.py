"""Settings of an Impairment as users write them, besides models of loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.config.convert import shown
from dataplane.errors import ConfigError
from shaping.loss_model import Chain, random_chain, share_of
from shaping.settings import nanoseconds_of

SHAPES = ("uniform", "normal", "pareto")
PARTS = ("any", "header", "payload")
BY_MOST = 64  # packets that may overtake one: as many may wait at once
JITTER_MOST_NS = 3600 * 10**9


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
