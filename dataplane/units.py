"""Rates, sizes and times as users write them: parsed to integers and printed in the same form.

The units are those of tc(8), in any case:

    rate   bit/s: bit, kbit, mbit, gbit, tbit (powers of 1000); kibit, mibit, gibit, tibit (of 1024)
    size   bytes: b, k or kb, m or mb, g or gb (powers of 1024, as in tc); also kib, mib, gib
    time   ns: ns, us, ms, s, and tc's longer spellings (usec, msecs, sec ...), min, h

Two things that tc accepts are rejected, since they are often misread: a number without a unit
(except 0), and `bps`, which means *bytes* per second in tc and bits per second nearly everywhere
else. Numbers are decimal, exact (no floating point), and must be whole bits, bytes or nanoseconds.
A rate always counts layer-2 frame bits without preamble and FCS.
"""

from __future__ import annotations

import re
from fractions import Fraction

from dataplane.errors import ConfigError

RATE_LEAST_BPS, RATE_MOST_BPS = 1_000, 10**13  # of a rate limit
LIMIT = 2**63 - 1  # the largest quantity: the range of an int64 in an element or on the wire

_RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12,
          "kibit": 2**10, "mibit": 2**20, "gibit": 2**30, "tibit": 2**40}  # fmt: skip
_SIZES = {"b": 1, "k": 2**10, "kb": 2**10, "kib": 2**10, "m": 2**20, "mb": 2**20, "mib": 2**20,
          "g": 2**30, "gb": 2**30, "gib": 2**30}  # fmt: skip
_TIMES = {"ns": 1, "nsec": 1, "nsecs": 1, "us": 10**3, "usec": 10**3, "usecs": 10**3,
          "ms": 10**6, "msec": 10**6, "msecs": 10**6, "s": 10**9, "sec": 10**9, "secs": 10**9,
          "min": 60 * 10**9, "h": 3600 * 10**9}  # fmt: skip
# For printing: largest first.
_RATES_OUT = ("tbit", "gbit", "mbit", "kbit", "bit")
_SIZES_OUT = ("gb", "mb", "kb", "b")
_TIMES_OUT = ("s", "ms", "us", "ns")

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z/]*)\s*", re.ASCII)
_LONGEST = 40  # characters of a quantity: enough for 2**63 with nine decimals and a unit


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")


def _parse(value: str | int, what: str, units: dict[str, int], example: str, whole: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ConfigError(
            f"{what} {_shown(value)}: expected a number with a unit such as {example}"
        )
    text = str(value)
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ConfigError(
            f"{what} {_shown(value)}: expected a number with a unit such as {example}"
        )
    number, unit = Fraction(match[1]), match[2].lower()
    if not unit:
        if number == 0:
            return 0
        raise ConfigError(
            f"{what} {_shown(value)} has no unit: expected a number with one, such as {example}"
        )
    if unit not in units:
        raise ConfigError(f"{what} {_shown(value)}: {_unit_hint(match[1], match[2], what, units)}")
    quantity = number * units[unit]
    if quantity.denominator != 1:
        raise ConfigError(f"{what} {_shown(value)} is not a whole number of {whole}")
    if quantity > LIMIT:
        raise ConfigError(f"{what} {_shown(value)} is too large: the limit is {LIMIT} {whole}")
    return int(quantity)


def _unit_hint(number: str, unit: str, what: str, units: dict[str, int]) -> str:
    """A suggestion in place of an unknown unit."""
    word = unit.lower()
    if what == "rate":
        prefix = word[:-3] if word.endswith(("bps", "b/s")) else None
        if prefix in ("", "k", "m", "g", "t"):
            return (
                f"{unit} is ambiguous (bytes a second in tc, bits elsewhere); write "
                f"{number}{prefix}bit for bits a second"
            )
        if word in ("k", "m", "g", "t", "kb", "mb", "gb", "tb"):
            return f"{unit} is no unit of rate; write {number}{word[0]}bit for bits a second"
    elif what == "size" and word.endswith("bit"):
        return f"a size is in bytes: expected one of {', '.join(units)}"
    return f"unknown unit {unit!r}: expected one of {', '.join(units)}"


def _format(quantity: int, units: dict[str, int], names: tuple[str, ...]) -> str:
    """Formats with the largest unit that is exact with at most three decimals."""
    if quantity < 0:
        raise ConfigError(f"{quantity}: a quantity is not negative")
    for name in names:
        thousandths, rest = divmod(quantity * 1000, units[name])
        if quantity >= units[name] and rest == 0:
            whole, decimals = divmod(thousandths, 1000)
            return f"{whole}" + (f".{decimals:03d}".rstrip("0") if decimals else "") + name
    return f"0{names[-1]}"


def parse_rate(value: str | int) -> int:
    """Parses a rate such as "10mbit", "2.5gbit", "800kbit" to bit/s. Raises ConfigError."""
    return _parse(value, "rate", _RATES, "100mbit", "bits per second")


def format_rate(bps: int) -> str:
    """Formats a rate in decimal units, exactly: parse_rate(format_rate(bps)) == bps."""
    return _format(bps, _RATES, _RATES_OUT)


def parse_size(value: str | int) -> int:
    """Parses a size such as "64kb" (65,536, as in tc), "64kib" (the same), "1500b" to bytes. Raises
    ConfigError."""
    return _parse(value, "size", _SIZES, "64kb", "bytes")


def format_size(size_bytes: int) -> str:
    """Formats a size in tc's units (kb is 1024 bytes), exactly: parse_size(format_size(n)) == n."""
    return _format(size_bytes, _SIZES, _SIZES_OUT)


def parse_time(value: str | int) -> int:
    """Parses a time such as "250us", "5ms", "1.5s" to nanoseconds. Raises ConfigError."""
    return _parse(value, "time", _TIMES, "250us", "nanoseconds")


def format_time(time_ns: int) -> str:
    """Formats a time in s, ms, us or ns, exactly: parse_time(format_time(ns)) == ns."""
    return _format(time_ns, _TIMES, _TIMES_OUT)
