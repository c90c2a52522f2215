"""Messages of memif 2.0, and the error of a peer that violates the protocol.

Bytes become values here, with all bounds that do not depend on the interface. A message has 128
bytes: a type of 16 bits, fields without padding in the machine's byte order, zeros. It is sent by a
Unix socket of type SOCK_SEQPACKET, at most one descriptor with it.

Source: FD.io VPP, src/plugins/memif/memif.h. Its master and slave are called server and client, as
in DPDK: the client makes the memory. Rings of the direction S2M carry the client's frames.
"""

from __future__ import annotations

import hmac
import struct
from enum import IntEnum
from typing import NamedTuple

from dataplane.errors import VnicError

COOKIE = 0x3E31F20  # in the first bytes of each ring
VERSION = 2 << 8  # major and minor number
ETHERNET = 0  # the interface mode: frames begin with an Ethernet header
MESSAGE_BYTES = 128
SECRET_BYTES = 24  # with the zero that ends it in all peers
NAME_BYTES = 32
REASON_BYTES = 96
RING_SIZE_LOG2_MOST = 14  # as DPDK, libmemif and VPP
REGIONS_MOST = 32  # as GuestMemory; DPDK and VPP use 1 to some 10
REGION_BYTES_MOST = 1 << 36  # only 4 GiB and a buffer of it can be reached by a descriptor
RING_HEADER, DESCRIPTOR = 128, 16  # bytes in a region
S2M = 1 << 0  # flag of ADD_RING

_TYPE = struct.Struct("=H")
_HELLO = struct.Struct("=32sHHHHHB")
_INIT = struct.Struct("=HIB24s32s")
_ADD_REGION = struct.Struct("=HQ")
_ADD_RING = struct.Struct("=HHHIBH")
_NAME = struct.Struct("=32s")
_DISCONNECT = struct.Struct("=I96s")


class Kind(IntEnum):
    """Types of messages."""

    ACK = 1
    HELLO = 2
    INIT = 3
    ADD_REGION = 4
    ADD_RING = 5
    CONNECT = 6
    CONNECTED = 7
    DISCONNECT = 8


class ProtocolError(VnicError):
    """The peer sent what is wrong or does not fit the interface: the connection ends."""


class Disconnected(ProtocolError):
    """The peer has ended the connection, with this reason."""


class Hello(NamedTuple):
    """The bounds of a server. Rings and regions: the highest index."""

    name: str
    version_least: int
    version_most: int
    region_most: int
    m2s_most: int
    s2m_most: int
    size_log2_most: int


class Init(NamedTuple):
    """Which interface a client wants to connect to."""

    version: int
    id: int
    mode: int
    secret: bytes
    name: str


class AddRegion(NamedTuple):
    """A region of `size` bytes, whose file comes with the message."""

    number: int
    size: int


class AddRing(NamedTuple):
    """A ring at `offset` of a region, whose interrupt descriptor comes with the message."""

    flags: int
    number: int
    region: int
    offset: int
    size_log2: int
    private_header: int


def kind_of(data: bytes) -> Kind:
    """The type of a message. Raises ProtocolError."""
    if len(data) != MESSAGE_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes: expected {MESSAGE_BYTES}")
    (number,) = _TYPE.unpack_from(data)
    try:
        return Kind(number)
    except ValueError:
        raise ProtocolError(f"message type {number}: expected 1 to {max(Kind)}") from None


def _message(kind: Kind, content: bytes = b"") -> bytes:
    return (_TYPE.pack(kind) + content).ljust(MESSAGE_BYTES, b"\0")


def text(data: bytes) -> str:
    """The text up to the first zero, of a peer: what is not printable ASCII is replaced."""
    found = data.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(each if each.isprintable() else "?" for each in found)


def _field(value: str, size: int) -> bytes:
    """A text in so many bytes, cut so that a zero ends it."""
    return value.encode("ascii", "replace")[: size - 1]


def ack() -> bytes:
    return _message(Kind.ACK)


def hello(values: Hello) -> bytes:
    return _message(Kind.HELLO, _HELLO.pack(_field(values.name, NAME_BYTES), *values[1:]))


def parse_hello(data: bytes) -> Hello:
    name, *numbers = _HELLO.unpack_from(data, _TYPE.size)
    return Hello(text(name), *numbers)


def init(values: Init) -> bytes:
    version, number, mode, secret, name = values
    return _message(Kind.INIT, _INIT.pack(version, number, mode, secret, _field(name, NAME_BYTES)))


def parse_init(data: bytes) -> Init:
    version, number, mode, secret, name = _INIT.unpack_from(data, _TYPE.size)
    return Init(version, number, mode, secret, text(name))


def add_region(values: AddRegion) -> bytes:
    return _message(Kind.ADD_REGION, _ADD_REGION.pack(*values))


def parse_add_region(data: bytes) -> AddRegion:
    """Raises ProtocolError."""
    found = AddRegion(*_ADD_REGION.unpack_from(data, _TYPE.size))
    if not 1 <= found.size <= REGION_BYTES_MOST:
        raise ProtocolError(
            f"region {found.number} of {found.size} bytes: expected 1 to {REGION_BYTES_MOST}"
        )
    return found


def add_ring(values: AddRing) -> bytes:
    return _message(Kind.ADD_RING, _ADD_RING.pack(*values))


def parse_add_ring(data: bytes) -> AddRing:
    """Raises ProtocolError."""
    found = AddRing(*_ADD_RING.unpack_from(data, _TYPE.size))
    if not 1 <= found.size_log2 <= RING_SIZE_LOG2_MOST:
        raise ProtocolError(
            f"ring {found.number} of 2^{found.size_log2} descriptors: expected 2^1 to "
            f"2^{RING_SIZE_LOG2_MOST}"
        )
    if found.private_header:
        raise ProtocolError(f"ring {found.number} with private headers: they are not supported")
    return found


def connect(interface: str) -> bytes:
    return _message(Kind.CONNECT, _field(interface, NAME_BYTES))


def connected(interface: str) -> bytes:
    return _message(Kind.CONNECTED, _field(interface, NAME_BYTES))


def parse_interface(data: bytes) -> str:
    """The peer's interface, of CONNECT and CONNECTED."""
    (name,) = _NAME.unpack_from(data, _TYPE.size)
    return text(name)


def disconnect(reason: str) -> bytes:
    return _message(Kind.DISCONNECT, _DISCONNECT.pack(0, _field(reason, REASON_BYTES)))


def parse_disconnect(data: bytes) -> str:
    """The peer's reason."""
    _, reason = _DISCONNECT.unpack_from(data, _TYPE.size)
    return text(reason)


def same_secret(wanted: bytes, given: bytes) -> bool:
    """Whether the secret of an INIT is the configured one. libmemif leaves what follows the zero
    uninitialized. The time does not tell how many bytes agree."""
    cut = given.split(b"\0", 1)[0].ljust(SECRET_BYTES, b"\0")
    return hmac.compare_digest(cut, wanted.ljust(SECRET_BYTES, b"\0"))
