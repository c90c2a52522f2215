"""The other side of a memif connection in plain Python: the rings of a MemifPort as its peer sees them, and an engine in
virtual time."""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Sequence
from types import TracebackType

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from virt.guest_memory import GuestMemory, MemoryRegion
from virt.memif_port import MemifPort

COOKIE, NEXT, MASK = 0x3E31F20, 1, 1
FLAGS, HEAD, TAIL, ENTRIES = 4, 6, 64, 128
DESCRIPTOR = struct.Struct("=HHIII")  # flags, region, length, offset, metadata
REGION_BYTES = 1 << 20
RING_STEP, BUFFERS_AT = 0x8000, 0x10000  # of region 0: room for 1024 descriptors
TO_PEER, FROM_PEER = 0, 1  # the port's rings
BUFFER = 256


class MemifRing:
    """A ring in region 0. index: HEAD or TAIL, the one that the peer of the port stores."""

    def __init__(self, data: mmap.mmap, at: int, size: int, index: int) -> None:
        self.data, self.at, self.size, self.index = data, at, size, index
        self.position = 0  # as far as the peer has come
        struct.pack_into("=I", data, at, COOKIE)

    def load(self, at: int) -> int:
        return int(struct.unpack_from("=H", self.data, self.at + at)[0])

    def store(self, at: int, value: int) -> None:
        struct.pack_into("=H", self.data, self.at + at, value & 0xFFFF)

    @property
    def theirs(self) -> int:
        """The port's index."""
        return self.load(HEAD + TAIL - self.index)

    def entry(self, position: int) -> int:
        return self.at + ENTRIES + DESCRIPTOR.size * (position % self.size)

    def read(self, position: int) -> tuple[int, int, int, int]:
        """Flags, region, length, offset."""
        return DESCRIPTOR.unpack_from(self.data, self.entry(position))[:4]

    def write(self, position: int, length: int, offset: int, flags: int = 0, region: int = 0) -> None:
        DESCRIPTOR.pack_into(self.data, self.entry(position), flags, region, length, offset, 0)


class MemifPair:
    """A MemifPort of one queue pair, a server or a client, and its peer; the switch is a MemoryPort."""

    def __init__(self, *, client: bool = False, size: int = 8, pool: PacketPool | None = None) -> None:
        self.client, self.size = client, size
        self.fd = os.memfd_create("memif", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, REGION_BYTES)
        self.data = mmap.mmap(self.fd, REGION_BYTES)
        index = TAIL if client else HEAD
        self.rings = [MemifRing(self.data, each * RING_STEP, size, index) for each in (TO_PEER, FROM_PEER)]
        self.wakes = [os.eventfd(0, os.EFD_NONBLOCK) for _ in self.rings]
        self.memory = GuestMemory([MemoryRegion(0, REGION_BYTES, 0, 0, self.fd)])
        self.port = MemifPort("app", number=1, mtu=9000, client=client)
        self.port.set_memory(self.memory)
        for ring in (TO_PEER, FROM_PEER):
            self.start(ring)
        self.pool = pool or PacketPool(small=256, large=16)
        self.lan = MemoryPort("lan", 2)
        rx, lan_rx = PortRx(self.port), PortRx(self.lan)
        rx >> PortTx(self.lan)
        lan_rx >> PortTx(self.port)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.engine.load([rx, lan_rx])
        self.now = 1
        if not client:
            self.post(*[BUFFER] * size)

    def start(self, ring: int, *, resumed: bool = False) -> None:
        self.port.start(
            ring, size=self.size, address=ring * RING_STEP, wake_fd=self.wakes[ring], resumed=resumed,
            buffers=self.buffer(ring, 0), buffer_bytes=BUFFER,
        )  # fmt: skip

    def buffer(self, ring: int, position: int) -> int:
        """The offset of a buffer of BUFFER bytes of a ring."""
        return BUFFERS_AT + (ring * self.size + position % self.size) * BUFFER

    def __enter__(self) -> MemifPair:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.engine.close()
        self.port.close()
        self.memory.close()
        self.data.close()
        for each in (self.fd, *self.wakes):
            os.close(each)
        if kind is None:
            assert self.pool.in_use == 0

    def run(self) -> None:
        """Runs the engine until the port has no input."""
        self.now += 1
        advance(self.engine, self.now)
        assert self.engine.conservation()["conserved"]

    # -- the peer ----------------------------------------------------------------------------------

    def post(self, *lengths: int) -> None:
        """A client gives the port so many buffers to send in."""
        ring = self.rings[TO_PEER]
        for length in lengths:
            ring.write(ring.position, length, self.buffer(TO_PEER, ring.position))
            ring.position += 1
        ring.store(HEAD, ring.position)

    def room(self) -> int:
        """How many buffers the peer may send in."""
        ring = self.rings[FROM_PEER]
        return (ring.theirs - ring.position) % 65536 if self.client else self.size - (ring.position - ring.theirs) % 65536

    def send(self, frame: bytes, pieces: Sequence[int] = ()) -> None:
        """Sends a frame in pieces of such lengths, the last in what is left."""
        ring = self.rings[FROM_PEER]
        parts = []
        for piece in pieces:
            if len(frame) > piece:
                parts.append(frame[:piece])
                frame = frame[piece:]
        parts.append(frame)
        assert len(parts) <= self.room()
        for number, part in enumerate(parts):
            offset = ring.read(ring.position)[3] if self.client else self.buffer(FROM_PEER, ring.position)
            self.data[offset : offset + len(part)] = part
            ring.write(ring.position, len(part), offset, NEXT if number + 1 < len(parts) else 0)
            ring.position += 1
        ring.store(ring.index, ring.position)

    def received(self) -> list[bytes]:
        """Frames that the port has sent since the last call; their buffers are given back."""
        ring, found, frame = self.rings[TO_PEER], [], b""
        at = ring.position if self.client else ring.position - self.size
        while (ring.theirs - at) % 65536:
            flags, region, length, offset = ring.read(at)
            assert region == 0
            frame += self.data[offset : offset + length]
            at += 1
            if not flags & NEXT:
                found.append(frame)
                frame = b""
        assert not frame
        if self.client:
            ring.position = at
            ring.store(TAIL, at)
        else:
            self.post(*[BUFFER] * (at - ring.position + self.size))
        return found

    def sent(self, *frames: bytes) -> list[Frame]:
        """What comes out of the port for frames of the peer."""
        for frame in frames:
            self.send(frame)
        self.run()
        return self.lan.take()

    def delivered(self, *frames: bytes) -> list[bytes]:
        """What the peer receives of frames from the switch."""
        for frame in frames:
            self.lan.inject([frame])
        self.run()
        return self.received()

    def rung(self, ring: int) -> bool:
        """Whether an interrupt has come since the last call."""
        try:
            return os.eventfd_read(self.wakes[ring]) > 0
        except BlockingIOError:
            return False

    def readable(self) -> bool:
        """Whether the port's descriptor would end a sleep of the engine."""
        return bool(select.select(self.port.descriptors(), [], [], 0)[0])
