"""Checksum completion and segmentation compared with a reference that builds every segment, and
with scapy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.graph.offload import split_frame
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from tests.wire_frames import ACK, CSUM, CWR, ECN, FIN, NEEDS_CSUM, TSO4, TSO6, UDP, USO, Spec, big_specs, checksum

SPECS = big_specs()


class Rig:
    """A port that sends with all offloads, a Parse, and a port with the offloads `offloads`."""

    def __init__(self, offloads, *, small=4096, large=64, parse=True):
        self.pool = PacketPool(small=small, large=large)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True))
        self.a, self.b = MemoryPort("a", 3), MemoryPort("b", 1, offloads=offloads)
        rx, self.tx = PortRx(self.a), PortTx(self.b)
        rx >> Parse() >> self.tx if parse else rx >> self.tx
        self.engine.load([rx])

    def send(self, *frames):
        self.a.inject(frames)
        advance(self.engine, self.engine.clock.now_ns + 1000)
        self.terms = self.engine.conservation()
        assert self.terms["conserved"]
        assert self.terms["held"] == 0 and self.pool.in_use == 0
        return self.b.take()

    @property
    def lost(self):
        return self.tx.statistics()["dropped"]["no_buffer"]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("gso_size", [536, 1000, 1448])
def test_segments_are_what_the_sender_would_have_sent(name, gso_size):
    spec = SPECS[name]
    rig = Rig(0)
    got = rig.send(spec.frame(gso_size))
    want = [Frame(each.build()) for each in spec.segments(gso_size)]
    assert [frame.data for frame in got] == [frame.data for frame in want]
    assert all(f.vnet_flags & NEEDS_CSUM == 0 and f.gso_type == 0 and f.gso_size == 0 and f.header_length == 0 for f in got)
    assert rig.terms["generated"] == len(want) - 1
    assert rig.terms["transmitted"] == len(want)


@pytest.mark.parametrize("name", SPECS)
def test_segments_leave_the_checksum_to_a_port_that_takes_it(name):
    spec = SPECS[name]
    got = Rig(CSUM).send(spec.frame(1000))
    assert got == [replace_time(frame, got) for frame in (each.frame() for each in spec.segments(1000))]


def replace_time(frame, got):
    """`frame` as MemoryPort returns it: with the others' time."""
    return frame._replace(time_ns=got[0].time_ns)


@pytest.mark.parametrize("name", SPECS)
def test_a_frame_goes_whole_where_the_port_takes_it(name):
    spec = SPECS[name]
    whole = spec.frame(1000)
    (got,) = Rig(CSUM | TSO4 | TSO6 | USO | (ECN if spec.flags & CWR else 0)).send(whole)
    assert got.data == whole.data
    # The guest's header_length is not trusted.
    assert got == replace_time(whole._replace(header_length=spec.payload_offset), [got])


def test_ecn_is_a_feature_of_its_own():
    assert len(Rig(CSUM | TSO4 | TSO6 | USO).send(SPECS["tcp4"].frame(1000))) == 6


def test_segmentation_without_checksum_offload_is_none():
    got = Rig(TSO4).send(SPECS["tcp4 vlan"].frame(1000))
    assert [frame.data for frame in got] == [each.build() for each in SPECS["tcp4 vlan"].segments(1000)]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("each", [2, 3, 100])
def test_smaller_gso_frames_segment_to_the_same(name, each):
    """A shaper cuts GSO frames into smaller ones; segmenting those gives the same as segmenting the
    whole."""
    spec = SPECS[name]
    whole = spec.frame(700)
    cut, lost = split_frame(whole.data, whole.gso_type, 700, whole.csum_start, whole.csum_offset, each)
    assert lost == 0
    frames = [Frame(*fields) for fields in cut]
    assert len(frames) == -(-len(spec.payload) // (700 * each))
    for frame in frames:
        alone = len(frame.data) - spec.payload_offset <= 700
        assert frame.vnet_flags == NEEDS_CSUM
        assert frame.gso_size == (0 if alone else 700)
        assert frame.header_length == (0 if alone else spec.payload_offset)
    assert [frame.data for frame in Rig(0).send(*frames)] == [part.build() for part in spec.segments(700)]


@settings(deadline=None, max_examples=40)
@given(
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([6, UDP]),
    size=st.integers(2, 9000),
    gso_size=st.integers(100, 3000),
    depth=st.integers(0, 2),
    flags=st.integers(0, 255),
    sequence=st.integers(0, 2**32 - 1),
    identification=st.integers(0, 65535),
)
def test_twin(version, protocol, size, gso_size, depth, flags, sequence, identification):
    spec = Spec(
        version,
        protocol,
        bytes(i * 7 & 0xFF for i in range(size)),
        [(0x8100, 5)] * depth,
        flags=flags,
        sequence=sequence,
        identification=identification,
    )
    got = Rig(0).send(spec.frame(gso_size))
    assert [frame.data for frame in got] == [each.build() for each in spec.segments(gso_size)]


def test_one_frame_may_be_more_segments_than_a_batch():
    spec = Spec(payload=bytes(range(250)) * 240)
    rig = Rig(0)
    got = rig.send(Spec(payload=b"before").frame(), spec.frame(40), Spec(payload=b"behind").frame())
    assert len(got) == 1 + 1500 + 1
    assert [f.data for f in got[1:-1]] == [each.build() for each in spec.segments(40)]
    assert got[-1].data == Spec(payload=b"behind").build()
    assert rig.terms["generated"] == 1499 and rig.terms["received"] == 3


def test_segments_without_buffers_are_lost_and_counted():
    rig = Rig(0, small=100)
    got = rig.send(Spec(payload=bytes(60000)).frame(100))
    assert 0 < len(got) <= 600
    assert rig.lost == 600 - len(got)
    assert rig.terms["generated"] == 599


def test_the_checksum_alone():
    for protocol in (6, UDP):
        for size in (0, 1, 2, 3, 1459, 1460):
            spec = Spec(protocol=protocol, payload=bytes([0xFF, 3]) * size)
            (got,) = Rig(0).send(spec.frame())
            assert got.data == spec.build() and got.vnet_flags == 0
    # A checksum of 0 is sent as 0xFFFF: in UDP, 0 means "none".
    spec = Spec(protocol=UDP, payload=b"\0\0")
    body = spec.transport()
    spec.payload = checksum(spec.pseudo() + body).to_bytes(2, "big")
    (got,) = Rig(0).send(spec.frame())
    assert got.data[spec.l4_offset + 6 : spec.l4_offset + 8] == b"\xff\xff"


def test_padding_behind_the_packet_is_part_of_the_checksum_only_as_zeros():
    spec = Spec(payload=b"x")
    frame = spec.frame()
    (got,) = Rig(0).send(frame._replace(data=frame.data + bytes(5)))
    assert got.data == spec.build() + bytes(5)


def test_a_graph_without_parse_is_served_too():
    spec = SPECS["tcp4 qinq"]
    rig = Rig(0, parse=False)
    got = rig.send(spec.frame(1000), Spec(payload=b"abc").frame())
    assert [f.data for f in got] == [each.build() for each in spec.segments(1000)] + [Spec(payload=b"abc").build()]
    # Frames that Parse would have dropped are dropped here.
    assert (
        rig.send(spec.frame(1000)._replace(csum_start=13), spec.frame(1000, 3), spec.frame(1000)._replace(csum_offset=60000))
        == []
    )
    assert rig.lost == 3


@pytest.mark.parametrize("name", SPECS)
def test_scapy_finds_the_checksums_right(name):
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    def without_lengths_and_checksums(packet):
        for layer, names in ((IP, ("chksum", "len")), (IPv6, ("plen",)), (TCP, ("chksum",)), (UDP, ("chksum", "len"))):
            if layer in packet:
                for each in names:
                    packet[layer].delfieldval(each)
        return packet

    for frame in Rig(0).send(SPECS[name].frame(1000)):
        assert bytes(without_lengths_and_checksums(Ether(frame.data))) == frame.data


def test_fin_and_ecn_are_said_once():
    spec = replace(SPECS["tcp4"], flags=ACK | FIN | CWR)
    flags = [frame.data[spec.l4_offset + 13] for frame in Rig(0).send(spec.frame(2000))]
    assert flags == [ACK | CWR, ACK, ACK | FIN]
