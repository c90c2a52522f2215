"""Settings of elements that shape: rates, times and sizes as users write them."""

from __future__ import annotations

from dataplane import units
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
