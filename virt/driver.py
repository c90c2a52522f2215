"""The driver's side of virtio-net in plain Python: a guest without a virtual machine.

For tests and tools. Each step is written as the specification states it (virtio 1.2, 2.7, 2.8 and
5.1.6), with no regard to speed; the device side (`virt.virtio_port`) has this as its twin. Both are
in one process, or the descriptors go to another one by vhost-user.

    ram = GuestRam()
    ring = SplitRing(ram, 256)
    ring.add([Buffer(address, length, writable=True)])
    if ring.publish():
        ...                       # the device wants a notification
    for token, written in ring.used(): ...
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from virt.guest_memory import MemoryRegion

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAILABLE, USED = 0x80, 0x8000
ENABLE, DISABLE, AT_POSITION = 0, 1, 2
DESCRIPTOR = struct.Struct("<QIHH")
HEADER = struct.Struct("<BBHHHHHIHxx")


class Buffer(NamedTuple):
    """A part of guest memory, by its guest physical address."""

    address: int
    length: int
    writable: bool = False


class GuestRam:
    """Guest memory in a memfd: `size` bytes from the guest physical address `guest` on, which the
    front end sees at `user`."""

    def __init__(
        self, size: int = 1 << 24, *, guest: int = 0x100000, user: int = 0x7F0000000000
    ) -> None:
        self.size, self.guest, self.user = size, guest, user
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.bytes = mmap.mmap(self.fd, size)
        self._free = [(0, size)]

    @property
    def region(self) -> MemoryRegion:
        return MemoryRegion(self.guest, self.size, self.user, 0, self.fd)

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)

    def allocate(self, length: int, align: int = 1) -> int:
        """The guest physical address of `length` free bytes. Raises MemoryError."""
        for place, (start, end) in enumerate(self._free):
            at = -(-(start + self.guest) // align) * align - self.guest
            if at + length <= end:
                rest = [(start, at), (at + length, end)]
                self._free[place : place + 1] = [each for each in rest if each[0] < each[1]]
                return at + self.guest
        raise MemoryError(f"{length} bytes of guest memory")

    def free(self, address: int, length: int) -> None:
        """Gives bytes of `allocate` back, next to what is free already."""
        start, end = address - self.guest, address - self.guest + length
        merged: list[tuple[int, int]] = []
        for each in sorted([*self._free, (start, end)]):
            if merged and merged[-1][1] == each[0]:
                merged[-1] = (merged[-1][0], each[1])
            else:
                merged.append(each)
        self._free = merged

    def read(self, address: int, length: int) -> bytes:
        return self.bytes[address - self.guest : address - self.guest + length]

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address - self.guest : address - self.guest + len(data)] = data

    def load(self, address: int) -> int:
        """16 bits."""
        return int.from_bytes(self.read(address, 2), "little")

    def store(self, address: int, value: int) -> None:
        self.write(address, (value & 0xFFFF).to_bytes(2, "little"))

    def user_address(self, address: int) -> int:
        return address - self.guest + self.user


def passed(event: int, new: int, old: int) -> bool:
    """Whether a 16-bit index that went from `old` to `new` passed `event` (virtio 1.2, 2.7.7.1)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class DriverRing:
    """What split and packed rings have in common: buffers that are out, and indirect tables."""

    def __init__(
        self,
        ram: GuestRam,
        size: int,
        *,
        event_index: bool = False,
        in_order: bool = False,
    ) -> None:
        self.ram, self.size = ram, size
        self.event_index, self.in_order = event_index, in_order
        self.descriptors = self.available = self.used_ring = 0
        self.out: deque[int] = deque()  # tokens, oldest first
        self.tables: dict[int, tuple[int, int]] = {}

    @property
    def places(self) -> dict[str, int]:
        """Addresses of the ring's parts as the front end tells them: arguments of
        `VirtioPort.start`."""
        return {
            "size": self.size,
            "descriptors": self.ram.user_address(self.descriptors),
            "available": self.ram.user_address(self.available),
            "used": self.ram.user_address(self.used_ring),
        }

    def table(self, buffers: Sequence[Buffer], chained: bool) -> Buffer:
        """Writes an indirect table of descriptors; those of split rings are linked."""
        address = self.ram.allocate(DESCRIPTOR.size * len(buffers), 16)
        for number, each in enumerate(buffers):
            flags = WRITE if each.writable else 0
            if chained and number + 1 < len(buffers):
                content = DESCRIPTOR.pack(each.address, each.length, flags | NEXT, number + 1)
            elif chained:
                content = DESCRIPTOR.pack(each.address, each.length, flags, 0)
            else:
                content = DESCRIPTOR.pack(each.address, each.length, 0, flags)
            self.ram.write(address + number * DESCRIPTOR.size, content)
        return Buffer(address, DESCRIPTOR.size * len(buffers))

    def settle(self, token: int, written: int) -> list[tuple[int, int]]:
        """The buffers that a used entry names: with IN_ORDER, all older ones, too."""
        done = []
        while self.in_order and self.out[0] != token:
            done.append((self.out.popleft(), 0))
        self.out.remove(token)
        done.append((token, written))
        for each, _ in done:
            self.release(each)
            if each in self.tables:
                self.ram.free(*self.tables.pop(each))
        return done

    def release(self, token: int) -> None:
        raise NotImplementedError


class SplitRing(DriverRing):
    """A split virtqueue of `size` entries, a power of two."""

    def __init__(
        self, ram: GuestRam, size: int, *, event_index: bool = False, in_order: bool = False
    ) -> None:
        super().__init__(ram, size, event_index=event_index, in_order=in_order)
        self.descriptors = ram.allocate(16 * size, 16)
        self.available = ram.allocate(6 + 2 * size, 2)
        self.used_ring = ram.allocate(6 + 8 * size, 4)
        self.unused = deque(range(size))
        self.chains: dict[int, list[int]] = {}
        self.index = self.published = self.seen = 0

    @property
    def free(self) -> int:
        """Descriptors that are not in use."""
        return len(self.unused)

    def add(self, buffers: Sequence[Buffer], *, indirect: int = 0) -> int:
        """Adds a chain, of which the last `indirect` buffers are in a table; its token. Visible to
        the device after `publish`."""
        direct = list(buffers[: len(buffers) - indirect])
        if indirect:
            direct.append(self.table(buffers[len(buffers) - indirect :], True))
        chain = [self.unused.popleft() for _ in direct]
        head = chain[0]
        for number, (at, each) in enumerate(zip(chain, direct, strict=True)):
            last = number + 1 == len(direct)
            flags = (WRITE if each.writable else 0) | (0 if last else NEXT)
            if indirect and last:
                flags = INDIRECT
                self.tables[head] = (each.address, each.length)
            following = 0 if last else chain[number + 1]
            self.write(at, each.address, each.length, flags, following)
        self.chains[head] = chain
        self.offer(head)
        return head

    def write(self, at: int, address: int, length: int, flags: int, following: int) -> None:
        """Writes a descriptor."""
        content = DESCRIPTOR.pack(address, length, flags, following)
        self.ram.write(self.descriptors + 16 * at, content)

    def offer(self, head: int) -> None:
        """Enters a chain into the available ring."""
        self.ram.store(self.available + 4 + 2 * (self.index % self.size), head)
        self.index = (self.index + 1) & 0xFFFF
        self.out.append(head)

    def publish(self) -> bool:
        """Makes all added chains visible; True if the device wants a notification."""
        before, self.published = self.published, self.index
        self.ram.store(self.available + 2, self.index)
        if self.event_index:
            event = self.ram.load(self.used_ring + 4 + 8 * self.size)
            return passed(event, self.index, before)
        return before != self.index and not self.ram.load(self.used_ring) & 1

    def used(self) -> list[tuple[int, int]]:
        """The chains that the device has given back since the last call: token, bytes written."""
        done: list[tuple[int, int]] = []
        while self.seen != self.ram.load(self.used_ring + 2):
            at = self.used_ring + 4 + 8 * (self.seen % self.size)
            token, written = struct.unpack("<II", self.ram.read(at, 8))
            found = self.settle(token, written)
            self.seen = (self.seen + len(found)) & 0xFFFF
            done += found
        return done

    def release(self, token: int) -> None:
        self.unused.extend(self.chains.pop(token))

    def ask_for_calls(self, ask: bool, after: int = 0) -> None:
        """Asks for a notification, with EVENT_IDX when `after` more chains have been used."""
        if self.event_index:
            self.ram.store(self.available + 4 + 2 * self.size, self.seen + after - (not ask))
        else:
            self.ram.store(self.available, 0 if ask else 1)


class PackedRing(DriverRing):
    """A packed virtqueue of `size` entries, any number."""

    def __init__(
        self, ram: GuestRam, size: int, *, event_index: bool = False, in_order: bool = False
    ) -> None:
        super().__init__(ram, size, event_index=event_index, in_order=in_order)
        self.descriptors = ram.allocate(16 * size, 16)
        self.available = ram.allocate(4, 4)
        self.used_ring = ram.allocate(4, 4)
        self.free = size
        # Ids are names of the driver's choice: these are no positions, and mostly exceed the size.
        self.ids = deque((40503 * number + 7) & 0xFFFF for number in range(size))
        self.slots: dict[int, int] = {}
        self.next, self.wrap = 0, True
        self.next_used, self.used_wrap = 0, True
        self.firsts: list[tuple[int, int]] = []
        self.published = (0, True)

    def add(self, buffers: Sequence[Buffer], *, indirect: int = 0) -> int:
        """Adds a chain; with `indirect`, all of it is in a table. Its token."""
        token = self.ids.popleft()
        if indirect:
            table = self.table(buffers, False)
            self.tables[token] = (table.address, table.length)
            buffers = [table]
        for number, each in enumerate(buffers):
            flags = (WRITE if each.writable else 0) | (AVAILABLE if self.wrap else USED)
            if number + 1 < len(buffers):
                flags |= NEXT
            if indirect:
                flags |= INDIRECT
            self.write(each.address, each.length, token, flags, first=number == 0)
        self.slots[token] = len(buffers)
        self.out.append(token)
        return token

    def write(self, address: int, length: int, token: int, flags: int, *, first: bool) -> None:
        """Writes the next descriptor; flags of a chain's first one are written by `publish`."""
        at = self.descriptors + 16 * self.next
        if first:
            self.ram.write(at, DESCRIPTOR.pack(address, length, token, 0)[:14])
            self.firsts.append((at + 14, flags))
        else:
            self.ram.write(at, DESCRIPTOR.pack(address, length, token, flags))
        self.free -= 1
        self.next += 1
        if self.next == self.size:
            self.next, self.wrap = 0, not self.wrap

    def publish(self) -> bool:
        """Makes all added chains visible; True if the device wants a notification."""
        for at, flags in self.firsts:
            self.ram.store(at, flags)
        any_new = bool(self.firsts)
        self.firsts.clear()
        (before, _), self.published = self.published, (self.next, self.wrap)
        asked = self.ram.load(self.used_ring + 2)
        if asked != AT_POSITION or not self.event_index:
            return any_new and asked != DISABLE
        position = self.ram.load(self.used_ring)
        event = position & 0x7FFF
        if bool(position >> 15) != self.wrap:
            event -= self.size
        if any_new and self.next <= before:
            before -= self.size
        return passed(event, self.next, before)

    def used(self) -> list[tuple[int, int]]:
        """The chains that the device has given back since the last call: token, bytes written."""
        done: list[tuple[int, int]] = []
        while True:
            content = self.ram.read(self.descriptors + 16 * self.next_used, 16)
            _, written, token, flags = DESCRIPTOR.unpack(content)
            expected = AVAILABLE | USED if self.used_wrap else 0
            if flags & (AVAILABLE | USED) != expected or not self.out:
                return done
            for each, length in self.settle(token, written if flags & WRITE else 0):
                self.next_used += self.slots.pop(each)
                if self.next_used >= self.size:
                    self.next_used, self.used_wrap = (
                        self.next_used - self.size,
                        not self.used_wrap,
                    )
                done.append((each, length))

    def release(self, token: int) -> None:
        self.free += self.slots[token]
        self.ids.append(token)

    def ask_for_calls(self, ask: bool, after: int = 0) -> None:
        """Asks for a notification, with EVENT_IDX when `after` more descriptors have been used."""
        if ask and self.event_index:
            position = self.next_used + after
            wrap = self.used_wrap != (position >= self.size)
            self.ram.store(self.available, position % self.size | wrap << 15)
            self.ram.store(self.available + 2, AT_POSITION)
        else:
            self.ram.store(self.available + 2, ENABLE if ask else DISABLE)


class Header(NamedTuple):
    """The virtio-net header's fields (virtio 1.2, 5.1.6)."""

    flags: int = 0
    gso_type: int = 0
    header_length: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    buffers: int = 0
    hash: int = 0
    hash_report: int = 0


class NetQueues:
    """The two rings of a queue pair, with frames in place of buffers.

    header_bytes: 10, 12 or 20, as the features have it. pieces: how to cut header and frame into
    descriptors, a list of lengths; what remains is one more.
    """

    def __init__(
        self,
        receiving: SplitRing | PackedRing,
        transmitting: SplitRing | PackedRing,
        header_bytes: int,
    ) -> None:
        self.receiving, self.transmitting = receiving, transmitting
        self.ram, self.header_bytes = receiving.ram, header_bytes
        self.buffers: dict[int, list[Buffer]] = {}  # posted, by token of the receiving ring
        self.frames: dict[int, list[Buffer]] = {}  # sent, by token of the transmitting ring

    def cut(self, length: int, pieces: Iterable[int], writable: bool) -> list[Buffer]:
        parts = []
        for piece in [*pieces, length]:
            piece = min(piece, length)
            if piece:
                parts.append(Buffer(self.ram.allocate(piece), piece, writable))
                length -= piece
        return parts

    def transmit(
        self,
        frame: bytes,
        header: Header | None = None,
        *,
        pieces: Iterable[int] = (),
        indirect: int = 0,
    ) -> int:
        """Adds a frame to the transmit ring; its token."""
        content = HEADER.pack(*(header or Header()))[: self.header_bytes] + frame
        parts = self.cut(len(content), pieces, False)
        done = 0
        for each in parts:
            self.ram.write(each.address, content[done : done + each.length])
            done += each.length
        token = self.transmitting.add(parts, indirect=min(indirect, len(parts)))
        self.frames[token] = parts
        return token

    def transmitted(self) -> list[tuple[int, int]]:
        """The frames that the device has taken: token, bytes written (0)."""
        done = self.transmitting.used()
        for token, _ in done:
            for each in self.frames.pop(token):
                self.ram.free(each.address, each.length)
        return done

    def post(self, length: int, *, pieces: Iterable[int] = (), indirect: int = 0) -> int:
        """Adds a receive buffer; its token."""
        parts = self.cut(length, pieces, True)
        token = self.receiving.add(parts, indirect=min(indirect, len(parts)))
        self.buffers[token] = parts
        return token

    def received(self) -> list[tuple[bytes, Header]]:
        """The frames that have come since the last call. Buffers that were given back unused are
        left out."""
        frames = []
        used = iter(self.receiving.used())
        for token, written in used:
            content = self.take_buffer(token, written)
            if written == 0:
                continue
            fields = content[: self.header_bytes].ljust(HEADER.size, b"\0")
            header = Header(*HEADER.unpack(fields))
            for _ in range(header.buffers - 1 if self.header_bytes > 10 else 0):
                content += self.take_buffer(*next(used))
            frames.append((content[self.header_bytes :], header))
        return frames

    def take_buffer(self, token: int, written: int) -> bytes:
        parts = self.buffers.pop(token)
        content = b"".join(self.ram.read(each.address, each.length) for each in parts)[:written]
        for each in parts:
            self.ram.free(each.address, each.length)
        return content
