"""Rings of VirtioPort: notifications, sleep, hand-over, recovery after a crash, the log of written pages, and memory."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.engine import Engine
from dataplane.engine.running import start
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from tests.support.guests import EVENT_IDX, FRESH, IN_ORDER, MRG_RXBUF, PACKED, RX, TX, VERSION_1, Guest, mask
from virt.driver import GuestRam, NetQueues, SplitRing
from virt.guest_memory import DirtyLog, GuestMemory, MemoryRegion
from virt.virtio_port import VirtioPort

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
FRAME = bytes(range(60))
PAGE = 4096


def features(packed: bool, *more: int) -> list[int]:
    return [VERSION_1, *more, *[PACKED] * packed]


# -- notifications to the driver -------------------------------------------------------------------


@both
def test_one_notification_per_burst_unless_the_driver_refuses(packed):
    with Guest(*features(packed)) as guest:
        guest.sent(*[FRAME] * 5)
        assert guest.state(TX)["calls"] == 1
        guest.net.transmitted()
        guest.rings[TX].ask_for_calls(False)
        guest.sent(FRAME)
        assert guest.state(TX)["calls"] == 1
        guest.rings[TX].ask_for_calls(True)
        guest.sent(FRAME)
        assert guest.state(TX)["calls"] == 2
        assert guest.rung(guest.calls, TX)
        assert not guest.rung(guest.calls, RX)


@both
@settings(max_examples=80, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=30), size=st.sampled_from([4, 8]))
def test_event_index_notifies_exactly_when_the_event_is_passed(packed, steps, size):
    """The rule counted entry by entry: a burst notifies if it used the entry that the driver asked for."""
    with Guest(*features(packed, EVENT_IDX), size=size) as guest:
        ring, used, told = guest.rings[TX], 0, 0
        for number, (burst, after) in enumerate(steps):
            asked = used + after % size
            ring.ask_for_calls(True, after % size)
            guest.sent(*[FRAME] * burst)
            guest.net.transmitted()
            # the first burst after the start always notifies
            told += number == 0 or used <= asked < used + burst
            used += burst
            assert guest.state(TX)["calls"] == told


# -- notifications to the device, and sleep --------------------------------------------------------


@both
@pytest.mark.parametrize("event_index", [False, True])
def test_kicks_are_refused_while_the_engine_polls_and_asked_for_before_it_sleeps(packed, event_index):
    more = [EVENT_IDX] * event_index
    with Guest(*features(packed, *more)) as guest:
        guest.net.transmit(FRAME)
        guest.rings[TX].publish()
        guest.run()
        guest.net.transmit(FRAME)
        assert guest.rings[TX].publish() is False
        assert guest.port.can_sleep() is False, "a buffer is there"
        guest.run()
        assert len(guest.lan.take()) == 2
        assert guest.port.can_sleep() is True
        assert guest.port.can_sleep() is True, "again, with nothing in between"
        guest.net.transmit(FRAME)
        assert guest.rings[TX].publish() is True


@contextmanager
def live(guest: Guest) -> Iterator[Engine]:
    """An engine on a thread that takes what the driver transmits and drops it."""
    pool = PacketPool(small=64, large=4)
    engine = Engine("live", pool)
    rx = PortRx(guest.port)
    rx >> PortTx(MemoryPort("sink", 5))
    engine.load([rx])
    start(engine)
    try:
        yield engine
    finally:
        engine.stop()
    assert engine.conservation()["conserved"]
    engine.close()
    assert pool.in_use == 0


@both
@pytest.mark.parametrize("event_index", [False, True])
@pytest.mark.parametrize("kind", ["eventfd", "pipe", "socket"])
def test_a_kick_wakes_a_sleeping_engine(packed, event_index, kind):
    """500 frames, each after the one before it has arrived and only kicked for if the device asks: none is missed."""
    with Guest(*features(packed, *[EVENT_IDX] * event_index)) as guest:
        if kind == "socket":
            ours, theirs = (each.detach() for each in socket.socketpair())
        elif kind == "pipe":
            ours, theirs = os.pipe()
        else:
            ours = os.eventfd(0)
            theirs = os.dup(ours)
        guest.port.set_notifier(TX, "kick", ours)
        with live(guest) as engine:
            for number in range(500):
                guest.net.transmit(FRAME)
                if guest.rings[TX].publish():
                    os.write(theirs, struct.pack("=Q", 1))
                while not guest.net.transmitted():
                    pass
            assert engine.conservation()["received"] == 500
        guest.port.set_notifier(TX, "kick", None)
        os.close(ours)
        os.close(theirs)


def test_a_closed_kick_does_not_keep_the_engine_awake():
    ours, theirs = socket.socketpair()
    with Guest(VERSION_1) as guest:
        guest.port.set_notifier(TX, "kick", ours.fileno())
        with live(guest):
            theirs.close()
            while not guest.state(TX)["kick_closed"]:
                pass
        assert not guest.readable()
        guest.port.set_notifier(TX, "kick", None)
    ours.close()


def test_kicks_of_a_broken_ring_do_not_wake_the_engine():
    with Guest(VERSION_1) as guest:
        os.eventfd_write(guest.kicks[TX], 1)
        assert guest.readable()
        guest.rings[TX].offer(99)
        guest.rings[TX].publish()
        guest.run()
        assert guest.state(TX)["broken"]
        os.eventfd_write(guest.kicks[TX], 1)
        assert not guest.readable()
        # a new start makes it good again
        guest.port.stop(TX)
        guest.rings[TX].index = guest.rings[TX].published = 0
        guest.ram.store(guest.rings[TX].available + 2, 0)
        guest.start(TX)
        assert guest.readable()
        assert [each.data for each in guest.sent(FRAME)] == [FRAME]


def test_a_port_of_many_pairs_wakes_for_each():
    """More descriptors than the engine watches by ppoll: it has them in an epoll instance, and the port's are such, too."""
    pairs = 12
    ram = GuestRam()
    memory = GuestMemory([ram.region])
    port = VirtioPort("vm", queues=pairs)
    port.set_memory(memory)
    port.set_features(mask(VERSION_1))
    rings = [SplitRing(ram, 4) for _ in range(pairs)]
    nets = [NetQueues(ring, ring, 12) for ring in rings]
    kicks = [os.eventfd(0) for _ in rings]
    for pair, (ring, kick) in enumerate(zip(rings, kicks, strict=True)):
        port.start(2 * pair + 1, base=0, kick_fd=kick, **ring.places)
        port.enable(2 * pair + 1, True)
    pool = PacketPool(small=64, large=4)
    engine = Engine("live", pool)
    rx = PortRx(port)
    rx >> PortTx(MemoryPort("sink", 5))
    engine.load([rx])
    start(engine)
    for number in range(20 * pairs):
        net, kick = nets[number * 7 % pairs], kicks[number * 7 % pairs]
        net.transmit(FRAME)
        if net.transmitting.publish():
            os.eventfd_write(kick, 1)
        while not net.transmitted():
            pass
    engine.stop()
    assert engine.conservation()["received"] == 20 * pairs
    assert [each["rx_packets"] for each in port.queue_statistics()] == [20] * pairs
    engine.close()
    port.close()
    memory.close()
    ram.close()
    for each in kicks:
        os.close(each)
    assert pool.in_use == 0


def test_without_a_kick_the_device_polls():
    with Guest(VERSION_1) as guest:
        guest.port.set_notifier(TX, "kick", None)
        assert guest.port.can_sleep() is False


# -- states ----------------------------------------------------------------------------------------


@both
def test_a_disabled_ring_discards_and_receives_nothing(packed):
    with Guest(*features(packed)) as guest:
        for ring in (RX, TX):
            guest.port.enable(ring, False)
        guest.net.post(100)
        guest.rings[RX].publish()
        guest.lan.inject([FRAME])
        assert guest.sent(FRAME, FRAME) == []
        assert len(guest.net.transmitted()) == 2, "processed all the same"
        assert guest.state(TX)["discarded"] == 2
        assert guest.net.received() == []
        for ring in (RX, TX):
            guest.port.enable(ring, True)
        guest.lan.inject([FRAME])
        assert [each.data for each in guest.sent(FRAME)] == [FRAME]
        assert [content for content, _ in guest.net.received()] == [FRAME]


@both
def test_a_ring_goes_on_where_it_was_stopped(packed):
    with Guest(*features(packed), size=5 if packed else 8) as guest:
        for number in range(12):
            guest.sent(*[FRAME] * (number % 4))
            guest.net.transmitted()
            base = guest.port.stop(TX)
            guest.net.transmit(FRAME)
            guest.rings[TX].publish()
            guest.run()
            assert guest.lan.take() == [], "stopped: nothing is touched"
            guest.start(TX, base)
            guest.run()
            assert len(guest.lan.take()) == 1
            assert len(guest.net.transmitted()) == 1


@settings(max_examples=60, deadline=None)
@given(
    bursts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=40),
    size=st.sampled_from([5, 8]),
    in_order=st.booleans(),
)
def test_a_position_at_which_a_packed_ring_was_left_is_never_taken_for_a_lost_one(bursts, size, in_order):
    """Whatever chains there were, and whether the driver has sent while the ring was stopped."""
    with Guest(*features(True, *[IN_ORDER] * in_order), size=size) as guest:
        for frames, cuts, early in bursts:
            base = guest.port.stop(TX) if early else -1
            for _ in range(min(frames, (size - 1) // (cuts + 1))):
                guest.net.transmit(FRAME, pieces=[20] * cuts)
            guest.rings[TX].publish()
            if early:
                guest.start(TX, base)
                assert not guest.state(TX)["position_lost"]
            guest.run()
            guest.net.transmitted()
            guest.start(TX, guest.port.stop(TX))
            assert not guest.state(TX)["position_lost"]


@pytest.mark.parametrize("frames", range(20))
def test_a_packed_ring_whose_position_is_lost(frames):
    """The front end has it begin anew, while the driver is somewhere else."""
    with Guest(*features(True), size=4) as guest:
        for _ in range(frames):
            guest.sent(FRAME)
            guest.net.transmitted()
        guest.port.stop(TX)
        guest.start(TX)
        lost = frames % 8 > 0  # after two laps it is there again
        assert guest.state(TX)["position_lost"] == lost
        guest.port.stop(TX)
        assert not guest.state(TX)["position_lost"]


@both
def test_state_moves_to_another_port(packed):
    """What an upgrade does: the successor starts the rings, then loads the old port's state."""
    with Guest(*features(packed)) as guest:
        guest.sent(FRAME, FRAME, FRAME)
        guest.net.transmitted()
        states = {way: guest.port.save_state(way) for way in ("rx", "tx")}
        position = guest.state(TX)["position"]
        for ring in (RX, TX):
            guest.port.stop(ring)
            guest.start(ring)
        for way, state in states.items():
            guest.port.load_state(way, state)
        assert guest.state(TX)["position"] == position
        assert [each.data for each in guest.sent(FRAME)] == [FRAME]
        for state in ({"rings": [[5, 0]]}, {"rings": [[1]]}, {"rings": [[1, 2**32]]}, {"rings": 3}):
            with pytest.raises(VnicError, match="its state"):
                guest.port.load_state("rx", state)


@both
@pytest.mark.parametrize("in_order", [False, True])
def test_positions_are_found_after_a_crash(packed, in_order):
    """The successor of a process that was killed finds the position, also if it died while it published a burst."""
    with Guest(*features(packed, *[IN_ORDER] * in_order), size=8) as guest:
        positions = bytearray(32)
        guest.port.set_positions(positions)
        first = guest.port.stop(TX)
        guest.start(TX, first, generation=7)
        for number in range(9):
            old = guest.state(TX)["position"]
            assert len(guest.sent(*[FRAME] * (1 + number % 3))) == 1 + number % 3
            guest.net.transmitted()
            new = guest.state(TX)["position"]
            if packed:
                assert struct.unpack("<QQ", positions[16:]) == (new << 32 | new, 7)
                # killed after it published and before it stored that
                positions[16:24] = struct.pack("<Q", new << 32 | old)
            guest.port.stop(TX)
            guest.start(TX, first, resumed=True, generation=7)
            assert guest.state(TX)["position"] == new
            assert [each.data for each in guest.sent(FRAME)] == [FRAME]
            guest.net.transmitted()


def test_a_burst_that_was_announced_and_not_published_is_done_again():
    with Guest(VERSION_1, PACKED, size=8) as guest:
        positions = bytearray(32)
        guest.port.set_positions(positions)
        guest.port.stop(TX)
        guest.start(TX)
        guest.net.transmit(FRAME)
        guest.rings[TX].publish()
        positions[16:24] = struct.pack("<Q", (0x80018001 << 32) | FRESH)
        guest.port.stop(TX)
        guest.start(TX, resumed=True)
        assert guest.state(TX)["position"] == FRESH
        guest.run()
        assert len(guest.lan.take()) == 1


def test_room_for_positions():
    with Guest(VERSION_1, PACKED) as guest:
        with pytest.raises(ConfigError, match="it has 2 rings"):
            guest.port.set_positions(bytearray(24))


def test_a_stored_position_of_another_generation_is_not_used():
    """The driver set the ring up anew, and the process was killed before it started that ring."""
    with Guest(VERSION_1, PACKED) as guest:
        positions = bytearray(32)
        guest.port.set_positions(positions)
        for ring in (RX, TX):
            guest.port.stop(ring)
            guest.start(ring, generation=1)
        guest.sent(FRAME)
        guest.port.stop(TX)
        guest.start(TX, FRESH, resumed=True, generation=2)
        assert guest.state(TX)["position"] == FRESH
        assert struct.unpack("<QQ", positions[16:]) == (FRESH << 32 | FRESH, 2)


def test_a_split_ring_that_was_in_use_before():
    """DPDK sends 0 for it when its back end was killed."""
    with Guest(VERSION_1) as guest:
        for _ in range(3):
            assert len(guest.sent(FRAME)) == 1
            guest.net.transmitted()
        guest.port.stop(TX)
        guest.start(TX, 0)
        assert [each.data for each in guest.sent(FRAME)] == [FRAME]


def test_a_new_packed_ring_of_user_mode_linux():
    """It sends 0; a ring that has come round to 0 is told from it by its first descriptor."""
    with Guest(VERSION_1, PACKED, size=3) as guest:
        guest.port.stop(TX)
        guest.start(TX, 0)
        for _ in range(3):
            assert len(guest.sent(FRAME)) == 1
            guest.net.transmitted()
        for made_available in (False, True):
            if made_available:
                guest.net.transmit(FRAME)
                guest.rings[TX].publish()
            assert guest.port.stop(TX) == 0
            guest.start(TX, 0)
            assert guest.state(TX)["position"] == 0
        guest.run()
        assert len(guest.lan.take()) == 1


# -- the log of written pages ----------------------------------------------------------------------


def logged(content: bytes, guest: Guest) -> set[int]:
    """Guest physical pages whose bits are set, but the first of the memory counts as 0."""
    first = guest.ram.guest // PAGE
    return {at - first for at in range(len(content) * 8) if content[at // 8] >> at % 8 & 1}


@both
def test_written_pages_are_logged(packed):
    with Guest(*features(packed, MRG_RXBUF)) as guest:
        size = (guest.ram.guest + guest.ram.size) // PAGE // 8
        file = os.memfd_create("log")
        os.ftruncate(file, size + 24)
        log = DirtyLog(file, size, 24)
        guest.ram.allocate(PAGE, PAGE)
        buffers = [guest.net.post(5000) for _ in range(2)]
        places = [part for token in buffers for part in guest.net.buffers[token]]
        guest.rings[RX].publish()
        guest.lan.inject([bytes(4000)])
        guest.run()
        assert logged(os.pread(file, size, 24), guest) == set(), "not asked for"
        guest.port.set_log(log)
        for ring in (RX, TX):
            used = guest.rings[ring].descriptors if packed else guest.rings[ring].used_ring
            guest.port.log_ring(ring, used)
        guest.lan.inject([bytes(4500)])
        guest.run()
        used = guest.rings[RX].descriptors if packed else guest.rings[RX].used_ring
        at = places[1].address - guest.ram.guest
        data = {at // PAGE, (at + 4511) // PAGE}
        assert logged(os.pread(file, size, 24), guest) == data | {(used - guest.ram.guest) // PAGE}
        # a frame of the driver: only the ring is written
        os.pwrite(file, bytes(size), 24)
        guest.sent(FRAME)
        used = guest.rings[TX].descriptors if packed else guest.rings[TX].used_ring
        assert logged(os.pread(file, size, 24), guest) == {(used - guest.ram.guest) // PAGE}
        guest.port.set_log(None)
        os.pwrite(file, bytes(size), 24)
        guest.sent(FRAME)
        assert logged(os.pread(file, size, 24), guest) == set()
        log.close()
        os.close(file)


def test_a_log_that_is_too_small_or_truncated():
    with Guest(VERSION_1, MRG_RXBUF) as guest:
        file = os.memfd_create("log")
        os.ftruncate(file, 8)
        for size, offset in [(9, 0), (8, 1), (2**64 - 1, 4), (0, 0), (8, -1)]:
            with pytest.raises(ConfigError, match="log of written pages"):
                DirtyLog(file, size, offset)
        log = DirtyLog(file, 8, 0)
        guest.port.set_log(log)
        guest.port.log_ring(RX, 2**63)
        guest.net.post(200)
        guest.rings[RX].publish()
        guest.lan.inject([FRAME])
        guest.run()
        assert len(guest.net.received()) == 1, "pages that the log does not have are left out"
        assert os.pread(file, 8, 0) == bytes(8)
        os.ftruncate(file, 0)
        guest.port.log_ring(RX, 0)
        guest.net.post(200)
        guest.rings[RX].publish()
        guest.lan.inject([FRAME])
        guest.run()
        assert len(guest.net.received()) == 1
        assert log.broken
        guest.port.set_log(None)
        log.close()
        os.close(file)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 0}, "at least 1 byte"),
        ({"size": -1}, "at least 1 byte"),
        ({"offset": -4096}, "no negative number"),
        ({"guest": -1}, "no negative number"),
        ({"size": 8193}, "of a file of 8192"),
        ({"offset": 4096}, "of a file of 8192"),
        ({"offset": 2**63 - 8192}, "of a file of 8192"),
        ({"offset": 2**63 - 8191}, "exceed the address space"),
        ({"guest": 2**64 - 8191}, "exceed the address space"),
        ({"user": 2**64 - 1}, "exceed the address space"),
        ({"size": 2**64}, "exceed the address space"),
    ],
)
def test_regions_that_cannot_be(change, text):
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 8192)
    fine = MemoryRegion(0, 8192, 0, 0, fd)
    with pytest.raises(ConfigError, match=text) as error:
        GuestMemory([fine._replace(**change)])
    assert "\n" not in str(error.value)
    GuestMemory([fine]).close()
    GuestMemory([fine._replace(guest=2**64 - 8192, user=2**64 - 8192)]).close()
    os.close(fd)


def test_files_that_are_no_memory(tmp_path):
    (tmp_path / "x").write_bytes(bytes(8192))
    reading = os.open(tmp_path / "x", os.O_RDONLY)
    device = os.open("/dev/zero", os.O_RDWR)
    for fd, text in [(reading, "share=on"), (device, "not a memory file"), (999, "Bad file descriptor")]:
        with pytest.raises(ConfigError, match=text):
            GuestMemory([MemoryRegion(0, 8192, 0, 0, fd)])
    for each in (reading, device):
        os.close(each)


def test_regions_that_overlap_and_too_many():
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 1 << 20)
    one = MemoryRegion(PAGE, PAGE, PAGE, 0, fd)
    for guest, user in [(PAGE, 1 << 30), (2 * PAGE - 1, 1 << 30), (1, 1 << 30), (1 << 30, PAGE), (1 << 30, 1)]:
        with pytest.raises(ConfigError, match="overlaps"):
            GuestMemory([one, MemoryRegion(guest, PAGE, user, 0, fd)])
    many = [MemoryRegion(at << 20, PAGE, at << 20, at * PAGE, fd) for at in range(33)]
    with pytest.raises(ConfigError, match="32 regions already"):
        GuestMemory(many)
    memory = GuestMemory(many[:8])
    for each in many[8:32]:
        memory.add(each)
    assert len(memory) == 32
    with pytest.raises(ConfigError, match="32 regions"):
        memory.add(many[32])
    memory.remove(*many[3][:3])
    with pytest.raises(ConfigError, match="no region"):
        memory.remove(*many[3][:3])
    memory.add(many[32])
    os.pwrite(fd, b"here", 17 * PAGE)
    assert memory.read(17 << 20, 4) == b"here"
    assert memory.read(3 << 20, 4) is None
    memory.close()
    assert len(memory) == 0
    os.close(fd)


@settings(max_examples=200, deadline=None)
@given(address=st.integers(0, 40 * PAGE), length=st.integers(0, 40 * PAGE))
def test_lookups_as_a_slow_reference_makes_them(address, length):
    ram = GuestRam(1 << 18, guest=3 * PAGE)
    regions = [(3 * PAGE, PAGE, 0), (4 * PAGE, 2 * PAGE + 5, 4 * PAGE + 7), (10 * PAGE, 20 * PAGE, 9 * PAGE)]
    ram.write(3 * PAGE, bytes(at % 251 for at in range(1 << 18)))
    memory = GuestMemory([MemoryRegion(guest, size, guest, offset, ram.fd) for guest, size, offset in regions])
    expected = None
    for guest, size, offset in regions:
        if guest <= address < guest + size and address + length <= guest + size:
            at = address - guest + offset
            expected = bytes(ram.bytes[at : at + length])
    assert memory.read(address, length) == expected
    memory.close()
    ram.close()
