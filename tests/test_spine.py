"""The dataplane's basic path: frames in, frames out, none lost."""

from dataplane.elements.counter import Counter
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance, start
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort


def test_frames_pass_a_graph_in_virtual_time():
    pool = PacketPool(small=64, large=64)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx, counter, tx = PortRx(a), Counter(), PortTx(b)
    rx >> counter >> tx
    engine.load([rx])
    frames = [bytes([i]) * (60 + i * 700) for i in range(40)]
    a.inject(frames)
    assert advance(engine, 1000) == 40
    assert [frame.data for frame in b.take()] == frames
    assert engine.conservation() == {
        "received": 40,
        "generated": 0,
        "transmitted": 40,
        "dropped": 0,
        "held": 0,
        "conserved": True,
    }
    assert counter.statistics()["counters"]["bytes"] == sum(map(len, frames))
    assert pool.in_use == 0


def test_a_thread_wakes_for_input_and_stops():
    pool = PacketPool()
    engine = Engine("e0", pool)
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx, tx = PortRx(a), PortTx(b)
    rx >> tx
    engine.load([rx])
    start(engine)
    try:
        for i in range(200):
            a.inject([bytes(60)])
            while not b.take():
                engine.call(lambda: None)
    finally:
        engine.stop()
    assert engine.conservation()["transmitted"] == 200
    engine.close()
