"""Handshakes of three front ends, message by message as they really do it: QEMU 7.2 and 10.0,
User-mode Linux 6.1, and DPDK 22.11's virtio-user. The orders are what back ends received of them;
QEMU 10.0's differs from 7.2's by the protocol features that it accepts."""

from __future__ import annotations

from virt.vhost_user.features import OF_VHOST, Feature
from virt.vhost_user.front_end import FrontEnd
from virt.vhost_user.protocol import LOG_ALL, PROTOCOL_FEATURES, ProtocolFeature, Request, Status

_P, _R = ProtocolFeature, Request

QEMU_7_2 = ProtocolFeature(0x1FDFF)  # all up to STATUS but CONFIG
QEMU_10_0 = ProtocolFeature(0xFFDFF)
UML_6_1 = _P.REPLY_ACK | _P.BACKEND_REQ | _P.CONFIG
DPDK_22_11 = _P.MQ | _P.REPLY_ACK | _P.STATUS
# QEMU serves the control queue itself, and never acknowledges its features.
_QEMU_KEEPS = (
    Feature.CTRL_VQ | Feature.CTRL_RX | Feature.CTRL_VLAN | Feature.CTRL_MAC_ADDR
    | Feature.CTRL_GUEST_OFFLOADS | Feature.MAC | Feature.STATUS | Feature.RSS | Feature.NOTF_COAL
    | Feature.SPEED_DUPLEX
)  # fmt: skip
_BEFORE_DRIVER_OK = Status.ACKNOWLEDGE | Status.DRIVER
_UML_LOG = (1 << 64) - 1  # of SET_VRING_ADDR: none


class Qemu:
    """QEMU 7.2, or 10.0 (newest). It connects long before the guest has a driver, and starts rings
    when that is ready. It adds memory region by region if CONFIGURE_MEM_SLOTS is offered."""

    def __init__(self, front: FrontEnd, *, pairs: int = 1, newest: bool = False) -> None:
        self.front, self.pairs, self.newest = front, pairs, newest
        self.offered = 0

    @property
    def _rings(self) -> range:
        return range(2 * self.pairs)

    def connect(self) -> None:
        """At its own start. It negotiates once for each pair of queues."""
        front = self.front
        for pair in range(self.pairs):
            self.offered = front.ask_number(_R.GET_FEATURES)
            front.agree(QEMU_10_0 if self.newest else QEMU_7_2)
            if pair == 0:
                front.ask_number(_R.GET_QUEUE_NUM)
            if self._has_slots:
                front.ask_number(_R.GET_MAX_MEM_SLOTS)
            if pair == 0:
                front.open_requests(tell=True)
                front.send(_R.SET_OWNER)
            front.ask_number(_R.GET_FEATURES)
            for ring in (2 * pair, 2 * pair + 1):
                front.set_notifier(_R.SET_VRING_CALL, ring)
                front.set_notifier(_R.SET_VRING_ERR, ring)
        self.enable(1)

    @property
    def _has_slots(self) -> bool:
        return bool(self.front.protocol_features & _P.CONFIGURE_MEM_SLOTS)

    def enable(self, pairs: int) -> None:
        """So many pairs of queues; also the first one alone, at each reset of the guest."""
        for ring in self._rings:
            self.front.set_ring(_R.SET_VRING_ENABLE, ring, int(ring < 2 * pairs))

    def start(self, bases: dict[int, int] | None = None) -> None:
        """At DRIVER_OK. bases: positions of rings, as a migration brings them."""
        front = self.front
        for pair in range(self.pairs):
            front.set_features(self.offered & ~_QEMU_KEEPS & ~LOG_ALL)  # again while pair 0 runs
            if pair == 0:
                self._set_status(Status.FEATURES_OK)
            if self._has_slots:
                for area in front.memory.areas:  # likewise
                    front.change_memory(_R.ADD_MEM_REG, area)
            elif pair == 0:
                front.set_memory(tell=True)
            for ring in (2 * pair, 2 * pair + 1):
                front.set_ring(_R.SET_VRING_NUM, ring, front.ring_size)
                front.set_ring(_R.SET_VRING_BASE, ring, (bases or {}).get(ring, self._fresh()))
                front.set_addresses(ring)
                front.set_notifier(_R.SET_VRING_KICK, ring)
                front.set_notifier(_R.SET_VRING_CALL, ring)
        self._set_status(Status.DRIVER_OK | _BEFORE_DRIVER_OK)
        self.enable(self.pairs)

    def _fresh(self) -> int:
        return 0x8000_8000 if self.front.features & Feature.RING_PACKED else 0

    def _set_status(self, status: int) -> None:
        """It adds to what the back end returns."""
        former = self.front.ask_number(_R.GET_STATUS)
        self.front.set_number(_R.SET_STATUS, former | status)

    def begin_migration(self, log: int, size: int) -> None:
        """The log's file, and its size; then rings log their used rings, while they run."""
        front = self.front
        front.ask(_R.SET_LOG_BASE, size.to_bytes(8, "little") + bytes(8), [log])
        front.set_features(front.features | LOG_ALL, tell=True)
        front.ask_number(_R.GET_STATUS)
        for ring in self._rings:
            place = front.memory.ring(ring)
            front.set_addresses(
                ring, logged=True, log=front.memory.guest_address(place.used), tell=True
            )

    def stop(self) -> dict[int, int]:
        """The guest resets the device, or moves. The status is 0 before all positions were asked
        for. Returns them by ring."""
        found = {}
        for pair in range(self.pairs):
            if pair == self.pairs - 1:
                self.front.set_number(_R.SET_STATUS, 0)
            for ring in (2 * pair, 2 * pair + 1):
                found[ring] = self.front.get_base(ring)
        self.enable(1)
        return found


class UserModeLinux:
    """User-mode Linux. It never asks for positions or status, and never stops a ring."""

    def __init__(self, front: FrontEnd, *, rings: int = 3) -> None:
        self.front, self.rings = front, rings
        self.offered = 0

    def connect(self) -> None:
        """When the kernel finds the device, which it does once."""
        front = self.front
        front.send(_R.SET_OWNER)
        self.offered = front.ask_number(_R.GET_FEATURES)
        front.agree(UML_6_1)
        front.open_requests(tell=True)

    def start(self, *, plain: bool = False) -> bytes:
        """A driver takes the device. plain: as seen when the driver drops a feature: it says so
        without PROTOCOL_FEATURES, and enables no ring. Returns the MAC address."""
        front = self.front
        features = self.offered & ~LOG_ALL
        front.set_features(features, tell=True)
        # a field is read by reading all that is before it
        mac = bytes(front.get_config(0, end)[-1] for end in range(1, 7))
        front.get_config(0, 10)
        if plain:
            front.set_features(features & ~PROTOCOL_FEATURES, tell=True)
        front.set_memory(tell=True, padding=32)
        for ring in range(self.rings):
            front.set_notifier(_R.SET_VRING_CALL, ring, tell=True)
            front.set_ring(_R.SET_VRING_NUM, ring, front.ring_size, tell=True)
            front.set_ring(_R.SET_VRING_BASE, ring, 0, tell=True)
            front.set_addresses(ring, log=_UML_LOG, tell=True)
        for ring in range(self.rings):
            front.set_notifier(_R.SET_VRING_KICK, ring, tell=True)
            if not plain:
                front.set_ring(_R.SET_VRING_ENABLE, ring, 1, tell=True)
        return mac

    def stop(self) -> None:
        """The driver lets go of the device: rings are disabled, last first, and their memory is
        freed after a message that has a reply."""
        for ring in reversed(range(self.rings)):
            self.front.set_ring(_R.SET_VRING_ENABLE, ring, 0)
        self.front.ask_number(_R.GET_FEATURES)


class Dpdk:
    """DPDK's virtio-user."""

    def __init__(self, front: FrontEnd, *, pairs: int = 1) -> None:
        self.front, self.pairs = front, pairs
        self.offered = 0

    def connect(self) -> None:
        """When the port is made."""
        front = self.front
        front.send(_R.SET_OWNER)
        self.offered = front.ask_number(_R.GET_FEATURES)
        front.agree(DPDK_22_11)

    def start(self) -> None:
        """When the port starts. It gives up if FEATURES_OK does not come back."""
        front = self.front
        for ring in range(2 * self.pairs):
            front.set_notifier(_R.SET_VRING_CALL, ring)
        front.set_features(self.offered & ~OF_VHOST | PROTOCOL_FEATURES, tell=True)
        front.set_number(_R.SET_STATUS, Status.FEATURES_OK | _BEFORE_DRIVER_OK, tell=True)
        if not front.ask_number(_R.GET_STATUS) & Status.FEATURES_OK:
            raise AssertionError("FEATURES_OK did not come back")
        front.set_memory(tell=True)
        fresh = 0x8000 if front.features & Feature.RING_PACKED else 0  # half of what it should be
        for ring in range(2 * self.pairs):
            front.set_ring(_R.SET_VRING_NUM, ring, front.ring_size, tell=True)
            front.set_ring(_R.SET_VRING_BASE, ring, fresh, tell=True)
            front.set_addresses(ring, tell=True)
            front.set_notifier(_R.SET_VRING_KICK, ring, tell=True)
        for ring in range(2 * self.pairs):
            front.set_ring(_R.SET_VRING_ENABLE, ring, 1, tell=True)
        status = Status.FEATURES_OK | Status.DRIVER_OK | _BEFORE_DRIVER_OK
        front.set_number(_R.SET_STATUS, status, tell=True)

    def stop(self) -> dict[int, int]:
        """When the port stops. Returns the rings' positions."""
        front = self.front
        for ring in range(2 * self.pairs):
            front.set_ring(_R.SET_VRING_ENABLE, ring, 0, tell=True)
        return {ring: front.get_base(ring) for ring in range(2 * self.pairs)}
