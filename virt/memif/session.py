"""What both sides of a memif connection say to each other, without a socket.

The client sends INIT after the server's HELLO, then each region, each ring and CONNECT, one after
the other: the server answers each with ACK, and CONNECT with CONNECTED. From then on the rings are
in use, until one side sends DISCONNECT or closes the socket.

A session handles one message at a time and returns the answer that is due. The books hold what it
knows, for a successor that carries on (connection.py). A server may be given the message that it
has handled last once more, to the same effect.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from dataplane.descriptors import close_all
from dataplane.errors import ConfigError
from virt.memif import protocol
from virt.memif.protocol import (
    DESCRIPTOR,
    ETHERNET,
    REGIONS_MOST,
    RING_HEADER,
    RING_SIZE_LOG2_MOST,
    S2M,
    VERSION,
    AddRegion,
    AddRing,
    Disconnected,
    Hello,
    Init,
    Kind,
    ProtocolError,
)

NAME = "vnic"
BUFFER_BYTES = 2048  # of a client's memory, as DPDK's default; longer frames take several
# A descriptor's offset has 32 bits, and this much of a client's memory is the instance's.
MEMORY_BYTES_MOST = 1 << 30


class Region(msgspec.Struct, frozen=True):
    """A region of memory. `descriptor`: the role of its file."""

    size: int
    descriptor: str


class Ring(msgspec.Struct, frozen=True):
    """A ring at `offset` of a region, of 2^size_log2 descriptors. `descriptor`: the role of its
    interrupts; buffers: where its first one is in region 0, if this side is the client."""

    region: int
    offset: int
    size_log2: int
    descriptor: str
    buffers: int = 0


class Answer(msgspec.Struct, frozen=True):
    """A message to send. `descriptor`: the role of the one that goes with it, or ""."""

    data: bytes
    descriptor: str = ""


class Books(msgspec.Struct, kw_only=True):
    """All that is known of a connection.

    asked      the peer has passed INIT, or, to a client, has sent HELLO
    connected  the rings are in use
    peer, interface  what the peer calls itself and its interface
    sent       a client's messages since HELLO
    answer     was due when the books were stored, and may not have been sent
    """

    version: int = 1
    asked: bool = False
    connected: bool = False
    peer: str = ""
    interface: str = ""
    sent: int = 0
    regions: list[Region] = []
    s2m: list[Ring] = []
    m2s: list[Ring] = []
    answer: Answer | None = None


class Interface(NamedTuple):
    """A memif interface as configured. secret: b"" for none; ring_size: descriptors, a power of
    two, which a server leaves to the client."""

    name: str
    id: int
    secret: bytes = b""
    queues: int = 1
    ring_size: int = 1024


class Device(Protocol):
    """What a session needs of the port behind it."""

    def start(self, books: Books, descriptors: Mapping[str, int], *, resumed: bool) -> None:
        """Starts the rings; resumed: where a predecessor left them. Raises ConfigError."""
        ...

    def stop(self) -> None:
        """Stops the rings; forgets the descriptors."""
        ...

    def make_memory(self, size: int, headers: Sequence[int]) -> int:
        """A descriptor of new memory of a client, with a cookie at each of these offsets."""
        ...

    def make_interrupt(self) -> int:
        """A descriptor for the interrupts of a ring."""
        ...


class Session:
    """One side of a connection. descriptors: open ones by role, which belong to the session."""

    def __init__(
        self,
        interface: Interface,
        device: Device,
        books: Books | None = None,
        descriptors: Mapping[str, int] | None = None,
    ) -> None:
        self.interface, self.device = interface, device
        self.books = Books() if books is None else books
        self.descriptors = dict(descriptors or {})

    def greet(self) -> Answer | None:
        """What is to be said before the peer has said anything."""
        raise NotImplementedError

    def handle(self, data: bytes, descriptors: Sequence[int]) -> Answer | None:
        """Handles a message, and takes over its descriptors. Raises ProtocolError."""
        left = list(descriptors)
        try:
            kind = protocol.kind_of(data)
            if kind == Kind.DISCONNECT:
                raise Disconnected(protocol.parse_disconnect(data) or "it gave no reason")
            if len(left) > 1:
                raise ProtocolError(f"{kind.name} with {len(left)} descriptors: expected one")
            return self._handle(kind, data, left)
        finally:
            close_all(left)

    def _handle(self, kind: Kind, data: bytes, given: list[int]) -> Answer | None:
        """Handles a message that is no DISCONNECT; removes from `given` what it keeps."""
        raise NotImplementedError

    def settle(self) -> None:
        """Starts the rings if they are to be in use from now on: after the books were stored.
        Raises ProtocolError."""
        if self.books.connected:
            self._start(resumed=False)

    def resume(self) -> None:
        """Carries on with a predecessor's books. Raises ProtocolError."""
        if self.books.connected:
            self._start(resumed=True)

    def _start(self, *, resumed: bool) -> None:
        try:
            self.device.start(self.books, self.descriptors, resumed=resumed)
        except ConfigError as error:
            raise ProtocolError(str(error)) from None

    def close(self) -> None:
        """Stops the rings and closes all descriptors."""
        self.device.stop()
        close_all(self.descriptors.values())
        self.descriptors, self.books = {}, Books()

    def _put(self, role: str, descriptor: int) -> str:
        if role in self.descriptors:
            close_all([self.descriptors[role]])
        self.descriptors[role] = descriptor
        return role


class ServerSession(Session):
    """The side that waits for a client, whose memory it uses."""

    def greet(self) -> Answer:
        most = self.interface.queues - 1
        return Answer(
            protocol.hello(
                Hello(NAME, VERSION, VERSION, REGIONS_MOST - 1, most, most, RING_SIZE_LOG2_MOST)
            )
        )

    def _handle(self, kind: Kind, data: bytes, given: list[int]) -> Answer:
        books = self.books
        if kind == Kind.INIT and not books.regions:
            self._init(protocol.parse_init(data))
        elif not books.asked:
            raise ProtocolError(f"{kind.name} before INIT")
        elif kind == Kind.ADD_REGION and not books.s2m and not books.m2s:
            self._add_region(protocol.parse_add_region(data), given)
        elif kind == Kind.ADD_RING and not books.connected:
            self._add_ring(protocol.parse_add_ring(data), given)
        elif kind == Kind.CONNECT and not books.interface:
            books.interface = protocol.parse_interface(data) or "?"
            books.connected = True
        elif kind != Kind.CONNECT:
            raise ProtocolError(f"{kind.name} at a time when it is not expected")
        if books.connected:
            return Answer(protocol.connected(self.interface.name))
        return Answer(protocol.ack())

    def _init(self, found: Init) -> None:
        if found.version != VERSION:
            raise ProtocolError(
                f"version {found.version >> 8}.{found.version & 0xFF}: expected 2.0"
            )
        if found.id != self.interface.id:
            raise ProtocolError(f"interface id {found.id}: expected {self.interface.id}")
        if found.mode != ETHERNET:
            raise ProtocolError(f"interface mode {found.mode}: expected {ETHERNET}, Ethernet")
        wanted = self.interface.secret
        if wanted and not protocol.same_secret(wanted, found.secret):
            raise ProtocolError("the secret is missing or wrong")
        self.books.asked, self.books.peer = True, found.name

    def _add_region(self, found: AddRegion, given: list[int]) -> None:
        regions = self.books.regions
        _check_next("region", found.number, len(regions), REGIONS_MOST)
        if not given:
            raise ProtocolError(f"region {found.number} without a descriptor")
        _check_file(f"region {found.number}", given[0], found.size)
        role = self._put(f"region{found.number}", given.pop())
        regions[found.number :] = [Region(found.size, role)]

    def _add_ring(self, found: AddRing, given: list[int]) -> None:
        word, rings = ("s2m", self.books.s2m) if found.flags & S2M else ("m2s", self.books.m2s)
        what = f"{word.upper()} ring"
        _check_next(what, found.number, len(rings), self.interface.queues)
        if not given:
            raise ProtocolError(f"{what} {found.number} without a descriptor")
        if found.region >= len(self.books.regions):
            raise ProtocolError(f"{what} {found.number} in region {found.region}: there is none")
        end = found.offset + RING_HEADER + (DESCRIPTOR << found.size_log2)
        if end > self.books.regions[found.region].size:
            raise ProtocolError(f"{what} {found.number} exceeds region {found.region}")
        role = self._put(f"{word}{found.number}", given.pop())
        rings[found.number :] = [Ring(found.region, found.offset, found.size_log2, role)]


class ClientSession(Session):
    """The side that connects to a server, and makes the memory."""

    def greet(self) -> None:
        """The server speaks first."""

    def _handle(self, kind: Kind, data: bytes, given: list[int]) -> Answer | None:
        books = self.books
        if kind == Kind.HELLO and not books.asked:
            self._make(protocol.parse_hello(data))
            return self._next()
        if not books.asked:
            raise ProtocolError(f"{kind.name} before HELLO")
        if kind == Kind.ACK and books.sent < self._messages:
            return self._next()
        if kind == Kind.CONNECTED and books.sent == self._messages and not books.connected:
            books.interface = protocol.parse_interface(data)
            books.connected = True
            return None
        raise ProtocolError(f"{kind.name} at a time when it is not expected")

    @property
    def _messages(self) -> int:
        """INIT, the region, the rings, CONNECT."""
        return 3 + len(self.books.s2m) + len(self.books.m2s)

    def _make(self, found: Hello) -> None:
        """Makes the memory: rings, each on cache lines of its own, then their buffers."""
        if not found.version_least <= VERSION <= found.version_most:
            raise ProtocolError(
                f"versions {found.version_least >> 8}.{found.version_least & 0xFF} to "
                f"{found.version_most >> 8}.{found.version_most & 0xFF}: expected 2.0"
            )
        books, wanted = self.books, self.interface
        size_log2 = min(found.size_log2_most, wanted.ring_size.bit_length() - 1)
        if size_log2 < 1:
            raise ProtocolError(f"rings of 2^{size_log2} descriptors: expected 2^1 at least")
        s2m = min(found.s2m_most + 1, wanted.queues)
        m2s = min(found.m2s_most + 1, wanted.queues)
        step = -(-ring_bytes(size_log2) // 64) * 64
        buffers = -(-(s2m + m2s) * step // 4096) * 4096
        for place in range(s2m + m2s):
            word, rings, index = (
                ("s2m", books.s2m, place) if place < s2m else ("m2s", books.m2s, place - s2m)
            )
            role = self._put(f"{word}{index}", self.device.make_interrupt())
            at = buffers + place * (BUFFER_BYTES << size_log2)
            rings.append(Ring(0, place * step, size_log2, role, at))
        size = buffers + (s2m + m2s) * (BUFFER_BYTES << size_log2)
        headers = [ring.offset for ring in (*books.s2m, *books.m2s)]
        role = self._put("region0", self.device.make_memory(size, headers))
        books.regions = [Region(size, role)]
        books.asked, books.peer = True, found.name

    def _next(self) -> Answer:
        """The next message of the client."""
        books, wanted = self.books, self.interface
        place, books.sent = books.sent, books.sent + 1
        if place == 0:
            return Answer(protocol.init(Init(VERSION, wanted.id, ETHERNET, wanted.secret, NAME)))
        if place == 1:
            [region] = books.regions
            return Answer(protocol.add_region(AddRegion(0, region.size)), region.descriptor)
        rings = [(S2M, each) for each in enumerate(books.s2m)]
        rings += [(0, each) for each in enumerate(books.m2s)]
        if place - 2 == len(rings):
            return Answer(protocol.connect(wanted.name))
        flags, (index, ring) = rings[place - 2]
        message = AddRing(flags, index, ring.region, ring.offset, ring.size_log2, 0)
        return Answer(protocol.add_ring(message), ring.descriptor)


def ring_bytes(size_log2: int) -> int:
    """The bytes of a ring of 2^size_log2 descriptors."""
    return RING_HEADER + (DESCRIPTOR << size_log2)


def _check_next(what: str, index: int, count: int, most: int) -> None:
    """Raises ProtocolError unless it is the next one, or the last one again."""
    if index >= most:
        raise ProtocolError(f"{what} {index}: expected at most {most}")
    if index not in (count, count - 1):
        raise ProtocolError(f"{what} {index} after {count}: expected {count}")


def _check_file(what: str, descriptor: int, size: int) -> None:
    """Raises ProtocolError unless the descriptor is a file, such as a memfd, of that size."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise ProtocolError(f"{what}: its descriptor is no file that can be mapped")
    if found.st_size < size:
        raise ProtocolError(f"{what}: a file of {found.st_size} bytes: expected {size} at least")
