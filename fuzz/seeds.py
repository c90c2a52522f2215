"""First inputs of each target: a case at least for each class of fault that back ends of other
projects have had. The fuzzers start from them, and tests do all of them in every build. An input
that once broke a rule is added here, under what it is about.
"""

from __future__ import annotations

import struct
from typing import Any

from fuzz.encoding import FIELDS, GUEST, MEMORY_BYTES, OFFER, REGION_FIELDS, REQUESTS, USER, VALUES
from virt.vhost_user.device import IMPLEMENTED
from virt.vhost_user.features import Feature
from virt.vhost_user.messages import SHAPES
from virt.vhost_user.protocol import PROTOCOL_FEATURES, Request

# the bits of a format, as in guest.pyx
PACKED, MERGED, TABLES, EVENTS, IN_ORDER, HASH, MODERN, OFFLOADS = (1 << bit for bit in range(8))
RX, TX = 0, 1
SPLIT_ENTRIES, PACKED_ENTRIES = 32, 12  # of the transmit ring in the usual layout
DATA_AT = 4096
LOW, LOW_BYTES, HIGH, HIGH_BYTES = 0x100000, 16384, 0x180000, 4096
TABLE = DATA_AT >> 6  # the address of an indirect table

TAKE, DELIVER, ARM, CUT, TAKE_ONE = b"\3", b"\4\0\x64\0", b"\5", b"\7", b"\x0b"
RESTART = b"\x8a"  # the transmit ring


def beginning(format_of: int, *layout: int) -> bytes:
    """layout: none, the usual one."""
    return bytes([format_of, *(layout or [0])])


def descriptor(
    ring: int,
    slot: int,
    address: bytes | int,
    length: int,
    *,
    follows: bool = False,
    writable: bool = False,
    table: bool = False,
    inside: bool = False,
    odd: int | None = None,
) -> bytes:
    """A descriptor of a ring, or (inside) of the table at the place of the data. address: of the
    data, 64 bytes each, or bytes as HostileGuest.address reads them. slot: of a packed ring, the
    buffer's id. odd: of a split ring, the number of the next descriptor, 0 to 3; of a packed one,
    bits of its flags that are wrong."""
    what = ring | 6 | follows << 3 | writable << 4 | table << 5 | inside << 6
    last = slot
    tail = b""
    if odd is not None:
        what |= 128
        last = (slot & 63) | (odd & 3) << 6
        tail = struct.pack("<H", odd)
    place = bytes([address]) if isinstance(address, int) else address
    size = bytes([length >> 24, length >> 16 & 0xFF]) + struct.pack("<H", length & 0xFFFF)
    return bytes([0, what, last]) + place + size + tail


def anywhere(address: int) -> bytes:
    """Any guest physical address."""
    return b"\xff" + address.to_bytes(8, "big")


def offer(ring: int, head: int) -> bytes:
    """Enters a head into a split ring's available ring; a packed ring has none."""
    return bytes([2 | ring << 7, head])


def store(offset: int, value: int) -> bytes:
    """16 bits anywhere in the memory, rings included."""
    return b"\1" + struct.pack("<HH", offset, value)


def fill(offset: int, data: bytes) -> bytes:
    """Up to 63 bytes."""
    return b"\10" + struct.pack("<HB", offset, len(data)) + data


def interfere(reads: int, offset: int, value: int) -> bytes:
    """What another CPU of the guest writes after so many reads of the device."""
    return b"\6" + struct.pack("<BHH", reads, offset, value)


def header(*fields: int) -> bytes:
    """A virtio-net header at the beginning of the data."""
    return fill(DATA_AT, struct.pack("<BBHHHHH", *fields))


def frame(length: int = 100, **more: Any) -> bytes:
    """A buffer of the driver, made available."""
    return descriptor(TX, 0, 0, length, **more) + offer(TX, 0)


def rings() -> dict[str, bytes]:
    """Ring contents and descriptors."""
    found: dict[str, bytes] = {}
    for name, format_of in (
        ("split", MODERN | TABLES),
        ("packed", MODERN | TABLES | PACKED),
        ("split events", MODERN | EVENTS | MERGED | TABLES),
        ("packed events", MODERN | EVENTS | MERGED | TABLES | PACKED),
        ("split in order", MODERN | IN_ORDER | OFFLOADS),
        ("packed in order", MODERN | IN_ORDER | PACKED | OFFLOADS),
        ("split legacy", 0),
        ("split hash", HASH | MODERN | MERGED),
    ):
        found |= {f"{name} {what}": data for what, data in _cases(format_of).items()}
    return found


def _cases(format_of: int) -> dict[str, bytes]:
    start = beginning(format_of)
    beyond_low, beyond_high = LOW + LOW_BYTES, HIGH + HIGH_BYTES
    buffers = b"".join(
        descriptor(RX, slot, 32 + 16 * slot, 1024, writable=True) + offer(RX, slot)
        for slot in range(6)
    )

    def lost(address: int, length: int) -> bytes:
        return start + descriptor(TX, 0, anywhere(address), length) + offer(TX, 0) + TAKE

    return {
        "works": start + frame() * 3 + TAKE + frame() + ARM + TAKE_ONE,
        "receives": start + buffers + DELIVER * 3 + b"\4\x0c\xd0\x07" + b"\4\x1c\xb0\x04",
        # ranges that are not mapped in full, also those of no bytes
        "address beside the memory": lost(beyond_low, 16),
        "address before the memory": lost(HIGH - 8, 16),
        "range over the end": lost(beyond_low - 8, 16),
        "range over the hole": lost(beyond_low - 8, HIGH - LOW),
        "no bytes at no address": lost(beyond_high, 0),
        "no bytes": lost(LOW, 0),
        # arithmetic that wraps
        "address that wraps": lost(2**64 - 4, 16),
        "length that wraps": lost(LOW, 0xFFFFFFFF),
        "receive range over the end": start
        + descriptor(RX, 0, anywhere(beyond_high - 4), 2048, writable=True)
        + offer(RX, 0)
        + DELIVER,
        # indices that are too large, and counts
        "head that the ring has not": start + offer(TX, SPLIT_ENTRIES) + offer(TX, 255) + TAKE,
        "next that the ring has not": start
        + descriptor(TX, SPLIT_ENTRIES - 1, 0, 50, follows=True)
        + offer(TX, SPLIT_ENTRIES - 1)
        + TAKE,
        "index ahead": start + store(2048 + 128 + 2, 0x8000) + TAKE,
        "index behind": start + frame() + TAKE + store(2048 + 128 + 2, 0xFFFF) + TAKE,
        # walks that have no end
        "loop": start
        + descriptor(TX, 0, 0, 50, follows=True, odd=1)
        + descriptor(TX, 1, 0, 50, follows=True, odd=0)
        + offer(TX, 0)
        + TAKE,
        "itself": start + descriptor(TX, 0, 0, 50, follows=True, odd=0) + offer(TX, 0) + TAKE,
        "chain through the ring": start
        + b"".join(descriptor(TX, slot, 0, 8, follows=True) for slot in range(16))
        + offer(TX, 0)
        + TAKE,
        "header in many pieces": start
        + b"".join(descriptor(TX, slot, 0, 3, follows=slot < 7) for slot in range(8))
        + offer(TX, 0)
        + TAKE,
        "chain without an end": start
        + descriptor(TX, 0, 0, 12, follows=True)
        + offer(TX, 0)
        + TAKE * 2,
        # indirect tables
        "table": start
        + descriptor(TX, 0, 8, 12, inside=True, follows=True)
        + descriptor(TX, 1, 9, 60, inside=True)
        + descriptor(TX, 2, 0, 32, table=True)
        + offer(TX, 2)
        + TAKE,
        "table in a table": start
        + descriptor(TX, 0, 0, 32, inside=True, table=True)
        + descriptor(TX, 1, 0, 16, table=True)
        + offer(TX, 1)
        + TAKE,
        "table with a next": start
        + descriptor(TX, 0, 0, 32, table=True, follows=True)
        + offer(TX, 0)
        + TAKE,
        "table of a wrong size": start + frame(31, table=True) + TAKE,
        "table of no bytes": start + frame(0, table=True) + TAKE,
        "table outside": start
        + descriptor(TX, 0, anywhere(beyond_low - 16), 32, table=True)
        + offer(TX, 0)
        + TAKE,
        "table of the ring": start
        + descriptor(TX, 0, anywhere(LOW + 1024), 512, table=True)
        + offer(TX, 0)
        + TAKE,
        # ids of a packed ring, which are no indices
        "id beyond the ring": start + descriptor(TX, 255, 0, 100) + offer(TX, 0) + TAKE,
        "flags that are neither": start + frame(odd=0x8080) + TAKE,
        # values that change between two reads
        "length grows": start + interfere(2, 1024 + 8, 0xFFFF) + frame() + TAKE,
        "address moves": start + interfere(1, 1024 + 2, 0xFFFF) + frame() + TAKE,
        "flags change": start + interfere(2, 1024 + 12, 7) + frame() + TAKE,
        "index changes": start + interfere(0, 2048 + 130, 0x4000) + frame() * 2 + TAKE,
        "header changes": start
        + header(1, 1, 54, 100, 34, 16, 0)
        + interfere(3, DATA_AT + 6, 0xFFFF)
        + frame(500)
        + TAKE,
        # offload fields
        "checksum beyond the frame": start
        + header(1, 0, 0, 0, 0xFFFF, 0xFFFF, 0)
        + frame(200)
        + TAKE,
        "segments of no bytes": start + header(1, 1, 54, 0, 34, 16, 0) + frame(900) + TAKE,
        "headers longer than the frame": start
        + header(1, 4, 0xFFFF, 1, 34, 16, 0)
        + frame(900)
        + TAKE,
        # the wrong direction, too short, too long
        "writable": start + frame(writable=True) + TAKE,
        "readable": start + descriptor(RX, 0, 0, 500) + offer(RX, 0) + DELIVER,
        "short": start + frame(10) + TAKE,
        "long": start
        + b"".join(descriptor(TX, slot, 0, 12000, follows=slot < 7) for slot in range(8))
        + offer(TX, 0)
        + TAKE,
        "short receive buffers": start
        + b"".join(
            descriptor(RX, slot, 0, 4, writable=True) + offer(RX, slot) for slot in range(10)
        )
        + DELIVER,
        # memory that goes away, a ring that comes back, parts of rings that overlap or end a region
        "cut": start + frame() + CUT + TAKE + DELIVER + RESTART + TAKE,
        "again": start + offer(TX, 99) + TAKE + RESTART + frame() + TAKE,
        "discarded": start + b"\x89\0" + frame() + TAKE + DELIVER,
        "at the end of the memory": beginning(format_of, 0x1C, 5, 5)
        + frame() * 3
        + buffers
        + TAKE
        + DELIVER,
        "rings in one place": beginning(format_of, 0x60, 5, 0, 5, 1) + frame() * 3 + TAKE,
        "positions that wrap": beginning(format_of, 0x80, 3, 6, 3, 6) + frame() * 6 + TAKE * 3,
        "logged": beginning(format_of, 3, 10, 11) + buffers + frame() + TAKE + DELIVER,
    }


# -- messages --------------------------------------------------------------------------------------

R = Request
ALL = OFFER.features | PROTOCOL_FEATURES
SPLIT = ALL & ~Feature.RING_PACKED & ~Feature.LOG_ALL
REPLY, WRONG_NUMBER, TURN, WRITES = 1, 4, 8, 16


def choice(kind: str, value: int) -> bytes:
    """A field of a message, as Reader.value reads it."""
    known = VALUES[kind]
    return bytes([known.index(value)]) if value in known else b"\xff" + struct.pack("<Q", value)


def message(request: Request, *values: int, how: int = 0, files: bytes = b"") -> bytes:
    """A message with these fields. files: a kind of descriptor each, in place of the likely one;
    with WRONG_NUMBER in `how`, their number before them."""
    _, kinds = FIELDS.get(request, ("", ()))
    text = b"".join(map(choice, kinds, values))
    wanted = SHAPES[request].descriptors if request in SHAPES else 0
    if kinds == ("ring",):
        wanted = 0 if values[0] & 0x100 else 1
    return bytes([REQUESTS.index(request), how]) + text + (files or b"\xff" * wanted)


def table(*regions: tuple[int, int, int, int], files: bytes = b"", how: int = 0) -> bytes:
    """SET_MEM_TABLE."""
    text = bytes([len(regions)])
    for region in regions:
        text += b"".join(map(choice, REGION_FIELDS, region))
    return bytes([REQUESTS.index(R.SET_MEM_TABLE), how]) + text + (files or b"\xff" * len(regions))


WHOLE = (GUEST, MEMORY_BYTES, USER, 0)


def ring(index: int, *, enable: bool = True, size: int = 16, flags: int = 0) -> bytes:
    """The messages that set a ring up and start it."""
    at = USER + 0x3000 * (index + 1)
    text = message(R.SET_VRING_NUM, index, size) + message(R.SET_VRING_BASE, index, 0)
    text += message(R.SET_VRING_ADDR, index, flags, at, at + 0x1000, at + 0x2000, GUEST)
    text += message(R.SET_VRING_CALL, index) + message(R.SET_VRING_KICK, index, how=TURN)
    return text + (message(R.SET_VRING_ENABLE, index, 1, how=TURN) if enable else b"")


def handshake(features: int = SPLIT, protocol: int = int(IMPLEMENTED)) -> bytes:
    text = message(R.GET_FEATURES) + message(R.GET_PROTOCOL_FEATURES)
    text += message(R.SET_PROTOCOL_FEATURES, protocol) + message(R.SET_OWNER)
    return text + message(R.SET_FEATURES, features)


def front_ends() -> dict[str, bytes]:
    """Orders of messages: those of real front ends, and those that back ends have broken over."""
    ready = handshake() + table(WHOLE)
    both = ready + ring(0) + ring(1)
    status = message(R.SET_STATUS, 15) + message(R.GET_STATUS)
    return {
        "qemu": handshake()
        + status
        + table(WHOLE)
        + ring(0, enable=False)
        + ring(1)
        + message(R.SET_STATUS, 0, how=TURN)
        + message(R.GET_VRING_BASE, 1, 0),
        "qemu of today": handshake()
        + message(R.GET_MAX_MEM_SLOTS)
        + message(R.ADD_MEM_REG, *WHOLE, how=REPLY)
        + ring(0)
        + ring(1)
        + message(R.REM_MEM_REG, *WHOLE, how=TURN),
        "uml without enable": message(R.SET_OWNER)
        + message(
            R.SET_FEATURES, ALL & ~PROTOCOL_FEATURES & ~Feature.RING_PACKED & ~Feature.LOG_ALL
        )
        + table(WHOLE)
        + ring(0, enable=False)
        + ring(1, enable=False),
        "features without bit 30 while rings run": both
        + message(
            R.SET_FEATURES, OFFER.features & ~Feature.LOG_ALL & ~Feature.RING_PACKED, how=TURN
        ),
        "packed": handshake(ALL & ~Feature.LOG_ALL) + table(WHOLE) + ring(0) + ring(1),
        "status 0 before the position": both
        + message(R.SET_STATUS, 0, how=TURN)
        + message(R.GET_VRING_BASE, 0, 0)
        + message(R.GET_VRING_BASE, 1, 0, how=TURN),
        # ranges, indices and sums
        "ring that is not there": ready
        + message(R.SET_VRING_NUM, 65536, 16, how=REPLY)
        + message(R.SET_VRING_NUM, 2**32 - 1, 16, how=REPLY)
        + message(R.GET_VRING_BASE, 5, 0, how=REPLY),
        "size that a ring cannot have": ready
        + message(R.SET_VRING_NUM, 0, 0, how=REPLY)
        + message(R.SET_VRING_NUM, 0, 65544, how=REPLY)
        + message(R.SET_VRING_NUM, 0, 3, how=REPLY),
        "region beyond its file": handshake()
        + table((GUEST, MEMORY_BYTES + 1, USER, 0), how=REPLY)
        + table((GUEST, MEMORY_BYTES, USER, 2**63), how=REPLY),
        "regions that wrap": handshake()
        + table((GUEST, 2**64 - 1, USER, 0), how=REPLY)
        + table((2**64 - 4096, 8192, USER, 0), how=REPLY),
        "regions that overlap": handshake() + table(WHOLE, WHOLE, how=REPLY),
        "short file": handshake() + table(WHOLE, files=b"\2", how=REPLY),
        "log that wraps": handshake()
        + message(R.SET_LOG_BASE, 2**64 - 1, 2**64 - 4096, how=REPLY)
        + message(R.SET_LOG_BASE, 4096, MEMORY_BYTES, how=REPLY),
        "inflight": handshake()
        + message(R.GET_INFLIGHT_FD, 0, 0, 2, 256)
        + message(R.SET_INFLIGHT_FD, 4096, 0, 65537, 256, how=REPLY),
        "ring outside the memory": handshake()
        + table(WHOLE)
        + message(R.SET_VRING_NUM, 0, 256)
        + message(R.SET_VRING_ADDR, 0, 0, USER + MEMORY_BYTES - 16, USER, USER, 0)
        + message(R.SET_VRING_KICK, 0)
        + message(R.SET_VRING_ENABLE, 0, 1, how=TURN),
        # descriptors: too many, none, of other kinds, again and again
        "nine descriptors": both
        + message(R.SET_VRING_CALL, 0, how=WRONG_NUMBER | TURN, files=b"\11" + b"\1" * 9),
        "no descriptor": both + message(R.SET_VRING_KICK, 0, how=WRONG_NUMBER, files=b"\0"),
        "descriptors of other kinds": ready
        + b"".join(
            message(request, 1, how=REPLY, files=bytes([kind]))
            for request in (R.SET_VRING_KICK, R.SET_VRING_CALL)
            for kind in range(9)
        ),
        "descriptors again and again": both
        + message(R.SET_VRING_CALL, 0) * 4
        + message(R.SET_VRING_ERR, 1) * 4
        + table(WHOLE),
        "memory changes while rings run": both
        + table((GUEST, MEMORY_BYTES // 2, USER, 0), how=TURN)
        + table(WHOLE, how=TURN),
        # a migration, a reset
        "log": both
        + message(R.SET_LOG_BASE, 4096, 0)
        + message(R.SET_FEATURES, SPLIT | Feature.LOG_ALL)
        + message(
            R.SET_VRING_ADDR, 1, 1, USER + 0x6000, USER + 0x7000, USER + 0x8000, GUEST, how=TURN
        ),
        "reset": both + message(R.RESET_DEVICE, how=TURN) + message(R.GET_STATUS),
        "configuration": handshake()
        + message(R.GET_CONFIG, 0, 64, 0)
        + message(R.GET_CONFIG, 255, 255, 0)
        + message(R.SET_CONFIG, 0, 1, 0, how=REPLY),
    }


def streams() -> dict[str, bytes]:
    """For `connection`: after each message, how its bytes arrive (front_end.connection_target)."""
    usual = b"\x20\0"
    first = [
        message(R.GET_FEATURES), message(R.SET_PROTOCOL_FEATURES, int(IMPLEMENTED)),
        message(R.SET_FEATURES, SPLIT), table(WHOLE), message(R.SET_VRING_NUM, 1, 16),
    ]  # fmt: skip
    found = {"usual": b"".join(each + usual for each in first)}
    for cut in range(1, 29):
        found[f"cut at {cut}"] = b"".join(each + bytes([0x22, cut, 0]) for each in first)
    found["late descriptors"] = b"".join(each + bytes([0x26, 12, 0]) for each in first)
    found["urgent"] = b"".join(each + bytes([0x28, 0]) for each in first)
    found["replies that are not read"] = b"".join(each + bytes([0x30, 0]) for each in first)
    found["header that lies"] = first[0] + b"\1\1\xff\xff\0" + first[1] + usual
    return found


# -- commands --------------------------------------------------------------------------------------


def command(number: tuple[int, int], data: bytes, how: int = 0) -> bytes:
    """A command of class and number; how: 4 in two pieces, 8 not served at once."""
    return bytes([how, *number, len(data)]) + data


def commands() -> dict[str, bytes]:
    """Commands of the control queue, and rings of it that make no sense."""
    addresses = struct.pack("<I", 2) + bytes(range(2, 14)) + struct.pack("<I", 1) + b"\1" * 6
    cases = {
        "modes": b"".join(command((0, mode), b"\1") for mode in range(6)),
        "addresses": command((1, 0), addresses) + command((1, 1), b"\2\0\0\0\0\7"),
        "addresses that are not there": command((1, 0), struct.pack("<I", 0xFFFFFFFF) * 2),
        "vlans": command((2, 0), b"\5\0") + command((2, 0), b"\0\x10") + command((2, 1), b"\5\0"),
        "announcement": command((3, 0), b""),
        "pairs": command((4, 0), b"\2\0") + command((4, 0), b"\0\0") + command((4, 0), b"\xff\xff"),
        "offloads": command((5, 0), struct.pack("<Q", 1 << 1)) + command((5, 0), b"\xff" * 8),
        "unknown": command((6, 0), bytes(8)) + command((255, 255), b""),
        "in pieces": command((0, 0), b"\1", 4) + command((2, 0), b"\5\0", 4),
        "many at once": command((0, 0), b"\1", 8) * 7 + command((0, 1), b"\1"),
        "index ahead": b"\3\x02\x08\2\0\x80" + command((0, 0), b"\1"),
        "loop": b"\3\0\0\x10"
        + struct.pack("<QIHH", GUEST + 0x2000, 8, 1, 0)
        + command((0, 0), b"\1"),
    }
    return {
        f"{form} {name}": bytes([bits]) + data
        for form, bits in (("split", 0), ("packed", 1), ("split, plain", 6), ("packed, plain", 7))
        for name, data in cases.items()
    }


SEEDS: dict[str, dict[str, bytes]] = {
    "rings": rings(),
    "commands": commands(),
    "messages": front_ends(),
    "connection": streams(),
}
