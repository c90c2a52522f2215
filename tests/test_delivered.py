"""What lines count as delivered is what arrives: packets on the wire and their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.graph.element import Element
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.impairment import Impairment
from shaping.link import Link
from tests.wire_frames import TCP, UDP, Spec

LINES = {
    "no event": lambda: Impairment(loss="0%"),
    "events": lambda: Impairment(loss="20%", duplicate="20%", corrupt="10%", reorder="20%"),
    "jitter": lambda: Impairment(delay={"mean": "5ms", "jitter": "3ms", "order": "any"}, loss="10%"),
    "nothing": lambda: Link(None),
    "delay": lambda: Link(None, delay="3ms"),
    "rate": lambda: Link("10mbit", {"packets": 60}, "docsis", delay="1ms"),
}
frames = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 12), st.integers(1, 1400)), max_size=30)


@pytest.mark.parametrize("line", LINES)
@settings(deadline=None, max_examples=30)
@given(frames)
def test_a_line_counts_what_arrives(line, frames):
    """Frames at their times in us: plain ones, and GSO frames of several segments, which the port behind it cuts."""
    pool = PacketPool(small=4096, large=64)
    engine = Engine("e0", pool, clock=Clock(virtual=True, start_ns=10**9))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1, 1, 0)
    element: Element = LINES[line]()
    rx = PortRx(a)
    rx >> Parse() >> element >> PortTx(b)
    engine.load([rx])
    for at_us, segments, size in sorted(frames):
        spec = Spec(protocol=TCP, payload=bytes(segments * size))
        a.inject([spec.frame(size) if segments > 1 else Spec(protocol=UDP, payload=bytes(size)).build()])
        advance(engine, 10**9 + at_us * 1000)
    advance(engine, 20 * 10**9)
    counted, arrived = element.statistics(), b.take()
    assert counted["held"] == 0
    assert counted["counters"]["delivered_packets"] == len(arrived)
    assert counted["counters"]["delivered_bytes"] == sum(len(frame.data) for frame in arrived)
    assert engine.conservation()["conserved"]
    engine.close()
