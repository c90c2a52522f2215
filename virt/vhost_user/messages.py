"""Messages of the front end: header, payloads, how many descriptors each wants.

Bytes become values here, with all bounds that do not depend on the device: each parser checks
sizes, flags and arithmetic in the width that arrived, and raises ProtocolError with the message's
name. Numbers are in the machine's byte order (the protocol never leaves the machine).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from virt.vhost_user.protocol import (
    MOST_CONFIG_BYTES,
    MOST_DESCRIPTORS,
    NEED_REPLY,
    NO_DESCRIPTOR,
    REPLY,
    RING_INDEX_MASK,
    RING_LOG,
    VERSION,
    VERSION_MASK,
    BackendRequest,
    ProtocolError,
    ProtocolFeature,
    Request,
)

HEADER = struct.Struct("=III")  # request, flags, payload's size
U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")  # struct vhost_vring_state
ADDRESSES = struct.Struct("=IIQQQQ")  # struct vhost_vring_addr: descriptors, USED, AVAILABLE, log
TABLE = struct.Struct("=II")  # number of regions, padding
REGION = struct.Struct("=QQQQ")  # guest address, size, user address, offset in the file
PADDING = struct.Struct("=Q")  # before the region of ADD_MEM_REG and REM_MEM_REG
LOG = struct.Struct("=QQ")  # size, offset in the file
CONFIG = struct.Struct("=III")  # offset, size, flags; then `size` bytes
INFLIGHT = struct.Struct("=QQHH4x")  # size, offset in the file, queues, their size; padding

_MOST_TABLE = TABLE.size + MOST_DESCRIPTORS * REGION.size
_U64 = 1 << 64
_P = ProtocolFeature
_NONE = ProtocolFeature(0)


class Message(NamedTuple):
    """A message as it arrived, its header understood."""

    request: Request
    needs_reply: bool
    payload: bytes = b""


class State(NamedTuple):
    """SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE. `ring` is not checked
    against the device's rings."""

    ring: int
    number: int


class RingDescriptor(NamedTuple):
    """SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR."""

    ring: int
    has_descriptor: bool


class Addresses(NamedTuple):
    """SET_VRING_ADDR: addresses of the front end's process; `log` is guest physical."""

    ring: int
    flags: int
    descriptors: int
    used: int
    available: int
    log: int


class Area(NamedTuple):
    """A region of guest memory: `size` bytes from `offset` of a file."""

    guest_address: int
    size: int
    user_address: int
    offset: int


class LogArea(NamedTuple):
    """SET_LOG_BASE."""

    size: int
    offset: int


class ConfigAccess(NamedTuple):
    """GET_CONFIG and SET_CONFIG."""

    offset: int
    size: int
    flags: int
    data: bytes


class InflightArea(NamedTuple):
    """GET_INFLIGHT_FD and SET_INFLIGHT_FD."""

    size: int
    offset: int
    queues: int
    queue_size: int


class Shape(NamedTuple):
    """What is known of a request before its payload arrives."""

    least: int = 0  # bytes of payload
    most: int = 0
    descriptors: int = 0  # some messages say in their payload how many: see `wanted`
    feature: ProtocolFeature = _NONE  # that must be agreed on first
    answered: bool = False  # has a reply of its own, whether or not one is asked for


def _exactly(
    size: int, descriptors: int = 0, feature: ProtocolFeature = _NONE, answered: bool = False
) -> Shape:
    return Shape(size, size, descriptors, feature, answered)


# The requests that are handled. All others are refused: each needs a protocol feature, or a Virtio
# feature, that is not offered.
SHAPES = {
    Request.GET_FEATURES: _exactly(0, answered=True),
    Request.SET_FEATURES: _exactly(U64.size),
    Request.SET_OWNER: _exactly(0),
    Request.RESET_OWNER: _exactly(0),
    # User-mode Linux sends the whole of its structure: longer than its one region needs.
    Request.SET_MEM_TABLE: Shape(TABLE.size, _MOST_TABLE),
    Request.SET_LOG_BASE: _exactly(LOG.size, 1, _P.LOG_SHMFD, answered=True),
    Request.SET_LOG_FD: _exactly(0, 1),
    Request.SET_VRING_NUM: _exactly(STATE.size),
    Request.SET_VRING_ADDR: _exactly(ADDRESSES.size),
    Request.SET_VRING_BASE: _exactly(STATE.size),
    Request.GET_VRING_BASE: _exactly(STATE.size, answered=True),
    Request.SET_VRING_KICK: _exactly(U64.size),
    Request.SET_VRING_CALL: _exactly(U64.size),
    Request.SET_VRING_ERR: _exactly(U64.size),
    Request.GET_PROTOCOL_FEATURES: _exactly(0, answered=True),
    Request.SET_PROTOCOL_FEATURES: _exactly(U64.size),
    Request.GET_QUEUE_NUM: _exactly(0, 0, _P.MQ, answered=True),
    Request.SET_VRING_ENABLE: _exactly(STATE.size),
    Request.SEND_RARP: _exactly(U64.size, 0, _P.RARP),
    Request.NET_SET_MTU: _exactly(U64.size, 0, _P.NET_MTU),
    Request.SET_BACKEND_REQ_FD: _exactly(0, 1, _P.BACKEND_REQ),
    Request.GET_CONFIG: Shape(
        CONFIG.size, CONFIG.size + MOST_CONFIG_BYTES, 0, _P.CONFIG, answered=True
    ),
    Request.SET_CONFIG: Shape(CONFIG.size, CONFIG.size + MOST_CONFIG_BYTES, 0, _P.CONFIG),
    # with or without the four bytes that C adds to its structure
    Request.GET_INFLIGHT_FD: Shape(20, INFLIGHT.size, 0, _P.INFLIGHT_SHMFD, answered=True),
    Request.SET_INFLIGHT_FD: Shape(20, INFLIGHT.size, 1, _P.INFLIGHT_SHMFD),
    Request.RESET_DEVICE: _exactly(0, 0, _P.RESET_DEVICE),
    Request.GET_MAX_MEM_SLOTS: _exactly(0, 0, _P.CONFIGURE_MEM_SLOTS, answered=True),
    Request.ADD_MEM_REG: _exactly(PADDING.size + REGION.size, 1, _P.CONFIGURE_MEM_SLOTS),
    Request.REM_MEM_REG: _exactly(PADDING.size + REGION.size, 0, _P.CONFIGURE_MEM_SLOTS),
    Request.SET_STATUS: _exactly(U64.size, 0, _P.STATUS),
    Request.GET_STATUS: _exactly(0, 0, _P.STATUS, answered=True),
}

# Bounds what is read of a message that is not handled, before it is refused.
MOST_PAYLOAD = max(shape.most for shape in SHAPES.values())


def header(data: bytes) -> tuple[Request, bool, int]:
    """(request, whether a reply is asked for, payload's size) of the 12 bytes of a header."""
    number, flags, size = HEADER.unpack(data)
    try:
        request = Request(number)
    except ValueError:
        raise ProtocolError(f"message {number} is unknown") from None
    if flags & VERSION_MASK != VERSION:
        version = flags & VERSION_MASK
        raise ProtocolError(f"{request.name}: version {version}: expected {VERSION}")
    if flags & REPLY:
        raise ProtocolError(f"{request.name}: a reply, and nothing was asked")
    shape = SHAPES.get(request)
    least, most = (shape.least, shape.most) if shape else (0, MOST_PAYLOAD)
    if not least <= size <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise ProtocolError(f"{request.name}: payload of {size} bytes: expected {expected}")
    return request, bool(flags & NEED_REPLY), size


def wanted(message: Message) -> int:
    """How many descriptors the message comes with. Others that came are closed, as those of some
    front ends' REM_MEM_REG are."""
    request = message.request
    if request is Request.SET_MEM_TABLE:
        return len(table(message))
    if request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        return int(ring_descriptor(message).has_descriptor)
    shape = SHAPES.get(request)
    return shape.descriptors if shape else 0


def check_descriptors(message: Message, number: int) -> None:
    """Raises ProtocolError unless just so many descriptors are wanted."""
    if number != (expected := wanted(message)):
        raise ProtocolError(f"{message.request.name}: {number} descriptors: expected {expected}")


def u64(message: Message) -> int:
    """The number that is the whole payload."""
    return int(U64.unpack(message.payload)[0])


def state(message: Message) -> State:
    """A ring's index and a number."""
    return State(*STATE.unpack(message.payload))


def ring_descriptor(message: Message) -> RingDescriptor:
    """Which ring's descriptor comes, or is taken away."""
    value = u64(message)
    if value & ~(RING_INDEX_MASK | NO_DESCRIPTOR):
        raise ProtocolError(f"{message.request.name}: {value:#x}: expected bits 0 to 8 only")
    return RingDescriptor(value & RING_INDEX_MASK, not value & NO_DESCRIPTOR)


def addresses(message: Message) -> Addresses:
    """A ring's addresses, aligned as Virtio wants them (section 2.7 and 2.8): compiled code reads
    their words whole."""
    found = Addresses(*ADDRESSES.unpack(message.payload))
    if found.flags & ~RING_LOG:
        raise ProtocolError(f"SET_VRING_ADDR: flags {found.flags:#x}: expected 0 or 1")
    for part, address, alignment in (
        ("descriptors", found.descriptors, 16),
        ("used ring", found.used, 4),
        ("available ring", found.available, 2),
    ):
        if address % alignment:
            raise ProtocolError(
                f"SET_VRING_ADDR: ring {found.ring}: {part} at {address:#x}: expected a multiple "
                f"of {alignment}"
            )
    return found


def table(message: Message) -> list[Area]:
    """The regions of SET_MEM_TABLE."""
    number, _ = TABLE.unpack_from(message.payload)
    if number > MOST_DESCRIPTORS:
        raise ProtocolError(f"SET_MEM_TABLE: {number} regions: expected at most {MOST_DESCRIPTORS}")
    needed = TABLE.size + number * REGION.size
    if len(message.payload) < needed:
        raise ProtocolError(
            f"SET_MEM_TABLE: payload of {len(message.payload)} bytes: {number} regions need "
            f"{needed}"
        )
    return [_area(message, TABLE.size + index * REGION.size) for index in range(number)]


def region(message: Message) -> Area:
    """The region of ADD_MEM_REG and REM_MEM_REG."""
    return _area(message, PADDING.size)


def _area(message: Message, position: int) -> Area:
    found = Area(*REGION.unpack_from(message.payload, position))
    if not found.size:
        raise ProtocolError(
            f"{message.request.name}: region at {found.guest_address:#x}: expected a size above 0"
        )
    for what, start in (
        ("guest address", found.guest_address),
        ("user address", found.user_address),
        ("file offset", found.offset),
    ):
        if start + found.size > _U64:  # in C, the sum would wrap and pass every later comparison
            raise ProtocolError(
                f"{message.request.name}: {what} {start:#x} and size {found.size:#x} exceed 64 bits"
            )
    return found


def log_area(message: Message) -> LogArea:
    """Where the log of written pages is in its file."""
    found = LogArea(*LOG.unpack(message.payload))
    if not found.size or found.size + found.offset > _U64:
        raise ProtocolError(
            f"SET_LOG_BASE: size {found.size:#x} at offset {found.offset:#x}: expected a size "
            "above 0, and an end below 2^64"
        )
    return found


def config_access(message: Message) -> ConfigAccess:
    """A part of the configuration space. The part may be out of bounds: GET_CONFIG has an answer
    for that."""
    offset, size, flags = CONFIG.unpack_from(message.payload)
    return ConfigAccess(offset, size, flags, message.payload[CONFIG.size :])


def inflight(message: Message) -> InflightArea:
    """Where the buffers in flight are written down."""
    return InflightArea(*INFLIGHT.unpack(message.payload.ljust(INFLIGHT.size, b"\0")))


def reply(request: int, payload: bytes) -> bytes:
    """A reply to the front end, with its header."""
    return HEADER.pack(request, VERSION | REPLY, len(payload)) + payload


def request_of_back_end(request: BackendRequest, payload: bytes = b"") -> bytes:
    """A message of the back end, with its header. It asks for no reply."""
    return HEADER.pack(request, VERSION, len(payload)) + payload
