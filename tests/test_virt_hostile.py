"""VirtioPort against drivers and front ends that lie: one row per class of known attacks on device back ends.

After each test the packets are conserved and the pool is empty; the second queue or direction goes on.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.engine import Engine
from dataplane.engine.running import start
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from tests.support.guests import EVENT_IDX, INDIRECT, MRG_RXBUF, PACKED, RX, TX, VERSION_1, Guest, mask
from virt.driver import DESCRIPTOR, Buffer, GuestRam, Header
from virt.guest_memory import GuestMemory, MemoryRegion
from virt.queue_setup import FAULTS

NEXT, WRITE, TABLE = 1, 2, 4
SHORT, EMPTY, DIRECTION, LONG = FAULTS[4], FAULTS[2], FAULTS[3], FAULTS[5]
INDEX, COUNT, LOOP, ADDRESS, BAD_TABLE, TRUNCATED, LAYOUT = FAULTS[6:]
both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
FRAME = bytes(range(60))


def features(packed: bool, *more: int) -> list[int]:
    return [VERSION_1, *more, *[PACKED] * packed]


def works(guest: Guest) -> bool:
    """Whether a frame of the driver still arrives."""
    return [each.data for each in guest.sent(FRAME)] == [FRAME]


def broken(guest: Guest, ring: int, why: str) -> None:
    """The ring was stopped for this reason, the front end was notified, the other ring works."""
    assert guest.state(ring)["broken"] == why
    assert guest.rung(guest.errors, ring)
    assert guest.state(1 - ring)["broken"] == ""
    guest.run()
    assert not guest.rung(guest.errors, ring), "once"


# -- chains that cost themselves only --------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("buffers", "fault"),
    [
        ([(8, False)], SHORT),  # less than a header
        ([(12, False)], SHORT),  # a header without a frame
        ([(12, False), (60, True)], DIRECTION),  # writable in a transmit ring
        ([(12, True), (60, False)], DIRECTION),  # readable after writable
        ([(72, True)], DIRECTION),
        ([(12, False), (69505, False)], LONG),
    ],
)
def test_a_senseless_transmit_buffer_is_given_back(packed, buffers, fault):
    with Guest(*features(packed)) as guest:
        token = guest.rings[TX].add([Buffer(guest.ram.allocate(length), length, way) for length, way in buffers])
        guest.rings[TX].publish()
        guest.run()
        assert guest.lan.take() == []
        assert guest.rings[TX].used() == [(token, 0)]
        assert guest.state(TX)["faults"] == {fault: 1}
        assert guest.engine.conservation()["dropped"] == 1
        assert works(guest)


@both
def test_a_descriptor_of_no_bytes_is_given_back(packed):
    with Guest(*features(packed)) as guest:
        at = guest.ram.allocate(72)
        token = guest.rings[TX].add([Buffer(at, 12), Buffer(at, 0), Buffer(at, 60)])
        guest.rings[TX].publish()
        guest.run()
        assert guest.rings[TX].used() == [(token, 0)]
        assert guest.state(TX)["faults"] == {EMPTY: 1}
        assert works(guest)


@both
@pytest.mark.parametrize("merges", [False, True])
def test_a_senseless_receive_buffer_is_given_back(packed, merges):
    """Too short for a header, or readable; the frame goes into the next one."""
    with Guest(*features(packed, *[MRG_RXBUF] * merges)) as guest:
        ring, frame = guest.rings[RX], bytes(range(100))
        useless = [
            ring.add([Buffer(guest.ram.allocate(8), 8, True)]),
            ring.add([Buffer(guest.ram.allocate(200), 200, False)]),
            ring.add([Buffer(guest.ram.allocate(9), 9, False), Buffer(guest.ram.allocate(200), 200, True)]),
        ]
        for token in useless:
            guest.net.buffers[token] = []
        guest.net.post(400)
        ring.publish()
        guest.lan.inject([frame])
        guest.run()
        assert [content for content, _ in guest.net.received()] == [frame]
        assert guest.state(RX)["faults"] == {SHORT: 1, DIRECTION: 2}


@both
def test_useless_receive_buffers_cannot_keep_the_engine(packed):
    """Each frame has a few of them given back and is dropped."""
    with Guest(*features(packed), size=64) as guest:
        for _ in range(40):
            guest.rings[RX].add([Buffer(guest.ram.allocate(8), 8, True)])
        guest.rings[RX].publish()
        guest.lan.inject([FRAME])
        guest.run()
        assert len(guest.rings[RX].used()) == 8
        assert guest.engine.conservation()["dropped"] == 1


@both
def test_no_buffers_or_too_few(packed):
    with Guest(*features(packed, MRG_RXBUF)) as guest:
        guest.lan.inject([FRAME, FRAME])
        guest.run()
        assert guest.state(RX)["no_buffers"] == 2
        guest.net.post(60)
        guest.rings[RX].publish()
        guest.lan.inject([bytes(100), FRAME[:40]])
        guest.run()
        assert guest.net.received() == [], "the second frame would overtake nothing, but the driver is asked once a burst"
        guest.lan.inject([FRAME[:40]])
        guest.run()
        assert [content for content, _ in guest.net.received()] == [FRAME[:40]], "the buffer was left to the driver"
        assert guest.engine.conservation()["dropped"] == 4


@both
def test_a_frame_longer_than_the_drivers_buffer(packed):
    with Guest(*features(packed)) as guest:
        guest.net.post(100)
        guest.rings[RX].publish()
        guest.lan.inject([bytes(200), FRAME])
        guest.run()
        assert [content for content, _ in guest.net.received()] == [FRAME]
        assert guest.state(RX)["no_room"] == 1


# -- rings that make no sense ----------------------------------------------------------------------


@both
def test_addresses_outside_the_memory(packed):
    end = GuestRam().guest + (1 << 24)
    for address, length in [(0, 72), (end, 72), (end - 8, 72), (2**64 - 4, 72), (end, 0), (0x100000, 1 << 25), (0, 0)]:
        for ring in (RX, TX):
            with Guest(*features(packed)) as guest:
                guest.rings[ring].add([Buffer(address, length, ring == RX)])
                guest.rings[ring].publish()
                guest.lan.inject([FRAME])
                guest.run()
                broken(guest, ring, ADDRESS)


def test_a_split_chain_that_loops():
    with Guest(VERSION_1) as guest:
        ring, at = guest.rings[TX], guest.ram.allocate(72)
        ring.write(0, at, 12, NEXT, 1)
        ring.write(1, at, 30, NEXT, 0)
        ring.offer(0)
        ring.publish()
        guest.run()
        broken(guest, TX, LOOP)


def test_a_packed_chain_without_an_end():
    with Guest(VERSION_1, PACKED) as guest:
        ring, at = guest.rings[TX], guest.ram.allocate(72)
        for number in range(ring.size):
            ring.write(at, 8, 1, NEXT | (0x80 if ring.wrap else 0x8000), first=number == 0)
        ring.publish()
        guest.run()
        broken(guest, TX, LOOP)


@pytest.mark.parametrize("index", [8, 9, 0xFFFF])
def test_indices_that_the_ring_does_not_have(index):
    with Guest(VERSION_1) as guest:
        guest.rings[TX].offer(index)
        guest.rings[TX].publish()
        guest.run()
        broken(guest, TX, INDEX)
    with Guest(VERSION_1) as guest:
        ring = guest.rings[TX]
        ring.write(0, guest.ram.allocate(12), 12, NEXT, index)
        ring.offer(0)
        ring.publish()
        guest.run()
        broken(guest, TX, INDEX)


def test_more_buffers_than_entries():
    with Guest(VERSION_1) as guest:
        guest.ram.store(guest.rings[TX].available + 2, 9)
        guest.run()
        broken(guest, TX, COUNT)


@both
@pytest.mark.parametrize("lies", ["length", "address", "nested", "next", "not negotiated", "endless", "no table"])
def test_indirect_tables_that_lie(packed, lies):
    more = [] if lies == "not negotiated" else [INDIRECT]
    with Guest(*features(packed, *more)) as guest:
        ring, ram = guest.rings[TX], guest.ram
        data = ram.allocate(72)
        table = ram.allocate(32, 16)
        inner = TABLE if lies == "nested" else 0
        if packed:
            ram.write(table, DESCRIPTOR.pack(data, 12, 0, inner) + DESCRIPTOR.pack(data, 60, 0, 0))
        else:
            following = 0 if lies == "endless" else 1
            ram.write(table, DESCRIPTOR.pack(data, 12, NEXT | inner, following) + DESCRIPTOR.pack(data, 60, 0, 0))
        length = {"length": 31, "no table": 0}.get(lies, 32)
        address = 16 if lies == "address" else table
        flags = TABLE | (NEXT if lies == "next" else 0)
        if packed:
            ring.write(address, length, 5, flags | 0x80, first=True)
            ring.ids.remove(ring.ids[0])
            ring.slots[5], _ = 1, ring.out.append(5)
        else:
            ring.write(0, address, length, flags, 1)
            ring.unused.popleft()
            ring.chains[0] = [0]
            ring.offer(0)
        ring.publish()
        guest.run()
        if packed and lies in {"nested", "endless"}:
            # flags of a packed ring's tables other than WRITE are ignored, and nothing links them
            assert len(guest.lan.take()) == 1
        else:
            broken(guest, TX, LOOP if lies == "endless" else BAD_TABLE)


def test_a_table_that_lies_in_the_descriptors_themselves():
    """A reference from the descriptor table to itself is nested, hence no endless walk."""
    with Guest(VERSION_1, INDIRECT) as guest:
        ring = guest.rings[TX]
        ring.write(0, ring.descriptors, 128, TABLE, 0)
        ring.offer(0)
        ring.publish()
        guest.run()
        broken(guest, TX, BAD_TABLE)


@both
def test_a_table_of_more_descriptors_than_a_packet_can_have(packed):
    """Linux fills tables longer than the ring, so 1024 are taken; more are not walked."""
    for count, fine in [(1024, True), (1025, False)]:
        with Guest(*features(packed, INDIRECT)) as guest:
            data = guest.ram.allocate(1025)
            guest.rings[TX].add([Buffer(data + at, 1) for at in range(count)], indirect=count)
            guest.rings[TX].publish()
            guest.run()
            if fine:
                assert [len(each.data) for each in guest.lan.take()] == [1012]
            else:
                broken(guest, TX, LOOP)


def test_heads_that_share_one_long_chain_cost_a_bounded_walk():
    """Every head of a large ring leads into a chain through all of it: the walk ends after 1024 descriptors."""
    with Guest(VERSION_1, size=32768, ram=GuestRam(1 << 25)) as guest:
        ring, at = guest.rings[TX], guest.ram.allocate(16)
        for number in range(ring.size):
            ring.write(number, at, 1, NEXT, (number + 1) % ring.size)
        ring.offer(0)
        ring.publish()
        guest.run()
        broken(guest, TX, LOOP)


@both
def test_many_tiny_receive_buffers_for_a_large_frame(packed):
    """More segments than a frame may take: the frame is dropped, the ring, which is valid, goes on."""
    with Guest(*features(packed, MRG_RXBUF), size=2048) as guest:
        for _ in range(1100):
            guest.net.post(16)
        guest.rings[RX].publish()
        guest.lan.inject([bytes(60000), FRAME])
        guest.run()
        assert [content for content, _ in guest.net.received()] == [FRAME]
        assert guest.state(RX)["no_room"] == 1


@both
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_arbitrary_descriptors_and_indices(packed, data):
    """Nothing that is written into a ring reads outside the memory (checked builds), loses a packet or ends the engine."""
    with Guest(*features(packed, *data.draw(st.sets(st.sampled_from([INDIRECT, EVENT_IDX, MRG_RXBUF])))), size=4) as guest:
        near = st.sampled_from([guest.ram.guest, guest.rings[0].descriptors, guest.rings[1].descriptors, guest.ram.guest - 1])
        address = st.one_of(
            near, st.builds(lambda a, b: (a + b) & (2**64 - 1), near, st.integers(0, 200)), st.integers(0, 2**64 - 1)
        )
        length = st.one_of(st.sampled_from([0, 1, 12, 13, 16, 32, 64]), st.integers(0, 2**32 - 1))
        flags = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 0x80, 0x81, 0x84, 0x82]), st.integers(0, 0xFFFF))
        for ring in guest.rings:
            for at in range(4):
                third, fourth = data.draw(st.tuples(flags, st.integers(0, 5)))
                if packed:
                    third, fourth = fourth, third
                content = DESCRIPTOR.pack(data.draw(address), data.draw(length), third, fourth)
                guest.ram.write(ring.descriptors + 16 * at, content)
            if not packed:
                heads = data.draw(st.lists(st.integers(0, 5), min_size=4, max_size=4))
                index = data.draw(st.one_of(st.integers(0, 5), st.integers(0, 65535)))
                guest.ram.write(ring.available, struct.pack("<HH4HH", data.draw(st.integers(0, 1)), index, *heads, 0))
        guest.lan.inject([FRAME, bytes(300)])
        guest.run()
        guest.run()
        for ring in (RX, TX):
            guest.port.stop(ring)


@both
@pytest.mark.parametrize("seed", range(3))
def test_a_guest_that_writes_while_the_engine_reads(packed, seed):
    """Everything changes at any time, and the rings are started again when they break."""
    chance = random.Random(seed)
    with Guest(*features(packed, INDIRECT, MRG_RXBUF), size=16) as guest:
        pool = PacketPool(small=64, large=4)
        engine = Engine("live", pool)
        source, sink = MemoryPort("source", 3), MemoryPort("sink", 4)
        rx, into = PortRx(guest.port), PortRx(source)
        rx >> PortTx(sink)
        into >> PortTx(guest.port)
        engine.load([rx, into])
        start(engine)
        last = max(ring.used_ring for ring in guest.rings) + 6 + 8 * 16 - guest.ram.guest
        near = [0, 1, 2, 4, 5, 12, 16, 60, 72, 0x80, 0x81, 0x84, 0x8000]
        for round in range(4000):
            value = chance.choice(near) if chance.random() < 0.7 else chance.getrandbits(16)
            guest.ram.store(guest.ram.guest + chance.randrange(0, last, 2), value)
            for ring in guest.rings:
                for at in range(chance.randrange(3)):
                    where = ring.descriptors + 16 * chance.randrange(16)
                    guest.ram.write(where, struct.pack("<Q", guest.ram.guest + chance.randrange(4096)))
            if round % 10 == 0:
                source.inject([FRAME, bytes(300)])
            if round % 50 == 0:
                engine.call(lambda: restart(guest))
        engine.stop()
        assert engine.conservation()["conserved"]
        assert engine.conservation()["received"] > 0
        engine.close()
        assert pool.in_use == 0


def restart(guest: Guest) -> None:
    for ring in (RX, TX):
        if guest.state(ring)["broken"]:
            guest.port.stop(ring)
            guest.start(ring)


# -- values that are read once ---------------------------------------------------------------------


def test_offload_fields_of_a_hostile_header_are_passed_to_parse_only():
    """The port reads no field of the header itself: every value arrives as it was sent."""
    with Guest(VERSION_1) as guest:
        for header in [Header(1, 0x7F, 65535, 65535, 65535, 65535, 65535), Header(1, 1, 0, 0, 60000, 60000)]:
            guest.net.transmit(FRAME, header)
            guest.rings[TX].publish()
            guest.run()
            [out] = guest.lan.take()
            found = (out.vnet_flags, out.gso_type, out.header_length, out.gso_size, out.csum_start, out.csum_offset)
            assert found == header[:6]


def test_a_packed_id_is_given_back_and_never_an_index():
    with Guest(VERSION_1, PACKED) as guest:
        ring = guest.rings[TX]
        assert all(token >= ring.size for token in list(ring.ids)[1:])
        for _ in range(3):
            assert works(guest)
            assert len(guest.net.transmitted()) == 1


# -- setting up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packed", "changes", "text"),
    [
        (False, {"size": 0}, "0 entries"),
        (False, {"size": 6}, "power of two"),
        (False, {"size": 65536}, "65536 entries"),
        (True, {"size": 0}, "0 entries"),
        (True, {"size": 32769}, "32769 entries"),
        (True, {"size": 2**32 + 4}, "entries"),
        (False, {"descriptors": 0x7F0000000008}, "multiple of 16"),
        (False, {"used": 0x7F0000000002}, "multiple of 4"),
        (False, {"available": 0x7F0000000001}, "multiple of 2"),
        (False, {"descriptors": 2**64}, "multiple of 16"),
        (False, {"descriptors": 0x7F0000FFFFF0}, "not in the guest's memory"),
        (False, {"used": 2**64 - 4}, "not in the guest's memory"),
        (True, {"base": 8}, "position"),
        (True, {"base": 2**32}, "32 bits"),
    ],
)
def test_rings_that_cannot_be(packed, changes, text):
    with Guest(*features(packed)) as guest:
        guest.port.stop(TX)
        with pytest.raises(ConfigError, match=text) as error:
            guest.start(TX, **changes)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith("port vm: ring 1: ")
        assert not guest.state(TX)["started"]
        guest.start(TX)
        assert works(guest)


def test_rings_that_are_not_there():
    with Guest(VERSION_1) as guest:
        for ring in (-1, 2, 2**32, 2**64 + 1):
            for call in (guest.port.stop, guest.port.ring_state, lambda r: guest.port.enable(r, True)):
                with pytest.raises(ConfigError, match="it has 2"):
                    call(ring)
        with pytest.raises(ConfigError, match="is started"):
            guest.start(TX)
        guest.port.stop(TX)
        guest.port.set_memory(None)
        with pytest.raises(ConfigError, match="memory is missing"):
            guest.start(TX)


def test_features_that_change_under_a_ring():
    with Guest(VERSION_1) as guest:
        with pytest.raises(ConfigError, match="stop the rings first"):
            guest.port.set_features(mask(VERSION_1, PACKED))
        with pytest.raises(ConfigError, match="64 bits"):
            guest.port.set_features(1 << 64)
        guest.port.set_features(mask(VERSION_1))
        assert works(guest)


# -- memory ----------------------------------------------------------------------------------------


@both
def test_memory_that_is_truncated_under_traffic(packed):
    """SIGBUS is survived: zeros are read, and the port stops its rings at the next burst."""
    with Guest(*features(packed)) as guest:
        assert works(guest)
        guest.net.transmit(FRAME)
        guest.rings[TX].publish()
        guest.ram.bytes.close()
        os.ftruncate(guest.ram.fd, 0)
        guest.run()
        guest.lan.take()
        guest.run()
        assert guest.memory.broken
        for ring in (RX, TX):
            assert guest.state(ring)["broken"] == TRUNCATED
            assert guest.rung(guest.errors, ring)
        guest.lan.inject([FRAME])
        guest.run()
        assert guest.engine.conservation()["dropped"] == 1


def test_a_guest_that_truncates_its_memory_leaves_others_alone():
    with Guest(VERSION_1) as bad, Guest(VERSION_1) as good:
        bad.ram.allocate(8192)
        bad.net.post(100)
        bad.rings[RX].publish()
        bad.ram.bytes.close()
        os.ftruncate(bad.ram.fd, 4096)  # the rings stay, the buffer goes
        bad.lan.inject([FRAME])
        bad.run()
        bad.run()
        assert bad.memory.broken
        assert not good.memory.broken
        assert works(good)


def test_a_bus_error_elsewhere_still_ends_the_process():
    code = """
import mmap, os, sys
from virt.driver import GuestRam
from virt.guest_memory import GuestMemory
ram = GuestRam(1 << 16)
memory = GuestMemory([ram.region])
fd = os.memfd_create("other"); os.ftruncate(fd, 4096)
other = mmap.mmap(fd, 4096)
os.ftruncate(ram.fd, 0)
assert memory.read(ram.guest, 8) == bytes(8) and memory.broken
print("survived", flush=True)
os.ftruncate(fd, 0)
other[0]
print("not reached")
"""
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, limit[1])),
    )
    assert done.stdout == "survived\n", done.stderr
    # by the handler that was there before: the default, or AddressSanitizer's
    assert done.returncode == -signal.SIGBUS or "AddressSanitizer: BUS" in done.stderr


@both
def test_memory_that_is_replaced_or_taken_away(packed):
    """Rings keep their positions; those that are not in the new memory are stopped."""
    with Guest(*features(packed)) as guest:
        assert works(guest)
        guest.port.set_memory(None)
        guest.net.transmit(FRAME)
        guest.rings[TX].publish()
        guest.run()
        assert guest.lan.take() == []
        again = GuestMemory([guest.ram.region])
        guest.port.set_memory(again)
        guest.run()
        assert [each.data for each in guest.lan.take()] == [FRAME]
        assert works(guest)
        other = GuestRam(1 << 16, user=0x1000)
        elsewhere = GuestMemory([other.region])
        guest.port.set_memory(elsewhere)
        assert guest.state(TX)["broken"] == LAYOUT
        assert guest.state(RX)["broken"] == LAYOUT
        guest.run()
        guest.port.close()
        again.close()
        elsewhere.close()
        other.close()


# -- descriptors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "terminal", "epoll", "closed", "datagram", "tcp", "device", "directory"])
def test_descriptors_that_are_no_means_of_notification(what, tmp_path):
    opened: list[int] = []
    if what == "file":
        opened.append(os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT))
    elif what == "terminal":
        opened += os.openpty()
    elif what == "epoll":
        opened.append(os.dup((epoll := select.epoll()).fileno()))
        epoll.close()
    elif what == "closed":
        opened.append(os.dup(1))
        os.close(opened[0])
    elif what == "directory":
        opened.append(os.open(tmp_path, os.O_RDONLY))
    elif what == "device":
        opened.append(os.open("/dev/zero", os.O_RDWR))
    else:
        kind = (socket.AF_UNIX, socket.SOCK_DGRAM) if what == "datagram" else (socket.AF_INET, socket.SOCK_STREAM)
        opened.append(socket.socket(*kind).detach())
    with Guest(VERSION_1) as guest:
        for kind_of in ("kick", "call", "error"):
            with pytest.raises(ConfigError, match="port vm: ring 1: " + kind_of):
                guest.port.set_notifier(TX, kind_of, opened[0])
        assert works(guest)
    for each in opened[1:] if what == "closed" else opened:
        os.close(each)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("kind", ["socket", "pipe", "eventfd"])
def test_a_full_call_descriptor_does_not_block(kind, blocks):
    """User-mode Linux gives a blocking stream socket: the engine must not wait for a guest that does not read.

    blocks: the peer, which shares the open file, has made it block again after the port was given it."""
    if kind == "socket":
        ours, theirs = (each.detach() for each in socket.socketpair())
    elif kind == "pipe":
        theirs, ours = os.pipe()
    else:
        ours = os.eventfd(0)
        os.eventfd_write(ours, 2**64 - 2)
        theirs = os.dup(ours)
    with Guest(VERSION_1) as guest:
        guest.port.set_notifier(TX, "call", ours)
        os.set_blocking(ours, blocks)
        for _ in range(10 if kind == "eventfd" else 10000):
            assert works(guest)
            guest.net.transmitted()
            if guest.state(TX)["calls_failed"]:
                break
        state = guest.state(TX)
        # the counter of an eventfd stays as full as it was, which is a notification
        assert state["calls_failed"] == (0 if kind == "eventfd" else 1)
        assert works(guest)
        guest.port.set_notifier(TX, "call", None)
    if kind == "eventfd":
        assert os.eventfd_read(theirs) >= 2**64 - 2
    os.close(ours)
    os.close(theirs)


def test_each_call_of_an_eventfd_counts():
    """More of them than the kernel has room for requests that are not looked at."""
    ours = os.eventfd(0)
    with Guest(VERSION_1) as guest:
        guest.port.set_notifier(TX, "call", ours)
        for _ in range(1000):
            assert works(guest)
            guest.net.transmitted()
        assert (guest.state(TX)["calls"], guest.state(TX)["calls_failed"]) == (1000, 0)
        guest.port.set_notifier(TX, "call", None)
    assert os.eventfd_read(ours) == 1000
    os.close(ours)


def test_an_eventfd_where_the_kernel_has_no_requests():
    """A forked process has none of its parent's: it asks whether the counter is full, and writes."""
    ours = os.eventfd(0)
    with Guest(VERSION_1) as guest:
        guest.port.set_notifier(TX, "call", ours)
        assert works(guest)
        guest.net.transmitted()
        child = os.fork()
        if not child:
            done = 1
            try:
                assert works(guest)
                os.eventfd_write(ours, 2**64 - 4)  # the third, which fills it
                guest.net.transmitted()
                assert works(guest)
                assert guest.state(TX)["calls_failed"] == 1
                done = 0
            finally:
                os._exit(done)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        guest.port.set_notifier(TX, "call", None)
    assert os.eventfd_read(ours) == 2**64 - 2
    os.close(ours)


def test_a_call_socket_whose_peer_is_gone():
    ours, theirs = socket.socketpair()
    theirs.close()
    with Guest(VERSION_1) as guest:
        guest.port.set_notifier(TX, "call", ours.fileno())
        assert works(guest)
        assert guest.state(TX)["calls_failed"] == 1
        guest.port.set_notifier(TX, "call", None)
    ours.close()


def test_an_exhausted_pool_loses_frames_and_nothing_else():
    with Guest(VERSION_1, pool=PacketPool(small=2, large=1)) as guest:
        for _ in range(8):
            guest.net.transmit(FRAME)
        guest.rings[TX].publish()
        guest.run()
        got = len(guest.lan.take())
        assert got + guest.engine.conservation()["dropped"] == 8
        assert len(guest.net.transmitted()) == 8
        assert works(guest)


def test_regions_count():
    """The port's memory may have regions whose guest addresses adjoin, but which lie apart here."""
    ram = GuestRam(1 << 20)
    half = 1 << 19
    regions = [
        MemoryRegion(ram.guest, half, ram.user, 0, ram.fd),
        MemoryRegion(ram.guest + half, half, ram.user + half, half, ram.fd),
    ]
    memory = GuestMemory(regions)
    assert memory.read(ram.guest + half - 4, 4) == bytes(4)
    assert memory.read(ram.guest + half - 4, 8) is None, "not in one region"
    memory.close()
    ram.close()


def test_frames_as_the_lan_sends_them_are_kept(tmp_path):
    with Guest(VERSION_1) as guest:
        guest.lan.inject([Frame(FRAME)])
        guest.run()
        assert guest.engine.conservation()["dropped"] == 1
