"""Statistics of a virtio-net device as its driver asks for them by the control queue (Virtio 1.4,
Device Statistics)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

REQUEST = struct.Struct("<HHHHQ")  # virtqueue, reserved, types
HEADER = struct.Struct("<BBHHH")  # type, reserved, virtqueue, reserved, size with this header
RX_BASIC, TX_BASIC, CONTROL = 0, 16, 32
COMMANDS = "command_num"
# A driver asks for each queue and type once; more would only make the reply long.
REQUESTS_MOST = 256


class Type(NamedTuple):
    """number: of its bit; fields: names of its counters, 64 bits each."""

    number: int
    fields: tuple[str, ...]


RECEIVE = Type(
    RX_BASIC,
    ("rx_notifications", "rx_packets", "rx_bytes", "rx_interrupts", "rx_drops", "rx_drop_overruns"),
)
TRANSMIT = Type(
    TX_BASIC,
    (
        "tx_notifications", "tx_packets", "tx_bytes", "tx_interrupts", "tx_drops",
        "tx_drop_malformed",
    ),
)  # fmt: skip
QUEUE_OF_COMMANDS = Type(CONTROL, (COMMANDS, "ok_num"))
TYPES = 1 << RX_BASIC | 1 << TX_BASIC | 1 << CONTROL


def type_of(virtqueue: int, control: int) -> Type:
    """The type that a virtqueue has; control: the index of the control queue."""
    if virtqueue == control:
        return QUEUE_OF_COMMANDS
    return TRANSMIT if virtqueue & 1 else RECEIVE


def requested(data: bytes, control: int) -> list[tuple[int, Type | None]]:
    """The virtqueues that a driver asks about, and their type, or None if it asks for none. Raises
    ValueError if one of its requests cannot be answered, since then none must be."""
    if not data or len(data) % REQUEST.size or len(data) > REQUEST.size * REQUESTS_MOST:
        raise ValueError
    found: list[tuple[int, Type | None]] = []
    for queue, _, _, _, types in REQUEST.iter_unpack(data):
        if queue > control:
            raise ValueError
        only = type_of(queue, control)
        if types & ~(1 << only.number):
            raise ValueError
        found.append((queue, only if types else None))
    return found


def written(virtqueue: int, kind: Type | None, counters: Mapping[str, int]) -> bytes:
    """The reply for a virtqueue. A counter that the device does not have is 0."""
    if kind is None:
        return b""
    values = [counters.get(field, 0) & (1 << 64) - 1 for field in kind.fields]
    size = HEADER.size + 8 * len(values)
    return HEADER.pack(kind.number, 0, virtqueue, 0, size) + struct.pack(
        f"<{len(values)}Q", *values
    )
