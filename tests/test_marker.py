"""The marker compared with packets built with the marks, and headers that it has not to touch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from shaping.marker import ECN, Marker
from tests.wire_frames import TCP, UDP, Spec, big_specs


def through(frames: list[Frame], **config: object) -> tuple[list[bytes], dict[str, int]]:
    """The frames behind a marker, in segments, and its counters."""
    pool = PacketPool(small=256, large=64)
    engine = Engine("e0", pool, clock=Clock(virtual=True, start_ns=1))
    a, b, marker = MemoryPort("a", 0), MemoryPort("b", 1, 1, 0), Marker(**config)
    rx = PortRx(a)
    rx >> Parse() >> marker >> PortTx(b)
    engine.load([rx])
    a.inject(frames)
    advance(engine, 1)
    found = marker.statistics()["counters"]
    assert engine.conservation()["conserved"]
    engine.close()
    return [frame.data for frame in b.take()], found


SPECS = st.builds(
    Spec,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP]),
    payload=st.binary(max_size=60),
    tags=st.lists(st.tuples(st.sampled_from([0x8100, 0x88A8]), st.integers(0, 0xFFFF)), max_size=2),
    tos=st.integers(0, 255),
    ttl=st.integers(1, 255),
    identification=st.integers(0, 0xFFFF),
)


def marked(spec: Spec, dscp: int | None, ecn: str | None, pcp: int | None) -> Spec:
    """The reference: the packet as its sender would have built it with these marks."""
    tos = spec.tos
    if dscp is not None:
        tos = dscp << 2 | tos & 3
    if ecn is not None and not (ecn == "ce" and tos & 3 == 0):
        tos = tos & 0xFC | ECN[ecn]
    tags = list(spec.tags)
    if pcp is not None and tags:
        tags[0] = (tags[0][0], tags[0][1] & 0x1FFF | pcp << 13)
    return Spec(**{**spec.__dict__, "tos": tos, "tags": tags})


@settings(max_examples=200, deadline=None)
@given(
    specs=st.lists(SPECS, min_size=1, max_size=8),
    dscp=st.one_of(st.none(), st.integers(0, 63)),
    ecn=st.one_of(st.none(), st.sampled_from(sorted(ECN))),
    pcp=st.one_of(st.none(), st.integers(0, 7)),
)
def test_a_marked_packet_is_one_that_was_sent_so(specs, dscp, ecn, pcp):
    """With right checksums, and nothing else changed."""
    got, counters = through([Frame(spec.build()) for spec in specs], dscp=dscp, ecn=ecn, pcp=pcp, mark=5)
    assert got == [marked(spec, dscp, ecn, pcp).build() for spec in specs]
    assert counters["unmarked"] == sum(pcp is not None and not spec.tags for spec in specs)
    assert counters["marked"] + counters["unmarked"] == len(specs)
    assert counters["not_ect"] == (sum(spec.tos & 3 == 0 for spec in specs) if ecn == "ce" else 0)


@pytest.mark.parametrize("name", sorted(big_specs()))
def test_all_segments_of_a_gso_frame_are_marked(name):
    spec = big_specs()[name]
    got, _ = through([spec.frame(1000)], dscp="af41")
    assert got == [marked(each, 34, None, None).build() for each in spec.segments(1000)]


def test_what_has_no_header_passes_untouched():
    arp = bytes.fromhex("ffffffffffff020000000001080600010800060400010200000000010a0000010000000000000a000002") + bytes(18)
    short = Spec(payload=bytes(20)).build()[:30]  # no whole IP header
    got, counters = through([Frame(arp), Frame(short)], dscp="ef", ecn="ect0")
    assert got == [arp, short] and counters == {"marked": 0, "unmarked": 2, "not_ect": 0}


def test_a_wrong_checksum_stays_wrong():
    frame = bytearray(Spec(payload=b"x").build())
    frame[24] ^= 0x10
    [got], _ = through([Frame(bytes(frame))], dscp="ef")
    right = bytearray(marked(Spec(payload=b"x"), 46, None, None).build())
    assert got != bytes(right) and got[:24] == right[:24] and got[26:] == right[26:]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "marks nothing: expected dscp, ecn, pcp or mark"),
        ({"dscp": 64}, "dscp 64: expected 0 to 63 or one of be, default"),
        ({"dscp": "af99"}, "dscp 'af99': expected 0 to 63 or one of"),
        ({"dscp": "1" * 5000}, "dscp '1"),
        ({"dscp": True}, "dscp true"),
        ({"ecn": "yes"}, "ecn 'yes': expected one of not-ect, ect1, ect0, ce"),
        ({"ecn": 3}, "ecn 3: expected one of"),
        ({"pcp": 8}, "pcp 8: expected 0 to 7"),
        ({"pcp": -1}, "pcp -1: expected 0 to 7"),
        ({"mark": 2**32}, "mark 4294967296: expected 0 to 4294967295"),
    ],
)
def test_wrong_settings_are_one_line(config, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Marker(**config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
