"""The commands of a virtio-net device's control queue, and the state that they set (Virtio 1.3,
section 5.1.6.5; statistics of the device: 1.4).

A command is a function of the state: the state before and the command's data give the state after.
So a command that is handled a second time, because a worker was killed before it had answered, has
the same effect.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from virt.device_statistics import COMMANDS, TYPES, requested, written
from virt.hash_types import HASH_TYPES, names_of_types
from virt.vhost_user.features import Feature, names

OK, ERR = 0, 1
MAC_BYTES = 6
ADDRESSES_MOST = 64  # of each table, as in receive_filter.pxd; a longer table means all
VLANS = 4096
HASH_KEY_BYTES = 40  # of Toeplitz, as Rss takes them; a shorter key is filled up with zeros
RSS_TABLE_MOST = 128  # entries, the least that a device may announce (section 5.1.4)
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
    NOTF_COAL = 6
    STATS = 8


class Hashing(msgspec.Struct, frozen=True):
    """How hashes of received frames are calculated. types: a mask of hash_types.HashType; key: of
    HASH_KEY_BYTES."""

    types: int
    key: bytes


class Steering(msgspec.Struct, frozen=True):
    """Receive-side scaling by the driver's table: the queue pair by the low bits of the hash.
    unclassified: the pair for frames without a hash."""

    table: list[int]
    unclassified: int


class Coalescing(msgspec.Struct, frozen=True):
    """A notification of used buffers comes with the packet of this number since the last one, or
    this long after the first of them; either 0: at once."""

    packets: int = 0
    usecs: int = 0


NO_COALESCING = Coalescing()


class Reply(NamedTuple):
    """ack: OK or ERR; result: what the command asked for."""

    ack: int
    result: bytes = b""


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
    hashing      None: no hash is calculated for the driver
    steering     None: not by the driver's table
    rx_coalescing, tx_coalescing  of all receive and all transmit queues
    queue_coalescing  of single queues where it differs, by virtqueue
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
    hashing: Hashing | None = None
    steering: Steering | None = None
    rx_coalescing: Coalescing = NO_COALESCING
    tx_coalescing: Coalescing = NO_COALESCING
    queue_coalescing: dict[int, Coalescing] = {}

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

    @property
    def sets_pairs(self) -> bool:
        """Whether the driver says how many queue pairs it uses."""
        return self.has(Feature.MQ) or self.has(Feature.RSS)

    @property
    def steers_by_flow(self) -> bool:
        """Whether a frame goes to the pair on which the driver last transmitted one of its flow
        (section 5.1.6.5.6): only its own command of several pairs asks for that."""
        return self.has(Feature.MQ) and self.steering is None and self.queue_pairs > 1

    def coalescing_of(self, virtqueue: int) -> Coalescing:
        """Of a receive queue (even) or transmit queue (odd)."""
        usual = self.tx_coalescing if virtqueue & 1 else self.rx_coalescing
        return self.queue_coalescing.get(virtqueue, usual)

    def status(self) -> dict[str, Any]:
        """For people and programs."""
        offloads = GUEST_OFFLOADS if self.offloads is None else self.offloads
        hashing, steering = self.hashing, self.steering
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
            "hash_types": [] if hashing is None else names_of_types(hashing.types),
            "hash_key": None if hashing is None else hashing.key.hex(":"),
            "rss_table": None if steering is None else steering.table,
            "rss_unclassified": None if steering is None else steering.unclassified,
            "steering": "rss" if steering else "flow" if self.steers_by_flow else "configured",
            "rx_coalescing": msgspec.structs.asdict(self.rx_coalescing),
            "tx_coalescing": msgspec.structs.asdict(self.tx_coalescing),
            "queue_coalescing": {
                str(queue): msgspec.structs.asdict(found)
                for queue, found in sorted(self.queue_coalescing.items())
            },
        }


class ControlQueue:
    """The state behind a control queue.

    most_pairs    queue pairs that the device has
    apply         called with each new state, before its command is answered
    statistics    the counters of a receive or transmit queue, by their names in device_statistics
    counts        commands that were answered with OK, and with ERR
    """

    def __init__(
        self,
        most_pairs: int,
        apply: Callable[[ControlState], object],
        state: ControlState,
        statistics: Callable[[int], Mapping[str, int]] = lambda virtqueue: {},
    ) -> None:
        self.most_pairs, self.apply, self.state = most_pairs, apply, state
        self.statistics = statistics
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

    def forget_queue(self, virtqueue: int) -> None:
        """A queue was set up anew: its notifications are those of all queues of its direction."""
        if virtqueue in self.state.queue_coalescing:
            self._set(self._without_coalescing(lambda queue: queue == virtqueue))

    def handle(self, command: bytes) -> Reply:
        """What a command does; after ERR, nothing has changed."""
        known = _COMMANDS.get((command[0], command[1])) if len(command) >= 2 else None
        reply = Reply(ERR)
        if known is not None and self.state.has(known.feature):
            try:
                found = known.handler(self, command[2:])
            except ValueError:
                pass  # the driver has no use for a reason
            else:
                if isinstance(found, bytes):
                    reply = Reply(OK, found)
                else:
                    reply = Reply(OK)
                    self._set(found)
        self.counts[reply.ack] += 1
        return reply

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
        """The last of this command and the next one says how frames are steered."""
        pairs = _number(data, 2)
        _expect(1 <= pairs <= self.most_pairs)
        return msgspec.structs.replace(self.state, queue_pairs=pairs, steering=None)

    def _rss(self, data: bytes) -> ControlState:
        """struct virtio_net_rss_config: its parts behind the table lie at no fixed offset."""
        _expect(len(data) >= 8)
        types, mask, unclassified = struct.unpack_from("<IHH", data)
        entries = mask + 1
        _expect(entries <= RSS_TABLE_MOST and entries & mask == 0)
        end = 8 + 2 * entries
        _expect(len(data) >= end + 2)
        # bits 1 to 16 of a virtqueue's index: the number of its pair
        table = list(struct.unpack_from(f"<{entries}H", data, 8))
        (transmitting,) = struct.unpack_from("<H", data, end)
        _expect(max(*table, unclassified) < self.most_pairs)
        _expect(1 <= transmitting <= self.most_pairs)
        return msgspec.structs.replace(
            self.state,
            queue_pairs=max(transmitting, *(entry + 1 for entry in (*table, unclassified))),
            hashing=_hashing(types, data[end + 2 :]),
            steering=Steering(table, unclassified),
        )

    def _hash(self, data: bytes) -> ControlState:
        """struct virtio_net_hash_config. Its reserved fields are not looked at: Linux has the
        contents of the command above there."""
        _expect(len(data) >= 12)
        (types,) = struct.unpack_from("<I", data)
        return msgspec.structs.replace(self.state, hashing=_hashing(types, data[12:]))

    def _offloads(self, data: bytes) -> ControlState:
        offloads = _number(data, 8)
        _expect(not offloads & ~(self.state.features & GUEST_OFFLOADS))
        return msgspec.structs.replace(self.state, offloads=offloads)

    def _without_coalescing(self, dropped: Callable[[int], bool]) -> ControlState:
        left = {
            queue: each for queue, each in self.state.queue_coalescing.items() if not dropped(queue)
        }
        return msgspec.structs.replace(self.state, queue_coalescing=left)

    def _coalesce_tx(self, data: bytes) -> ControlState:
        state = self._without_coalescing(lambda queue: bool(queue & 1))
        return msgspec.structs.replace(state, tx_coalescing=_coalescing(data))

    def _coalesce_rx(self, data: bytes) -> ControlState:
        state = self._without_coalescing(lambda queue: not queue & 1)
        return msgspec.structs.replace(state, rx_coalescing=_coalescing(data))

    def _coalesce_queue(self, data: bytes) -> ControlState:
        queue = self._enabled(data, 12)
        coalescing = {**self.state.queue_coalescing, queue: _coalescing(data[4:])}
        return msgspec.structs.replace(self.state, queue_coalescing=coalescing)

    def _coalescing_of(self, data: bytes) -> bytes:
        found = self.state.coalescing_of(self._enabled(data, 4))
        return struct.pack("<II", found.packets, found.usecs)

    def _enabled(self, data: bytes, size: int) -> int:
        """The virtqueue of struct virtio_net_ctrl_coal_vq; `reserved` is not looked at."""
        _expect(len(data) == size)
        queue = int.from_bytes(data[:2], "little")
        _expect(queue < 2 * self.state.queue_pairs)
        return queue

    def _statistics_known(self, data: bytes) -> bytes:
        _expect(not data)
        return struct.pack("<Q", TYPES)

    def _statistics(self, data: bytes) -> bytes:
        control = 2 * self.most_pairs if self.state.sets_pairs else 2
        wanted = requested(data, control)
        # this command is one of them
        commands = {COMMANDS: sum(self.counts) + 1, "ok_num": self.counts[OK] + 1}
        return b"".join(
            written(queue, types, commands if queue == control else self.statistics(queue))
            for queue, types in wanted
        )


def _expect(valid: bool) -> None:
    if not valid:
        raise ValueError


def _number(data: bytes, size: int) -> int:
    """Virtio's byte order is little-endian, whatever the machine's."""
    _expect(len(data) == size)
    return int.from_bytes(data, "little")


def _hashing(types: int, key: bytes) -> Hashing:
    """Of types and the key with its length before it."""
    _expect(len(key) >= 1 and len(key) == 1 + key[0] and key[0] <= HASH_KEY_BYTES)
    _expect(not types & ~HASH_TYPES)
    return Hashing(types, key[1:].ljust(HASH_KEY_BYTES, b"\0"))


def _coalescing(data: bytes) -> Coalescing:
    _expect(len(data) == 8)
    return Coalescing(*struct.unpack("<II", data))


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
    """feature: without which a driver must not send it. handler: returns the state, or the result
    of a command that changes nothing."""

    feature: Feature
    handler: Callable[[ControlQueue, bytes], ControlState | bytes]


# by class and command
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
    (Class.MQ, 1): _Command(Feature.RSS, ControlQueue._rss),
    (Class.MQ, 2): _Command(Feature.HASH_REPORT, ControlQueue._hash),
    (Class.GUEST_OFFLOADS, 0): _Command(Feature.CTRL_GUEST_OFFLOADS, ControlQueue._offloads),
    (Class.NOTF_COAL, 0): _Command(Feature.NOTF_COAL, ControlQueue._coalesce_tx),
    (Class.NOTF_COAL, 1): _Command(Feature.NOTF_COAL, ControlQueue._coalesce_rx),
    (Class.NOTF_COAL, 2): _Command(Feature.VQ_NOTF_COAL, ControlQueue._coalesce_queue),
    (Class.NOTF_COAL, 3): _Command(Feature.VQ_NOTF_COAL, ControlQueue._coalescing_of),
    (Class.STATS, 0): _Command(Feature.DEVICE_STATS, ControlQueue._statistics_known),
    (Class.STATS, 1): _Command(Feature.DEVICE_STATS, ControlQueue._statistics),
}
