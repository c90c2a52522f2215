"""Targets in Python: what a front end sends by its socket, and a driver by its control queue.

The device behind them is that of a NIC (vnic.device.guest), with an engine: memory is mapped, rings
run, and between two messages frames pass. A rule that is broken is an AssertionError.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise

import msgspec

from dataplane.descriptors import close_all
from dataplane.elements.parse import Parse
from dataplane.elements.rss import Rss
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from fuzz.encoding import GUEST, MEMORY_BYTES, OFFER, PAIRS, USER, Files, MessageSource, Reader
from virt.control_queue import ADDRESSES_MOST, ControlState
from virt.flow_memory import FlowMemory
from virt.guest_tx import GuestTx
from virt.vhost_user import messages
from virt.vhost_user.books import Books, Region, Ring, RingAddresses
from virt.vhost_user.connection import Connection
from virt.vhost_user.device import RingDescriptors
from virt.vhost_user.features import Feature
from virt.vhost_user.messages import HEADER, SHAPES, Message
from virt.vhost_user.net_config import NetConfig
from virt.vhost_user.protocol import (
    MOST_DESCRIPTORS,
    PROTOCOL_FEATURES,
    ProtocolError,
    Refused,
)
from virt.vhost_user.session import Session
from virt.virtio_port import VirtioPort
from vnic.device.guest import GuestDevice, Positions

MESSAGES_MOST = 24  # of one input
MAC = bytes.fromhex("020000000001")


class Device:
    """The device of a NIC and the engine that serves it."""

    def __init__(self) -> None:
        self.port = VirtioPort("vm", number=1, queues=PAIRS)
        rss = Rss(queues=PAIRS)
        flows = FlowMemory(rss)
        tx = GuestTx(self.port, rss, flows)
        self.guest = GuestDevice(
            tx,
            NetConfig(mac=MAC, queue_pairs=PAIRS, mtu=1500),
            Positions(2 * PAIRS + 1),
            ControlState(),
            owns=True,
        )
        self.lan = MemoryPort("lan", 2)
        rx, lan = PortRx(self.port), PortRx(self.lan)
        rx >> Parse(name="vm.parse") >> flows >> PortTx(self.lan)
        lan >> Parse(name="lan.parse") >> tx
        self.pool = PacketPool(small=256, large=16)
        self.engine = Engine("fuzz", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.engine.load([rx, lan])
        self.now = 1

    def turn(self) -> None:
        """The engine and the control queue are served once."""
        self.lan.inject([bytes(60), bytes(300)])
        self.now += 1
        advance(self.engine, self.now)
        self.lan.take()
        self.port.can_sleep()
        self.serve()
        assert self.engine.conservation()["conserved"]

    def serve(self) -> None:
        """As the kind of device does."""
        ring, control = self.guest.ring, self.guest.control
        if not ring.runs:
            return
        ring.drain()
        for _ in range(8):
            command = ring.take()
            if command is None:
                break
            ring.answer(*control.handle(command))
        ring.arm()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def check_line(text: str) -> None:
    """An error is one line."""
    assert text.isprintable(), text


def check_books(session: Session, device: Device) -> None:
    """What holds after each message."""
    books = session.books
    assert Books.decode(books.encode()) == books
    held = session.descriptors.by_role()
    assert books.roles() == held.keys()
    assert len(set(held.values())) == len(held)
    for descriptor in held.values():
        os.fstat(descriptor)
    for number, ring in enumerate(books.rings):
        assert (number in session.rings.running) == (not session.rings.hindrance(number))
        assert not ring.kick or ring.started
        if number < 2 * PAIRS:
            state = device.port.ring_state(number)
            assert state["started"] == (number in session.rings.running)
    ordered = sorted(books.memory, key=lambda region: region.guest_address)
    for one, other in pairwise(ordered):
        assert one.guest_address + one.size <= other.guest_address
    assert not books.features & ~(OFFER.features | PROTOCOL_FEATURES)
    assert len(books.memory) <= MOST_DESCRIPTORS
    check_control(device.guest.control.state)


def check_control(state: ControlState) -> None:
    """What holds after each command."""
    assert msgspec.json.decode(msgspec.json.encode(state), type=ControlState) == state
    assert 1 <= state.queue_pairs <= PAIRS
    for table in (state.unicast, state.multicast):
        assert table is None or len(table) <= ADDRESSES_MOST
    assert len(state.vlans) <= 4096
    state.status()


def messages_target() -> Callable[[bytes], object]:
    """Sessions: messages with descriptors of all kinds, and turns of the engine between them. The
    fourth bit of a message's second byte lets the engine have a turn after it, the fifth writes
    into the guest's memory before that."""
    files, device = Files(), Device()
    source = MessageSource(files)
    before = open_descriptors()

    def run(data: bytes) -> None:
        reader = Reader(data)
        session = Session(device.guest, OFFER)
        files.bytes[:] = bytes(MEMORY_BYTES)
        for _ in range(MESSAGES_MOST):
            if not reader.left:
                break
            how = data[reader.at + 1] if reader.at + 1 < len(data) else 0
            request, needs_reply, payload, descriptors = source.next(reader)
            shape = SHAPES.get(request)
            try:
                _, _, size = messages.header(
                    HEADER.pack(request, 1 | 8 * needs_reply, len(payload))
                )
                assert size == len(payload)
                reply = session.handle(Message(request, needs_reply, payload), descriptors)
                session.settle()
            except ProtocolError as error:
                check_line(str(error))
                if not isinstance(error, Refused):
                    for each in descriptors:
                        try:
                            os.close(each)
                        except OSError:
                            pass
                    session.close()
                    session = Session(device.guest, OFFER)
            else:
                assert reply is not None or not (shape and shape.answered)
            if how & 16:
                source.memory(reader)
            if how & 8:
                device.turn()
            check_books(session, device)
        session.close()
        assert session.books == Books.of(OFFER.rings)
        assert device.pool.in_use == 0
        assert open_descriptors() == before, "a descriptor is left open"

    run(b"")
    return run


def connection_target() -> Callable[[bytes], object]:
    """Connections: the same messages as bytes, cut where the input says, with descriptors at any of
    their bytes, and replies that may not be read."""
    files, device = Files(), Device()
    source = MessageSource(files)
    before = open_descriptors()

    def store(books: Books, descriptors: Mapping[str, int]) -> None:
        assert Books.decode(books.encode()) == books
        assert books.roles() <= descriptors.keys()

    def run(data: bytes) -> None:
        reader = Reader(data)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        session = Session(device.guest, OFFER)
        connection = Connection(ours, session, store)
        files.bytes[:] = bytes(MEMORY_BYTES)
        alive = True
        for _ in range(MESSAGES_MOST):
            if not (reader.left and alive):
                break
            request, needs_reply, payload, descriptors = source.next(reader)
            how = reader.byte()
            flags = 1 | 8 * needs_reply
            size = len(payload)
            if how & 1:
                flags, size = reader.byte(), reader.half()
            text = HEADER.pack(request, flags, size) + payload
            cut = reader.byte() % (len(text) + 1) if how & 2 else 0
            late = how & 4  # descriptors come with the second piece
            try:
                for piece, first in ((text[:cut], True), (text[cut:], False)):
                    if not piece:
                        continue
                    sent = descriptors if first != bool(late) or not cut else []
                    socket.send_fds(theirs, [piece], sent)
                    alive = alive and connection.read()
                if how & 8:
                    theirs.send(b"!", socket.MSG_OOB)
                if not how & 16:
                    _, received, _, _ = socket.recv_fds(theirs, 4096, 8)
                    close_all(received)
            except BlockingIOError:
                pass
            except ProtocolError as error:
                check_line(str(error))
                alive = False
            except (ConnectionError, OSError):
                alive = False
            finally:
                close_all(descriptors)
            if how & 32:
                device.turn()
            check_books(session, device)
        theirs.close()
        connection.close()
        assert session.books == Books.of(OFFER.rings)
        assert open_descriptors() == before, "a descriptor is left open"

    run(b"")
    return run


def commands_target() -> Callable[[bytes], object]:
    """The control queue: commands of a driver, and chains of its ring that are none. The first byte
    has the ring's format."""
    files, device = Files(), Device()
    at = USER
    region = Region(GUEST, MEMORY_BYTES, USER, 0, "memory0")
    data_at, size = 0x2000, 16
    index = 2 * PAIRS
    generation = 0

    def run(data: bytes) -> None:
        nonlocal generation
        reader, generation = Reader(data), generation + 1
        form = reader.byte()
        packed = form & 1
        features = OFFER.features & ~(0 if packed else int(Feature.RING_PACKED))
        features &= ~(int(Feature.EVENT_IDX) if form & 2 else 0)
        features &= ~(int(Feature.INDIRECT_DESC) if form & 4 else 0)
        memory = files.bytes
        memory[:0x4000] = bytes(0x4000)
        device.guest.apply_features(features & ~Feature.LOG_ALL)
        device.guest.apply_memory([region], [files.memory])
        ring = Ring(
            size=size,
            base=0x80008000 if packed else 0,
            generation=generation,
            addresses=RingAddresses(at, at + 0x1000, at + 0x800),
        )
        device.guest.start_ring(index, ring, RingDescriptors(None, None, None), resumed=False)
        slot = made = 0
        for _ in range(MESSAGES_MOST):
            if not reader.left:
                break
            what = reader.byte()
            if what & 3 == 3:
                # any bytes in the ring or the data
                place = reader.half() & 0x3FFF
                content = reader.take(reader.byte() % 32)
                memory[place : place + len(content)] = content
            else:
                # a command: class, number and data, in one piece or two, and a byte for the answer
                command = reader.take(2) + reader.take(reader.byte() % 96)
                cut = 1 if what & 4 else len(command)
                pieces = [(0, cut, 0), (cut, len(command) - cut, 0), (1000, 1, 2)]
                memory[data_at : data_at + len(command)] = command
                pieces = [each for each in pieces if each[1]]
                first = slot
                for number, (start, length, flags) in enumerate(pieces):
                    more = number + 1 < len(pieces)
                    flags |= more
                    if packed:
                        wrap = made // size & 1
                        flags |= 0x8000 if wrap else 0x80
                        third, fourth = 7, flags
                    else:
                        third, fourth = flags, (slot + 1) % size if more else 0
                    place = 16 * (made % size if packed else slot)
                    memory[place : place + 16] = struct.pack(
                        "<QIHH", GUEST + data_at + start, length, third, fourth
                    )
                    slot, made = (slot + 1) % size, made + 1
                if not packed:
                    tail = int.from_bytes(memory[0x802:0x804], "little")
                    entry = 0x804 + 2 * (tail % size)
                    memory[entry : entry + 2] = first.to_bytes(2, "little")
                    memory[0x802:0x804] = (tail + 1 & 0xFFFF).to_bytes(2, "little")
            if not what & 8:
                counts = sum(device.guest.control.counts)
                device.serve()
                assert sum(device.guest.control.counts) - counts <= 8
            check_control(device.guest.control.state)
            state = device.guest.ring.state()
            assert not state["broken"] or state["faults"][state["broken"]] >= 1
        device.guest.read_config()
        device.guest.stop_ring(index)
        device.guest.apply_memory([], [])

    run(b"")
    return run


TARGETS: dict[str, Callable[[], Callable[[bytes], object]]] = {
    "commands": commands_target,
    "messages": messages_target,
    "connection": connection_target,
}
