"""Frames that tests send and receive, and times, as users write them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dataplane.errors import ConfigError
from dataplane.units import format_time, parse_time

Packet = Any  # bytes, or a scapy packet that begins with Ethernet
FRAMES = ("Ether", "Dot3", "Raw")  # scapy classes of Ethernet frames; Raw: bytes


@dataclass(frozen=True)
class Received:
    """A frame that a container received: time since the start, and bytes."""

    time_ns: int
    data: bytes
    queue: int = 0

    def __bytes__(self) -> bytes:
        return self.data

    def __repr__(self) -> str:
        return f"<{len(self.data)} bytes at {format_time(self.time_ns)}>"

    @property
    def packet(self) -> Any:
        """The frame as a scapy packet."""
        from vnic.replay.dissect import packet

        return packet(self.data)


def _is_packet(value: Any) -> bool:
    """Whether `value` is one packet. Scapy packets are iterable, too, but have __bytes__."""
    return isinstance(value, bytes | bytearray | memoryview) or hasattr(type(value), "__bytes__")


def _frame(packet: Packet, what: str) -> bytes:
    """The bytes of an Ethernet frame. Raises ConfigError for others: bytes(5) would be five
    zeros."""
    kinds = [each.__name__ for each in type(packet).__mro__]
    if not _is_packet(packet):
        raise ConfigError(
            f"{what}: {type(packet).__name__} is not a packet: expected bytes or a scapy packet"
        )
    if hasattr(packet, "fields_desc") and not set(FRAMES) & set(kinds):
        raise ConfigError(
            f"{what}: {kinds[0]} is no Ethernet frame; put Ether(...) / in front of it"
        )
    return bytes(packet)


def frames_of(packets: Packet | Iterable[Packet], what: str) -> list[bytes]:
    """The frames of one packet, or of several: a list, a generator, the result of rdpcap."""
    if _is_packet(packets):
        return [_frame(packets, what)]
    if isinstance(packets, str) or not isinstance(packets, Iterable):
        raise ConfigError(
            f"{what}: {type(packets).__name__} is not a packet: "
            f"expected bytes, a scapy packet, or several of them"
        )
    return [_frame(packet, f"{what}: packet {number}") for number, packet in enumerate(packets, 1)]


def nanoseconds(time: str | int) -> int:
    """A time as text or a whole number of nanoseconds. Raises ConfigError."""
    if isinstance(time, str):
        return parse_time(time)
    try:
        return operator.index(time)
    except TypeError:
        raise ConfigError(
            f'time {time!r}: expected text such as "500ms", or a whole number of nanoseconds'
        ) from None


def in_unit_of(time_ns: int, other_ns: int) -> str:
    """A time, exact, in the unit that suits another one, so that the two are easy to compare."""
    for unit, name in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        if abs(other_ns) >= unit:
            whole, rest = divmod(abs(time_ns), unit)
            decimals = f".{rest:0{len(str(unit)) - 1}d}".rstrip("0").rstrip(".")
            return f"{'-' if time_ns < 0 else ''}{whole}{decimals}{name}"
    return f"{time_ns}ns"
