"""A guest without a virtual machine: the driver twin, a VirtioPort and an engine in virtual time."""

from __future__ import annotations

import os
import select
from types import TracebackType
from typing import Any

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from virt.driver import GuestRam, NetQueues, PackedRing, SplitRing
from virt.guest_memory import GuestMemory
from virt.virtio_port import VirtioPort

# feature bits
CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4 = 0, 1, 7, 8, 9, 11
MRG_RXBUF, INDIRECT, EVENT_IDX, VERSION_1, PACKED, IN_ORDER = 15, 28, 29, 32, 34, 35
GUEST_USO4, GUEST_USO6, HASH_REPORT = 54, 55, 57
RX, TX = 0, 1  # the driver's rings
FRESH = 0x80008000  # position of a packed ring that begins


def mask(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


class Guest:
    """One queue pair. `features` are bit numbers; the rings follow them."""

    def __init__(self, *features: int, size: int = 8, pool: PacketPool | None = None, ram: GuestRam | None = None,
                 calls: bool = True, mtu: int = 65535) -> None:  # fmt: skip
        self.packed = PACKED in features
        self.ram = ram or GuestRam()
        kind: Any = PackedRing if self.packed else SplitRing
        options = {"event_index": EVENT_IDX in features, "in_order": IN_ORDER in features}
        header = 20 if HASH_REPORT in features else 12 if {VERSION_1, MRG_RXBUF} & set(features) else 10
        # only the transmit ring is used in batches, see VirtioPort
        self.rings = [kind(self.ram, size, **options | {"in_order": False}), kind(self.ram, size, **options)]
        self.net = NetQueues(self.rings[RX], self.rings[TX], header)
        self.port = VirtioPort("vm", number=1, mtu=mtu)
        self.memory = GuestMemory([self.ram.region])
        self.port.set_memory(self.memory)
        self.port.set_features(mask(*features))
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in self.rings]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in self.rings]
        self.errors = [os.eventfd(0, os.EFD_NONBLOCK) for _ in self.rings]
        for ring in (RX, TX):
            self.start(ring)
            self.port.enable(ring, True)
        self.pool = pool or PacketPool(small=256, large=16)
        self.lan = MemoryPort("lan", 2)
        rx, lan_rx = PortRx(self.port), PortRx(self.lan)
        rx >> PortTx(self.lan)
        lan_rx >> PortTx(self.port)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.engine.load([rx, lan_rx])
        self.now = 1

    def start(self, ring: int, base: int = -1, **changes: Any) -> None:
        """Starts a ring at a position as `stop` returns it; -1: at its beginning."""
        position = (FRESH if self.packed else 0) if base == -1 else base
        descriptors = {"kick_fd": self.kicks[ring], "call_fd": self.calls[ring], "error_fd": self.errors[ring]}
        self.port.start(ring, **{**self.rings[ring].places, "base": position, **descriptors, **changes})

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.engine.close()
        self.port.close()
        self.memory.close()
        self.ram.close()
        for each in [*self.kicks, *self.calls, *self.errors]:
            os.close(each)
        if kind is None:
            assert self.pool.in_use == 0

    def run(self) -> None:
        """Runs the engine until the port has no input."""
        self.now += 1
        advance(self.engine, self.now)
        assert self.engine.conservation()["conserved"]

    def sent(self, *frames: bytes) -> list[Frame]:
        """What comes out of the device for frames that the driver transmits one per descriptor."""
        for frame in frames:
            self.net.transmit(frame)
        self.rings[TX].publish()
        self.run()
        return self.lan.take()

    def state(self, ring: int) -> dict[str, Any]:
        return self.port.ring_state(ring)

    def readable(self) -> bool:
        """Whether the port's descriptor would end a sleep of the engine."""
        return bool(select.select(self.port.descriptors(), [], [], 0)[0])

    def rung(self, descriptors: list[int], ring: int) -> bool:
        """Whether a notification has come since the last call."""
        try:
            return os.eventfd_read(descriptors[ring]) > 0
        except BlockingIOError:
            return False
