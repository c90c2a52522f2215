"""Scalars of the configuration: text in a file, numbers and checked strings in memory. Each has
`parse` and prints in the same form."""

from __future__ import annotations

import hashlib
import ipaddress
import pwd
import re
from typing import Any, ClassVar, Self

from dataplane.errors import ConfigError
from dataplane.units import (
    RATE_LEAST_BPS,
    RATE_MOST_BPS,
    format_rate,
    format_time,
    parse_rate,
    parse_time,
)

RSS_KEY_BYTES = 40  # Toeplitz: two IPv6 addresses and two ports (36 bytes), and 32 bits more


class SchemaError(ConfigError, ValueError):
    """An invalid value. Also a ValueError, which msgspec turns into an error with a path."""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Rate(int):
    """A rate in bit/s; Rate("100mbit") parses text."""

    LEAST, MOST = RATE_LEAST_BPS, RATE_MOST_BPS

    def __new__(cls, value: int | str) -> Self:
        bps = parse_rate(value) if isinstance(value, str) else value
        if not cls.LEAST <= bps <= cls.MOST:
            raise SchemaError(
                f"rate {format_rate(max(bps, 0))} is out of range: expected "
                f"{format_rate(cls.LEAST)} to {format_rate(cls.MOST)}"
            )
        return super().__new__(cls, bps)

    @classmethod
    def parse(cls, value: Any) -> Self:
        return cls(parse_rate(value))

    def __str__(self) -> str:
        return format_rate(self)


class Duration(int):
    """A time in nanoseconds; Duration("5ms") parses text. Subclasses define range and name."""

    WHAT: ClassVar[str] = "time"
    LEAST: ClassVar[int] = 0
    MOST: ClassVar[int] = 10**18

    def __new__(cls, value: int | str) -> Self:
        ns = parse_time(value) if isinstance(value, str) else value
        if not cls.LEAST <= ns <= cls.MOST:
            raise SchemaError(
                f"{cls.WHAT} {format_time(max(ns, 0))} is out of range: "
                f"expected {format_time(cls.LEAST)} to {format_time(cls.MOST)}"
            )
        return super().__new__(cls, ns)

    @classmethod
    def parse(cls, value: Any) -> Self:
        return cls(parse_time(value))

    def __str__(self) -> str:
        return format_time(self)


class Spin(Duration):
    """How long an idle engine polls before it sleeps."""

    WHAT, MOST = "spin", 10**9


class Ageing(Duration):
    """How long an address that sends nothing stays in the switch's table."""

    WHAT, LEAST, MOST = "ageing", 10**9, 86_400 * 10**9


class QueueTime(Duration):
    """How much a shaper may hold, as time at its rate."""

    WHAT, LEAST, MOST = "queue", 10**6, 10 * 10**9


class Slo(Duration):
    """Upper bound of the queueing delay of engines that share a thread."""

    WHAT, LEAST, MOST = "slo", 1_000, 10**9


class TurnBudget(Duration):
    """Upper bound of an iteration of an engine."""

    WHAT, MOST = "budget", 10**9


class CpuTime(Duration):
    """CPU time in each period."""

    WHAT, LEAST, MOST = "runtime", 10_000, 10**9


class CpuPeriod(Duration):
    """Period of a CPU time guarantee."""

    WHAT, LEAST, MOST = "period", 100_000, 10**9


class Mac(str):
    """A unicast MAC address, six lower-case bytes with colons."""

    def __new__(cls, value: str) -> Self:
        text = value.lower() if isinstance(value, str) else ""
        if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text, re.ASCII):
            raise SchemaError(
                f"{_shown(value)} is not a MAC address: expected six bytes such as "
                "02:00:00:00:00:01"
            )
        if int(text[:2], 16) & 1:
            raise SchemaError(
                f"{text} is a group address: a NIC's has an even first byte, such as "
                "02:00:00:00:00:01"
            )
        if text == "00:00:00:00:00:00":
            raise SchemaError(f"{text} is nobody's address: expected one such as 02:00:00:00:00:01")
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, value: Any) -> Self:
        return cls(value)

    @classmethod
    def from_name(cls, name: str) -> Self:
        """A locally administered address derived from the NIC's name alone, so that it is the same
        after a restart."""
        digest = bytearray(hashlib.sha256(b"vnic mac " + name.encode()).digest()[:6])
        digest[0] = digest[0] & 0xFC | 0x02
        return cls(digest.hex(":"))

    @property
    def packed(self) -> bytes:
        return bytes.fromhex(self.replace(":", ""))


class Address(str):
    """An interface's address with its prefix length: 10.0.0.1/24, fd00::1/64."""

    def __new__(cls, value: str) -> Self:
        try:
            if not isinstance(value, str) or "/" not in value:
                raise ValueError
            interface = ipaddress.ip_interface(value)
        except ValueError:
            raise SchemaError(
                f"{_shown(value)} is not an address: expected address/prefix such as 10.0.0.1/24 "
                "or fd00::1/64"
            ) from None
        if interface.is_multicast or interface.is_unspecified or "%" in value:
            raise SchemaError(f"{_shown(value)} cannot be an interface's own address")
        return super().__new__(cls, interface.with_prefixlen)

    @classmethod
    def parse(cls, value: Any) -> Self:
        return cls(value)


class Network(str):
    """The destination of a route: 10.1.0.0/16, fd00:1::/64, or default."""

    def __new__(cls, value: str) -> Self:
        if value == "default":
            return super().__new__(cls, value)
        try:
            if not isinstance(value, str) or "/" not in value or "%" in value:
                raise ValueError
            network = ipaddress.ip_network(value)
        except ValueError:
            raise SchemaError(
                f"{_shown(value)} is not a network: expected address/prefix without host bits such "
                "as 10.1.0.0/16, or default"
            ) from None
        return super().__new__(cls, str(network))

    @classmethod
    def parse(cls, value: Any) -> Self:
        return cls(value)


class Gateway(str):
    """The address of a gateway: 10.0.0.254, fd00::1."""

    def __new__(cls, value: str) -> Self:
        try:
            if not isinstance(value, str) or "%" in value:
                raise ValueError
            address = ipaddress.ip_address(value)
        except ValueError:
            raise SchemaError(
                f"{_shown(value)} is not a gateway: expected an IP address such as 10.0.0.254 or "
                "fd00::1"
            ) from None
        if address.is_multicast or address.is_unspecified or address.is_loopback:
            raise SchemaError(
                f"{_shown(value)} cannot be a gateway: expected an address on the NIC's link such "
                "as 10.0.0.254"
            )
        return super().__new__(cls, str(address))

    @classmethod
    def parse(cls, value: Any) -> Self:
        return cls(value)


class User(int):
    """A user, by number; also printed as a number, which stays valid when the user's name
    changes."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        text = str(value)
        if (
            re.fullmatch(r"[0-9]{1,10}", text, re.ASCII)
            and int(text) < 2**32 - 1
            and not isinstance(value, bool)
        ):
            return cls(int(text))
        try:
            return cls(pwd.getpwnam(text).pw_uid)
        except (KeyError, ValueError):
            raise SchemaError(
                f"{_shown(value)} is not an user of this machine: expected a name such as alice, "
                "or a number"
            ) from None

    def __str__(self) -> str:
        return int.__repr__(self)


class RssKey(bytes):
    """The key of the Toeplitz hash."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        hint = (
            f'expected {RSS_KEY_BYTES} bytes in hexadecimal, in quotes, such as "6d:5a:56:da:..."'
        )
        if not isinstance(value, str) or not re.fullmatch(
            r"[0-9a-fA-F]{2}(:?[0-9a-fA-F]{2})*", value, re.ASCII
        ):
            raise SchemaError(f"{_shown(value)} is no RSS key: {hint}")
        key = bytes.fromhex(value.replace(":", ""))
        if len(key) != RSS_KEY_BYTES:
            raise SchemaError(f"RSS key has {len(key)} bytes: {hint}")
        return cls(key)

    def __str__(self) -> str:
        return self.hex(":")


SCALARS: tuple[Any, ...] = (
    Rate, Spin, Ageing, QueueTime, Slo, TurnBudget, CpuTime, CpuPeriod,
    Mac, Address, Network, Gateway, RssKey, User,
)  # fmt: skip
