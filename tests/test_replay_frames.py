"""Frames that are too long, were GSO frames, or are malformed: a replay treats them as live
traffic."""

from __future__ import annotations

import struct

import pytest

from dataplane.capture.reader import CaptureReader
from tests.support.capture_files import enhanced, interface, pcap, section
from tests.test_replay import START_NS, A, B, frame
from tests.wire_frames import ACK, CWR, PSH, Spec, checksum
from vnic.config.load import parse_config
from vnic.replay.session import Replay

TWO = "nics: {a: {}, b: {}}"


def outcome(tmp_path, config: str, frames: list[bytes], *, content: bytes | None = None, **options):
    """(frames that b received, drops as (comment, data, original length), results, counters of a's
    parser)."""
    source, out = tmp_path / "in.pcap", tmp_path / "out.pcapng"
    if content is None:
        content = pcap([(START_NS + 1000 * number, each) for number, each in enumerate(frames)], nanoseconds=True)
    source.write_bytes(content)
    with Replay(parse_config(config, contained=False), {"a": str(source)}, str(out), drops=True, **options) as session:
        session.run()
        results, stats = session.results(), session.runtime.stats()
    assert results["conserved"]
    parser = next(each for engine in stats["engines"] for each in engine["elements"] if each["name"] == "a.parse")
    reader = CaptureReader(str(out))
    packets = [(reader.names[number], data, original) for _, data, original, number in reader]
    reader.close()
    received = [data for name, data, _ in packets if name == "b"]
    dropped = [(data, original) for name, data, original in packets if name == "dropped"]
    return received, dropped, results, {key: count for key, count in parser["counters"].items() if count}


# -- the MTU ---------------------------------------------------------------------------------------


def test_a_frame_over_the_mtu_is_dropped(tmp_path):
    # 1500 bytes, an Ethernet header and two VLAN tags
    fits, longer = frame(B, A, 1522), frame(B, A, 1523)
    received, dropped, results, _ = outcome(tmp_path, TWO, [fits, longer, frame(B, A)])
    assert received == [fits, frame(B, A)] and dropped == [(longer, 1523)]
    assert results["dropped"] == {"b.tx: too_long": 1}
    received, *_ = outcome(tmp_path, "nics: {a: {}, b: {mtu: 9000}}", [longer])
    assert received == [longer]


@pytest.mark.parametrize("length", [69_505, 92_442])
def test_a_frame_longer_than_any_buffer_is_too_long(tmp_path, length):
    longest = frame(B, A, 1000) + bytes(length - 1000)
    content = section() + interface() + enhanced(longest, 10) + enhanced(frame(B, A), 20)
    received, dropped, results, _ = outcome(tmp_path, "nics: {a: {}, b: {mtu: 65521}}", [], content=content)
    assert received == [frame(B, A)]
    assert dropped == [(longest[:69_504], length)]
    assert results["dropped"] == {"b.tx: too_long": 1} and results["nics"][0]["too_long"] == 1


# -- TCP frames that were captured before segmentation ---------------------------------------------

TSO = {
    "IPv4": Spec(payload=bytes(range(256)) * 20, flags=ACK | PSH, identification=7),
    "IPv4, ECN": Spec(payload=bytes(range(256)) * 20, flags=ACK | PSH | CWR, tcp_options=bytes([1]) * 12),
    "IPv6": Spec(version=6, payload=bytes(range(256)) * 20, flags=ACK | PSH),
}


@pytest.mark.parametrize("kind", TSO)
def test_a_tcp_frame_over_the_mtu_passes_as_the_gso_frame_that_it_was(tmp_path, kind):
    spec = TSO[kind]
    as_linux_shows_it = spec.build(complete=False)
    received, dropped, *_ = outcome(tmp_path, TWO, [as_linux_shows_it])
    assert received == [as_linux_shows_it] and dropped == []
    # The pseudo-header's checksum replaces others, as in a frame before segmentation.
    received, *_ = outcome(tmp_path, TWO, [spec.build()])
    assert received == [as_linux_shows_it]


@pytest.mark.parametrize("kind", TSO)
def test_where_the_receiver_does_not_take_it_whole_it_is_segmented(tmp_path, kind):
    spec = TSO[kind]
    config = "nics: {a: {}, b: {offloads: {checksum: false, tso: false, uso: false}}}"
    received, dropped, *_ = outcome(tmp_path, config, [spec.build()])
    mss = 1500 - (spec.payload_offset - 14)
    assert received == [each.build() for each in spec.segments(mss)] and dropped == []


@pytest.mark.parametrize(("config", "gets"), [
    # this container sends no GSO frames
    ("nics: {a: {offloads: {checksum: true, tso: false, uso: false}}, b: {}}", 0),
    ("nics: {a: {}, b: {mtu: 1400}}", 0),  # its segments are too long for b
    ("nics: {a: {mtu: 9000}, b: {}}", 0),  # a jumbo frame, too long for b
    ("nics: {a: {mtu: 1400}, b: {}}", 1),
])  # fmt: skip
def test_the_mtu_of_both_sides_counts(tmp_path, config, gets):
    received, dropped, results, _ = outcome(tmp_path, config, [TSO["IPv4"].build()])
    assert len(received) == gets and len(dropped) == 1 - gets
    assert results["dropped"] == ({} if gets else {"b.tx: too_long": 1})


def test_an_ip_length_of_0_is_that_of_the_frame(tmp_path):
    data = bytearray(Spec(payload=bytes(1480), flags=ACK | PSH).build())
    data[16:18] = b"\0\0"
    received, dropped, _, malformed = outcome(tmp_path, TWO, [bytes(data)])
    assert len(received) == 1 and len(received[0]) == 1534 and dropped == [] and malformed == {}


# -- what is malformed above layer 2 ---------------------------------------------------------------


def odd_frames() -> dict[str, bytes]:
    """A frame for each counter of the parser."""
    tcp, udp6 = Spec().build(), Spec(version=6, protocol=17).build()
    return {
        "ipv4_header": B + A + b"\x08\x00" + bytes(46),
        "ipv4_length": tcp[:16] + b"\xff\xff" + tcp[18:],
        "ipv6_header": B + A + b"\x86\xdd" + bytes(46),
        "ipv6_length": udp6[:18] + b"\xff\xff" + udp6[20:],
        "l4_header": tcp[:46] + b"\x10" + tcp[47:],
    }


def test_malformed_packets_are_forwarded_and_counted(tmp_path):
    frames = odd_frames()
    received, dropped, results, malformed = outcome(tmp_path, TWO, list(frames.values()))
    assert received == list(frames.values()) and dropped == [] and results["dropped"] == {}
    assert malformed == dict.fromkeys(frames, 1)
    assert results["malformed"] == {f"a.parse: {reason}": 1 for reason in frames}


def test_a_nic_may_drop_them(tmp_path):
    frames = odd_frames()
    received, dropped, results, malformed = outcome(
        tmp_path, "nics: {a: {malformed: drop}, b: {}}", [*frames.values(), frame(B, A)]
    )
    assert received == [frame(B, A)] and [data for data, _ in dropped] == list(frames.values())
    assert results["dropped"] == {f"a.parse: {reason}": 1 for reason in frames} and malformed == {}


def test_what_is_wrong_at_layer_2_is_dropped_in_any_case(tmp_path):
    wrong = [B + A, B + A + b"\x81\x00\x00", frame(B, b"\x01" + A[1:])]
    received, _, results, _ = outcome(tmp_path, TWO, wrong)
    assert received == [] and results["dropped"] == {"a.parse: runt": 2, "switch: bad_source": 1}


def test_fragments_of_8_bytes_and_long_chains_of_extension_headers_are_no_fault(tmp_path):
    whole = Spec(fragment=0x2000).build()
    first = whole[:16] + struct.pack("!H", 28) + whole[18:42]
    rest = bytearray(whole[:16] + struct.pack("!HHH", 32, 0, 1) + whole[22:34] + whole[42:])
    rest[24:26] = b"\0\0"
    rest[24:26] = checksum(bytes(rest[14:34])).to_bytes(2, "big")
    chains = [
        Spec(version=6, protocol=17, extensions=[(60, bytes([1, 4, 0, 0, 0, 0]))] * count, payload=b"x").build()
        for count in range(17)
    ]
    received, dropped, _, malformed = outcome(tmp_path, "nics: {a: {malformed: drop}, b: {}}", [first, bytes(rest), *chains])
    assert received == [first, bytes(rest), *chains] and dropped == [] and malformed == {}
