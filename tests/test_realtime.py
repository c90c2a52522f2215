"""Replay in real time into containers: on schedule, over several rounds; missing packets are
reported."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataplane.capture.reader import CaptureReader
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from dataplane.ports.pcap_source import PcapSource
from tests.support import plain_user
from tests.support.capture_files import enhanced, interface, pcap, section
from tests.support.containers import IS_ROOT, Container
from tests.test_replay import START_NS, A, B, frame
from vnic.replay.realtime import Schedule

TREE = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path):
    """(directory with in.pcap and net.yaml, the container behind NIC b)."""
    packets = [(START_NS + n * 2_000_000, frame(B, A, 200, n)) for n in range(100)]
    (tmp_path / "in.pcap").write_bytes(pcap(packets, nanoseconds=True))
    with Container() as container:
        (tmp_path / "net.yaml").write_text(f"nics:\n  a: {{}}\n  b: {{pid: {container.pid}, interface: eth0}}\n")
        yield tmp_path, container


def replay(directory, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vnic.cli.main", "replay", *words]
    environment = {**os.environ, "PYTHONPATH": str(TREE)}
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=200, check=False, env=environment)


@pytest.mark.parametrize(("schedule", "span_s"), [
    ("captured", 99 * 0.002), ("speed=4", 99 * 0.0005), ("pps=1000", 0.099), ("rate=1.6mbit", 99 * 0.001), ("asap", 0.0),
])  # fmt: skip
def test_schedules(place, schedule, span_s):
    directory, _ = place
    done = replay(directory, "in.pcap", "-c", "net.yaml", "--realtime", schedule, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["delivered"] and result["conserved"] and result["complaints"] == []
    assert result["captured"] == result["entered"] == result["nics"][0]["sent"] == result["nics"][0]["counted"] == 100
    assert result["span_ns"] >= span_s * 1e9  # never early; the benchmark measures lateness
    assert result["nics"][0]["lateness_ns"]["p50"] <= result["nics"][0]["lateness_ns"]["max"]


LISTENERS = {
    "udp/5001": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5001))",
    "tcp/5001": "s = socket.socket(socket.AF_INET6); s.bind(('', 5001)); s.listen()",
    "packet": "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))",
}


@pytest.mark.parametrize("what", LISTENERS)
def test_it_waits_for_a_listener(place, what):
    directory, container = place
    command = [sys.executable, "-m", "vnic.cli.main", "replay", "in.pcap", "-c", "net.yaml", "--realtime", "asap"]
    with subprocess.Popen(
        [*command, "--wait", f"b={what}", "--json"], cwd=directory, env={**os.environ, "PYTHONPATH": str(TREE)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as waiting:  # fmt: skip
        assert waiting.stderr.readline() == f"vnic: waiting for b={what} ...\n"
        # A UDP socket of another port, and a TCP socket that is bound but does not listen, do not
        # count.
        others = "o = [socket.socket(socket.AF_INET, k) for k in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]\n"
        others += "o[0].bind(('', 5002)); o[1].bind(('', 5001))\n" if what != "tcp/5001" else "o[0].bind(('', 5001))\n"
        code = f"import socket\n{others}print(1, flush=True)\ninput()\n{LISTENERS[what]}\nprint(2, flush=True)\ninput()"
        held = subprocess.Popen(
            container.command([sys.executable, "-c", code]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert held.stdout.readline() == "1\n"
        assert waiting.poll() is None
        print(file=held.stdin, flush=True)
        assert held.stdout.readline() == "2\n"
        out, error = waiting.communicate(timeout=100)
        assert waiting.returncode == 0, error
        assert json.loads(out)["delivered"]
        held.communicate("\n")


# A packet socket with a ring of one block, which the kernel hands over when it is full or a second
# old: prints the packets of the block, or 0 if the interface went before.
RING = """
import mmap, select, socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.setsockopt(263, 10, 2)  # PACKET_VERSION, TPACKET_V3
s.setsockopt(263, 5, struct.pack("7I", 1 << 20, 1, 2048, 512, 1000, 0, 0))  # PACKET_RX_RING
block = mmap.mmap(s.fileno(), 1 << 20)
s.bind(("eth0", 0x0800))
events = select.poll()
events.register(s)
print("open", flush=True)
while True:
    status, packets = struct.unpack_from("II", block, 8)
    if status & 1 or any(event & select.POLLERR for _, event in events.poll()):
        break
print(packets if status & 1 else 0)
"""


def test_a_ring_has_its_packets_before_the_interface_goes(place):
    directory, container = place
    packets = [(START_NS + n, frame(B, A, 200, n)) for n in range(100)]
    (directory / "in.pcap").write_bytes(pcap(packets, nanoseconds=True))
    command = [sys.executable, "-m", "vnic.cli.main", "replay", "in.pcap", "-c", "net.yaml", "--realtime", "asap"]
    with subprocess.Popen(
        [*command, "--wait", "b=packet"], cwd=directory, env={**os.environ, "PYTHONPATH": str(TREE)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as waiting:  # fmt: skip
        assert waiting.stderr.readline() == "vnic: waiting for b=packet ...\n"
        ring = container.popen([sys.executable, "-c", RING])
        out, error = waiting.communicate(timeout=100)
        assert waiting.returncode == 0, error
        assert ring.communicate(timeout=100)[0] == "open\n100\n", out


def test_a_listener_that_does_not_come(place):
    from vnic.config.load import load_config
    from vnic.replay.realtime import Listener, RealtimeReplay

    directory, _ = place
    config = load_config(str(directory / "net.yaml"), contained=False)
    with RealtimeReplay(config, {"a": str(directory / "in.pcap")}, Schedule.parse("asap")) as session:
        with pytest.raises(VnicError, match="--wait b=udp/9: no such socket in the container after 0 s"):
            session.wait([Listener.parse("b=udp/9")], 0)
        with pytest.raises(ConfigError, match="--wait a=udp/9: no such NIC in a container: expected one of b"):
            session.wait([Listener.parse("a=udp/9")], 0)


@pytest.mark.parametrize(
    "text", ["", "b", "b=", "b=udp", "b=udp/", "b=udp/0", "b=udp/65536", "b=sctp/1", "b=packet/1", "=udp/1"]
)
def test_a_listener_that_is_not_one(text):
    from vnic.replay.realtime import Listener

    with pytest.raises(ConfigError, match=f"--wait {text}: expected NAME=udp/PORT"):
        Listener.parse(text)


def test_a_delay(place):
    directory, _ = place
    began = time.monotonic()
    done = replay(directory, "in.pcap", "-c", "net.yaml", "--realtime", "asap", "--delay", "1500ms", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["delivered"]
    assert time.monotonic() - began >= 1.5


def test_rounds_follow_each_other(place):
    directory, _ = place
    done = replay(directory, "in.pcap", "-c", "net.yaml", "--realtime", "speed=10", "--loop", "5", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["captured"] == result["nics"][0]["counted"] == 500
    assert result["span_ns"] >= 499 * 200_000  # a mean gap between two rounds


def receiving(source):
    """An engine that receives from `source`, and the port to which it transmits."""
    engine, sink = Engine("e", PacketPool(64, 16), clock=Clock(virtual=True)), MemoryPort("out")
    receiver = PortRx(source)
    receiver >> PortTx(sink)
    engine.load([receiver])
    return engine, sink


def test_a_source_between_two_rounds_is_not_done(tmp_path, monkeypatch):
    """A replay in real time reads `done` from another thread while the engine's thread opens the
    capture again."""
    from dataplane.ports import pcap_source

    path = tmp_path / "in.pcap"
    path.write_bytes(pcap([(START_NS + n, frame(B, A)) for n in range(3)], nanoseconds=True))
    source = pcap_source.PcapSource("in", CaptureReader(str(path)), held=True)
    seen = []

    def reopen(path):
        seen.append(source.done)
        return CaptureReader(path)

    monkeypatch.setattr(pcap_source, "OpenReader", reopen)
    source.start(1000, loops=3)
    engine, sink = receiving(source)
    advance(engine, 10_000)
    assert seen == [False, False] and source.done and source.packets == 9
    assert len(sink.take()) == 9
    assert engine.conservation()["conserved"] and engine.pool.in_use == 0
    engine.close()


def played(path, loops, meanwhile=lambda: None):
    """(source, packets that it delivered) of a capture that is played `loops` times; `meanwhile` is
    called after the first packet."""
    source = PcapSource("in", CaptureReader(str(path)), held=True)
    source.start(1000, "pps", 1, loops=loops)  # one packet a second
    engine, sink = receiving(source)
    advance(engine, 1000)
    meanwhile()
    advance(engine, 10**12)
    assert engine.conservation()["conserved"] and engine.pool.in_use == 0
    engine.close()
    assert source.done
    return source, len(sink.take())


GOOD = section() + interface() + b"".join(enhanced(frame(B, A), n) for n in range(3))
DAMAGED = enhanced(frame(B, A), 3)[:-1] + b"!"  # its two lengths differ


@pytest.mark.parametrize("tail", [DAMAGED, DAMAGED[:20]], ids=["damaged", "cut"])
def test_a_damaged_capture_is_not_played_again(tmp_path, tail):
    path = tmp_path / "in.pcapng"
    path.write_bytes(GOOD + tail)
    source, delivered = played(path, 2**32 - 1)
    assert delivered == source.packets == 3 and f"offset {len(GOOD)}" in source.error


@pytest.mark.parametrize(("after", "says"), [
    (None, "No such file or directory, at the start of another round"),
    (section() + interface(), "has no packets, at the start of another round"),
    (section() + interface() + DAMAGED, "a block's two lengths differ, at the start of another round"),
    (b"nothing of the kind", "at the start of another round"),
    (GOOD + DAMAGED, f"offset {len(GOOD)}"),
], ids=["removed", "empty", "damaged", "other", "damaged later"])  # fmt: skip
def test_a_capture_that_changes_between_two_rounds(tmp_path, after, says):
    path = tmp_path / "in.pcapng"
    path.write_bytes(GOOD)

    def change():
        path.unlink()  # what is open stays as it was
        if after is not None:
            path.write_bytes(after)

    source, delivered = played(path, 1000, change)
    assert says in source.error and source.error.startswith(str(path))
    assert delivered == source.packets == (6 if after == GOOD + DAMAGED else 3)


def test_a_capture_without_packets_is_done_at_once(tmp_path):
    path = tmp_path / "in.pcapng"
    path.write_bytes(section() + interface())
    assert played(path, 1000)[1] == 0


def test_rounds_of_a_capture_that_is_damaged_or_empty(place):
    directory, _ = place
    (directory / "damaged.pcapng").write_bytes(GOOD + DAMAGED)
    (directory / "empty.pcapng").write_bytes(section() + interface())
    words = ("-c", "net.yaml", "--realtime", "captured", "--loop", "1000000", "--json")
    done = replay(directory, "damaged.pcapng", *words)
    assert done.returncode == 1 and json.loads(done.stdout)["captured"] == 3
    assert done.stderr == (
        f"vnic: error: damaged.pcapng: offset {len(GOOD)}: a block's two lengths differ; everything before it was used\n"
    )
    done = replay(directory, "empty.pcapng", *words)
    assert done.returncode == 0 and json.loads(done.stdout)["captured"] == 0


def test_what_the_interface_does_not_take_is_said(place):
    directory, _ = place
    config = (directory / "net.yaml").read_text().replace("interface: eth0", "interface: eth0, mtu: 150")
    (directory / "net.yaml").write_text(config)
    done = replay(directory, "in.pcap", "-c", "net.yaml", "--realtime", "asap")
    assert done.returncode == 1 and "delivered: NO" in done.stdout
    assert done.stderr == "vnic: error: b: its interface refused 100 of 100 packets\n"


def test_what_the_network_drops_is_said(place):
    directory, _ = place
    (directory / "in.pcap").write_bytes(pcap([(START_NS, frame(B, A)), (START_NS, frame(A, A))], nanoseconds=True))
    done = replay(directory, "in.pcap", "-c", "net.yaml", "--realtime", "asap")
    assert done.returncode == 1
    assert (
        "2 packets entered the network, 1 reached a container: dropped" in done.stderr and "by switch: hairpin" in done.stderr
    )


@pytest.mark.parametrize(("text", "schedule"), [
    ("captured", ("captured", 1, 1)), ("speed=2.5", ("captured", 5, 2)), ("pps=0.5", ("pps", 1, 2)), ("rate=10mbit", ("rate", 10**7, 1)),
    ("asap", ("asap", 1, 1)),
])  # fmt: skip
def test_schedules_are_read(text, schedule):
    read = Schedule.parse(text)
    assert (read.mode, read.factor, read.divisor) == schedule


@pytest.mark.parametrize(
    "text", ["", "captured=1", "pps", "pps=0", "pps=-1", "pps=nan", "speed=1/0", "rate=", "fast", "asap=1"]
)
def test_other_schedules_are_refused(text):
    with pytest.raises(ConfigError, match="want |no rate|rate"):
        Schedule.parse(text)


@pytest.mark.parametrize(("nics", "words", "message"), [
    ("a: {}, b: {}", ["in.pcap"], "nic b: has neither a capture nor a container; use --port b=IN.pcap, pid: or netns:"),
    ("a: {}", ["in.pcap"], "a replay in real time needs a NIC in a container: every one has a capture"),
    ("a: {}, b: {netns: /nowhere}", ["in.pcap"], "/nowhere"),
    ("a: {}, b: {netns: /nowhere}", ["in.pcap", "-o", "x"], "do not go with --realtime"),
    ("a: {}, b: {netns: /nowhere}", ["none.pcap"], "none.pcap: No such file or directory"),
])  # fmt: skip
def test_bad_use(tmp_path, nics, words, message):
    (tmp_path / "in.pcap").write_bytes(pcap([(START_NS, frame(B, A))], nanoseconds=True))
    (tmp_path / "net.yaml").write_text(f"nics: {{{nics}}}\n")
    done = replay(tmp_path, *words, "-c", "net.yaml", "--realtime", "captured")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(not IS_ROOT, reason="is the plain user's run already")
@pytest.mark.timeout(960)
@pytest.mark.again
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_realtime.py", timeout_s=920)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "1 skipped" in done.stdout
