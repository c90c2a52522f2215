"""Writes capture files of every kind byte by byte, so that reader and writer are not only tested
against each other."""

from __future__ import annotations

import struct


def pcap(packets, *, order: str = "<", nanoseconds: bool = False, link_type: int = 1, snaplen: int = 65535) -> bytes:
    """packets: (time_ns, data) or (time_ns, data, original length)."""
    unit = 1 if nanoseconds else 1000
    parts = [struct.pack(order + "IHHiIII", 0xA1B23C4D if nanoseconds else 0xA1B2C3D4, 2, 4, 0, 0, snaplen, link_type)]
    for time_ns, data, *original in packets:
        seconds, rest = divmod(time_ns, 10**9)
        parts += [struct.pack(order + "IIII", seconds, rest // unit, len(data), original[0] if original else len(data)), data]
    return b"".join(parts)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def section(order: str = "<", length: int = -1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, length), order)


def interface(order: str = "<", *, link_type: int = 1, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(1, struct.pack(order + "HHI", link_type, 0, snaplen) + options, order)


def enhanced(
    data: bytes, ticks: int, order: str = "<", *, number: int = 0, original: int | None = None, options: bytes = b""
) -> bytes:
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), original or len(data))
    return block(6, head + data + bytes(-len(data) % 4) + options, order)


def simple(data: bytes, order: str = "<", original: int | None = None) -> bytes:
    return block(3, struct.pack(order + "I", original or len(data)) + data + bytes(-len(data) % 4), order)


def obsolete(data: bytes, ticks: int, order: str = "<", *, number: int = 0) -> bytes:
    head = struct.pack(order + "HHIIII", number, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(2, head + data + bytes(-len(data) % 4), order)
