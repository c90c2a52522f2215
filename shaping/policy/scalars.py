"""Scalars of a policy: text in a file, exact numbers in memory. Each has `parse` and prints in the
same form.

Numbers that could mean two things are refused, and the error names both: a share without %, a rate
or delay without a unit, `mbps`, and a queue of `100m`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, Self

from dataplane.config.scalars import Duration, SchemaError
from dataplane.errors import ConfigError
from dataplane.units import (
    RATE_LEAST_BPS,
    RATE_MOST_BPS,
    format_rate,
    format_size,
    parse_rate,
    parse_size,
    parse_time,
)
from shaping.class_settings import RTT_LEAST_NS
from shaping.settings import UNLIMITED

_SHOWN_MOST = 40  # characters of a value that an error quotes
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{0,20})?|\.\d{1,20})\s*%", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,20})?|\.\d{1,20}", re.ASCII)
_BYTES_PER_SECOND = re.compile(r"([0-9.]{1,20})\s*([kmgt]?)(?:bps|b/s)", re.ASCII | re.IGNORECASE)


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN_MOST else text[:_SHOWN_MOST] + "...")


def decimal_text(number: Decimal | Fraction) -> str:
    """A number in decimal digits without an exponent; rounded only where it has more than 20
    decimals."""
    if isinstance(number, Fraction):
        number = Decimal(number.numerator) / Decimal(number.denominator)
    text = f"{number:.20f}".rstrip("0").rstrip(".") if number % 1 else f"{number:.0f}"
    return text or "0"


def _plain_number(value: Any) -> Decimal | None:
    """The value as a number without a unit; None if it is something else, or out of proportion."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value).strip()
    if isinstance(value, float):
        text = f"{Decimal(repr(value)):f}"
    return Decimal(text) if _NUMBER.fullmatch(text) else None


class Share(Fraction):
    """A share of packets: an exact number from 0 to 1, in a file a percentage."""

    def __new__(cls, value: Fraction | int | str) -> Self:
        if isinstance(value, str):
            return cls.parse(value)
        if not 0 <= value <= 1:
            raise SchemaError(f"share {decimal_text(Fraction(value) * 100)}%: expected 0% to 100%")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, value: Any) -> Self:
        number = _plain_number(value)
        if number == 0:
            return cls(0)
        if number is not None:
            readings = [f"{decimal_text(number)}%"] if number <= 100 else []
            if number <= 1:
                readings.append(f"{decimal_text(number * 100)}%")
            hint = f"write {' or '.join(readings)}" if readings else "expected 0% to 100%"
            many = "could mean two shares" if len(readings) > 1 else "has no %"
            raise SchemaError(f"share {_shown(decimal_text(number))} {many}: {hint}")
        match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise SchemaError(f"share {_shown(value)}: expected 0% to 100%, such as 1%")
        return cls(Fraction(match[1]) / 100)

    def __str__(self) -> str:
        return f"{decimal_text(Fraction(self) * 100)}%"

    def __repr__(self) -> str:
        return f"Share('{self}')"


class LineRate(int):
    """The rate of a line in bit/s; 0: no limit, in a file `none`."""

    def __new__(cls, value: int | str) -> Self:
        if isinstance(value, str):
            return cls.parse(value)
        if value and not RATE_LEAST_BPS <= value <= RATE_MOST_BPS:
            raise SchemaError(
                f"rate {format_rate(max(value, 0))} is out of range: expected "
                f"{format_rate(RATE_LEAST_BPS)} to {format_rate(RATE_MOST_BPS)}, or {UNLIMITED}"
            )
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, value: Any) -> Self:
        if value == UNLIMITED:
            return cls(0)
        if number := _plain_number(value):
            text = decimal_text(number)
            raise SchemaError(
                f"rate {_shown(text)} has no unit (bit/s in tc, Mbit/s elsewhere): write "
                f"{text}bit or {text}mbit"
            )
        match = _BYTES_PER_SECOND.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is not None and _plain_number(match[1]) is not None:
            number, unit = Decimal(match[1]), match[2].lower()
            raise SchemaError(
                f"rate {_shown(value)} could mean bits (as elsewhere) or bytes (as in tc): write "
                f"{decimal_text(number)}{unit}bit or {decimal_text(number * 8)}{unit}bit"
            )
        rate = parse_rate(value)
        if rate == 0:
            raise SchemaError(
                f"rate {value!s:.40} could mean no limit or nothing at all: write {UNLIMITED}, "
                "or loss: 100%"
            )
        return cls(rate)

    def __str__(self) -> str:
        return format_rate(self) if self else UNLIMITED


class LineTime(Duration):
    """A delay of a line, up to an hour."""

    WHAT, MOST = "delay", 3600 * 10**9

    @classmethod
    def parse(cls, value: Any) -> Self:
        number = _plain_number(value)
        if number:
            text = decimal_text(number)
            raise SchemaError(
                f"{cls.WHAT} {_shown(text)} has no unit (ns or us in tc, depending on its version, "
                f"ms elsewhere): write {text}us or {text}ms"
            )
        try:
            return cls(parse_time(value))
        except SchemaError:
            raise
        except ConfigError as error:
            raise SchemaError(str(error).replace("250us", "40ms")) from None


class StepTime(LineTime):
    """A time in a scenario, up to a week."""

    WHAT, MOST = "time", 7 * 24 * 3600 * 10**9

    @classmethod
    def parse(cls, value: Any) -> Self:
        if number := _plain_number(value):
            text = decimal_text(number)
            raise SchemaError(f"time {_shown(text)} has no unit: write {text}s or {text}ms")
        return super().parse(value)


class HoldTime(LineTime):
    """How long a packet that is to be reordered waits for others at most."""

    WHAT, LEAST, MOST = "within", 1_000, 60 * 10**9


class RoundTrip(LineTime):
    """The round trip of the flows of a queue."""

    WHAT, LEAST = "rtt", RTT_LEAST_NS


class QueueLength(Duration):
    """The longest queue as time at the line's rate."""

    WHAT, LEAST, MOST = "queue", 1_000, 60 * 10**9


class QueueSize(int):
    """The longest queue in bytes."""

    LEAST, MOST = 64, 2**30

    @classmethod
    def parse(cls, value: Any) -> Self:
        size = parse_size(value)
        if not cls.LEAST <= size <= cls.MOST:
            raise SchemaError(
                f"queue {format_size(size)} is out of range: expected {format_size(cls.LEAST)} to "
                f"{format_size(cls.MOST)}"
            )
        return cls(size)

    def __str__(self) -> str:
        return format_size(self)
