"""`drain`: elements that hold packets forward them all at once, in their order, and can go on afterwards."""

from __future__ import annotations

import struct
from typing import Any

import pytest

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
from shaping.pacer import Pacer
from shaping.pool_share import PoolShare
from shaping.scheduler import Scheduler
from shaping.shaper import Shaper
from shaping.trace_link import TraceLink
from tests.wire_frames import UDP, Spec

START_NS, MS = 10**9, 10**6
STEPS = [{"for": "10ms", "rate": "1mbit"}, {"for": "10ms", "rate": "0bit"}]
DEEP = {"packets": 1000}
QUEUES: dict[str, Any] = {"slow": {"ceiling": "1mbit", "queue": {"size": "1mb"}}, "fair": {"mark": 1, "queue": "fq"}}
CLASSES = {"rate": "2mbit", "default": "slow", "tree": QUEUES}

ELEMENTS: dict[str, tuple[type[Element], dict[str, Any]]] = {
    "shaper": (Shaper, {"rate": "1mbit", "queue": "10s"}),
    "link": (Link, {"rate": "1mbit", "queue": DEEP, "delay": "20ms"}),
    "link, delay only": (Link, {"rate": None, "delay": "20ms"}),
    "trace": (TraceLink, {"trace": STEPS, "queue": DEEP, "delay": "20ms"}),
    "delay": (Impairment, {"delay": "20ms"}),
    "jitter": (Impairment, {"delay": {"mean": "20ms", "jitter": "5ms", "shape": "normal"}}),
    "pacer": (Pacer, {"rate": "1mbit"}),
    "pacer of flows": (Pacer, {"rate": "1mbit", "per": "flow", "horizon": "10s"}),
    "scheduler": (Scheduler, {"classes": CLASSES}),
}


class Bench:
    """a >> Parse >> element >> b in virtual time."""

    def __init__(self, name: str) -> None:
        self.pool = PacketPool(small=2048, large=64)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True, start_ns=START_NS))
        self.a, self.b = MemoryPort("a", 0), MemoryPort("b", 1)
        made, config = ELEMENTS[name]
        self.element: Any = made(**config, name="it")
        self.share = PoolShare(small=2048, large=64)
        if hasattr(self.element, "join"):
            self.element.join(self.share)
        rx = PortRx(self.a)
        rx >> Parse(name="parse") >> self.element >> PortTx(self.b)
        self.engine.load([rx])

    def send(self, *numbers: int) -> None:
        self.a.inject(
            [Spec(protocol=UDP, payload=struct.pack("!I", n) + bytes(100), source_port=1 + n % 2).build() for n in numbers]
        )
        advance(self.engine, self.engine.clock.now_ns)

    def taken(self) -> list[int]:
        return [struct.unpack("!I", frame.data[42:46])[0] for frame in self.b.take()]

    def drain(self) -> None:
        self.engine.call(self.element.drain)

    def check_nothing_is_held(self) -> None:
        statistics = self.element.statistics()
        assert statistics["held"] == 0 and sum(statistics["dropped"].values()) == 0
        assert self.engine.conservation()["conserved"] and self.share.packets == (0, 0)
        self.b.take()
        assert self.pool.in_use == 0


@pytest.mark.parametrize("name", ELEMENTS)
def test_all_leaves_at_once_and_in_order(name: str) -> None:
    bench = Bench(name)
    bench.send(*range(40))
    advance(bench.engine, START_NS + 2 * MS)
    before = bench.taken()
    assert bench.element.statistics()["held"] == 40 - len(before) > 30
    bench.drain()
    after = bench.taken()
    assert [*before, *after] == list(range(40)) or name == "pacer of flows"
    for flow in (0, 1):
        assert [each for each in [*before, *after] if each % 2 == flow] == list(range(flow, 40, 2))
    bench.check_nothing_is_held()
    bench.drain()  # of nothing
    bench.check_nothing_is_held()


@pytest.mark.parametrize("name", ELEMENTS)
def test_a_few_leave_at_a_time_the_oldest_first(name: str) -> None:
    """While others arrive."""
    bench = Bench(name)
    bench.send(*range(40))
    advance(bench.engine, START_NS + 2 * MS)
    found, sent = bench.taken(), 40
    while bench.element.statistics()["held"]:
        held = bench.element.statistics()["held"]
        bench.engine.call(lambda: bench.element.drain(5))
        found += (taken := bench.taken())
        assert len(taken) == min(5, held) and bench.element.statistics()["held"] == held - len(taken)
        if sent < 50:
            bench.send(sent)
            found += bench.taken()  # the first of those that wait, if it is due
            sent += 1
    for flow in (0, 1):
        assert [each for each in found if each % 2 == flow] == list(range(flow, 50, 2))
    bench.check_nothing_is_held()


@pytest.mark.parametrize("name", ELEMENTS)
def test_it_goes_on_afterwards(name: str) -> None:
    """As it has to where the change fails for which it was drained."""
    bench, other = Bench(name), Bench(name)
    bench.send(*range(10))
    bench.drain()
    assert sorted(bench.taken()) == list(range(10))
    for each in (bench, other):
        advance(each.engine, START_NS + 500 * MS)
        each.send(*range(10, 30))
    assert bench.element.statistics()["held"] > 10
    advance(bench.engine, START_NS + 2000 * MS)
    advance(other.engine, START_NS + 2000 * MS)
    assert sorted(bench.taken()) == sorted(other.taken()) == list(range(10, 30))
    bench.check_nothing_is_held()


@pytest.mark.parametrize("name", ELEMENTS)
def test_a_frame_that_is_sent_in_part_leaves_whole(name: str) -> None:
    """The segments of GSO frames, of which the first has been cut when the element is drained."""
    bench, payload = Bench(name), bytes(range(256)) * 40
    sent = [Spec(payload=payload, sequence=1 + number * len(payload)) for number in range(3)]
    bench.a.inject([spec.frame(1000) for spec in sent])
    advance(bench.engine, START_NS)
    advance(bench.engine, START_NS + 30 * MS)
    bench.drain()
    sequence, found = 1, b""
    for frame in bench.b.take():
        assert struct.unpack("!I", frame.data[38:42])[0] == sequence
        sequence += len(frame.data) - 54
        found += frame.data[54:]
    assert found == payload * 3
    bench.check_nothing_is_held()


def test_packets_that_others_were_to_overtake_leave_too() -> None:
    bench = Bench("delay")
    bench.element = Impairment(reorder={"share": "100%", "by": 5, "within": "1s"}, name="late")
    rx = PortRx(bench.a, name="other")
    rx >> Parse(name="other parse") >> bench.element >> PortTx(bench.b, name="other tx")
    bench.engine.load([rx])
    bench.send(0, 1, 2)
    assert bench.taken() == [] and bench.element.statistics()["held"] == 3
    bench.drain()
    assert bench.taken() == [0, 1, 2] and bench.element.statistics()["held"] == 0


@pytest.mark.parametrize("name", ELEMENTS)
def test_an_element_of_no_engine_has_nothing(name: str) -> None:
    made, config = ELEMENTS[name]
    made(**config).drain()
