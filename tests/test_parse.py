"""Parse and the header parser compared with parse_reference.py, and with captures of others."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataplane.elements.classifier import Classifier
from dataplane.elements.counter import Discard
from dataplane.elements.nic_tx import NicTx
from dataplane.elements.parse import Parse
from dataplane.elements.rss import Rss
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from dataplane.wire.headers import PARSE_REASONS, parse_frame
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from tests.parse_reference import reference, whether_it_can_be_forwarded
from tests.wire_frames import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, UDP, Spec, big_specs

MAC = bytes(range(12))
MALFORMED = 0x40
FATAL = ("runt", "bad_gso", "bad_csum_offset")  # with these the record is invalid
SPECS = big_specs()
CAPTURES = Path(os.environ.get("VNIC_PCAPS", Path(__file__).parents[2] / "shared" / "pcaps"))


def agree(frame: bytes, **fields) -> tuple[str | None, dict]:
    got_reason, got = parse_frame(frame, **fields)
    want_reason, want = reference(frame, **fields)
    assert got_reason == want_reason
    assert got.pop("forwarded") == whether_it_can_be_forwarded(frame, want_reason, want, **fields)
    if want_reason not in FATAL:
        if want_reason is not None:  # the virtio-net fields are checked later
            for key in ("gso_type", "gso_size", "header_length"):
                got.pop(key), want.pop(key)
        assert got == want
    return got_reason, got


# -- the parser ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_offsets_are_where_the_headers_were_put(name):
    spec = SPECS[name]
    reason, found = agree(spec.build())
    assert reason is None
    assert (found["l3_offset"], found["l4_offset"], found["payload_offset"]) == (
        spec.l3_offset,
        spec.l4_offset,
        spec.payload_offset,
    )
    assert (found["source_port"], found["destination_port"], found["ip_protocol"]) == (1234, 80, spec.protocol)
    assert (found["tos"], found["ttl"], found["vlan_count"]) == (spec.tos, 64, len(spec.tags))
    assert [found["vlan_tci"], found["vlan_inner_tci"]] == [*(tci for _, tci in spec.tags), 0, 0][:2]
    assert found["source_address"] == spec.source.ljust(16, b"\0")


@pytest.mark.parametrize("name", SPECS)
def test_every_cut_of_every_frame(name):
    frame = SPECS[name].build()
    for length in range(SPECS[name].payload_offset + 2):
        reason, _ = agree(frame[:length])
        assert reason is not None
        cut_reason, found = agree(frame[:length], truncated=True)
        assert cut_reason == ("runt" if length < 14 else None)
        assert found["payload_offset"] <= max(length, 14) or cut_reason


@pytest.mark.parametrize(("reason", "at", "value"), [
    ("ipv4_header", 14, b"\x65"), ("ipv4_header", 14, b"\x44"), ("ipv4_header", 14, b"\x4f"), ("ipv4_length", 16, b"\xff\xff"),
    ("ipv4_length", 16, b"\0\x13"), ("ipv4_length", 16, b"\0\x29"), ("l4_header", 46, b"\x40"), ("l4_header", 46, b"\xf0"),
    ("l4_header", 16, b"\0\x27"),
])  # fmt: skip
def test_ipv4_reasons(reason, at, value):
    frame = bytearray(Spec().build())
    frame[at : at + len(value)] = value
    assert agree(bytes(frame))[0] == reason


def test_padding_behind_the_ip_length_is_fine():
    reason, found = agree(Spec(protocol=UDP).build() + bytes(18))
    assert reason is None and found["payload_offset"] == 42


def test_extension_headers_have_a_limit():
    def chain(count, size=6):
        return Spec(version=6, extensions=[(60, bytes([1, 4, 0, 0, 0, 0]).ljust(size, b"\0"))] * count, payload=b"x").build()

    for count in range(25):
        reason, found = agree(chain(count))
        assert reason is None and found["l4"] and found["l4_offset"] == 54 + 8 * count
    reason, found = agree(chain(25))
    assert reason == "ipv6_header" and found["malformed"]
    # Valid fields are set; offsets lie within the frame and fit 16 bits.
    assert (
        found["ipv6"]
        and not found["l4"]
        and (found["l4_offset"], found["payload_offset"], found["ip_protocol"]) == (0, 246, 60)
    )
    assert agree(chain(24, 2046))[1]["l4_offset"] == 54 + 24 * 2048
    assert agree(chain(25, 2046))[1]["payload_offset"] == 54 + 24 * 2048


@pytest.mark.parametrize("payload", [8, 16, 19])
def test_the_first_fragment_may_end_within_the_tcp_header(payload):
    """RFC 791: a fragment may have only 8 bytes. IPv6's first one has all headers (RFC 8200,
    4.5)."""
    whole = Spec(fragment=0x2000).build()
    frame = whole[:16] + struct.pack("!H", 20 + payload) + whole[18 : 34 + payload]
    reason, found = agree(frame)
    assert reason is None and not found["malformed"] and found["fragment"] and found["l4"]
    assert (found["source_port"], found["destination_port"], found["payload_offset"]) == (1234, 80, 34 + payload)
    six = Spec(version=6, extensions=[(44, bytes.fromhex("000100000001"))]).build()
    six = six[:18] + struct.pack("!H", 8 + payload) + six[20 : 62 + payload]
    reason, found = agree(six)
    assert reason == "l4_header" and found["malformed"] and found["fragment"] and found["l4"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, UDP])
def test_a_length_of_0_is_the_length_of_the_frame(version, protocol):
    frame = bytearray(Spec(version=version, protocol=protocol, payload=b"abc").build())
    frame[16 + (version == 6) * 2 :][:2] = frame[16 + (version == 6) * 2 : 18 + (version == 6) * 2] = b"\0\0"
    reason, found = agree(bytes(frame))
    assert reason is None and found["l4"] and found["payload_offset"] == len(frame) - 3


@pytest.mark.parametrize(("reason", "at", "value", "still"), [
    ("ipv4_header", 14, b"\x65", {"ipv4": False, "l4": False, "payload_offset": 14}),
    ("ipv4_length", 16, b"\xff\xff", {"ipv4": True, "ttl": 64, "l4": True, "source_port": 1234, "payload_offset": 54}),
    ("ipv4_length", 16, b"\0\x13", {"ipv4": True, "ttl": 64, "l4": False, "payload_offset": 34}),
    ("l4_header", 46, b"\x40", {"ipv4": True, "l4": True, "destination_port": 80, "payload_offset": 54}),
    ("l4_header", 16, b"\0\x17", {"ipv4": True, "l4": False, "l4_offset": 34, "payload_offset": 37}),
])  # fmt: skip
def test_what_is_before_the_fault_is_in_the_record(reason, at, value, still):
    frame = bytearray(Spec().build())
    frame[at : at + len(value)] = value
    got, found = agree(bytes(frame))
    assert got == reason and found["malformed"]
    assert {key: found[key] for key in still} == still


@pytest.mark.parametrize(("fragment", "l4", "offset"), [(0x2000, True, 34), (0x2001, False, 0), (0x0001, False, 0)])
def test_fragments(fragment, l4, offset):
    reason, found = agree(Spec(fragment=fragment, payload=b"abc").build())
    assert reason is None and found["fragment"] and found["l4"] == l4 and found["l4_offset"] == offset
    six = Spec(version=6, payload=b"abc", extensions=[(44, bytes(6))]).build()
    six = six[:56] + struct.pack("!H", (fragment & 0x1FFF) << 3 | fragment >> 13) + six[58:]
    reason, found = agree(six)
    assert reason is None and found["fragment"] and found["l4"] == l4 and found["ip_protocol"] == 6


headers = st.builds(
    Spec, version=st.sampled_from([4, 6]), protocol=st.sampled_from([6, 17]), payload=st.binary(max_size=80),
    tags=st.lists(st.tuples(st.sampled_from([0x8100, 0x88A8, 0x9100]), st.integers(0, 65535)), max_size=3),
    extensions=st.lists(st.tuples(st.sampled_from([0, 43, 44, 51, 60]), st.sampled_from([6, 14, 22]).flatmap(
        lambda size: st.binary(min_size=size, max_size=size))), max_size=27),
    fragment=st.sampled_from([0, 0x4000, 0x2000, 0x2010, 3]), tos=st.integers(0, 255), ttl=st.integers(0, 255),
    tcp_options=st.sampled_from([b"", bytes(4), bytes(40)]), ip_options=st.sampled_from([b"", bytes(4),
                                                                                         bytes(40)]))  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(
    spec=headers,
    edits=st.lists(st.tuples(st.integers(12, 120), st.one_of(st.just(0), st.integers(0, 255))), max_size=4),
    cut=st.integers(0, 200),
    truncated=st.booleans(),
    protocol=st.sampled_from([None, 1, 58, 132, 47]),
    offload=st.none() | st.tuples(st.integers(-8, 8), st.sampled_from([0, 6, 16]), st.integers(-8, 8)),
)
def test_twin_on_frames_that_are_nearly_right(spec, edits, cut, truncated, protocol, offload):
    if protocol is not None and spec.version == 4:
        edits = [*edits, (spec.l3_offset + 9, protocol)]
    frame = bytearray(spec.build())
    for at, value in edits:
        if at < len(frame):
            frame[at] = value
    if cut < 100:
        frame = frame[: max(0, len(frame) - cut)]
    fields = {}
    if offload is not None:
        start, offset, shift = offload
        fields = {"vnet_flags": 1, "csum_start": spec.l4_offset + start, "csum_offset": max(0, offset + shift)}
    reason, found = agree(bytes(frame), truncated=truncated, **fields)
    if reason != "runt":
        assert max(found["l3_offset"], found["l4_offset"], found["payload_offset"]) <= max(len(frame), 14)


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x91\x00", b"\x08\x06"]),
    rest=st.binary(max_size=120),
    truncated=st.booleans(),
)
@example(kind=b"\x08", rest=b"", truncated=True)
def test_twin_on_noise(kind, rest, truncated):
    agree(MAC + kind + rest, truncated=truncated)


# -- virtio-net fields -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=400)
@given(
    name=st.sampled_from(sorted(SPECS)),
    flags=st.sampled_from([0, 1, 1, 1, 2, 3]),
    right=st.booleans(),
    gso_type=st.sampled_from([0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x85, 77]),
    gso_size=st.sampled_from([0, 1, 2, 7, 8, 100, 1400, 65535]),
    start=st.integers(-2, 2),
    offset=st.integers(-2, 2),
    truncated=st.booleans(),
)
def test_twin_on_offload_fields(name, flags, right, gso_type, gso_size, start, offset, truncated):
    spec = SPECS[name]
    whole = spec.frame(1000)
    agree(
        whole.data,
        truncated=truncated,
        vnet_flags=flags,
        gso_type=whole.gso_type if right else gso_type,
        gso_size=gso_size,
        csum_start=whole.csum_start + start,
        csum_offset=whole.csum_offset + offset,
    )


@pytest.mark.parametrize(("start", "offset"), [(13, 0), (0, 60), (14, 65535), (65535, 65535), (60, 0), (59, 0), (34, 25)])
def test_a_checksum_field_outside_the_frame(start, offset):
    assert agree(bytes(60), vnet_flags=1, csum_start=start, csum_offset=offset)[0] == "bad_csum_offset"
    assert agree(bytes(60), vnet_flags=0, csum_start=start, csum_offset=offset)[0] is None


@pytest.mark.parametrize("tags", [1, 2])
def test_a_checksum_is_never_stored_into_a_vlan_tag(tags):
    """A switch checks the tag before a port stores the sum: the frame would change its VLAN on
    transmission."""
    frame = bytes(12) + bytes.fromhex("8100000a") * tags + bytes(50)
    for start in range(14, 14 + 4 * tags):
        assert agree(frame, vnet_flags=1, csum_start=start)[0] == "bad_csum_offset"
    assert agree(frame, vnet_flags=1, csum_start=14 + 4 * tags)[0] is None


def gso(spec, **changes):
    whole = spec.frame(changes.pop("size", 1000))
    fields = {
        "vnet_flags": whole.vnet_flags,
        "gso_type": whole.gso_type,
        "gso_size": whole.gso_size,
        "csum_start": whole.csum_start,
        "csum_offset": whole.csum_offset,
        **changes,
    }
    return agree(changes.pop("frame", whole.data), **{key: value for key, value in fields.items() if key != "frame"})


def test_gso_fields_must_fit_the_headers():
    tcp4, tcp6, udp4 = SPECS["tcp4 options"], SPECS["tcp6"], SPECS["udp4"]
    for spec in SPECS.values():
        reason, found = gso(spec)
        assert reason is None and found["header_length"] == spec.payload_offset and found["gso_size"] == 1000
    assert gso(tcp4, gso_type=GSO_TCPV6)[0] == "bad_gso"
    assert gso(tcp6, gso_type=GSO_TCPV4)[0] == "bad_gso"
    assert gso(tcp4, gso_type=GSO_UDP_L4)[0] == "bad_gso"
    assert gso(udp4, gso_type=GSO_TCPV4)[0] == "bad_gso"
    assert gso(udp4, gso_type=GSO_UDP_L4 | GSO_ECN)[0] == "bad_gso"
    assert gso(udp4, gso_type=3)[0] == "bad_gso"
    assert gso(tcp4, gso_type=GSO_ECN)[0] == "bad_gso"
    assert gso(tcp4, vnet_flags=0)[0] == "bad_gso"
    assert gso(tcp4, csum_start=tcp4.l4_offset + 4)[0] == "bad_gso"
    assert gso(tcp4, csum_offset=6)[0] == "bad_gso"
    assert gso(tcp4, gso_size=0)[0] == "bad_gso"
    assert gso(Spec(fragment=0x2000, payload=bytes(3000)))[0] == "bad_gso"
    # One segment is no GSO frame: it becomes a plain one.
    reason, found = gso(Spec(payload=bytes(1000)))
    assert reason is None and (found["gso_type"], found["gso_size"], found["header_length"]) == (0, 0, 0)


def test_what_a_gso_frame_may_cost_has_limits():
    assert gso(Spec(payload=bytes(16000)), size=8)[0] is None
    assert gso(Spec(payload=bytes(16000)), size=7)[0] == "bad_gso"
    assert gso(Spec(payload=bytes(2048 * 8 + 1)), size=8)[0] == "bad_gso"
    # Linux' smallest MSS with timestamps
    assert gso(Spec(payload=bytes(60000)), size=36)[0] is None
    assert gso(Spec(protocol=UDP, payload=bytes(12800)), size=100)[0] is None
    assert gso(Spec(protocol=UDP, payload=bytes(12801)), size=100)[0] == "bad_gso"
    long = Spec(version=6, payload=bytes(3000), extensions=[(60, bytes(254)), (60, bytes(254))])
    assert gso(long)[0] == "bad_gso"


def test_lengths_of_gso_frames():
    spec = Spec(payload=bytes(3000))
    frame = spec.frame(1000).data
    shorter = frame[:16] + struct.pack("!H", 1500) + frame[18:]
    assert gso(spec, frame=shorter)[0] == "ipv4_length"
    assert agree(shorter)[0] is None
    # BIG TCP: longer than the length field can hold.
    big = Spec(payload=bytes(65500))
    big_frame = MAC + b"\x08\x00" + b"\x45\0\0\0" + Spec().build()[18:34] + big.transport()
    assert gso(Spec(), frame=big_frame, gso_size=1448, gso_type=1)[0] is None
    assert agree(big_frame)[0] is None
    six = MAC + b"\x86\xdd" + b"\x60\0\0\0\0\0\x06\x40" + bytes(32) + big.transport()
    assert gso(Spec(version=6), frame=six, gso_size=1448, gso_type=4)[0] is None
    # A jumbo payload option, whose length would be repeated in each segment.
    jumbo = six[:20] + b"\0" + six[21:54] + bytes([6, 0, 0xC2, 4]) + struct.pack("!I", len(six) - 54 + 8) + six[54:]
    assert gso(Spec(version=6), frame=jumbo, gso_size=1448, gso_type=4, csum_start=62)[0] == "ipv6_length"
    assert agree(jumbo)[0] is None


# -- the element -----------------------------------------------------------------------------------


def rig(parse, **pool):
    pool = PacketPool(**{"small": 1024, "large": 64, **pool})
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx, tx = PortRx(a), PortTx(b)
    rx >> parse >> tx
    engine.load([rx])

    def send(frames):
        a.inject(frames)
        advance(engine, engine.clock.now_ns + 1000)
        assert engine.conservation()["conserved"] and pool.in_use == 0
        return b.take()

    return send


def malformed():
    """A frame for each reason."""
    spec = SPECS["tcp4 options"].frame(1000)
    six = Spec(version=6).build()
    lying = Spec(payload=bytes(60)).build()
    return {
        "runt": Frame(bytes(13)),
        "ipv4_header": Frame(MAC + b"\x08\x00" + bytes(46)),
        "ipv4_length": Frame(lying[:16] + b"\xff\xff" + lying[18:]),
        "ipv6_header": Frame(MAC + b"\x86\xdd" + bytes(46)),
        "ipv6_length": Frame(six[:18] + b"\xff\xff" + six[20:]),
        "l4_header": Frame(Spec().build()[:46] + b"\x10" + bytes(7)),
        "bad_gso": spec._replace(gso_size=3),
        "bad_csum_offset": Frame(bytes(60), NEEDS_CSUM, csum_start=59),
    }


def test_malformed_packets_are_dropped_each_under_its_reason():
    parse = Parse(malformed="drop")
    send = rig(parse)
    good = [Spec(payload=bytes([i])).build() for i in range(9)]
    mixed = [good[0]]
    for bad, sound in zip(malformed().values(), good[1:], strict=True):
        mixed += [bad, sound]
    assert [frame.data for frame in send(mixed)] == good
    statistics = parse.statistics()
    assert statistics["dropped"] == dict.fromkeys(PARSE_REASONS, 1)
    assert set(statistics["counters"].values()) == {0}


def test_malformed_packets_are_forwarded_and_counted():
    parse = Parse()
    frames = malformed()
    got = rig(parse)(list(frames.values()))
    passed = PARSE_REASONS[1:6]
    assert [frame.data for frame in got] == [frames[reason].data for reason in passed]
    statistics = parse.statistics()
    assert statistics["counters"] == dict.fromkeys(passed, 1)
    assert statistics["dropped"] == {reason: int(reason not in passed) for reason in PARSE_REASONS}


def test_a_malformed_gso_frame_cannot_be_segmented():
    parse = Parse()
    frame = Spec(payload=bytes(3000)).frame(1000)
    frame = frame._replace(data=frame.data[:16] + b"\0\x40" + frame.data[18:])
    assert rig(parse)([frame]) == []
    assert parse.statistics()["dropped"]["bad_gso"] == 1
    assert parse.statistics()["counters"]["ipv4_length"] == 0


def test_forward_and_drop_are_the_policies():
    with pytest.raises(ConfigError, match="malformed='keep': expected 'forward' or 'drop'"):
        Parse(malformed="keep")
    assert Parse().describe() == {} and Parse("drop").describe() == {"malformed": "drop"}


class Marks(PyElement):
    """Stores the flags of packets."""

    def __init__(self) -> None:
        self.flags: list[int] = []

    def process(self, batch) -> None:
        self.flags += batch.flags.tolist()


def test_malformed_packets_are_marked():
    marks, pool = Marks(), PacketPool(small=64, large=16)
    engine, a, b = Engine("e0", pool, clock=Clock(virtual=True)), MemoryPort("a", 0), MemoryPort("b", 1)
    rx = PortRx(a)
    _ = rx >> Parse() >> marks >> PortTx(b)
    engine.load([rx])
    # A valid packet reuses the record of a malformed one: the flag must be cleared.
    frames = [Spec().build(), malformed()["ipv4_length"], Spec().build(), malformed()["l4_header"], Spec().build()]
    for frame in frames:
        a.inject([frame])
        advance(engine, engine.clock.now_ns + 1000)
    assert [bool(flags & MALFORMED) for flags in marks.flags] == [False, True, False, True, False]


RULES = [
    {"gate": 1, "source": "10.0.0.0/8", "protocol": "tcp", "destination_port": 80},
    {"gate": 1, "dscp": 0, "vlan": 7},
    {"gate": 1, "source": "fd00::/16", "source_port": "1-2000"},
]


@settings(deadline=None, max_examples=150)
@given(
    frames=st.lists(
        st.tuples(
            headers,
            st.lists(st.tuples(st.integers(12, 120), st.integers(0, 255)), max_size=4),
            st.integers(0, 60),
            st.sampled_from([0, 1]),
            st.sampled_from([0, 0, 1, 4, 5]),
            st.integers(0, 80),
        ),
        max_size=8,
    ),
    vlan=st.sampled_from([0, 7]),
)
def test_nothing_reads_or_writes_outside_a_marked_frame(frames, vlan):
    """Through all users of the record: classifier, switch that adds a tag, RSS, checksums and
    segmentation in software."""
    pool = PacketPool(small=512, large=64)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1, queues=4, offloads=0)
    rx, switch, classifier = PortRx(a), L2Switch(MacTable(), 2), Classifier(RULES, default=0)
    rx >> Parse() >> classifier
    classifier[0] >> switch
    classifier[1] >> switch
    switch[1] >> NicTx(b, Rss(queues=4))
    switch[0] >> Discard()
    for number in range(2):
        switch.activate(number, **({"access": vlan} if vlan and number == 0 else {"trunk": [vlan]} if vlan else {}))
    engine.load([rx])
    sent = []
    for spec, edits, cut, flags, gso_type, start in frames:
        data = bytearray(spec.build())
        for at, value in edits:
            if at < len(data):
                data[at] = value
        data = data[: max(14, len(data) - cut)]
        fields = {"vnet_flags": flags, "gso_type": gso_type, "gso_size": 16 if gso_type else 0}
        sent.append(Frame(bytes(data), csum_start=start, csum_offset=16 if start % 2 else 6, **fields))
    a.inject(sent)
    advance(engine, 1000)
    assert engine.conservation()["conserved"] and pool.in_use == 0
    plain = {frame.data[12:] for frame in sent if not frame.vnet_flags and not frame.gso_type}
    offloaded = [frame for frame in sent if frame.vnet_flags or frame.gso_type]
    for frame in b.take():
        assert offloaded or frame.data[12:] in plain or frame.data[16:] in plain


# -- captures --------------------------------------------------------------------------------------


def ethernet_frames(path):
    """(frame, truncated) of every Ethernet packet of a classic pcap file up to its damage; nothing
    for other files."""
    data = path.read_bytes()
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">"}.get(
        data[:4]
    )
    if order is None or len(data) < 24 or struct.unpack(order + "I", data[20:24])[0] & 0xFFFF != 1:
        return
    at = 24
    while at + 16 <= len(data):
        captured, original = struct.unpack(order + "II", data[at + 8 : at + 16])
        if captured > 69504 or at + 16 + captured > len(data):
            return
        yield data[at + 16 : at + 16 + captured], original > captured
        at += 16 + captured


@pytest.mark.parametrize("folder", ["tcpdump", "ndpi"])
def test_captures(folder):
    if not CAPTURES.is_dir():
        pytest.skip(f"no captures at {CAPTURES}; set VNIC_PCAPS")
    files = frames_seen = cut_seen = 0
    parse = Parse("drop")
    send = rig(parse, small=512, large=512)
    want = dict.fromkeys(PARSE_REASONS, 0)
    for path in sorted((CAPTURES / folder).rglob("*")):
        frames = list(ethernet_frames(path)) if path.is_file() else []
        files += bool(frames)
        for start in range(0, len(frames), 64):
            some = frames[start : start + 64]
            reasons = []
            for frame, cut in some:
                reason, _ = agree(frame)
                reasons.append(reason)
                if reason:
                    want[reason] += 1
                if cut:
                    cut_seen += 1
                    assert agree(frame, truncated=True)[0] in (None, reason)
            got = send([frame for frame, _ in some])
            assert [frame.data for frame in got] == [
                frame for (frame, _), reason in zip(some, reasons, strict=True) if not reason
            ]
            frames_seen += len(some)
    assert parse.statistics()["dropped"] == want
    assert files > 10 and frames_seen > 1000


@pytest.mark.parametrize("place", ["source address", "destination port", "time to live"])
def test_a_checksum_cannot_be_aimed_at_a_header(place):
    """It is completed after switch and classifier have checked the frame, so only valid checksum
    positions are permitted."""
    spec = SPECS["udp4"]
    offset = {"source address": 12, "destination port": 22, "time to live": 8}[place]
    reason, _ = gso(spec, gso_type=0, vnet_flags=1, csum_start=spec.l4_offset - 20, csum_offset=offset)
    assert reason == "bad_csum_offset"
