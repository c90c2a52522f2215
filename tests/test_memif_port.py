"""MemifPort against a peer in plain Python, as a server and as a client: frames pass unchanged, interrupts come when they are
asked for, a successor carries on, and a peer that lies costs itself only."""

from __future__ import annotations

import os
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.errors import ConfigError
from dataplane.packet.pool import PacketPool
from tests.support.memif import (
    BUFFER,
    FLAGS,
    FROM_PEER,
    HEAD,
    MASK,
    NEXT,
    REGION_BYTES,
    TAIL,
    TO_PEER,
    MemifPair,
)
from virt.guest_memory import GuestMemory, MemoryRegion

FRAME = bytes(range(60))
both = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
FRAMES = st.lists(st.tuples(st.integers(14, 700), st.lists(st.integers(1, BUFFER), max_size=3)), min_size=1, max_size=30)


def frame_of(number: int, length: int) -> bytes:
    return bytes((number * 7 + at) & 0xFF for at in range(length))


@both
@settings(max_examples=25, deadline=None)
@given(frames=FRAMES, size=st.sampled_from([8, 16, 64]), burst=st.integers(1, 4))
def test_frames_of_the_peer_arrive_unchanged(client, frames, size, burst):
    with MemifPair(client=client, size=size) as pair:
        for number, (length, pieces) in enumerate(frames):
            pair.send(frame_of(number, length), pieces if sum(pieces) + BUFFER >= length else [BUFFER] * 2)
            if number % burst == 0 or pair.room() < 4:
                pair.run()
        pair.run()
        assert [each.data for each in pair.lan.take()] == [frame_of(at, length) for at, (length, _) in enumerate(frames)]
        assert pair.port.ring_state(FROM_PEER)["faults"] == {}


@both
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(14, 1500), min_size=1, max_size=30), size=st.sampled_from([8, 16]))
def test_frames_arrive_at_the_peer_unchanged(client, lengths, size):
    with MemifPair(client=client, size=size) as pair:
        for number, length in enumerate(lengths):
            assert pair.delivered(frame_of(number, length)) == [frame_of(number, length)]


@both
def test_indices_wrap(client):
    with MemifPair(client=client, size=64) as pair:
        frames = [frame_of(number, 20) for number in range(64)]
        for _ in range(65536 // 64 + 3):
            assert [each.data for each in pair.sent(*frames)] == frames
            assert pair.delivered(*frames) == frames


@both
def test_a_full_ring_drops(client):
    with MemifPair(client=client) as pair:
        for number in range(11):
            pair.lan.inject([frame_of(number, 40)])
        pair.run()
        assert pair.received() == [frame_of(number, 40) for number in range(8)]
        assert pair.port.ring_state(TO_PEER)["no_buffers"] == 3
        assert pair.delivered(FRAME) == [FRAME]


@both
def test_a_frame_larger_than_the_ring_is_dropped(client):
    with MemifPair(client=client) as pair:
        assert pair.delivered(bytes(8 * BUFFER + 1)) == []
        assert pair.delivered(bytes(8 * BUFFER)) == [bytes(8 * BUFFER)]


@both
def test_interrupts(client):
    """One a burst, unless the peer polls; the port asks for them before it sleeps only."""
    with MemifPair(client=client) as pair:
        theirs, mine = pair.rings[TO_PEER], pair.rings[FROM_PEER]
        assert pair.delivered(FRAME, FRAME) == [FRAME, FRAME]
        assert pair.rung(TO_PEER) and pair.port.ring_state(TO_PEER)["calls"] == 1
        theirs.store(FLAGS, MASK)
        assert pair.delivered(FRAME) == [FRAME] and not pair.rung(TO_PEER)
        theirs.store(FLAGS, 0)
        assert pair.delivered(FRAME) == [FRAME] and pair.rung(TO_PEER)
        pair.sent(FRAME)
        assert mine.load(FLAGS) == MASK
        assert pair.port.can_sleep() and mine.load(FLAGS) == 0
        pair.send(FRAME)
        os.eventfd_write(pair.wakes[FROM_PEER], 1)
        assert pair.readable() and not pair.port.can_sleep()
        pair.run()
        assert len(pair.lan.take()) == 1


@both
def test_a_full_eventfd_does_not_block(client):
    with MemifPair(client=client) as pair:
        os.eventfd_write(pair.wakes[TO_PEER], 2**64 - 2)
        assert pair.delivered(FRAME) == [FRAME]
        assert pair.port.ring_state(TO_PEER)["calls_failed"] == 0  # it stays full, which is a notification


@both
def test_a_successor_carries_on_where_a_killed_process_was(client):
    with MemifPair(client=client) as pair:
        pair.sent(FRAME, FRAME, FRAME)
        pair.delivered(FRAME, FRAME)
        pair.send(frame_of(1, 30))
        for ring in (TO_PEER, FROM_PEER):
            pair.port.stop(ring)
            pair.start(ring, resumed=True)
        pair.run()
        assert [each.data for each in pair.lan.take()] == [frame_of(1, 30)]
        assert pair.delivered(FRAME) == [FRAME]


@both
def test_the_place_is_handed_over(client):
    with MemifPair(client=client) as pair:
        pair.sent(FRAME, FRAME, FRAME)
        pair.delivered(FRAME)
        states = [pair.port.save_state(direction) for direction in ("rx", "tx")]
        assert [state["rings"] for state in states] == [[[FROM_PEER, 3]], [[TO_PEER, 1]]]
        for direction, state in zip(("rx", "tx"), states, strict=True):
            pair.port.load_state(direction, state)
        assert len(pair.sent(FRAME)) == 1 and pair.delivered(FRAME) == [FRAME]


# -- peers that lie --------------------------------------------------------------------------------


def broken(pair, ring, why):
    """The ring was stopped for this reason; the other one works."""
    pair.run()
    assert pair.port.ring_state(ring)["broken"] == why
    if ring == TO_PEER:
        assert len(pair.sent(FRAME)) == 1
    else:
        assert pair.delivered(FRAME) == [FRAME]
    return True


@both
@pytest.mark.parametrize("ring", [TO_PEER, FROM_PEER])
def test_an_index_that_the_ring_does_not_have(client, ring):
    with MemifPair(client=client) as pair:
        lie = pair.rings[ring]
        lie.store(lie.index, 20 if ring == FROM_PEER or not client else 0xFFF0 - 20)
        if ring == TO_PEER:
            pair.lan.inject([FRAME])
        assert broken(pair, ring, "more buffers than the ring has descriptors")


@pytest.mark.parametrize(
    ("region", "offset", "length"),
    [(0, REGION_BYTES, 1), (0, REGION_BYTES - 10, 60), (0, 0xFFFFFFFF, 60), (1, 0, 60), (0xFFFF, 0, 60), (0, 64, 0xFFFFFFFF)],
)
@pytest.mark.parametrize("ring", [TO_PEER, FROM_PEER])
def test_a_buffer_outside_the_regions(ring, region, offset, length):
    with MemifPair() as pair:
        lie = pair.rings[ring]
        lie.write(0, length, offset, 0, region)
        if ring == FROM_PEER:
            lie.store(HEAD, 1)
        else:
            pair.lan.inject([FRAME])
        assert broken(pair, ring, "a buffer outside the regions")


def test_a_server_cannot_lead_a_client_out_of_its_buffers():
    with MemifPair(client=True) as pair:
        ring = pair.rings[FROM_PEER]
        ring.write(0, 60, 0xFFFFFF00, 0, 77)  # where the buffer is, is not its to say
        ring.write(1, BUFFER + 1, 0)
        ring.store(TAIL, 1)
        pair.run()
        assert [len(each.data) for each in pair.lan.take()] == [60]
        assert ring.read(0) == (0, 0, BUFFER, pair.buffer(FROM_PEER, 0))
        ring.store(TAIL, 2)
        assert broken(pair, FROM_PEER, "a buffer outside the regions")


@both
def test_chains_that_do_not_end(client):
    with MemifPair(client=client) as pair:
        ring = pair.rings[FROM_PEER]
        for slot in range(8):
            ring.write(slot, 10, pair.buffer(FROM_PEER, slot), NEXT)
        ring.store(ring.index, 8)
        pair.run()
        assert pair.lan.take() == []
        assert pair.port.ring_state(FROM_PEER)["faults"] == {"a frame without its last buffer": 1}
        ring.position = 8
        assert len(pair.sent(FRAME)) == 1, "the ring goes on"


def test_a_frame_of_too_many_buffers():
    with MemifPair(size=1024) as pair:
        ring = pair.rings[FROM_PEER]
        pair.port.stop(FROM_PEER)
        big = 2048  # more descriptors than a frame may have
        pair.port.start(FROM_PEER, size=big, address=0x8000, wake_fd=None)
        ring.size = big
        for slot in range(big):
            ring.write(slot, 0, 0x20000, NEXT)
        ring.store(HEAD, big)
        assert broken(pair, FROM_PEER, "a frame of more than 1024 buffers")


@both
def test_frames_that_are_empty_or_too_long(client):
    with MemifPair(client=client, size=1024) as pair:
        ring = pair.rings[FROM_PEER]
        ring.write(0, 0, pair.buffer(FROM_PEER, 0))
        for slot in range(1, 301):
            ring.write(slot, BUFFER, pair.buffer(FROM_PEER, slot), NEXT if slot < 300 else 0)
        ring.store(ring.index, 301)
        pair.run()
        assert pair.port.ring_state(FROM_PEER)["faults"] == {"a buffer of no bytes": 1, "a frame too long": 1}
        ring.position = 301
        assert len(pair.sent(FRAME)) == 1


def test_a_buffer_of_no_bytes_to_send_in():
    with MemifPair() as pair:
        pair.rings[TO_PEER].write(0, 0, 0x10000)
        pair.lan.inject([FRAME])
        assert broken(pair, TO_PEER, "a buffer of no bytes")


@both
def test_memory_that_is_truncated(client):
    with MemifPair(client=client) as pair:
        pair.send(FRAME)
        os.ftruncate(pair.fd, 0)
        pair.run()
        assert pair.lan.take() == []
        pair.run()
        assert {pair.port.ring_state(ring)["broken"] for ring in (0, 1)} == {"the memory of a region was truncated"}


@both
def test_an_empty_pool_loses_frames_and_goes_on(client):
    with MemifPair(client=client, pool=PacketPool(small=2, large=2)) as pair:
        for _ in range(5):
            pair.sent(*[FRAME] * 8)
        assert len(pair.sent(FRAME)) == 1


def test_rings_that_cannot_be_started():
    with MemifPair() as pair:
        port = pair.port
        port.stop(FROM_PEER)

        def refused(**changes):
            with pytest.raises(ConfigError) as caught:
                port.start(FROM_PEER, **{"size": 8, "address": 0x8000, "wake_fd": None, **changes})
            return str(caught.value)

        assert "power of two" in refused(size=12) and "power of two" in refused(size=32768)
        assert "multiple of 16" in refused(address=0x8004)
        assert "does not contain it" in refused(address=REGION_BYTES - 128)
        assert "does not contain it" in refused(address=5 << 40)
        assert "no cookie" in refused(address=0x9000)
        with open(os.devnull) as file:
            assert "means of notification" in refused(wake_fd=file.fileno())
        with pytest.raises(ConfigError, match="it has 2"):
            port.start(2, size=8, address=0, wake_fd=None)
        with pytest.raises(ConfigError, match="have to be stopped"):
            port.set_memory(GuestMemory([MemoryRegion(0, REGION_BYTES, 0, 0, pair.fd)]))


@both
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_rings(client, seed):
    """Whatever is in the rings, packets are conserved, and nothing outside the regions is touched."""
    source = random.Random(seed)
    with MemifPair(client=client, size=16) as pair:
        for _ in range(30):
            for ring in (TO_PEER, FROM_PEER):
                for at in source.sample(range(128 + 16 * 16), 8):
                    pair.data[pair.rings[ring].at + at] = source.randrange(256)
                struct.pack_into("=H", pair.data, pair.rings[ring].at + source.choice((HEAD, TAIL)), source.randrange(40))
            pair.lan.inject([frame_of(0, source.randrange(14, 600))])
            pair.run()
            pair.lan.take()
