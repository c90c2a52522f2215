"""PacketPort: a ring is read as a slow reference reads it; frames pass both ways unchanged; nothing is lost unseen."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance, start
from dataplane.errors import PortError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from dataplane.ports.packet_port import PacketPort
from tests.support.containers import Container
from tests.support.veths import Station, quiet_container
from vnic.device.agent import NamespaceAgent
from vnic.device.kinds.veth import Veth, VethRequest
from vnic.device.packet_sockets import SLOTS_OF_A_BLOCK, blocks_of
from vnic.device.tap import Offload

ROOT = Path(__file__).parents[1]
SLOT, PAGE, BLOCKS = 512, 4096, 2
MINE, THEIRS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
EXPERIMENT = b"\x88\xb5"  # an EtherType that no stack answers
USER, COPY, LOSING, CSUM, VLAN, TPID = 1, 2, 4, 8, 0x10, 0x40


# --- a ring in ordinary memory ----------------------------------------------------------------------------------------


class FakeRing:
    """A memfd in place of a socket: what is written to its slots is what a kernel would have written."""

    def __init__(self, slot: int = SLOT, block: int = 2 * PAGE, blocks: int = BLOCKS) -> None:
        self.slot, self.block, self.blocks = slot, block, blocks
        self.block_slots = block // slot
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, block * blocks)
        self.head = 0

    @property
    def slots(self) -> int:
        return self.block_slots * self.blocks

    def at(self, number: int) -> int:
        return number // self.block_slots * self.block + number % self.block_slots * self.slot

    def write(self, content: bytes) -> bool:
        """Fills the next slot, as the kernel does; False where the port has not given it back."""
        at = self.at(self.head)
        if os.pread(self.fd, 4, at) != bytes(4):
            return False
        os.pwrite(self.fd, content[: self.slot], at)
        self.head = (self.head + 1) % self.slots
        return True

    def close(self) -> None:
        os.close(self.fd)


def slot_of(frame: bytes, *, status: int = USER, snap: int | None = None, length: int | None = None, mac: int = 76,
            vlan: tuple[int, int] = (0, 0), header: bytes = bytes(10)) -> bytes:  # fmt: skip
    snap = len(frame) if snap is None else snap
    length = len(frame) if length is None else length
    data = struct.pack("=IIIHHIIHHI", status, length, snap, mac, 0, 0, 0, *vlan, 0) + bytes(20)
    before = max(mac - 10 - len(data), 0)
    return (data + bytes(before))[: max(mac - 10, 32)] + header + frame


def port_of(ring: FakeRing, **shape: int) -> PacketPort:
    """A port that receives from a ring, and transmits by the same memory: nothing that is tested does both."""
    shape = {"slot_bytes": ring.slot, "block_bytes": ring.block, "blocks": ring.blocks, "sending_blocks": ring.blocks, **shape}
    return PacketPort("eth0", [ring.fd], [ring.fd], **shape)


class Reading:
    """An engine in virtual time that reads a ring."""

    def __init__(self, ring: FakeRing, pool: PacketPool | None = None) -> None:
        self.pool = pool or PacketPool(small=64, large=4)
        self.port = port_of(ring)
        self.out = MemoryPort("out", 1)
        self.rx = PortRx(self.port)
        self.rx >> PortTx(self.out)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.engine.load([self.rx])
        self.now = 1

    def take(self) -> list[Frame]:
        self.now += 1
        advance(self.engine, self.now)
        assert self.engine.conservation()["conserved"]
        return self.out.take()

    def close(self) -> None:
        self.engine.close()
        self.port.close()
        assert self.pool.in_use == 0


@contextmanager
def reading(**shape: int) -> Iterator[tuple[FakeRing, Reading]]:
    ring = FakeRing(**{"slot": 500, **shape})
    engine = Reading(ring)
    yield ring, engine
    engine.close()
    ring.close()


FIELDS = st.fixed_dictionaries(
    {
        "status": st.sampled_from(
            [USER, USER | LOSING, USER | CSUM, USER | VLAN | TPID, USER | VLAN, USER | COPY, 1 << 31 | USER]
        ),
        "mac": st.one_of(st.just(76), st.integers(0, 65535)),
        "snap": st.one_of(st.none(), st.integers(0, 2**32 - 1)),
        "length": st.one_of(st.none(), st.integers(0, 2**32 - 1)),
        "vlan": st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
        "header": st.binary(min_size=10, max_size=10),
    }
)


def reference(slot: bytes, room: int) -> tuple[bytes, tuple[int, ...]] | str:
    """The frame and its virtio-net fields as a slot has them, or why there is none: "unreadable", "cut"."""
    status, length, snap, mac, _, _, _, tci, tpid, _ = struct.unpack_from("=IIIHHIIHHI", slot)
    slot = slot[:room].ljust(room, b"\0")
    if mac < 42 or not 1 <= snap <= room - mac or status & COPY:  # the memfd has no frames beside its slots
        return "unreadable"
    if length != snap:
        return "cut"
    frame = slot[mac : mac + snap]
    fields = list(struct.unpack("=BBHHHH", slot[mac - 10 : mac]))
    if status & VLAN and snap >= 12:
        frame = frame[:12] + struct.pack(">HH", tpid if status & TPID else 0x8100, tci) + frame[12:]
        if fields[0] & 1:
            fields[4] = (fields[4] + 4) & 0xFFFF
        if fields[1]:
            fields[2] = (fields[2] + 4) & 0xFFFF
    return frame, tuple(fields)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=400), FIELDS), max_size=12))
def test_slots_are_read_as_the_reference_reads_them(written):
    with reading() as (ring, engine):
        slots = [slot_of(frame, **fields) for frame, fields in written]
        assert all(ring.write(slot) for slot in slots)
        got = [(each.data, (each.vnet_flags, each.gso_type, each.header_length, each.gso_size, each.csum_start, each.csum_offset))
               for each in engine.take()]  # fmt: skip
        wanted = [reference(slot, ring.slot) for slot in slots]
        assert got == [each for each in wanted if not isinstance(each, str)]
        assert engine.rx.statistics()["dropped"] == {"no_buffer": 0, "unreadable": wanted.count("unreadable")}
        assert engine.port.ring_drops() == wanted.count("cut")


def test_the_ring_is_read_round_after_round():
    with reading() as (ring, engine):
        sent, got = 0, []
        for burst in (1, 5, ring.slots, 3, ring.slots - 1, ring.slots, 2):
            for _ in range(burst):
                assert ring.write(slot_of(sent.to_bytes(4, "big") * 16))
                sent += 1
            got += [int.from_bytes(frame.data[:4], "big") for frame in engine.take()]
        assert got == list(range(sent))


def test_a_full_ring_is_the_kernel_s_to_drop():
    with reading() as (ring, engine):
        assert [ring.write(slot_of(b"x" * 60)) for _ in range(ring.slots + 2)] == [True] * ring.slots + [False] * 2
        assert len(engine.take()) == ring.slots
        assert ring.write(slot_of(b"x" * 60))


def test_a_successor_continues_where_its_predecessor_stopped():
    with reading() as (ring, first):
        for number in range(5):
            ring.write(slot_of(bytes([number]) * 60))
        assert [frame.data[0] for frame in first.take()] == [0, 1, 2, 3, 4]
        for number in range(5, 9):
            ring.write(slot_of(bytes([number]) * 60))
        second = Reading(ring)
        assert [frame.data[0] for frame in second.take()] == [5, 6, 7, 8]
        second.close()


def test_a_position_beyond_the_ring_is_the_beginning():
    with reading() as (ring, engine):
        os.pwrite(ring.fd, b"\xff\xff\xff\xff", ring.block * ring.blocks - 64)
        ring.write(slot_of(b"x" * 60))
        assert len(engine.take()) == 1


def test_without_buffers_frames_are_lost_and_counted():
    ring = FakeRing(slot=500)
    pool = PacketPool(small=4, large=2)
    engine = Reading(ring, pool)
    held = Reading(FakeRing(slot=500), pool)
    for _ in range(20):
        ring.write(slot_of(b"x" * 60))
    got = engine.take()
    assert engine.rx.statistics()["dropped"] == {"no_buffer": 20 - len(got), "unreadable": 0}
    assert 0 < len(got) < 20
    engine.close()
    held.engine.close()
    held.port.close()


class Sending:
    """An engine in virtual time that transmits by a ring; what it cannot be sent by, a memfd, fails with ENOTSOCK."""

    def __init__(self, ring: FakeRing) -> None:
        self.pool, self.port, self.source = PacketPool(small=300, large=4), port_of(ring), MemoryPort("in", 1)
        rx, self.tx = PortRx(self.source), PortTx(self.port)
        rx >> self.tx
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.engine.load([rx])
        self.now = 1

    def send(self, frames: list[bytes]) -> int:
        """Transmits; how many failed."""
        before = self.tx.statistics()["dropped"]["io_error"]
        self.source.inject(frames)
        for _ in range(len(frames) // 32 + 1):
            self.now += 1
            advance(self.engine, self.now)
        assert self.engine.conservation()["conserved"]
        return self.tx.statistics()["dropped"]["io_error"] - before

    def close(self) -> None:
        self.engine.close()
        self.port.close()
        self.source.close()
        assert self.pool.in_use == 0


@contextmanager
def sending() -> Iterator[tuple[FakeRing, Sending]]:
    ring = FakeRing(slot=500)
    engine = Sending(ring)
    yield ring, engine
    engine.close()
    ring.close()


def filled(ring: FakeRing, number: int) -> tuple[int, int, bytes]:
    """Status, length and frame of a slot to be transmitted."""
    status, length = struct.unpack("=II", os.pread(ring.fd, 8, ring.at(number)))
    return status, length, os.pread(ring.fd, 450, ring.at(number) + 32 + 10)


def test_what_is_transmitted_on_something_else_is_an_error_counted():
    with sending() as (_, engine):
        assert engine.send([b"x" * 60] * 200) == 200
        assert engine.send([b"x" * 1000] * 200) == 200


def test_a_slot_that_failed_is_left_to_be_skipped():
    """Without a length: the kernel, whose turn it still is, finds an error of form and goes on to the next."""
    with sending() as (ring, engine):
        assert engine.send([b"one" * 20, b"two" * 20]) == 2
        assert [filled(ring, number)[:2] for number in range(3)] == [(1, 0), (1, 0), (0, 0)]
        assert filled(ring, 1)[2][:60] == b"two" * 20


def test_a_successor_fills_slots_behind_those_of_a_killed_process():
    """Which has requested two, and noted the position of the first only: the kernel sends them with the next."""
    with sending() as (ring, engine):
        for number in (0, 1, 2):
            os.pwrite(ring.fd, struct.pack("=II", 1, 70), ring.at(number))
        os.pwrite(ring.fd, struct.pack("=I", 1), ring.block * ring.blocks - 64)
        assert engine.send([b"x" * 60]) == 1
        assert [filled(ring, number)[:2] for number in range(5)] == [(1, 70), (1, 70), (1, 70), (1, 0), (0, 0)]


def test_a_ring_that_the_kernel_still_has_is_left_alone():
    """Its frames lie in the container's kernel: what comes goes by messages."""
    with sending() as (ring, engine):
        for number in range(ring.slots):
            os.pwrite(ring.fd, struct.pack("=II", 2, 70), ring.at(number))
        assert engine.send([b"x" * 60] * 100) == 100
        assert [filled(ring, number)[:2] for number in range(ring.slots)] == [(2, 70)] * ring.slots


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"slot_bytes": 512}, "leave less than 64 bytes"),
        ({"slot_bytes": 64}, "slots of 64 bytes in blocks of 8192"),
        ({"slot_bytes": 8000}, "slots of 8000 bytes in blocks of 8192"),
        ({"blocks": 0}, "a ring of 0 blocks"),
        ({"sending_blocks": 0}, "a ring of 0 blocks"),
        ({"blocks": 2**31}, "a ring of 2147483648 blocks"),
    ],
)
def test_rings_of_another_shape(shape, message):
    ring = FakeRing(slot=500)
    with pytest.raises(PortError, match=message):
        port_of(ring, **shape)
    ring.close()


def test_descriptors_that_are_none():
    shape = {"slot_bytes": 500, "block_bytes": 8192, "blocks": 2, "sending_blocks": 2}
    with pytest.raises(PortError, match="port eth0: queue 0: descriptor -1: Bad file descriptor"):
        PacketPort("eth0", [-1], [-1], **shape)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        with pytest.raises(PortError, match=f"queue 0: descriptor {other.fileno()}: its ring cannot be mapped"):
            PacketPort("eth0", [other.fileno()], [other.fileno()], **shape)
    with pytest.raises(PortError, match="port eth0: 1 sockets to receive from, but 0 to transmit by"):
        PacketPort("eth0", [-1], [], **shape)


# --- on a veth pair ---------------------------------------------------------------------------------------------------


class Wire:
    """A container's interface, an engine that takes what comes from it to `out` and gives it what `source` has, and a station
    inside."""

    def __init__(self, stack: ExitStack, agent: NamespaceAgent, pool: PacketPool, **request) -> None:
        self.pool = pool
        self.container: Container = stack.enter_context(quiet_container())
        request = {"name": "eth0", "pid": self.container.pid, "mac": "02:00:00:00:00:02", **request}
        self.veth: Veth = stack.enter_context(agent.open_nic(VethRequest(**request)))
        shape = {"slot_bytes": self.veth.slot_bytes, "block_bytes": self.veth.block_bytes}
        shape |= {"blocks": self.veth.blocks, "sending_blocks": self.veth.sending_blocks}
        self.port = PacketPort(
            "eth0", self.veth.fds, self.veth.sending, **shape, offloads=self.veth.offloads, mtu=self.veth.mtu
        )
        stack.callback(self.port.close)
        self.veth.ring_drops = self.port.ring_drops
        self.out, self.source = MemoryPort("out", 1), MemoryPort("in", 2)
        self.rx, self.tx = PortRx(self.port), PortTx(self.port)
        given = PortRx(self.source)
        self.rx >> PortTx(self.out)
        given >> self.tx
        self.engine = Engine("e0", pool)
        stack.callback(self.engine.close)
        self.engine.load([self.rx, given])
        self.station = Station(self.container)
        stack.callback(self.station.close)
        start(self.engine)
        stack.callback(self.engine.stop)

    def take(self, count: int) -> list[Frame]:
        """The next frames of our EtherType from the container, exactly so many."""
        got: list[Frame] = []
        while len(got) < count:
            got += self.engine.call(self.out.take)
        assert len(got) == count
        return got

    def statistics(self) -> list[dict[str, int]]:
        """Of the queues, between two batches: a frame is in the container before the engine has counted it."""
        return self.engine.call(self.port.queue_statistics)

    def dropped(self) -> dict[str, int]:
        return {reason: count for reason, count in self.engine.call(self.tx.statistics)["dropped"].items() if count}

    def until(self, condition: Callable[[], bool]) -> None:
        """Until it holds: work done on the engine's thread lets it go on."""
        while not condition():
            self.engine.call(lambda: None)


@pytest.fixture(scope="module")
def agent() -> Iterator[NamespaceAgent]:
    with NamespaceAgent.start() as agent:
        yield agent


@pytest.fixture
def wire(agent, leak_check):
    """Makes the wire that a test asks for; afterwards every packet must be accounted for."""
    with ExitStack() as stack:
        made: list[Wire] = []

        def make(pool: PacketPool | None = None, **request) -> Wire:
            made.append(Wire(stack, agent, pool or PacketPool(small=2048, large=256), **request))
            return made[-1]

        yield make
        for each in made:
            assert each.engine.conservation()["conserved"]
    in_use = [each.pool.in_use for each in made]
    made.clear()  # the pools go before leak_check looks
    assert not any(in_use)


def frame_of(length: int, number: int = 0, tags: bytes = b"") -> bytes:
    body = number.to_bytes(4, "big") + bytes(each % 251 for each in range(length))
    return (THEIRS + MINE + tags + EXPERIMENT + body)[:length]


TAGS = {
    "none": b"",
    "one": b"\x81\x00\x20\x0a",
    "two": b"\x88\xa8\x00\x14\x81\x00\xa0\x0a",
    "service": b"\x88\xa8\x0f\xff",
    "priority": b"\x81\x00\xe0\x00",
}


def longest(mtu: int, tags: bytes) -> int:
    """Of the frames that a packet socket sends: only a tag of 802.1Q is not counted."""
    return mtu + 14 + (4 if tags.startswith(b"\x81\x00") else 0)


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_frames_pass_both_ways_byte_for_byte(wire, tags):
    made = wire()
    lengths = [60, 64, 127, 128, 500, 1496, longest(1500, tags)]
    frames = [frame_of(length, number, tags) for number, length in enumerate(lengths)]
    for frame in frames:
        made.station.send(frame)
    assert [each.data for each in made.take(len(frames))] == frames
    made.source.inject(frames)
    assert [made.station.receive() for _ in frames] == frames
    assert made.dropped() == {}
    statistics = made.statistics()[0]
    total = sum(len(frame) for frame in frames)
    assert (statistics["rx_packets"], statistics["rx_bytes"], statistics["tx_packets"], statistics["tx_bytes"]) == (
        len(frames), total, len(frames), total)  # fmt: skip


@pytest.mark.parametrize("tags", [b"", TAGS["one"], TAGS["two"]], ids=["none", "one", "two"])
@pytest.mark.parametrize("mtu", [1900, 9000, 65521])
def test_jumbo_frames_pass_both_ways(wire, mtu, tags):
    """Longer than a slot: they come through the socket."""
    made = wire(mtu=mtu)
    lengths = [longest(mtu, tags), 1600, 100, mtu, 1524, 1523, 1525]
    frames = [frame_of(length, number, tags) for number, length in enumerate(lengths)]
    for frame in frames:
        made.station.send(frame)
    assert [each.data for each in made.take(len(frames))] == frames
    made.source.inject(frames)
    assert [made.station.receive() for _ in frames] == frames
    assert made.veth.queue_drops() == 0


def test_what_is_too_long_is_counted(wire):
    made = wire()
    double = TAGS["two"]
    made.source.inject([frame_of(1515 + 4), frame_of(1522, tags=double), frame_of(9000), frame_of(1514)])
    assert made.station.receive() == frame_of(1514)
    assert made.dropped() == {"too_long": 3}
    gso = Frame(frame_of(9000), vnet_flags=1, gso_type=1, header_length=54, gso_size=1460 + 23, csum_start=34, csum_offset=16)
    made.source.inject([gso])
    made.until(lambda: made.dropped() == {"too_long": 4})


def test_what_the_kernel_refuses_is_counted(wire):
    """The rest of the batch goes on."""
    made = wire()
    good = [frame_of(60, number) for number in range(3)]
    wrong = [Frame(frame_of(100), vnet_flags=1, csum_start=90, csum_offset=20), b"\x02" * 13]
    made.source.inject([good[0], wrong[0], good[1], wrong[1], good[2]])
    assert [made.station.receive() for _ in good] == good
    made.until(lambda: sum(made.dropped().values()) == 2)
    assert made.dropped() == {"rejected": 2}


def test_many_frames_pass_in_order(wire):
    """Several rounds of the ring."""
    made = wire()
    count, got = 5000, []
    for first in range(0, count, 500):
        for number in range(first, first + 500):
            made.station.send(frame_of(60, number))
        got += [int.from_bytes(each.data[14:18], "big") for each in made.take(500)]
    assert got == list(range(count))
    assert made.veth.queue_drops() == 0
    made.source.inject([frame_of(60, number) for number in range(200)])
    assert [int.from_bytes(made.station.receive()[14:18], "big") for _ in range(200)] == list(range(200))


def test_what_the_ring_has_no_room_for(wire):
    made = wire()
    made.engine.stop()
    slots = blocks_of(1) * SLOTS_OF_A_BLOCK
    for number in range(slots + 100):
        made.station.send(frame_of(60, number))
    assert made.veth.queue_drops() == 100
    start(made.engine)
    assert [int.from_bytes(each.data[14:18], "big") for each in made.take(slots)] == list(range(slots))
    assert made.veth.queue_drops() == 100, "what was asked before is not forgotten"


def test_long_frames_that_the_socket_has_no_room_for(wire):
    made = wire(mtu=65521)
    made.engine.stop()
    for number in range(200):
        made.station.send(frame_of(65000, number))
    start(made.engine)
    made.station.send(frame_of(60, 1000))
    got: list[Frame] = []
    while not got or got[-1].data != frame_of(60, 1000):
        got += made.engine.call(made.out.take)
    numbers = [int.from_bytes(each.data[14:18], "big") for each in got[:-1]]
    assert numbers == list(range(len(numbers)))
    assert 0 < len(numbers) < 200
    assert made.veth.queue_drops() == 200 - len(numbers)


def test_a_pool_that_is_exhausted(wire):
    """Long frames that no packet can be had for are taken from the socket all the same."""
    made = wire(pool=PacketPool(small=8, large=1), mtu=9000)
    made.engine.stop()
    for _ in range(20):
        made.station.send(frame_of(9000))
        made.station.send(frame_of(60))
    start(made.engine)
    made.until(lambda: made.rx.statistics()["received"] == 40)
    dropped = made.rx.statistics()["dropped"]
    assert dropped["unreadable"] == 0
    assert dropped["no_buffer"] > 0 and len(made.engine.call(made.out.take)) + dropped["no_buffer"] == 40


def udp_frame(payload: int, gso: int, family: int = 4) -> Frame:
    """A UDP datagram to port 9 of the container, to be segmented."""
    length = 8 + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]
    pseudo = sum(struct.unpack("!4H", ip[12:20])) + 17 + length
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    data = THEIRS + MINE + b"\x08\x00" + ip + struct.pack("!HHHH", 9999, 9, length, pseudo) + bytes(payload)
    return Frame(data, vnet_flags=1, gso_type=5, header_length=42, gso_size=gso, csum_start=34, csum_offset=6)


def test_gso_frames_travel_whole_from_the_container(wire):
    """20 kB sent over UDP with segmentation offload, on a VLAN and without."""
    made = wire(addresses=("10.0.0.2/24",))
    if not made.veth.offloads & Offload.USO:
        pytest.skip("this kernel's virtio-net header has no UDP segmentation (Linux 6.2 has)")
    made.container.run("ip", "neigh", "add", "10.0.0.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0")
    made.container.python(
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(17, 103, 1000); "
        "s.sendto(bytes(20000), ('10.0.0.1', 9))"
    )
    [frame] = made.take(1)
    assert (frame.vnet_flags & 1, frame.gso_type, frame.gso_size) == (1, 5, 1000)
    assert (frame.csum_start, frame.csum_offset, frame.header_length) == (34, 6, 42)
    assert len(frame.data) == 14 + 20 + 8 + 20000


@pytest.mark.parametrize("payload", [100, 20000])
def test_a_tag_moves_what_the_header_says(wire, payload):
    """The kernel takes the tag out, and counts the checksum's place without it; short frames come by the ring, long ones do not."""
    made = wire()
    whole = udp_frame(payload, 1400)
    tagged = whole.data[:12] + b"\x81\x00\x20\x0a" + whole.data[12:]
    gso = payload > 1400
    header = struct.pack("=BBHHHH", 1, 5 if gso else 0, 46, 1400 if gso else 0, 38, 6)
    station = Station(made.container, vnet=True)
    station.send(header + tagged)
    station.close()
    [frame] = made.take(1)
    assert frame.data == tagged
    assert (frame.vnet_flags & 1, frame.csum_start, frame.csum_offset) == (1, 38, 6)
    assert (frame.gso_type, frame.gso_size) == ((5, 1400) if gso else (0, 0))


RECEIVE = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as s:
    s.bind(("10.0.0.2", 9))
    s.settimeout(60)
    print("ready", flush=True)
    sizes = []
    while sum(sizes) < int(sys.argv[1]):
        sizes.append(len(s.recv(70000)))
print(*sizes)
"""


@pytest.mark.parametrize("payload", [20000, 65507])
def test_gso_frames_travel_whole_to_the_container(wire, payload):
    """The container's kernel segments them and finds the checksums right. 65,507 bytes are the most a datagram holds: with its MAC
    header, that frame is longer than the kernel's usual limit."""
    made = wire(addresses=("10.0.0.2/24",))
    if not made.veth.offloads & Offload.USO:
        pytest.skip("this kernel's virtio-net header has no UDP segmentation (Linux 6.2 has)")
    receiver = made.container.popen([sys.executable, "-c", RECEIVE, str(payload)])
    assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
    made.source.inject([udp_frame(payload, 1400)])
    sizes = [int(each) for each in receiver.communicate(timeout=120)[0].split()]
    assert sum(sizes) == payload and set(sizes[:-1]) == {1400}
    assert made.dropped() == {}
    statistics = made.statistics()[0]
    assert statistics["tx_packets"] == 1
    assert statistics["tx_wire_packets"] == -(-payload // 1400)


def test_queues_share_the_container_s_flows(wire):
    made = wire(queues=4, addresses=("10.0.0.2/24",))
    made.container.run("ip", "neigh", "add", "10.0.0.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0")
    with ExitStack() as stack:
        flows = [stack.enter_context(made.container.udp_socket()) for _ in range(16)]
        for _ in range(20):
            for flow in flows:
                flow.sendto(b"x" * 100, ("10.0.0.1", 9))
    frames = made.take(320)
    queues: dict[bytes, set[int]] = {}
    for frame in frames:
        queues.setdefault(frame.data[34:36], set()).add(frame.queue)
    received = [queue["rx_packets"] for queue in made.statistics()]
    assert len(queues) == 16
    assert sum(received) == 320 and sum(count > 0 for count in received) > 1
    assert all(count % 20 == 0 for count in received), "a flow has one queue"
    frame = frame_of(60, 7)
    made.source.inject([frame])
    while made.station.receive() != frame:
        pass


@pytest.mark.parametrize("queues", [1, 16])
def test_a_link_that_goes_down_and_comes_up_again(wire, queues):
    """Neither error stays: what was dropped is counted, and both directions go on, however often. 16 queues are more than an engine
    has in one ppoll; 300 frames more than slots."""
    made = wire(queues=queues)
    for number in range(3):
        made.veth.set_carrier(False)
        made.source.inject([frame_of(60)] * 300)
        made.until(lambda number=number: made.dropped() == {"link_down": 300 * (number + 1)})
        made.veth.set_carrier(True)
        made.station.socket.close()
        made.station = Station(made.container)
        made.station.send(frame_of(60, number))
        assert [each.data for each in made.take(1)] == [frame_of(60, number)]
        made.source.inject([frame_of(60, 100 + number)])
        assert made.station.receive() == frame_of(60, 100 + number)
    made.station.close()


def test_an_interface_that_is_down_in_the_container(wire):
    made = wire()
    made.container.run("ip", "link", "set", "eth0", "down")
    while not made.dropped().get("link_down"):  # the kernel tells of a carrier within a second: until then, the queue is full
        made.source.inject([frame_of(60)] * 3)
        made.engine.call(lambda: None)
    made.until(lambda: sum(made.dropped().values()) % 3 == 0)
    assert set(made.dropped()) <= {"link_down", "queue_full"}


def test_an_interface_that_is_deleted_while_packets_flow(wire):
    """The engine goes on, drops what it is to transmit, and sleeps when there is nothing."""
    made = wire()
    for number in range(100):
        made.station.send(frame_of(60, number))
    made.container.run("ip", "link", "del", "eth0")
    made.source.inject([frame_of(60)] * 5)
    made.until(lambda: made.dropped() == {"link_down": 5})
    assert not made.veth.present()
    before = made.engine.cpu_ns
    for _ in range(10):
        made.engine.call(lambda: None)
    assert made.engine.cpu_ns - before < 1_000_000_000
    assert len(made.engine.call(made.out.take)) <= 100


def test_long_and_short_frames_keep_their_order(wire):
    """They go two ways; all kinds of runs between them."""
    made = wire(mtu=9000)
    lengths = [60, 9000, 61, 62, 8000, 8001] + [60] * 100 + [1558, 1559] * 20 + [5000] * 70 + [64] * 300
    frames = [frame_of(length, number) for number, length in enumerate(lengths)]
    got: list[bytes] = []
    for first in range(0, len(frames), 16):  # no more than the station's buffer has room for
        made.source.inject(frames[first : first + 16])
        got += [made.station.receive() for _ in frames[first : first + 16]]
    assert got == frames
    assert made.dropped() == {}


# Sends back what comes from the ports that the arguments name; the rest of the protocol is SIGKILL.
ECHO = """
import json, sys
from dataplane.engine.engine import Engine
from dataplane.engine.running import start
from dataplane.packet.pool import PacketPool
from dataplane.graph.port import PortRx, PortTx
from dataplane.ports.packet_port import PacketPort
fds, sending, shape = json.loads(sys.argv[1])
port = PacketPort("eth0", fds, sending, **shape)
rx = PortRx(port)
rx >> PortTx(port)
engine = Engine("e0", PacketPool(small=2048, large=64))
engine.load([rx])
start(engine)
sys.stdin.read()
"""


def test_killed_processes_leave_rings_that_go_on(agent, leak_check):
    """Each is killed in the middle of the traffic; the next goes on in both directions. Frames that one had in its hands are lost,
    or come once more; others come in order."""
    with ExitStack() as stack:
        container = stack.enter_context(quiet_container())
        veth = stack.enter_context(agent.open_nic(VethRequest(name="eth0", pid=container.pid, mtu=9000)))
        station = Station(container)
        stack.callback(station.close)
        shape = {"slot_bytes": veth.slot_bytes, "block_bytes": veth.block_bytes, "mtu": 9000}
        shape |= {"blocks": veth.blocks, "sending_blocks": veth.sending_blocks}
        arguments = json.dumps([veth.fds, veth.sending, shape])
        number = 0
        for round_number in range(12):
            echo = subprocess.Popen(
                [sys.executable, "-c", ECHO, arguments], stdin=subprocess.PIPE, pass_fds=[*veth.fds, *veth.sending], cwd=ROOT
            )
            fresh, answered = number, list[int]()
            while len(answered) < 300 + 37 * round_number:
                assert echo.poll() is None
                for _ in range(8):
                    station.send(frame_of(4000 if number % 5 == 0 else 60, number))
                    number += 1
                with suppress(TimeoutError, BlockingIOError):
                    while True:
                        station.socket.settimeout(0.02)
                        answer = int.from_bytes(station.receive()[14:18], "big")
                        answered += [answer] if answer >= fresh else []
            echo.kill()
            echo.communicate()
            assert answered == sorted(set(answered))
    assert veth.closed


def test_a_closed_port_keeps_no_socket_alive(wire):
    """A mapped ring holds its socket: closing has to unmap it."""
    made = wire()
    made.engine.stop()
    made.port.close()
    for fd in made.veth.let_go():
        os.close(fd)
    made.veth.namespace.close()
    while made.container.interfaces():
        pass
    with suppress(OSError):
        made.station.socket.recv(100)
