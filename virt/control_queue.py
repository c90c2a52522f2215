"""The commands of a virtio-net device's control queue, and the state that they set (Virtio 1.3,
section 5.1.6.5).

A command is a function of the state: the state before and the command's data give the state after.
So a command that is handled a second time, because a worker was killed before it had answered, has
the same effect.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from virt.vhost_user.features import Feature, names

OK, ERR = 0, 1
MAC_BYTES = 6
ADDRESSES_MOST = 64  # of each table, as in receive_filter.pxd; a longer table means all
VLANS = 4096
GUEST_OFFLOADS = (
    Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.GUEST_UFO
    | Feature.GUEST_USO4
    | Feature.GUEST_USO6
)


class Class(IntEnum):
    """The first byte of a command."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5


class ControlState(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver has set. The defaults are those after a reset.

    features, generation   of the device, and of its control ring: a driver that acknowledges other
                 features, or sets the ring up anew, begins with the defaults
    queue_pairs  in use: 1 until the driver says
    mac          of the driver; None: the device's own
    unicast, multicast   tables of addresses; None: all, since the driver's table was too long
    vlans        in ascending order
    offloads     features of GUEST_OFFLOADS that are in use; None: all that were acknowledged
    announce     the driver was asked to announce itself, and has not answered
    """

    features: int = 0
    generation: int = 0
    queue_pairs: int = 1
    promiscuous: bool = False
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    mac: bytes | None = None
    unicast: list[bytes] | None = []
    multicast: list[bytes] | None = []
    vlans: list[int] = []
    offloads: int | None = None
    announce: bool = False

    def has(self, feature: Feature) -> bool:
        """Whether the driver acknowledged a feature, and the control queue that it needs."""
        needed = feature | Feature.CTRL_VQ
        return self.features & needed == needed

    def filter_of(self, mac: bytes) -> dict[str, Any]:
        """Arguments of VirtioPort.set_receive_filter. mac: the device's own address."""
        found: dict[str, Any] = {}
        if self.promiscuous:
            return found
        if self.has(Feature.CTRL_VLAN):
            bits = bytearray(VLANS // 8)
            for vlan in self.vlans:
                bits[vlan >> 3] |= 1 << (vlan & 7)
            found["vlans"] = bytes(bits)
        if self.has(Feature.CTRL_RX):
            found |= {
                "own": mac if self.mac is None else self.mac,
                "unicast": None if self.all_unicast else self.unicast,
                "multicast": None if self.all_multicast else self.multicast,
                "no_unicast": self.no_unicast,
                "broadcast": not self.no_broadcast,
            }
            if self.no_multicast:
                found["multicast"] = []
        return found

    def status(self) -> dict[str, Any]:
        """For people and programs."""
        offloads = GUEST_OFFLOADS if self.offloads is None else self.offloads
        return {
            "queue_pairs": self.queue_pairs,
            "promiscuous": self.promiscuous,
            "all_multicast": self.all_multicast or self.multicast is None,
            "all_unicast": self.all_unicast or self.unicast is None,
            "no_multicast": self.no_multicast,
            "no_unicast": self.no_unicast,
            "no_broadcast": self.no_broadcast,
            "unicast": [each.hex(":") for each in self.unicast or ()],
            "multicast": [each.hex(":") for each in self.multicast or ()],
            "vlans": self.vlans,
            "offloads": names(self.features & offloads & GUEST_OFFLOADS),
            "announcing": self.announce,
        }


class ControlQueue:
    """The state behind a control queue.

    most_pairs    queue pairs that the device has
    apply         called with each new state, before its command is answered
    counts        commands that were answered with OK, and with ERR
    """

    def __init__(
        self, most_pairs: int, apply: Callable[[ControlState], object], state: ControlState
    ) -> None:
        self.most_pairs, self.apply, self.state = most_pairs, apply, state
        self.counts = [0, 0]

    def begin(self, features: int, generation: int) -> None:
        """A driver with these features, or a ring of this generation, is there: begins with the
        defaults, unless the state is theirs."""
        if (features, generation) != (self.state.features, self.state.generation):
            self._set(ControlState(features=features, generation=generation))

    def reset(self) -> None:
        """The driver has reset the device."""
        self._set(ControlState(features=self.state.features, generation=self.state.generation))

    def ask_to_announce(self) -> bool:
        """Asks the driver to announce itself on the network; False if it cannot. The configuration
        space tells it, of which it must be notified."""
        if self.state.has(Feature.GUEST_ANNOUNCE):
            self._set(msgspec.structs.replace(self.state, announce=True))
        return self.state.announce

    def handle(self, command: bytes) -> int:
        """What a command does; returns OK, or ERR, and then nothing has changed."""
        known = _COMMANDS.get((command[0], command[1])) if len(command) >= 2 else None
        ack = ERR
        if known is not None and self.state.has(known.feature):
            try:
                state = known.handler(self, command[2:])
            except ValueError:
                pass  # the driver has no use for a reason
            else:
                ack = OK
                self._set(state)
        self.counts[ack] += 1
        return ack

    def _set(self, state: ControlState) -> None:
        if state != self.state:
            self.apply(state)
            self.state = state

    # -- the commands: each raises ValueError for data that are none of it -------------------------

    def _mac_table(self, data: bytes) -> ControlState:
        unicast, rest = _addresses(data)
        multicast, rest = _addresses(rest)
        _expect(not rest)
        _expect(not any(each[0] & 1 for each in unicast or ()))
        _expect(all(each[0] & 1 for each in multicast or ()))
        return msgspec.structs.replace(self.state, unicast=unicast, multicast=multicast)

    def _mac_address(self, data: bytes) -> ControlState:
        _expect(len(data) == MAC_BYTES and not data[0] & 1 and any(data))
        return msgspec.structs.replace(self.state, mac=data)

    def _vlan_add(self, data: bytes) -> ControlState:
        vlans = sorted({*self.state.vlans, _vlan(data)})
        return msgspec.structs.replace(self.state, vlans=vlans)

    def _vlan_delete(self, data: bytes) -> ControlState:
        gone = _vlan(data)
        vlans = [each for each in self.state.vlans if each != gone]
        return msgspec.structs.replace(self.state, vlans=vlans)

    def _announced(self, data: bytes) -> ControlState:
        _expect(not data)
        return msgspec.structs.replace(self.state, announce=False)

    def _pairs(self, data: bytes) -> ControlState:
        pairs = _number(data, 2)
        _expect(1 <= pairs <= self.most_pairs)
        return msgspec.structs.replace(self.state, queue_pairs=pairs)

    def _offloads(self, data: bytes) -> ControlState:
        offloads = _number(data, 8)
        _expect(not offloads & ~(self.state.features & GUEST_OFFLOADS))
        return msgspec.structs.replace(self.state, offloads=offloads)


def _expect(valid: bool) -> None:
    if not valid:
        raise ValueError


def _number(data: bytes, size: int) -> int:
    """Virtio's byte order is little-endian, whatever the machine's."""
    _expect(len(data) == size)
    return int.from_bytes(data, "little")


def _vlan(data: bytes) -> int:
    vlan = _number(data, 2)
    _expect(vlan < VLANS)
    return vlan


def _addresses(data: bytes) -> tuple[list[bytes] | None, bytes]:
    """A table of addresses, None for one that is too long, and what follows it."""
    _expect(len(data) >= 4)
    (count,) = struct.unpack_from("<I", data)
    end = 4 + MAC_BYTES * count
    _expect(len(data) >= end)
    if count > ADDRESSES_MOST:
        return None, data[end:]
    return [data[at : at + MAC_BYTES] for at in range(4, end, MAC_BYTES)], data[end:]


def _mode(field: str) -> Callable[[ControlQueue, bytes], ControlState]:
    """A command of class RX: a byte that turns a mode on or off."""

    def handler(queue: ControlQueue, data: bytes) -> ControlState:
        value = _number(data, 1)
        _expect(value <= 1)
        changed: dict[str, Any] = {field: bool(value)}
        return msgspec.structs.replace(queue.state, **changed)

    return handler


class _Command(msgspec.Struct, frozen=True):
    """feature: without which a driver must not send it."""

    feature: Feature
    handler: Callable[[ControlQueue, bytes], ControlState]


# By class and command. Class 6 (coalescing) and the commands of RSS are not offered.
_COMMANDS: dict[tuple[int, int], _Command] = {
    (Class.RX, 0): _Command(Feature.CTRL_RX, _mode("promiscuous")),
    (Class.RX, 1): _Command(Feature.CTRL_RX, _mode("all_multicast")),
    (Class.RX, 2): _Command(Feature.CTRL_RX_EXTRA, _mode("all_unicast")),
    (Class.RX, 3): _Command(Feature.CTRL_RX_EXTRA, _mode("no_multicast")),
    (Class.RX, 4): _Command(Feature.CTRL_RX_EXTRA, _mode("no_unicast")),
    (Class.RX, 5): _Command(Feature.CTRL_RX_EXTRA, _mode("no_broadcast")),
    (Class.MAC, 0): _Command(Feature.CTRL_RX, ControlQueue._mac_table),
    (Class.MAC, 1): _Command(Feature.CTRL_MAC_ADDR, ControlQueue._mac_address),
    (Class.VLAN, 0): _Command(Feature.CTRL_VLAN, ControlQueue._vlan_add),
    (Class.VLAN, 1): _Command(Feature.CTRL_VLAN, ControlQueue._vlan_delete),
    (Class.ANNOUNCE, 0): _Command(Feature.GUEST_ANNOUNCE, ControlQueue._announced),
    (Class.MQ, 0): _Command(Feature.MQ, ControlQueue._pairs),
    (Class.GUEST_OFFLOADS, 0): _Command(Feature.CTRL_GUEST_OFFLOADS, ControlQueue._offloads),
}
