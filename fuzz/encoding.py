"""How an input's bytes are read as messages of a front end, with descriptors of all kinds."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct

from virt.vhost_user import messages
from virt.vhost_user.device import IMPLEMENTED, Offer
from virt.vhost_user.features import Abilities, Feature, offered
from virt.vhost_user.messages import SHAPES
from virt.vhost_user.protocol import PROTOCOL_FEATURES, Request

PAIRS = 2
USER, GUEST = 0x7F0000000000, 0x100000
MEMORY_BYTES = 1 << 17
OFFER = Offer(
    features=int(
        offered(
            Abilities(
                queue_pairs=PAIRS,
                mtu=1500,
                in_order=True,
                rss=True,
                hash_report=True,
                coalescing=True,
                statistics=True,
            )
        )
    ),
    protocol_features=IMPLEMENTED,
    queue_pairs=PAIRS,
    memory_slots=4,
)
REQUESTS = (*SHAPES, Request.IOTLB_MSG, Request.VRING_KICK, Request.SET_DEVICE_STATE_FD)

# What an input chooses from by one byte. Bytes above the table are followed by eight of any number.
_SIZES = (1, 2, 3, 4, 8, 16, 64, 256, 1024, 32768, 0, 32769, 65537, 65544, 2**32 - 1, 0x8000)
_PLACES = (0, *(0x1000 * page for page in range(1, 16)), MEMORY_BYTES - 16, MEMORY_BYTES, 8, 2)
VALUES: dict[str, tuple[int, ...]] = {
    "index": (0, 1, 2, 3, 4, 5, 255, 256, 65536, 65537, 2**32 - 1),
    "number": (*_SIZES, 0x80008000, 0x80018001),
    "user": tuple(USER + place for place in _PLACES) + (2**64 - 16, 2**64 - 4096),
    "guest": tuple(GUEST + place for place in _PLACES) + (0, 2**64 - 16, 2**64 - 4096),
    "size": (MEMORY_BYTES, 4096, 8192, MEMORY_BYTES // 2, 1, 0, MEMORY_BYTES + 1, 2**64 - 1, 2**63),
    "offset": (0, 4096, MEMORY_BYTES // 2, MEMORY_BYTES, 2**63, 2**64 - 4096, 1),
    "bits": (
        0,
        OFFER.features,
        OFFER.features | PROTOCOL_FEATURES,
        (OFFER.features | PROTOCOL_FEATURES) & ~Feature.RING_PACKED,
        (OFFER.features | PROTOCOL_FEATURES) & ~Feature.LOG_ALL,
        OFFER.features & ~Feature.LOG_ALL & ~Feature.RING_PACKED,
        1 << Feature.VERSION_1.bit_length() - 1,
        2**64 - 1,
    ),
    "protocol": (int(IMPLEMENTED), 0, 0x1FDFF, 0xFFDFF, 2**64 - 1),
    "ring": (0, 1, 2, 3, 4, 0x100, 0x101, 0x104, 5, 255, 0x200),
    "flags": (0, 1, 2),
    "small": (0, 1, 7, 11, 15, 64, 68, 128, 255, 256, 1500, 65535, 65536, 2**32 - 1),
}
# fields by request: a struct's codes and what each field is
FIELDS: dict[Request, tuple[str, tuple[str, ...]]] = {
    Request.SET_FEATURES: ("=Q", ("bits",)),
    Request.SET_PROTOCOL_FEATURES: ("=Q", ("protocol",)),
    Request.SET_LOG_BASE: ("=QQ", ("size", "offset")),
    Request.SET_VRING_ADDR: ("=IIQQQQ", ("index", "flags", "user", "user", "user", "guest")),
    Request.SEND_RARP: ("=Q", ("small",)),
    Request.NET_SET_MTU: ("=Q", ("small",)),
    Request.SET_STATUS: ("=Q", ("small",)),
    Request.GET_CONFIG: ("=III", ("small", "small", "flags")),
    Request.SET_CONFIG: ("=III", ("small", "small", "flags")),
    Request.GET_INFLIGHT_FD: ("=QQHH4x", ("size", "offset", "index", "number")),
    Request.SET_INFLIGHT_FD: ("=QQHH4x", ("size", "offset", "index", "number")),
    Request.ADD_MEM_REG: ("=8xQQQQ", ("guest", "size", "user", "offset")),
    Request.REM_MEM_REG: ("=8xQQQQ", ("guest", "size", "user", "offset")),
    **dict.fromkeys(
        (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR), ("=Q", ("ring",))
    ),
    **dict.fromkeys(
        (
            Request.SET_VRING_NUM,
            Request.SET_VRING_BASE,
            Request.GET_VRING_BASE,
            Request.SET_VRING_ENABLE,
        ),
        ("=II", ("index", "number")),
    ),
}
REGION_FIELDS = ("guest", "size", "user", "offset")
_MASKS = {"H": 0xFFFF, "I": 0xFFFFFFFF, "Q": 2**64 - 1}


class Reader:
    """Bytes of an input; zeros after its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> bool:
        return self.at < len(self.data)

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count].ljust(count, b"\0")
        self.at += count
        return found

    def byte(self) -> int:
        return self.take(1)[0]

    def half(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def value(self, kind: str) -> int:
        values, chosen = VALUES[kind], self.byte()
        return values[chosen] if chosen < len(values) else int.from_bytes(self.take(8), "little")

    def fields(self, codes: str, kinds: tuple[str, ...]) -> bytes:
        letters = [each for each in codes if each in _MASKS]
        values = [
            self.value(kind) & _MASKS[each] for each, kind in zip(letters, kinds, strict=True)
        ]
        return struct.pack(codes, *values)


class Files:
    """Descriptors of every kind, of which messages get duplicates."""

    def __init__(self) -> None:
        self.memory = os.memfd_create("memory", os.MFD_CLOEXEC)
        os.ftruncate(self.memory, MEMORY_BYTES)
        self.bytes = mmap.mmap(self.memory, MEMORY_BYTES)
        short = os.memfd_create("short", os.MFD_CLOEXEC)
        os.ftruncate(short, 4096)
        ours, theirs = socket.socketpair()
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._kept = (ours, theirs, datagrams, select.epoll())
        pipe = os.pipe()
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.all = (
            self.memory,
            self.event,
            short,
            ours.fileno(),
            pipe[1],
            pipe[0],
            datagrams.fileno(),
            os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
            self._kept[3].fileno(),
        )

    def of(self, reader: Reader, count: int, likely: int) -> list[int]:
        """Duplicates, most of them of the likely kind."""
        found = []
        for _ in range(count):
            kind = reader.byte()
            found.append(os.dup(self.all[kind] if kind < len(self.all) else likely))
        return found


class MessageSource:
    """Reads messages of an input."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def next(self, reader: Reader) -> tuple[Request, bool, bytes, list[int]]:
        """The next message: request, whether it wants a reply, payload, descriptors."""
        request = REQUESTS[reader.byte() % len(REQUESTS)]
        how = reader.byte()
        likely = self.files.memory
        shape = SHAPES.get(request)
        number = shape.descriptors if shape else 0
        if how & 2:
            payload = reader.take(reader.byte())
        elif request is Request.SET_MEM_TABLE:
            number = reader.byte() % 10
            payload = messages.TABLE.pack(number, 0)
            payload += b"".join(reader.fields("=QQQQ", REGION_FIELDS) for _ in range(number))
        elif request in FIELDS:
            payload = reader.fields(*FIELDS[request])
            if request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
                number, likely = int(not payload[1] & 1), self.files.event
        else:
            payload = bytes(shape.least if shape else 8)
        if request in (Request.SET_LOG_FD, Request.SET_BACKEND_REQ_FD):
            likely = self.files.all[3]
        if how & 4:
            number = reader.byte() % 10
        return request, bool(how & 1), payload, self.files.of(reader, number, likely)

    def memory(self, reader: Reader) -> None:
        """Writes into the guest's memory, rings included."""
        at = reader.half() << 2 & (MEMORY_BYTES - 64)
        content = reader.take(reader.byte() % 48)
        self.files.bytes[at : at + len(content)] = content
