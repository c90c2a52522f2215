"""Mirror and PcapWriter: their files, read by tcpdump and scapy."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.mirror import Mirror
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance, start
from dataplane.errors import ConfigError, PortError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import Frame, MemoryPort
from dataplane.ports.pcap_writer import PcapWriter
from tests.tools import need
from tests.wire_frames import Spec

BUFFER = 1 << 19  # the smallest allowed


def records(data: bytes) -> tuple[int, list[tuple[int, int, bytes]]]:
    """A simple reader: (snap length, [(time_ns, original length, bytes kept)])."""
    magic, major, minor, zero, zero2, snaplen, link = struct.unpack_from("=IHHIIII", data)
    assert (magic, major, minor, zero, zero2, link) == (0xA1B23C4D, 2, 4, 0, 0, 1)
    out, at = [], 24
    while at < len(data):
        seconds, nanoseconds, kept, length = struct.unpack_from("=IIII", data, at)
        assert nanoseconds < 10**9 and len(data) >= at + 16 + kept
        out.append((seconds * 10**9 + nanoseconds, length, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return snaplen, out


class Bench:
    """a >> mirror >> b."""

    def __init__(self, *, clock: Clock | None = None, **config: object) -> None:
        self.pool = PacketPool(small=2048, large=64)
        self.engine = Engine("e0", self.pool, clock=clock or Clock(virtual=True))
        self.a, self.b = MemoryPort("a", 0), MemoryPort("b", 1)
        self.mirror = Mirror(**config)
        rx = PortRx(self.a)
        rx >> self.mirror >> PortTx(self.b)
        self.engine.load([rx])

    def counters(self) -> dict[str, int]:
        return self.mirror.statistics()["counters"]

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()
        assert self.pool.in_use == 0


@settings(max_examples=30, deadline=None)
@given(
    snaplen=st.sampled_from([1, 60, 262_144]),
    bursts=st.lists(
        st.tuples(st.integers(0, 5 * 10**9), st.lists(st.one_of(st.integers(0, 200), st.integers(0, 69_504)), max_size=20)),
        max_size=8),
)  # fmt: skip
def test_every_packet_is_in_the_file_and_goes_on(tmp_path_factory, snaplen, bursts):
    path = tmp_path_factory.mktemp("mirror") / "out.pcap"
    bench, now, expected = Bench(file=path, snaplen=snaplen, buffer="64mb"), 0, []
    for gap, sizes in bursts:
        now += gap
        frames = [bytes([size & 0xFF]) * size for size in sizes]
        bench.engine.clock.set(now)
        bench.a.inject(frames)
        advance(bench.engine, now)
        expected += [(now, len(frame), frame[:snaplen]) for frame in frames]
        assert [frame.data for frame in bench.b.take()] == frames
    bench.close()
    assert records(path.read_bytes()) == (snaplen, expected)
    assert bench.counters()["mirrored"] == len(expected)
    assert bench.counters()["mirrored_bytes"] == sum(length for _, length, _ in expected)


def test_tcpdump_and_scapy_read_it(tmp_path):
    from scapy.utils import RawPcapReader

    path = tmp_path / "out.pcap"
    bench = Bench(file=str(path), clock=Clock(virtual=True, start_ns=1_700_000_000_123_456_789))
    specs = [Spec(payload=b"hello"), Spec(version=6, payload=b"x" * 100), Spec(payload=bytes(60_000))]
    # the last: GSO, whole, with a partial checksum
    frames = [specs[0].build(), specs[1].build(), specs[2].frame(1448)]
    bench.a.inject(frames)
    advance(bench.engine, 1_700_000_000_123_456_789)
    assert bench.b.take()[2].gso_size == 1448
    bench.close()
    raw = [frame.data if isinstance(frame, Frame) else frame for frame in frames]
    assert [data for data, _ in RawPcapReader(str(path))] == raw
    lines = subprocess.run(
        [need("tcpdump"), "-nn", "-tt", "--nano", "-r", str(path)],
        env={**os.environ, "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("1700000000.123456789 IP") for line in lines)
    assert "10.0.0.1.1234 > 10.0.0.2.80" in lines[0] and "length 5" in lines[0] and "length 60000" in lines[2]


def test_time_stamps_are_the_time_of_day(tmp_path):
    path = tmp_path / "out.pcap"
    bench = Bench(file=path, clock=Clock())
    before = time.time_ns()
    start(bench.engine)
    bench.a.inject([bytes(60)])
    while not bench.b.take():
        bench.engine.call(lambda: None)
    after = time.time_ns()
    bench.engine.stop()
    bench.close()
    [(at_ns, _, _)] = records(path.read_bytes())[1]
    assert before - 1_000_000 <= at_ns <= after + 1_000_000


def test_a_thread_writes_much_while_the_engine_runs(tmp_path):
    path = tmp_path / "out.pcap"
    bench = Bench(file=path, clock=Clock(), buffer=BUFFER)
    start(bench.engine)
    frames = [i.to_bytes(4, "big") + bytes(996) for i in range(20_000)]  # forty times the buffer
    passed = 0
    for i in range(0, len(frames), 500):
        bench.a.inject(frames[i : i + 500])
        while passed < i + 500:
            passed += len(bench.b.take())
            bench.engine.call(lambda: None)
    bench.engine.stop()
    bench.close()
    counters = bench.counters()
    assert counters["mirrored"] + counters["mirror_overflow"] == 20_000 and counters["mirror_failed"] == 0
    kept = records(path.read_bytes())[1]
    numbers = [int.from_bytes(data[:4], "big") for _, _, data in kept]
    assert len(numbers) == counters["mirrored"] and numbers == sorted(set(numbers))


def pipe_bench(tmp_path: Path) -> tuple[Bench, int]:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    return Bench(file=path, buffer=BUFFER), reader


def test_a_pipe_that_nobody_empties_overflows_and_stalls_nobody(tmp_path):
    bench, reader = pipe_bench(tmp_path)
    bench.a.inject([bytes([i]) * 50_000 for i in range(40)])
    advance(bench.engine, 1)
    assert len(bench.b.take()) == 40
    assert bench.counters()["mirror_overflow"] >= 40 - (BUFFER + 2**20) // 50_000
    assert bench.counters()["mirrored"] >= BUFFER // 50_016
    mirrored = bench.counters()["mirrored"]

    got = bytearray()

    def empty() -> None:
        while data := os.read(reader, 65536):
            got.extend(data)

    thread = threading.Thread(target=empty)
    thread.start()
    bench.close()
    thread.join()
    os.close(reader)
    kept = [data[0] for _, _, data in records(bytes(got))[1]]
    assert len(kept) == mirrored and kept == sorted(set(kept))
    assert records(bytes(got))[1] == [(0, 50_000, bytes([i]) * 50_000) for i in kept]


def test_closing_does_not_wait_for_ever(tmp_path):
    bench, reader = pipe_bench(tmp_path)
    bench.a.inject([bytes(50_000)] * 8)
    advance(bench.engine, 0)
    bench.close()
    assert bench.mirror.error is not None
    os.close(reader)


def test_a_reader_that_goes_away_is_counted(tmp_path):
    bench, reader = pipe_bench(tmp_path)
    os.close(reader)
    bench.a.inject([bytes(60)])
    advance(bench.engine, 0)
    while bench.mirror.error is None:
        os.sched_yield()
    assert bench.mirror.error == os.strerror(errno.EPIPE)
    bench.a.inject([bytes(60)] * 5)
    advance(bench.engine, 0)
    assert len(bench.b.take()) == 6 and bench.counters()["mirror_failed"] == 5
    bench.close()


def test_an_open_descriptor_is_written_to_and_stays_open(tmp_path):
    descriptor = os.open(tmp_path / "out.pcap", os.O_RDWR | os.O_CREAT)
    bench = Bench(file=descriptor)
    bench.a.inject([bytes(60)] * 3)
    advance(bench.engine, 0)
    bench.close()
    assert len(records(os.pread(descriptor, 4096, 0))[1]) == 3
    os.close(descriptor)


def test_nothing_stays_open(tmp_path):
    before = sorted(os.listdir("/proc/self/fd"))
    bench = Bench(file=tmp_path / "out.pcap")
    bench.a.inject([bytes(60)])
    advance(bench.engine, 0)
    bench.close()
    bench.a.close()
    bench.b.close()
    del bench
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("vnic-capture")] == []
    # The engine's and the pool's descriptors are still open; the capture's are all closed.
    left = [
        os.readlink(f"/proc/self/fd/{each}")
        for each in os.listdir("/proc/self/fd")
        if each not in before and os.path.exists(f"/proc/self/fd/{each}")
    ]
    assert not any("out.pcap" in each for each in left)


@pytest.mark.parametrize("config", [
    {"file": ""}, {"file": None}, {"file": True}, {"file": "x", "snaplen": 0}, {"file": "x", "snaplen": 262_145},
    {"file": "x", "snaplen": "all"}, {"file": "x", "buffer": "1kb"}, {"file": "x", "buffer": "2gb"}, {"file": "x", "buffer": "big"},
])  # fmt: skip
def test_wrong_configuration_is_one_line(config):
    with pytest.raises(ConfigError) as error:
        Mirror(name="tap", **config)
    assert str(error.value).startswith("tap: ") and "\n" not in str(error.value)


def test_a_file_that_cannot_be_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file, why in (
        ("/nonexistent/x.pcap", "No such file or directory"),
        (tmp_path / "pipe", "nobody reads"),
        (tmp_path, "Is a directory"),
        (12345, "Bad file descriptor"),
    ):
        with pytest.raises(PortError, match=why):
            Bench(file=file)


# -- PcapWriter ------------------------------------------------------------------------------------


def test_the_port_writes_what_it_is_given(tmp_path):
    pool = PacketPool(small=128, large=8)
    engine = Engine("e0", pool, clock=Clock(virtual=True, start_ns=42))
    a = MemoryPort("a", 0)
    port = PcapWriter("out", tmp_path / "out.pcap", 1, clock=engine.clock)
    rx = PortRx(a)
    rx >> PortTx(port)
    engine.load([rx])
    frames = [bytes([i]) * (60 + i * 1000) for i in range(6)]
    a.inject([*frames, Frame(bytes(30_000), 1, 1, 54, 1448, 34, 16)])
    advance(engine, 42)
    assert engine.conservation()["transmitted"] == 7 and engine.conservation()["conserved"]
    engine.close()
    port.close()
    port.close()
    assert records((tmp_path / "out.pcap").read_bytes())[1] == [(42, len(each), each) for each in (*frames, bytes(30_000))]
    assert port.queue_statistics()[0]["tx_bytes"] == sum(map(len, frames)) + 30_000
    assert pool.in_use == 0


def test_the_port_leaves_what_it_cannot_take(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    pool = PacketPool(small=8, large=64)
    engine, a = Engine("e0", pool, clock=Clock(virtual=True)), MemoryPort("a", 0)
    port = PcapWriter("out", tmp_path / "pipe", 1, buffer=BUFFER, clock=engine.clock)
    rx, tx = PortRx(a), PortTx(port)
    rx >> tx
    engine.load([rx])
    a.inject([bytes(60_000)] * 32)
    advance(engine, 0)
    dropped = tx.statistics()["dropped"]["queue_full"]
    assert dropped > 0 and engine.conservation()["transmitted"] == 32 - dropped
    os.close(reader)
    port.close()
    a.inject([bytes(60)] * 3)
    advance(engine, 0)
    assert tx.statistics()["dropped"]["link_down"] == 3 and engine.conservation()["conserved"]
    engine.close()
    assert pool.in_use == 0
