"""Segments that a second process attaches: pool, rings and MAC table across exec, after a crash,
and with damaged headers."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import VnicError
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PACKET_DTYPE, PacketPool
from dataplane.packet.ring import MpscRing, Ring, SpscRing
from dataplane.ports.memory import MemoryPort
from dataplane.ports.ring_port import RingPort
from shaping.shaper import Shaper
from switching.mac_table import MacTable

ROOT = Path(__file__).parent.parent
IN_USE = 0x8000
POOL_FIELDS = {"magic": (0, "<Q"), "version": (8, "<I"), "small": (12, "<I"), "large": (16, "<I"), "record": (20, "<I")}


def run_python(code: str, *descriptors: int) -> str:
    """Runs `code` in a Python process that inherits the descriptors under the same numbers; returns
    its output."""
    command = [sys.executable, "-c", code, *map(str, descriptors)]
    done = subprocess.run(command, pass_fds=descriptors, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def memfd(content: bytes, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def content(segment: PacketPool | Ring | MacTable | int) -> bytes:
    descriptor = segment if isinstance(segment, int) else segment.fd
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def pass_frames(pool: PacketPool, frames: list[bytes]) -> list[bytes]:
    """Passes frames through an engine on the pool, from one port to another; returns them."""
    engine = Engine("e", pool, clock=Clock(virtual=True))
    a, b = MemoryPort("a"), MemoryPort("b")
    source = PortRx(a)
    _ = source >> PortTx(b)
    engine.load([source])
    a.inject(frames)
    advance(engine, 0)
    out = [frame.data for frame in b.take()]
    engine.close()
    return out


def attach_ring(ring: Ring, **options: bool) -> Ring:
    return type(ring).from_descriptor(ring.fd, ring.doorbell, **options)


# -- sealing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: PacketPool(8, 2), lambda: SpscRing(8), lambda: MpscRing(8), lambda: MacTable(16)])
def test_nobody_can_take_the_memory_away(make: Callable[[], PacketPool | Ring | MacTable]):
    segment = make()
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 1 << 20)
    with pytest.raises(PermissionError):
        fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE


# -- the pool --------------------------------------------------------------------------------------


def test_two_pools_on_one_segment_are_one_pool():
    pool = PacketPool(small=40, large=3)
    other = PacketPool.from_descriptor(pool.fd)
    assert (other.small_count, other.large_count) == (40, 3)
    assert other.fd != pool.fd
    ring = SpscRing(64)
    engines = []
    for which, ports in (
        (pool, (MemoryPort("in"), RingPort("out", ring_out=ring))),
        (other, (RingPort("in", ring_in=ring), None)),
    ):
        engine = Engine("e", which, clock=Clock(virtual=True))
        source = PortRx(ports[0])
        sink = MemoryPort("sink")
        _ = source >> PortTx(ports[1] or sink)
        engine.load([source])
        engines.append((engine, ports[0], sink))
    frames = [bytes([i]) * (60 + i) for i in range(8)] + [bytes(5000)]
    engines[0][1].inject(frames)
    advance(engines[0][0], 0)
    assert pool.in_use == other.in_use == 9
    advance(engines[1][0], 0)
    assert [frame.data for frame in engines[1][2].take()] == frames
    assert pool.in_use == 0
    for engine, *_ in engines:
        engine.close()
    # Both engines returned their caches: the stacks hold every packet once.
    assert sorted(free_list(pool, "small") + free_list(pool, "large")) == list(range(43))


def free_list(pool: PacketPool, which: str) -> list[int]:
    with mmap.mmap(pool.fd, os.fstat(pool.fd).st_size, prot=mmap.PROT_READ) as view:
        (top,) = struct.unpack_from("<Q", view, 64 if which == "small" else 128)
    index, found = top & 0xFFFFFFFF, []
    while index != 0xFFFFFFFF:
        found.append(index)
        assert len(found) <= pool.small_count + pool.large_count, "the free list has a cycle"
        index = int(pool.records["next"][index])
    return found


def test_another_process_frees_what_we_sent_it():
    pool, ring, back = PacketPool(64, 2), SpscRing(64), MpscRing(64)
    engine = Engine("e", pool, clock=Clock(virtual=True))
    port = MemoryPort("in")
    source = PortRx(port)
    _ = source >> PortTx(RingPort("out", ring_out=ring))
    engine.load([source])
    port.inject([bytes([i]) * 100 for i in range(20)])
    advance(engine, 0)
    code = """
import sys
from dataplane.engine.clock import Clock; from dataplane.engine.engine import Engine
from dataplane.engine.running import advance; from dataplane.packet.pool import PacketPool
from dataplane.graph.port import PortRx, PortTx; from dataplane.ports.memory import MemoryPort
from dataplane.ports.ring_port import RingPort; from dataplane.packet.ring import MpscRing, SpscRing
pool_fd, ring_fd, bell, back_fd, back_bell = map(int, sys.argv[1:])
pool = PacketPool.from_descriptor(pool_fd)
engine, sink = Engine("f", pool, clock=Clock(virtual=True)), MemoryPort("sink")
source = PortRx(RingPort("in", ring_in=SpscRing.from_descriptor(ring_fd, bell)))
source >> PortTx(sink)
engine.load([source])
advance(engine, 0)
taken = sink.take()
engine.close()
MpscRing.from_descriptor(back_fd, back_bell).push_many([frame.data[0] for frame in taken])
print(len(taken), pool.in_use)
"""
    assert run_python(code, pool.fd, ring.fd, ring.doorbell, back.fd, back.doorbell) == "20 0\n"
    assert back.pop_many(64) == list(range(20))
    assert pool.in_use == 0
    engine.close()
    assert sorted(free_list(pool, "small")) == list(range(64))


CHURN = """
import sys
from dataplane.packet.pool import PacketPool
from tests.test_shared_memory import churn
pool = PacketPool.from_descriptor(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
churn(pool, 2)
"""


def churn(pool: PacketPool, seed: int) -> None:
    """Repeatedly holds and releases more packets than an engine caches, each with different
    bytes."""
    engine, port, out = Engine("e", pool, clock=Clock(virtual=True)), MemoryPort("in"), MemoryPort("out")
    source, shaper = PortRx(port), Shaper(10**6, "10mb")
    _ = source >> shaper >> PortTx(out)
    engine.load([source])
    for turn in range(150):
        frames = [bytes([seed, turn]) + bytes([i % 256]) * (70 + (turn + i) % 50) for i in range(200 + turn % 50)]
        port.inject(frames)
        advance(engine, engine.clock.now_ns)
        advance(engine, engine.clock.now_ns + 10**9)
        assert [frame.data for frame in out.take()] == frames, "somebody else wrote into our packets"
    engine.close()


def started(code: str, *descriptors: int) -> subprocess.Popen[str]:
    """A Python process that has attached its segments and was just told to continue."""
    command = [sys.executable, "-c", code, *map(str, descriptors)]
    child = subprocess.Popen(command, pass_fds=descriptors, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    return child


def test_two_processes_allocate_and_free_at_the_same_time():
    pool = PacketPool(1024, 2)
    child = started(CHURN, pool.fd)
    churn(pool, 1)
    child.communicate()
    assert child.returncode == 0
    assert pool.in_use == 0
    assert sorted(free_list(pool, "small")) == list(range(1024))


KILLED = """
import os, signal, sys
from dataplane.engine.clock import Clock; from dataplane.engine.engine import Engine
from dataplane.engine.running import advance; from dataplane.packet.pool import PacketPool
from dataplane.graph.port import PortRx, PortTx; from dataplane.ports.memory import MemoryPort
from dataplane.ports.ring_port import RingPort; from dataplane.packet.ring import MpscRing
pool_fd, ring_fd, bell = map(int, sys.argv[1:])
engine, port = Engine("f", PacketPool.from_descriptor(pool_fd), clock=Clock(virtual=True)), MemoryPort("in")
source = PortRx(port)
source >> PortTx(RingPort("out", ring_out=MpscRing.from_descriptor(ring_fd, bell)))
engine.load([source])
port.inject([bytes(100)] * 50)
advance(engine, 0)
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_reset_after_a_crash_gets_every_packet_back():
    pool, ring = PacketPool(64, 4), MpscRing(128)
    fds = (pool.fd, ring.fd, ring.doorbell)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, fds)], pass_fds=fds, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("ready\n", -9), done.stderr
    assert pool.in_use == 50
    assert len(ring) == 50
    assert len(free_list(pool, "small")) < 14  # the rest was in its cache
    pool = PacketPool.from_descriptor(pool.fd, reset=True)
    ring = MpscRing.from_descriptor(ring.fd, ring.doorbell, reset=True)
    assert (pool.in_use, len(ring), ring.pop_many(9)) == (0, 0, [])
    assert free_list(pool, "small") == list(range(64))
    assert free_list(pool, "large") == list(range(64, 68))
    frames = [bytes([i]) * 100 for i in range(60)]
    assert pass_frames(pool, frames) == frames


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("magic", 7, "holds something else"),
        ("version", 99, "has version 99, this vnic knows 1"),
        ("record", 64, "records have 64 bytes, this vnic's 128"),
        ("small", 0, "header is damaged"),
        ("small", 9, "header is damaged"),
        ("large", 0xFFFFFFFF, "header is damaged"),
    ],
)
def test_a_pool_that_is_none_is_refused_in_one_line(field: str, value: int, message: str):
    where, layout = POOL_FIELDS[field]
    raw = bytearray(content(PacketPool(8, 2)))
    struct.pack_into(layout, raw, where, value)
    descriptor = memfd(bytes(raw))
    for reset in (False, True):
        with pytest.raises(VnicError, match=message) as caught:
            PacketPool.from_descriptor(descriptor, reset=reset)
        assert "\n" not in str(caught.value)
    assert content(descriptor) == raw
    os.close(descriptor)


def test_descriptors_that_are_no_segments_are_refused(tmp_path: Path):
    doorbell = os.eventfd(0, os.EFD_NONBLOCK)
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    whole = content(PacketPool(8, 2))
    open_memfd, short, empty = memfd(whole, 0), memfd(whole[:100]), memfd(b"")
    before = len(os.listdir("/proc/self/fd"))
    for descriptor in (doorbell, file, open_memfd, short, empty, 100_000, -1, 2**40):
        for attach in (
            PacketPool.from_descriptor,
            MacTable.from_descriptor,
            lambda fd: SpscRing.from_descriptor(fd, doorbell),
        ):
            with pytest.raises(VnicError) as caught:
                attach(descriptor)
            assert "\n" not in str(caught.value)
    ring = SpscRing(8)
    blocking = os.eventfd(0)
    for wrong in (blocking, ring.fd, -1, 100_000):
        with pytest.raises(VnicError, match="doorbell"):
            SpscRing.from_descriptor(ring.fd, wrong)
    os.close(blocking)
    del ring
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"
    for descriptor in (doorbell, file, open_memfd, short, empty):
        os.close(descriptor)


DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


def damaged(whole: bytes, damage: list[tuple[int, bytes]], within: int) -> int:
    raw = bytearray(whole)
    for where, data in damage:
        where %= within
        raw[where : where + len(data)] = data
    return memfd(bytes(raw[: len(whole)]))


@settings(max_examples=150, deadline=None)
@given(damage=DAMAGE, reset=st.booleans())
def test_a_damaged_pool_is_refused_or_harmless(damage: list[tuple[int, bytes]], reset: bool):
    descriptor = damaged(content(PacketPool(40, 2)), damage, 192 + 42 * PACKET_DTYPE.itemsize)
    try:
        pool = PacketPool.from_descriptor(descriptor, reset=reset)
    except VnicError as error:
        assert "\n" not in str(error)
    else:
        assert (pool.small_count, pool.large_count) == (40, 2)
        if reset:  # the contents of records and stacks do not matter
            frames = [bytes([i]) * 70 for i in range(30)]
            assert pass_frames(pool, frames) == frames
    finally:
        os.close(descriptor)


# -- rings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SpscRing, MpscRing])
@pytest.mark.parametrize("start", [0, 2**32 - 5])
def test_two_rings_on_one_segment_are_one_ring(kind: type[Ring], start: int):
    ring = kind(8, start)
    other = attach_ring(ring)
    assert other.capacity == 8
    assert ring.push_many(range(7)) == 7
    assert other.pop_many(5) == [0, 1, 2, 3, 4]
    third = attach_ring(ring)
    assert third.push_many(range(7, 20)) == 6
    assert (len(ring), ring.pop_many(20)) == (8, [5, 6, 7, 8, 9, 10, 11, 12])
    third.push_many([1, 2, 3])
    fresh = attach_ring(ring, reset=True)
    assert len(fresh) == 0
    assert fresh.push_many(range(20)) == 8
    assert ring.pop_many(20) == list(range(8))


def test_rings_are_told_apart():
    spsc, mpsc, pool = SpscRing(8), MpscRing(8), PacketPool(8, 2)
    with pytest.raises(VnicError, match="of kind 1, not 2"):
        MpscRing.from_descriptor(spsc.fd, spsc.doorbell)
    with pytest.raises(VnicError, match="of kind 2, not 1"):
        SpscRing.from_descriptor(mpsc.fd, mpsc.doorbell)
    with pytest.raises(VnicError, match="holds something else"):
        SpscRing.from_descriptor(pool.fd, spsc.doorbell)


@pytest.mark.parametrize(("kind", "producers"), [("SpscRing", 1), ("MpscRing", 2)])
def test_processes_lose_nothing_and_keep_order(kind: str, producers: int):
    ring: Ring = {"SpscRing": SpscRing, "MpscRing": MpscRing}[kind](256)
    each = 20_000
    code = f"""
import sys
from dataplane.packet.ring import {kind}
ring = {kind}.from_descriptor(int(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
first, at = int(sys.stdin.readline()) << 24, 0
numbers = [first | i for i in range({each})]
while at < {each}:
    at += ring.push_many(numbers[at:at + 1 + at % 97])
"""
    fds = (ring.fd, ring.doorbell)
    command = [sys.executable, "-c", code, *map(str, fds)]
    children = [
        subprocess.Popen(command, pass_fds=fds, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(producers)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for number, child in enumerate(children):
        assert child.stdin is not None
        child.stdin.write(f"{number}\n")
        child.stdin.flush()
    taken: list[int] = []
    while len(taken) < producers * each:
        got = ring.pop_many(61)
        if not got:
            assert [child.poll() for child in children] != [0] * producers or len(ring), (
                f"{len(taken)} of {producers * each} came"
            )
            os.sched_yield()
        taken += got
    for number, child in enumerate(children):
        child.communicate()
        assert child.returncode == 0
        assert [value & 0xFFFFFF for value in taken if value >> 24 == number] == list(range(each))


@settings(max_examples=150, deadline=None)
@given(damage=DAMAGE, reset=st.booleans(), kind=st.sampled_from([SpscRing, MpscRing]), filled=st.integers(0, 8))
def test_a_damaged_ring_is_refused_or_harmless(damage, reset: bool, kind: type[Ring], filled: int):
    ring = kind(8)
    ring.push_many(range(filled))
    whole = content(ring)
    descriptor = damaged(whole, damage, len(whole))
    try:
        other = kind.from_descriptor(descriptor, ring.doorbell, reset=reset)
    except VnicError as error:
        assert "\n" not in str(error)
    else:
        assert 0 <= len(other) <= 8
        assert other.push_many(range(20)) <= 8 if not reset else other.push_many(range(20)) == 8
        assert len(other.pop_many(20)) <= 20
        if reset:
            assert len(other) == 0
    finally:
        os.close(descriptor)


def test_a_doorbell_that_rang_for_the_dead_is_silent_after_a_reset():
    ring = SpscRing(8)
    os.eventfd_write(ring.doorbell, 3)
    other = attach_ring(ring, reset=True)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(other.doorbell)
    os.eventfd_write(other.doorbell, 1)
    assert os.eventfd_read(ring.doorbell) == 1, "not the same doorbell"
