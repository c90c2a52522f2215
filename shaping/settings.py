"""Settings of elements that shape: rates, times and sizes as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataplane import units
from dataplane.config.convert import shown
from dataplane.errors import ConfigError
from dataplane.units import (
    format_rate,
    format_size,
    format_time,
    parse_rate,
    parse_size,
    parse_time,
)

UNLIMITED = "none"
DELAY_MOST_NS = 3600 * 10**9
PACKETS_MOST = 1 << 24
# Reasons for drops by which a line breaks its promise: it had no memory to keep it.
NO_MEMORY = ("line_full", "delay_line_full", "no_buffer")


def rate_of(name: str, rate: str | int | None) -> int:
    """bit/s; 0 for None and "none". Raises ConfigError."""
    if rate is None or (isinstance(rate, str) and rate.strip().lower() == UNLIMITED):
        return 0
    if not isinstance(rate, int) or isinstance(rate, bool):
        try:
            rate = parse_rate(rate)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    if rate != 0 and not units.RATE_LEAST_BPS <= rate <= units.RATE_MOST_BPS:
        raise ConfigError(
            f"{name}: a rate of {rate} bit/s: expected 1kbit to 10tbit, or 0 for unlimited"
        )
    return rate


def rate_text(rate_bps: int) -> str:
    """A rate of `rate_of` as text."""
    return format_rate(rate_bps) if rate_bps else UNLIMITED


def nanoseconds_of(name: str, what: str, value: str | int) -> int:
    """A time in nanoseconds. Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ConfigError(f"{name}: {what} of {value} ns: expected 0 or more")
        return value
    try:
        return parse_time(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {what}: {error}") from None


def delay_of(name: str, what: str, value: str | int) -> int:
    """A delay in nanoseconds, at most an hour. Raises ConfigError."""
    delay = nanoseconds_of(name, what, value)
    if delay > DELAY_MOST_NS:
        raise ConfigError(f"{name}: {what} of {value}: expected at most 1h")
    return delay


def packets_of(name: str, queue: str | int | Mapping[str, Any]) -> int | None:
    """The number of a bound {packets: N}; None for a bound in other units. Raises ConfigError."""
    if not isinstance(queue, Mapping):
        return None
    packets = queue.get("packets")
    if set(queue) != {"packets"} or type(packets) is not int or not 1 <= packets <= PACKETS_MOST:
        raise ConfigError(
            f"{name}: queue {dict(queue)}: expected a time, a size or packets: 1 to {PACKETS_MOST}"
        )
    return packets


def time_or_size_of(name: str, what: str, value: str | int) -> tuple[int | None, int | None]:
    """A bound on bytes: (ns, None) where it is a time at the rate, or (None, bytes). Raises
    ConfigError."""
    if isinstance(value, str) and value.strip().lower().endswith(("b", "k", "m", "g")):
        try:
            return None, parse_size(value)
        except ConfigError as error:
            raise ConfigError(f"{name}: {what}: {error}") from None
    return nanoseconds_of(name, what, value), None


def time_or_size_text(ns: int | None, size: int | None) -> str:
    """A bound of `time_or_size_of` as text."""
    return format_time(ns or 0) if size is None else format_size(size)


def flag_of(what: str, value: object) -> bool:
    """yes or no, which are text in YAML 1.2, or true or false. Raises ConfigError."""
    if isinstance(value, bool):
        return value
    if value in ("yes", "no"):
        return value == "yes"
    raise ConfigError(f"{what} {shown(value)}: expected yes or no")


def loop_of(value: object) -> bool:
    """Whether a trace begins again. Raises ConfigError."""
    return flag_of("loop", value)
