"""VirtioPort against a driver in plain Python: frames pass unchanged in both directions, in every ring format."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.guests import (
    EVENT_IDX,
    FRESH,
    GUEST_CSUM,
    GUEST_ECN,
    GUEST_TSO4,
    GUEST_TSO6,
    GUEST_USO4,
    GUEST_USO6,
    HASH_REPORT,
    IN_ORDER,
    INDIRECT,
    MRG_RXBUF,
    PACKED,
    RX,
    TX,
    VERSION_1,
    Guest,
)
from virt.driver import Header

FORMATS = st.sets(st.sampled_from([MRG_RXBUF, INDIRECT, EVENT_IDX, IN_ORDER, HASH_REPORT])).map(lambda some: [VERSION_1, *some])
FRAMES = st.lists(
    st.tuples(st.integers(1, 3000), st.lists(st.integers(1, 40), max_size=6), st.integers(0, 8)), min_size=1, max_size=24
)
SIZES = {False: st.sampled_from([8, 16, 64]), True: st.sampled_from([7, 8, 9, 16, 61])}
both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def frame_of(number: int, length: int) -> bytes:
    return bytes((number * 7 + at) & 0xFF for at in range(length))


def table_of(features: list[int], packed: bool, indirect: int, parts: int) -> int:
    """How many buffers of a chain go into an indirect table: of a packed ring's all or none."""
    if INDIRECT not in features or not indirect:
        return 0
    return parts if packed else min(indirect, parts)


@both
@settings(max_examples=60, deadline=None)
@given(features=FORMATS, frames=FRAMES, burst=st.integers(1, 4), data=st.data())
def test_frames_of_the_driver_arrive_unchanged(packed, features, frames, burst, data):
    size = data.draw(SIZES[packed])
    with Guest(*features, *[PACKED] * packed, size=size) as guest:
        waiting = deque(enumerate(frames))
        done: list[bytes] = []
        while waiting:
            for _ in range(burst):
                if not waiting:
                    break
                number, (length, pieces, indirect) = waiting[0]
                if guest.rings[TX].free < len(pieces) + 1:
                    break
                waiting.popleft()
                parts = len(pieces) + 1
                guest.net.transmit(
                    frame_of(number, length), Header(), pieces=pieces, indirect=table_of(features, packed, indirect, parts)
                )
            guest.rings[TX].publish()
            guest.run()
            done += [each.data for each in guest.lan.take()]
            assert all(written == 0 for _, written in guest.net.transmitted())
        assert done == [frame_of(number, length) for number, (length, _, _) in enumerate(frames)]
        assert not guest.net.frames, "the device has given back all buffers"
        assert not guest.state(TX)["faults"]


@both
@settings(max_examples=60, deadline=None)
@given(features=FORMATS, frames=FRAMES, room=st.sampled_from([64, 200, 1500]), data=st.data())
def test_frames_for_the_driver_arrive_unchanged(packed, features, frames, room, data):
    """Merged from several buffers where the driver can do that, else each in one."""
    size = data.draw(SIZES[packed])
    merges = MRG_RXBUF in features
    with Guest(*features, *[PACKED] * packed, size=size) as guest:
        header = guest.net.header_bytes
        for number, (length, pieces, indirect) in enumerate(frames):
            wanted = frame_of(number, min(length, room * 4))
            if merges:
                # as many buffers as are needed and fit the ring, one descriptor each
                buffers = -(-(len(wanted) + header) // room)
                if buffers > size:
                    continue
                for _ in range(buffers):
                    guest.net.post(room, indirect=INDIRECT in features and indirect > 0)
            else:
                buffers = 1
                parts = len(pieces) + 1
                guest.net.post(
                    sum(pieces) + len(wanted) + header, pieces=pieces, indirect=table_of(features, packed, indirect, parts)
                ) if parts <= size else guest.net.post(len(wanted) + header)
            guest.rings[RX].publish()
            guest.lan.inject([wanted])
            guest.run()
            [(content, found)] = guest.net.received()
            assert content == wanted
            assert found.buffers == buffers
            assert (found.flags, found.gso_type) == (0, 0)
        assert not guest.net.buffers
        assert not guest.state(RX)["faults"]


@both
@pytest.mark.parametrize("event_index", [False, True])
def test_positions_wrap(packed, event_index):
    """A split ring's index passes 2^16, a packed ring of an odd size goes round; both directions."""
    features = [VERSION_1, *[EVENT_IDX] * event_index, *[PACKED] * packed]
    start = -1 if packed else 65500
    with Guest(*features, size=5 if packed else 8) as guest:
        for ring in guest.rings:
            if not packed:
                ring.index = ring.published = ring.seen = start
                ring.ram.store(ring.used_ring + 2, start)
                ring.ram.store(ring.available + 2, start)
        for ring in (RX, TX):
            guest.port.stop(ring)
            guest.start(ring, start)
        for number in range(100):
            frame = frame_of(number, 60 + number)
            assert [each.data for each in guest.sent(frame)] == [frame]
            assert len(guest.net.transmitted()) == 1
            guest.net.post(1600, pieces=[9])
            guest.rings[RX].publish()
            guest.lan.inject([frame])
            guest.run()
            assert [content for content, _ in guest.net.received()] == [frame]


def test_the_header_passes_both_ways():
    """Fields of the driver's header become the packet's, and back. Unknown flags do not."""
    tcp = bytes.fromhex("020000000002 020000000001 0800 4500 0fc8 0000 4000 4006 0000 0a000001 0a000002") + bytes(
        [0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]
    )
    frame = tcp + bytes(4000)
    header = Header(flags=0xFD, gso_type=1, header_length=54, gso_size=1448, csum_start=34, csum_offset=16, buffers=9)
    with Guest(VERSION_1, GUEST_CSUM, GUEST_TSO4, MRG_RXBUF) as guest:
        guest.net.transmit(frame, header)
        guest.rings[TX].publish()
        guest.run()
        [out] = guest.lan.take()
        fields = (out.vnet_flags, out.gso_type, out.header_length, out.gso_size, out.csum_start, out.csum_offset)
        assert fields == (1, 1, 54, 1448, 34, 16)
        assert out.data == frame
        guest.net.post(5000)
        guest.rings[RX].publish()
        guest.lan.inject([out])
        guest.run()
        [(content, found)] = guest.net.received()
        assert content == frame
        assert found == Header(1, 1, 54, 1448, 34, 16, 1)


def test_a_driver_without_offloads_gets_whole_frames():
    """The port's offloads follow the features, so a GSO frame is cut into segments with checksums."""
    frame = bytes.fromhex(
        "020000000002 020000000001 0800 4500 0bb8 0000 4000 4006 0000 0a000001 0a000002"
        "0050 0051 00000001 00000001 5010 0100 0000 0000"
    ) + bytes(2960)
    with Guest(VERSION_1) as guest:
        for _ in range(3):
            guest.net.post(1600)
        guest.rings[RX].publish()
        guest.net.transmit(frame, Header(1, 1, 54, 1480, 34, 16))
        guest.rings[TX].publish()
        guest.run()
        [out] = guest.lan.take()
        guest.lan.inject([out])
        guest.run()
        frames = guest.net.received()
        assert [len(content) for content, _ in frames] == [1534, 1534]
        assert {(header.flags, header.gso_type) for _, header in frames} == {(0, 0)}


@pytest.mark.parametrize(
    ("features", "offloads"),
    [
        ([], 0),
        ([GUEST_TSO4], 0),
        ([GUEST_CSUM], 1),
        ([GUEST_CSUM, GUEST_TSO4, GUEST_TSO6], 7),
        ([GUEST_CSUM, GUEST_USO4], 1),
        ([GUEST_CSUM, GUEST_USO4, GUEST_USO6, GUEST_ECN], 0x19),
    ],
)
def test_offloads_follow_the_features(features, offloads):
    with Guest(VERSION_1, *features) as guest:
        assert guest.port.offloads == offloads


def test_a_large_frame_without_merging_takes_one_chain():
    """The driver posts buffers of 65,601 bytes then (virtio 1.2, 5.1.6.3.1)."""
    with Guest(VERSION_1, GUEST_CSUM, GUEST_TSO4, size=32) as guest:
        frame = frame_of(1, 65500)
        guest.net.post(65601, pieces=[12, *[4096] * 15])
        guest.rings[RX].publish()
        guest.lan.inject([frame])
        guest.run()
        [(content, header)] = guest.net.received()
        assert (content, header.buffers) == (frame, 1)


@pytest.mark.parametrize("base", [0x8000, FRESH])
def test_drivers_that_send_half_of_a_packed_position(base):
    with Guest(VERSION_1, PACKED) as guest:
        guest.port.stop(TX)
        guest.start(TX, base)
        assert guest.state(TX)["position"] == FRESH
        assert len(guest.sent(frame_of(1, 60))) == 1
        assert len(guest.net.transmitted()) == 1


def test_fresh_positions():
    with Guest(VERSION_1, PACKED) as guest:
        assert guest.port.stop(TX) == FRESH
    with Guest(VERSION_1) as guest:
        assert guest.port.stop(TX) == 0
