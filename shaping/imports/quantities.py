"""Quantities as tc(8) reads them: units in any case, sizes in powers of 1024, `bps` in bytes.

Stricter than tc: signs, exponents, infinities, NaN and hexadecimal fractions are refused, and so is
a delay without a unit, which different versions read as ns, us or ms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from dataplane.errors import ConfigError
from dataplane.units import RATE_LEAST_BPS, RATE_MOST_BPS, format_rate
from shaping.imports.notes import quoted, unsupported

_NUMBER = re.compile(r"(\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})\s*([a-zA-Z%/]*)", re.ASCII)
_WHOLE = re.compile(r"-?(?:0[xX][0-9a-fA-F]{1,16}|\d{1,20})", re.ASCII)
_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}", re.ASCII)

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
             "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
RATES = {f"{prefix}{unit}": factor * bits for prefix, factor in _PREFIXES.items()
         for unit, bits in (("bit", 1), ("bps", 8))}  # fmt: skip
TIMES = {"ns": 1, "nsec": 1, "nsecs": 1, "us": 10**3, "usec": 10**3, "usecs": 10**3,
         "ms": 10**6, "msec": 10**6, "msecs": 10**6, "s": 10**9, "sec": 10**9, "secs": 10**9,
         }  # fmt: skip
SIZES = {"": 1, "b": 1, "k": 2**10, "kb": 2**10, "m": 2**20, "mb": 2**20, "g": 2**30, "gb": 2**30,
         "kbit": 2**7, "mbit": 2**17, "gbit": 2**27}  # fmt: skip


def _quantity(what: str, text: str, units: Mapping[str, int], example: str) -> Fraction:
    match = _NUMBER.fullmatch(text) if len(text) <= 60 else None
    if match is None:
        raise ConfigError(f"{what} {quoted(text)}: expected a number such as {example}")
    factor = units.get(match[2].lower())
    if factor is None:
        raise ConfigError(f"{what} {quoted(text)}: unknown unit: expected one such as {example}")
    return Fraction(match[1]) * factor


def rate_of(what: str, text: str) -> int:
    """bit/s, rounded down to whole bits. A number without a unit is in bit/s, as in tc."""
    if text.endswith("%"):
        raise unsupported(f"{what} {quoted(text)}", "a NIC has no speed of its own: write a rate")
    return int(_quantity(what, text, {**RATES, "": 1}, "10mbit"))


def time_of(what: str, text: str) -> int:
    """ns; refuses a number without a unit, except 0."""
    match = _NUMBER.fullmatch(text) if len(text) <= 60 else None
    if match is not None and not match[2]:
        if Fraction(match[1]) == 0:
            return 0
        number = match[1]
        raise ConfigError(
            f"{what} {quoted(text)} has no unit (ns, us or ms, depending on the version of tc): "
            f"write {number}ms, {number}us or {number}ns"
        )
    return int(_quantity(what, text, TIMES, "40ms"))


def microseconds_of(what: str, text: str) -> int:
    """ns of a time that all versions of tc read in microseconds where it has no unit."""
    return int(_quantity(what, text, {**TIMES, "": 1000}, "5ms"))


def size_of(what: str, text: str) -> int:
    """Bytes."""
    return int(_quantity(what, text, SIZES, "32kb"))


def burst_of(what: str, text: str) -> int:
    """Bytes of a bucket, which may be followed by a cell size: 10kb/8."""
    size, slash, cell = text.partition("/")
    if slash and (not cell.isascii() or not cell.isdigit() or int(cell[:9]).bit_count() != 1):
        raise ConfigError(f"{what} {quoted(text)}: expected a cell size of a power of two")
    return size_of(what, size)


def percent_of(what: str, text: str) -> Fraction:
    """A share, 0 to 1, of a number with or without %."""
    # A policy has twelve decimals of a percentage, tc's 32 bits tell nine.
    share = round(_quantity(what, text, {"": 1, "%": 1}, "1%") / 100, 14)
    if share > 1:
        raise ConfigError(f"{what} {quoted(text)}: expected 0% to 100%")
    return share


def whole_of(what: str, text: str, least: int = 0, most: int = 2**32 - 1) -> int:
    """A whole number, decimal or with 0x."""
    if _WHOLE.fullmatch(text) is None:
        raise ConfigError(f"{what} {quoted(text)}: expected a whole number")
    number = int(text, 16 if "x" in text.lower() else 10)
    if not least <= number <= most:
        raise ConfigError(f"{what} {quoted(text)}: expected {least} to {most}")
    return number


def hex_of(what: str, text: str, most: int = 2**32 - 1) -> int:
    """A number in hexadecimal, with or without 0x."""
    if _HEX.fullmatch(text) is None or int(text, 16) > most:
        raise ConfigError(f"{what} {quoted(text)}: expected hexadecimal digits, at most {most:x}")
    return int(text, 16)


def line_rate(what: str, bps: int) -> str:
    """A rate as a policy has it. Raises Unsupported for one that a line cannot have."""
    if not RATE_LEAST_BPS <= bps <= RATE_MOST_BPS:
        raise unsupported(
            f"{what} {format_rate(bps)}",
            f"a rate is {format_rate(RATE_LEAST_BPS)} to {format_rate(RATE_MOST_BPS)}",
        )
    return format_rate(bps)
