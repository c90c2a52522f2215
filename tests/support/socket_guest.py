"""A guest without a virtual machine behind the socket of a NIC: front end and driver are in the test's own process."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from tests.support.guests import FRESH, MRG_RXBUF, PACKED, RX, TX, VERSION_1, mask
from virt.driver import GuestRam, NetQueues, PackedRing, SplitRing
from virt.vhost_user.front_end import FrontEnd
from virt.vhost_user.guest_memory import RingPlace
from virt.vhost_user.handshakes import DPDK_22_11
from virt.vhost_user.messages import HEADER, Area
from virt.vhost_user.protocol import PROTOCOL_FEATURES, VERSION, Request

WAIT_S = 60.0
BUFFER_BYTES = 2048
R = Request


class Ram:
    """The driver's memory as a FrontEnd describes it."""

    def __init__(self, ram: GuestRam, rings: Sequence[Any]) -> None:
        self.ram, self.rings = ram, rings
        self.areas = [Area(ram.guest, ram.size, ram.user, 0)]
        self.descriptor = ram.fd

    def user_address(self, offset: int) -> int:
        return offset + self.ram.user

    def guest_address(self, offset: int) -> int:
        return offset + self.ram.guest

    def ring(self, index: int) -> RingPlace:
        ring, base = self.rings[index], self.ram.guest
        return RingPlace(ring.descriptors - base, ring.used_ring - base, ring.available - base)

    def close(self) -> None:
        self.ram.close()


def connected(path: str) -> socket.socket:
    """A socket that the NIC has taken: it refuses a second front end until it has noticed that the first one went."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WAIT_S)
        try:
            sock.connect(path)
            sock.sendall(HEADER.pack(R.GET_FEATURES, VERSION, 0))
            if sock.recv(HEADER.size + 8):
                return sock
        except ConnectionError:
            pass
        sock.close()
    raise AssertionError(f"{path} takes no front end")


class SocketGuest:
    """A guest with one queue pair, connected and running, with receive buffers posted."""

    def __init__(self, path: str, mac: bytes, *features: int, size: int = 32, starts: bool = True) -> None:
        self.mac, self.size, self.posted = mac, size, min(size // 2, 64)
        self.features = mask(VERSION_1, MRG_RXBUF, *features) | PROTOCOL_FEATURES
        self.packed = PACKED in features
        kind: Any = PackedRing if self.packed else SplitRing
        self.ram = GuestRam(1 << 20)
        self.rings = [kind(self.ram, size), kind(self.ram, size)]
        self.net = NetQueues(self.rings[RX], self.rings[TX], 12)
        memory: Any = Ram(self.ram, self.rings)
        self.front = FrontEnd(connected(path), memory, rings=2)
        self.frames: list[bytes] = []
        self.sent = 0
        if starts:
            self.start()

    def start(self) -> None:
        """The handshake of DPDK, whose driver is as plain."""
        front = self.front
        front.send(R.SET_OWNER)
        front.ask_number(R.GET_FEATURES)
        front.agree(DPDK_22_11)
        front.set_features(self.features, tell=True)
        front.set_memory(tell=True)
        for _ in range(self.posted):
            self.net.post(BUFFER_BYTES)
        self.rings[RX].publish()
        self.rings[RX].ask_for_calls(True)
        for ring in (RX, TX):
            front.set_ring(R.SET_VRING_NUM, ring, self.size, tell=True)
            front.set_ring(R.SET_VRING_BASE, ring, FRESH if self.packed else 0, tell=True)
            front.set_addresses(ring, tell=True)
            front.set_notifier(R.SET_VRING_CALL, ring, tell=True)
            front.set_notifier(R.SET_VRING_ERR, ring, tell=True)
            front.set_notifier(R.SET_VRING_KICK, ring, tell=True)
            front.set_ring(R.SET_VRING_ENABLE, ring, 1, tell=True)

    def kick(self, ring: int = TX) -> None:
        os.eventfd_write(self.front.notifiers[ring].kick, 1)

    def send(self, frame: bytes) -> None:
        self.net.transmitted()
        self.net.transmit(frame)
        self.sent += 1
        if self.rings[TX].publish():
            self.kick()

    def receive(self) -> bytes:
        """The next frame."""
        deadline_s = time.monotonic() + WAIT_S
        while not self.frames:
            self.frames += [content for content, _ in self.net.received()]
            while len(self.net.buffers) < self.posted:
                self.net.post(BUFFER_BYTES)
            self.rings[RX].publish()
            if self.frames:
                break
            call = self.front.notifiers[RX].call
            assert select.select([call], [], [], deadline_s - time.monotonic())[0], "no frame has come"
            os.eventfd_read(call)
        return self.frames.pop(0)

    def broke(self, ring: int) -> bool:
        """Waits until the device says that it has stopped the ring."""
        error = self.front.notifiers[ring].error
        return bool(select.select([error], [], [], WAIT_S)[0])

    def close(self) -> None:
        self.front.close()

    def __enter__(self) -> SocketGuest:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
