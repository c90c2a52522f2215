"""RingPort and LoopbackPort, with engines in virtual time and on threads."""

from __future__ import annotations

import threading

import pytest

from dataplane.elements.counter import Counter
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance, start
from dataplane.errors import ConfigError
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.packet.ring import MpscRing, SpscRing
from dataplane.ports.loopback import LoopbackPort
from dataplane.ports.memory import Frame, MemoryPort
from dataplane.ports.ring_port import RingPort

PATIENCE_S = 60  # far more than any test takes; a lost wake-up would wait forever


class Reached(PyElement):
    """Sets `event` once `goal` packets have passed."""

    def __init__(self, goal: int, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.goal, self.seen, self.event = goal, 0, threading.Event()

    def process(self, batch):
        self.seen += len(batch)
        if self.seen >= self.goal:
            self.event.set()


def virtual(pool: PacketPool, name: str = "e0") -> Engine:
    return Engine(name, pool, clock=Clock(virtual=True))


# -- RingPort --------------------------------------------------------------------------------------


def test_a_ring_port_keeps_the_record_and_counts():
    pool = PacketPool(small=64, large=4)
    ring = SpscRing(16)
    left, right = virtual(pool, "left"), virtual(pool, "right")
    a, b = MemoryPort("a", 7), MemoryPort("b", 8)
    seen: list[tuple[int, int]] = []

    class Look(PyElement):
        def process(self, batch):
            seen.extend(zip(batch.port.tolist(), batch.timestamp_ns.tolist(), strict=True))

    out, into = RingPort("out", 20, ring_out=ring), RingPort("into", 21, ring_in=ring)
    left_rx, right_rx = PortRx(a), PortRx(into)
    left_rx >> PortTx(out)
    right_rx >> Look() >> PortTx(b)
    left.load([left_rx])
    right.load([right_rx])
    frames = [Frame(bytes([i]) * (60 + i), gso_type=1, gso_size=8, header_length=54) for i in range(20)]
    left.clock.set(5)
    a.inject(frames)
    advance(left, 5)
    assert left_rx.statistics()["received"] == 20
    assert left.conservation()["dropped"] == 4  # the ring holds 16
    advance(right, 100)
    assert seen == [(7, 5)] * 16
    assert [frame.data for frame in b.take()] == [frame.data for frame in frames[:16]]
    size = sum(len(frame.data) for frame in frames[:16])
    tx, rx = out.queue_statistics()[0], into.queue_statistics()[0]
    assert (tx["tx_packets"], tx["tx_bytes"], tx["tx_dropped"]) == (16, size, 4)
    assert (rx["rx_packets"], rx["rx_bytes"]) == (16, size)
    for engine in (left, right):
        assert engine.conservation()["conserved"]
        engine.close()
    assert pool.in_use == 0


def test_a_ring_port_without_an_outgoing_ring_takes_nothing():
    pool = PacketPool(small=64, large=4)
    engine, a = virtual(pool), MemoryPort("a", 0)
    rx, tx = PortRx(a), PortTx(RingPort("r", 1, ring_in=SpscRing(4)))
    rx >> tx
    engine.load([rx])
    a.inject([bytes(60)] * 3)
    advance(engine, 0)
    assert tx.statistics()["dropped"]["link_down"] == 3
    engine.close()
    assert pool.in_use == 0


def test_rings_that_make_no_sense():
    ring = SpscRing(4)
    with pytest.raises(ConfigError, match="no ring"):
        RingPort("r")
    with pytest.raises(ConfigError, match="LoopbackPort"):
        RingPort("r", 1, ring, ring)


@pytest.mark.parametrize("kind", [SpscRing, MpscRing])
@pytest.mark.parametrize(("in_flight", "crossings", "spin_ns"), [(1, 20_000, 0), (1, 5_000, 20_000), (300, 1_000_000, 0)])
def test_two_engines_exchange_packets_for_long(kind, in_flight, crossings, spin_ns):
    """Packets circulate between two threads that sleep while their ring is empty. Nothing else
    wakes them: with one packet, every hop is a wake-up, and a lost one fails the test."""
    pool = PacketPool(small=1024, large=8)
    to_right, to_left = kind(512, 2**32 - 1000), kind(512, 2**32 - 1000)
    left, right = Engine("left", pool, spin_ns=spin_ns), Engine("right", pool, spin_ns=spin_ns)
    reached, counter = Reached(crossings), Counter()
    left_rx, right_rx = PortRx(RingPort("l", 1, to_left, to_right)), PortRx(RingPort("r", 2, to_right, to_left))
    left_rx >> counter >> PortTx(left_rx.port)
    right_rx >> reached >> PortTx(right_rx.port)
    first = MemoryPort("first", 3)
    first_rx = PortRx(first)
    first_rx >> counter
    left.load([left_rx, first_rx])
    right.load([right_rx])
    start(left)
    try:
        first.inject([i.to_bytes(4, "big") + bytes(60) for i in range(in_flight)])
        while len(to_right) < in_flight:  # all in flight in order, before the first returns
            left.call(lambda: None)
        start(right)
        assert reached.event.wait(PATIENCE_S)
    finally:
        left.stop()
        right.stop()
    for engine in (left, right):
        assert engine.conservation()["conserved"] and engine.conservation()["dropped"] == 0
        assert in_flight > 1 or spin_ns or engine.status()["sleeps"] > 0
    # At the end, packets that wait for the left engine are older than those for the right one.
    order = [
        int(pool.frame(index)[:4].astype(int) @ [1 << 24, 1 << 16, 1 << 8, 1])
        for index in to_left.pop_many(512) + to_right.pop_many(512)
    ]
    assert sorted(order) == list(range(in_flight))
    turn = order.index(0)
    assert order[turn:] + order[:turn] == list(range(in_flight))
    left.close()
    right.close()


def test_several_engines_feed_one():
    pool = PacketPool(small=32768, large=8)
    ring, each = MpscRing(32768), 8_000
    inputs = [MemoryPort(f"in{i}", i) for i in range(3)]
    feeders = [Engine(f"feeder{i}", pool) for i in range(3)]
    for i, engine in enumerate(feeders):
        rx = PortRx(inputs[i])
        rx >> PortTx(RingPort(f"to{i}", 10 + i, ring_out=ring))
        engine.load([rx])
    sink, out, reached = Engine("sink", pool), MemoryPort("out", 20), Reached(3 * each)
    rx = PortRx(RingPort("from", 21, ring_in=ring))
    rx >> reached >> PortTx(out)
    sink.load([rx])
    for engine in (sink, *feeders):
        start(engine)
    try:
        for i, port in enumerate(inputs):
            port.inject([bytes([i]) + n.to_bytes(4, "big") + bytes(60) for n in range(each)])
        assert reached.event.wait(PATIENCE_S)
    finally:
        for engine in (*feeders, sink):
            engine.stop()
    frames = [frame.data for frame in out.take()]
    for i in range(3):
        assert [int.from_bytes(data[1:5], "big") for data in frames if data[0] == i] == list(range(each))
    for engine in (*feeders, sink):
        assert engine.conservation()["conserved"]
        engine.close()
    assert pool.in_use == 0


def test_a_ring_is_polled_among_many_descriptors():
    """With many descriptors the engine asks ppoll which are readable; a ring's doorbell does not
    ring while the engine is awake."""
    pool = PacketPool(small=2048, large=8)
    ring = SpscRing(1024)
    left, right = Engine("left", pool), Engine("right", pool)
    a, many, reached = MemoryPort("a", 0), MemoryPort("many", 1, queues=20), Reached(1000)
    left_rx, ring_rx, many_rx = PortRx(a), PortRx(RingPort("in", 3, ring_in=ring)), PortRx(many)
    left_rx >> PortTx(RingPort("out", 2, ring_out=ring))
    sink = PortTx(MemoryPort("sink", 4))
    ring_rx >> reached >> sink
    many_rx >> sink
    left.load([left_rx])
    right.load([ring_rx, many_rx])
    start(left)
    start(right)
    try:
        for _ in range(100):
            many.inject([bytes(60)] * 2)
            a.inject([bytes(60)] * 10)
        assert reached.event.wait(PATIENCE_S)
    finally:
        left.stop()
        right.stop()
    left.close()
    right.close()


def test_drain_frees_what_waits():
    pool = PacketPool(small=64, large=4)
    ring, engine, a = SpscRing(64), virtual(pool), MemoryPort("a", 0)
    rx = PortRx(a)
    rx >> PortTx(RingPort("out", 1, ring_out=ring))
    engine.load([rx])
    a.inject([bytes(60)] * 20)
    advance(engine, 0)
    engine.close()
    assert pool.in_use == 20
    assert RingPort("in", 2, ring_in=ring).drain(engine) == 20
    assert pool.in_use == 0


# -- LoopbackPort ----------------------------------------------------------------------------------


def test_a_loopback_returns_what_it_takes():
    pool = PacketPool(small=128, large=8)
    engine, a, b, loop = virtual(pool), MemoryPort("a", 0), MemoryPort("b", 1), LoopbackPort("lo", 9, capacity=64)
    ports: list[int] = []

    class Look(PyElement):
        def process(self, batch):
            ports.extend(batch.port.tolist())

    rx, back = PortRx(a), PortRx(loop)
    rx >> PortTx(loop)
    back >> Look() >> PortTx(b)
    engine.load([rx, back])
    frames = [Frame(bytes([i]) * 100, 1, 1, 54, 20, 34, 16) for i in range(30)]
    a.inject(frames)
    advance(engine, 77)
    out = b.take()
    assert [frame._replace(time_ns=0) for frame in out] == frames and ports == [9] * 30
    statistics = loop.queue_statistics()[0]
    assert (
        statistics["rx_packets"] == statistics["tx_packets"] == 30 and statistics["rx_bytes"] == statistics["tx_bytes"] == 3000
    )
    assert engine.conservation()["conserved"]
    engine.close()
    assert pool.in_use == 0


def test_a_loopback_is_bounded_and_drains():
    pool = PacketPool(small=128, large=8)
    engine, a, loop = virtual(pool), MemoryPort("a", 0), LoopbackPort("lo", 9, queues=2, capacity=8)
    rx, tx = PortRx(a), PortTx(loop)
    rx >> tx
    engine.load([rx])
    a.inject([bytes(60)] * 20)
    advance(engine, 0)
    assert tx.statistics()["dropped"]["queue_full"] == 12 and engine.conservation()["conserved"]
    assert len(loop.descriptors()) == 2
    engine.close()
    assert loop.drain(engine) == 8
    assert pool.in_use == 0


def test_a_loopback_across_threads():
    pool = PacketPool(small=4096, large=8)
    loop, a, reached = LoopbackPort("lo", 9, capacity=2048), MemoryPort("a", 0), Reached(1000)
    left, right = Engine("left", pool), Engine("right", pool)
    rx, back = PortRx(a), PortRx(loop)
    rx >> PortTx(loop)
    back >> reached >> PortTx(MemoryPort("b", 1))
    left.load([rx])
    right.load([back])
    start(left)
    start(right)
    try:
        for _ in range(100):
            a.inject([bytes(60)] * 10)
        assert reached.event.wait(PATIENCE_S)
    finally:
        left.stop()
        right.stop()
    left.close()
    right.close()
    assert pool.in_use == 0


def test_a_loopback_of_a_wrong_size():
    with pytest.raises(ConfigError, match=r"lo: .*power of two"):
        LoopbackPort("lo", capacity=3)
