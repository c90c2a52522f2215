"""The test kit: its example passes, and failures are readable."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from scapy.layers.dot11 import Dot11
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.plist import PacketList
from scapy.utils import rdpcap, wrpcap

from dataplane.errors import ConfigError
from tests.test_replay import A, B, frame
from vnic.testing import VirtualNetwork

ROOT = Path(__file__).parents[1]
TWO = "nics: {a: {egress: {rate: 10mbit}}, b: {}}"


def pytest_in(directory, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A user's pytest: the plugin as the distribution registers it."""
    installed = entry_points(group="pytest11", name="vnic")
    # a source tree that is not installed
    plugin = [] if installed else ["-p", "vnic.testing.plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=220, check=False, env=environment)


@pytest.fixture
def example(tmp_path):
    shutil.copytree(ROOT / "examples" / "testing", tmp_path / "user", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "user"


def test_the_example(example):
    done = pytest_in(example)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout


def test_a_changed_byte_shows_its_field(example):
    file = example / "test_network.py"
    changed = 'Ether(bytes(REQUEST).replace(b"\\x40\\x11", b"\\x3f\\x11", 1))'
    file.write_text(file.read_text().replace('("db", REQUEST, at="1ms")', f'("db", {changed}, at="1ms")'))
    done = pytest_in(example)
    assert done.returncode == 1 and "1 failed, 2 passed" in done.stdout
    assert "IP.ttl                   64, expected 63" in done.stdout


def test_golden_captures(example):
    golden = example / "golden.pcapng"
    before = golden.read_bytes()
    damaged = bytearray(before)
    damaged[damaged.index(b"\x40\x11")] = 1
    golden.write_bytes(damaged)
    done = pytest_in(example)
    assert done.returncode == 1 and "not as in golden.pcapng: different: 9 packets are equal, 1 changed" in done.stdout
    assert "IP.ttl" in done.stdout and "--vnic-update-golden" in done.stdout
    assert pytest_in(example, "--vnic-update-golden").returncode == 0
    assert golden.read_bytes() == before
    golden.unlink()
    assert "does not exist; pytest --vnic-update-golden writes it" in pytest_in(example).stdout


def test_time_and_packets():
    with VirtualNetwork(TWO) as net:
        net.send("a", frame(B, A, 1250), at="1ms")
        net.send("a", frame(B, A, 1250, 1), at="1ms")
        net.advance("1500us")
        assert [(each.time_ns, each.data) for each in net.take("b")] == [(10**6, frame(B, A, 1250))]
        assert net.now_ns == 1_500_000
        net.advance("1ms")
        assert [each.time_ns for each in net.take("b")] == [1_750_000]
        net.send("b", frame(A, B), at="3ms")
        net.send("b", frame(A, B), at="3ms")
        net.run()
        net.assert_received("a", [frame(A, B)] * 2, at=["3ms", "3ms"])
        net.send("a", frame(A, A))
        net.run()
        assert net.drops() == {"switch: hairpin": 1}
        assert net.received("a") == []


@pytest.mark.parametrize(("expected", "at", "message"), [
    ([frame(B, A)], "1ms", "b received 2 packets, expected 1"),
    ([frame(B, A), frame(B, A, 61)], "1ms", "1 instants for 2 packets"),
    ([frame(B, A), frame(B, A, 61)], ["1ms", "1.1ms"], "b, packet 2: came at 1.05ms, expected at 1.1ms (0.05ms early)"),
    ([frame(B, A), frame(B, A, 61, 5)], None, "IP.id                    0, expected 5"),
    ([frame(B, A)] * 3, None, "packet 2"),
])  # fmt: skip
def test_failures_read_well(expected, at, message):
    with VirtualNetwork("nics: {a: {}, b: {}}") as net:
        net.send("a", frame(B, A), at="1ms")
        net.send("a", frame(B, A, 61), at="1050us")
        net.run()
        with pytest.raises(AssertionError) as failed:
            net.assert_received("b", expected, at=at)
        assert message in str(failed.value)


def test_a_capture_is_sent_and_written(tmp_path):
    with VirtualNetwork(TWO) as net:
        net.send("a", [frame(B, A, 100, n) for n in range(20)], gap="1ms")
        net.run()
        net.write(tmp_path / "first.pcapng")
    with VirtualNetwork(TWO) as net:
        assert net.send_capture("a", tmp_path / "first.pcapng", at="5ms") == 20
        net.run()
        assert [each.time_ns for each in net.received("b")] == [(5 + n) * 10**6 for n in range(20)]


def test_wrong_use():
    with VirtualNetwork(TWO) as net:
        with pytest.raises(ConfigError, match="nic x: there is none; the configuration has a, b"):
            net.send("x", b"")
        net.advance("1ms")
        with pytest.raises(ConfigError, match="send: 0ns is past; it is 1ms already"):
            net.send("a", b"", at=0)
    with pytest.raises(ConfigError, match="No such file"):
        VirtualNetwork("none.yaml")


PACKET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / Raw(bytes(90))
PAIR = 'nics: {a: {mac: "02:00:00:00:00:01"}, b: {mac: "02:00:00:00:00:02"}}'


@pytest.mark.parametrize("several", [
    lambda: [PACKET] * 3,
    lambda: (PACKET, PACKET, PACKET),
    lambda: (PACKET for _ in range(3)),
    lambda: PacketList([PACKET] * 3),
    lambda: iter([bytes(PACKET), bytearray(bytes(PACKET)), memoryview(bytes(PACKET))]),
], ids=["list", "tuple", "generator", "PacketList", "bytes"])  # fmt: skip
def test_several_packets_may_be_any_iterable(several):
    with VirtualNetwork(PAIR) as net:
        net.send("a", several(), gap="1ms")
        net.run()
        assert [each.time_ns for each in net.received("b")] == [0, 10**6, 2 * 10**6]
        net.assert_received("b", several())


def test_what_a_capture_holds_is_sent_and_expected(tmp_path):
    wrpcap(str(tmp_path / "in.pcap"), [PACKET, PACKET])
    with VirtualNetwork(PAIR) as net:
        net.send("a", rdpcap(str(tmp_path / "in.pcap")))
        net.run()
        net.assert_received("b", rdpcap(str(tmp_path / "in.pcap")))
        net.send("b", [Ether(src=PACKET.dst, dst=PACKET.src) / PACKET.payload])
        net.run()
        net.send("a", net.received("a"))  # received frames can be sent
        net.run()
        assert net.drops() == {"switch: hairpin": 1}


@pytest.mark.parametrize(("wrong", "message"), [
    (IP() / UDP(), "send: IP is no Ethernet frame; put Ether(...) / in front of it"),
    ([PACKET, IP()], "send: packet 2: IP is no Ethernet frame; put Ether(...) / in front of it"),
    (Dot11(), "send: Dot11 is no Ethernet frame; put Ether(...) / in front of it"),
    (60, "send: int is not a packet: expected bytes, a scapy packet, or several of them"),
    ("ff" * 60, "send: str is not a packet: expected bytes, a scapy packet, or several of them"),
    ([bytes(60), 60], "send: packet 2: int is not a packet: expected bytes or a scapy packet"),
])  # fmt: skip
def test_what_is_no_ethernet_frame_is_refused(wrong, message):
    with VirtualNetwork(PAIR) as net:
        with pytest.raises(ConfigError) as refused:
            net.send("a", wrong)
        assert str(refused.value) == message
        with pytest.raises(ConfigError, match=re.escape(message.removeprefix("send"))):
            net.assert_received("b", wrong)
        net.run()
        assert net.received("b") == [] and net.drops() == {}


@pytest.mark.parametrize("arguments", [{"at": 0.5}, {"gap": 1e-3}])
def test_times_are_never_guessed(arguments):
    time = next(iter(arguments.values()))
    message = re.escape(f'time {time!r}: expected text such as "500ms", or a whole number of nanoseconds')
    with VirtualNetwork(PAIR) as net:
        with pytest.raises(ConfigError, match=message):
            net.send("a", PACKET, **arguments)
        with pytest.raises(ConfigError, match=message):
            net.advance(time)
        net.send("a", PACKET, at=5)
        net.run()
        with pytest.raises(ConfigError, match=message):
            net.assert_received("b", PACKET, at=[time])


@pytest.mark.parametrize(("came", "expected", "text"), [
    (10_861_112, "10.75ms", "came at 10.861112ms, expected at 10.75ms (0.111112ms late)"),
    (999_999, "1s", "came at 0.000999999s, expected at 1s (0.999000001s early)"),
    (1_500, "500ns", "came at 1500ns, expected at 500ns (1000ns late)"),
    (2_000_000, "2500us", "came at 2ms, expected at 2.5ms (0.5ms early)"),
])  # fmt: skip
def test_times_that_differ_are_shown_in_one_unit(came, expected, text):
    with VirtualNetwork(PAIR) as net:
        net.send("a", PACKET, at=came)
        net.run()
        with pytest.raises(AssertionError) as failed:
            net.assert_received("b", PACKET, at=expected)
        assert str(failed.value) == f"b, packet 1: {text}"


def test_frames_above_the_mtu_do_not_arrive(tmp_path):
    longer = PACKET / Raw(bytes(3000))
    with VirtualNetwork(PAIR) as net:
        net.send("a", [PACKET, longer])
        net.run()
        net.assert_received("b", PACKET)
        assert net.drops() == {"b.tx: too_long": 1}
    # A capture shows TCP before it is segmented; the test sees the segments.
    tcp = PACKET.copy()
    tcp[IP].payload = TCP(flags="PA") / Raw(bytes(range(200)) * 20)
    del tcp[IP].len, tcp[IP].chksum, tcp[IP].proto
    wrpcap(str(tmp_path / "tso.pcap"), Ether(bytes(tcp)))
    with VirtualNetwork(PAIR) as net:
        net.send_capture("a", tmp_path / "tso.pcap")
        net.run()
        got = [each.packet for each in net.take("b")]
        assert [len(each) for each in got] == [1514, 1514, 1134]
        assert b"".join(bytes(each[Raw]) for each in got) == bytes(range(200)) * 20
