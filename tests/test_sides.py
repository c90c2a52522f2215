"""Captures of both directions are split among NICs, and frames rewritten; compared with scapy."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess

import pytest
from scapy.all import ARP, IP, TCP, UDP, Dot1Q, Ether, ICMPv6EchoRequest, IPv6, Raw

from dataplane.ports.side_source import Split
from dataplane.wire.rewrite import Rewrite
from tests.support.capture_files import pcap
from tests.test_replay import START_NS, A, B, C, frame, packets_of, replay
from tests.test_replay_command import vnic

OLD, NEW = bytes([10, 0, 0, 0]), bytes([192, 168, 1, 0])
OLD6, NEW6 = bytes.fromhex("20010db8" + "00" * 12), bytes.fromhex("fd00000000010002" + "00" * 8)
MAP = Rewrite(addresses=[(OLD, NEW, 24), (OLD6, NEW6, 64)])


@pytest.fixture
def place(tmp_path):
    (tmp_path / "net.yaml").write_text("nics:\n  a: {}\n  b: {}\n")
    (tmp_path / "three.yaml").write_text("nics:\n  a: {}\n  b: {}\n  c: {}\n")
    both = [(START_NS + n // 2 * 1000, frame(*((B, A) if n % 2 == 0 else (A, B)), 100, n)) for n in range(40)]
    (tmp_path / "both.pcap").write_bytes(pcap(both, nanoseconds=True))
    return tmp_path


def twins(packet_of):
    """(frame, the same one with mapped addresses, as scapy computes it)."""
    return bytes(packet_of("10.0.0.1", "10.0.0.7")), bytes(packet_of("192.168.1.1", "192.168.1.7"))


@pytest.mark.parametrize("layer", [TCP(dport=80), UDP(dport=53), UDP(dport=53, chksum=0)])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_ipv4_addresses_and_checksums_are_scapys(layer, tags):
    for seed in range(200):
        payload = random.Random(seed).randbytes(seed)

        def packet_of(source, target, payload=payload):
            link = Ether(dst=B, src=A)
            for tag in range(tags):
                link = link / Dot1Q(vlan=tag + 1)
            return link / IP(src=source, dst=target, id=len(payload)) / layer / Raw(payload)

        before, after = twins(packet_of)
        assert MAP.apply(before) == after


@pytest.mark.parametrize("layer", [TCP(), UDP(), ICMPv6EchoRequest()])
def test_ipv6_addresses_and_checksums_are_scapys(layer):
    for seed in range(200):
        payload = random.Random(seed).randbytes(seed)
        before = bytes(Ether(dst=B, src=A) / IPv6(src="2001:db8::1", dst="2001:db8::2") / layer / Raw(payload))
        after = bytes(Ether(dst=B, src=A) / IPv6(src="fd00:0:1:2::1", dst="fd00:0:1:2::2") / layer / Raw(payload))
        assert MAP.apply(before) == after


def test_a_later_fragment_has_no_transport_header():
    def packet_of(source, target):
        return Ether(dst=B, src=A) / IP(src=source, dst=target, frag=3, proto=6) / Raw(bytes(range(40)))

    before, after = twins(packet_of)
    assert MAP.apply(before) == after


def test_a_frame_is_rewritten_as_far_as_it_goes():
    before, after = twins(lambda source, target: Ether(dst=B, src=A) / IP(src=source, dst=target) / TCP() / Raw(b"x" * 20))
    for length in range(len(before)):
        got = MAP.apply(before[:length])
        assert len(got) == length
        if length >= 34:  # with both addresses
            checksum = slice(50, 52)
            same = bytearray(after[:length])
            if length < 52:
                same[checksum] = before[:length][checksum]
            assert got == bytes(same)


def test_tags_and_mac_addresses():
    plain, tagged = frame(B, A, 100), bytes(Ether(frame(B, A, 100))[Ether])
    tagged = plain[:12] + b"\x81\x00\x60\x05" + plain[12:]  # priority 3, VLAN 5
    assert Rewrite(vlan=("add", 7)).apply(plain) == plain[:12] + b"\x81\x00\x00\x07" + plain[12:]
    assert Rewrite(vlan=("set", 7)).apply(tagged) == plain[:12] + b"\x81\x00\x60\x07" + plain[12:]
    assert Rewrite(vlan=("remove", 0)).apply(tagged) == plain == Rewrite(vlan=("remove", 0)).apply(plain)
    assert Rewrite(vlan_map=[(5, 9)]).apply(tagged)[14:16] == b"\x60\x09"
    assert Rewrite(macs=[(A, C)]).apply(plain)[:12] == B + C
    request = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=A) / ARP(hwsrc=A.hex(":"), psrc="10.0.0.1", pdst="10.0.0.2"))
    arp = Ether(Rewrite(macs=[(A, C)], addresses=[(OLD, NEW, 24)]).apply(request, None, B))[ARP]
    assert (arp.hwsrc, arp.psrc, arp.pdst) == (C.hex(":"), "192.168.1.1", "192.168.1.2")


def test_both_directions_are_split_where_it_is_plain(place):
    done = vnic(place, "replay", "both.pcap", "-c", "net.yaml", "-o", "out.pcapng", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0 and [nic["received"] for nic in result["nics"]] == [20, 20]
    assert result["transmitted"] == 40 and result["warnings"] == []
    assert done.stderr.splitlines() == [
        "vnic: split by MAC: a sends 02:00:00:00:00:01, b sends 02:00:00:00:00:02 (two MAC addresses talk to each other)"
    ]
    out = [(time_ns, int.from_bytes(data[18:20], "big"), name) for time_ns, data, name in packets_of(place / "out.pcapng")]
    assert sorted(out) == [(START_NS + n // 2 * 1000, n, "ba"[n % 2]) for n in range(40)]


def test_a_pipe_is_split_like_a_file(place):
    vnic(place, "replay", "both.pcap", "-c", "net.yaml", "-o", "file.pcapng")
    with subprocess.Popen(["cat", place / "both.pcap"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        done = vnic(place, "replay", "-", "-c", "net.yaml", "-o", "pipe.pcapng", stdin=cat.stdout.read())
    assert done.returncode == 0 and (place / "pipe.pcapng").read_bytes() == (place / "file.pcapng").read_bytes()


def test_what_is_not_plain_is_not_split(place):
    for words in (["both.pcap", "-c", "three.yaml"], ["both.pcap", "-c", "net.yaml", "--split", "none"]):
        done = vnic(place, "replay", *words, "--json")
        result = json.loads(done.stdout)
        assert done.returncode == 0 and result["nics"][0]["received"] == 40
        assert [each["code"] for each in result["warnings"]] == ["mostly_dropped"]


def test_a_capture_without_mac_addresses(place):
    packets = [(START_NS + n, bytes(12) + frame(A, B)[12:]) for n in range(10)]
    (place / "lo.pcap").write_bytes(pcap(packets, nanoseconds=True))
    done = vnic(place, "replay", "lo.pcap", "-c", "net.yaml")
    assert (
        done.returncode == 0 and "10 of 10 packets (100 %) were dropped" in done.stderr and "--rewrite-mac nics" in done.stderr
    )
    words = ["lo.pcap", "-c", "net.yaml", "--side", "a=1000", "--side", "b=*", "--rewrite-mac", "nics", "--json"]
    result = json.loads(vnic(place, "replay", *words).stdout)
    assert result["nics"][1]["transmitted"] == 10 and result["warnings"] == []


@pytest.mark.parametrize("engines", [1, 4])
def test_the_same_bytes_over_one_and_four_engines(tmp_path, engines):
    both = [(START_NS + n // 3, frame(*((B, A), (C, B), (A, C))[n % 3], 100, n)) for n in range(300)]
    config = f"engines: {engines}\nnics: {{a: {{engine: 0}}, b: {{engine: {engines - 1}}}, c: {{engine: {engines // 2}}}}}"
    split = Split({A: 0, B: 1, C: 2})
    _, out = replay(tmp_path, config, {"a": pcap(both, nanoseconds=True)}, split=split)
    one = replay(tmp_path, "nics: {a: {}, b: {}, c: {}}", {"a": pcap(both, nanoseconds=True)}, "one.pcapng", split=split)[1]
    assert hashlib.sha256(out).digest() == hashlib.sha256(one).digest()


def test_starts_are_announced_and_aligned(place):
    for name, start in (("old", START_NS - 10**17), ("new", START_NS)):
        (place / f"{name}.pcap").write_bytes(pcap([(start, frame(B, A)), (start + 1000, frame(B, A))], nanoseconds=True))
    words = ["replay", "--port", "a=old.pcap", "--port", "b=new.pcap", "-c", "net.yaml", "--json"]
    apart, aligned = (json.loads(vnic(place, *words, *more).stdout) for more in ([], ["--align"]))
    assert "starts_apart" in [each["code"] for each in apart["warnings"]] and apart["duration_ns"] > 10**17
    assert aligned["duration_ns"] == 1000 and "starts_apart" not in [each["code"] for each in aligned["warnings"]]


def test_a_directory_is_replayed_file_by_file(place):
    (place / "all").mkdir()
    (place / "all" / "both.pcap").write_bytes((place / "both.pcap").read_bytes())
    assert vnic(place, "replay", "all", "-c", "net.yaml").returncode == 0
    (place / "all" / "none").write_text("no capture at all")
    done = vnic(place, "replay", "all", "-c", "net.yaml", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and [each["broken"] for each in found] == [False, True]
    assert found[0]["transmitted"] == 40 and "not a capture" in found[1]["errors"][0]


def test_diff_pairs_the_only_interfaces(place):
    vnic(place, "replay", "both.pcap", "-c", "net.yaml", "--side", "a=*", "-o", "one.pcapng")
    vnic(place, "replay", "both.pcap", "-c", "net.yaml", "--side", "a=*", "-o", "one.pcap")
    done = vnic(place, "diff", "one.pcapng", "one.pcap", "--ignore", "time")
    assert done.returncode == 0 and "interfaces are named differently: b / 0" in done.stdout, done.stdout
    assert vnic(place, "diff", "one.pcapng", "one.pcap", "--interface", "b=0").returncode == 0
    done = vnic(place, "diff", "-", "one.pcapng", stdin=(place / "one.pcapng").read_bytes())
    assert done.returncode == 0, done.stderr
    assert "9223372036854775808" not in vnic(place, "diff", "one.pcapng", "both.pcap", "--ignore", "time").stdout


def test_config_check_says_which_use_fits(place):
    done = vnic(place, "config", "check", "net.yaml")
    assert done.returncode == 0 and "fits replay only" in done.stdout
    assert vnic(place, "config", "check", "net.yaml", "--for", "containers").returncode == 2
    (place / "twice.yaml").write_text("nics: {a: {addresses: [10.0.0.1/24]}, b: {addresses: [10.0.0.1/24]}}")
    assert "same address 10.0.0.1" in vnic(place, "config", "check", "twice.yaml").stderr
    (place / "empty.yaml").write_text("")
    assert "has no NIC" in vnic(place, "config", "check", "empty.yaml").stderr
