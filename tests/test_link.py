"""Link: edges that lead back, emptied in the same iteration; bounds; hand-over; the conservation law."""

import pytest

from dataplane.elements.counter import Counter, Discard
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.engine.running import advance, start
from dataplane.errors import GraphError, VnicError
from dataplane.graph.link import Link
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable

CAPACITY = 4096


@pytest.fixture
def pool():
    pool = PacketPool(small=16384, large=16)
    yield pool
    assert pool.in_use == 0


def frame(source: int, destination: int | None) -> bytes:
    there = b"\xff" * 6 if destination is None else bytes([2, 0, 0, 0, 0, destination])
    return there + bytes([2, 0, 0, 0, 0, source]) + b"\x88\xb5" + bytes(46)


class TwoSwitches:
    """Ports 0 and 1 on one switch, 2 and 3 on the other; a link between them (ports 4 and 5)."""

    def __init__(self, pool: PacketPool, name: str = "e0") -> None:
        self.engine = Engine(name, pool, clock=Clock(virtual=True))
        self.ports = [MemoryPort(f"p{i}", i) for i in range(4)]
        self.switches = [L2Switch(MacTable(), 6, name=each) for each in ("lan", "dmz")]
        self.links = [Link(5, name="lan--dmz.dmz"), Link(4, name="lan--dmz.lan")]
        nowhere = Discard(name="unused")
        sources = []
        for i, port in enumerate(self.ports):
            rx = PortRx(port)
            rx >> self.switches[i // 2]
            sources.append(rx)
        for number, switch in enumerate(self.switches):
            for gate in range(6):
                switch.connect(gate, nowhere)
            for i in (2 * number, 2 * number + 1):
                switch.connect(i, PortTx(self.ports[i]))
                switch.activate(i)
            switch.connect(4 + number, self.links[number])
            switch.activate(4 + number)
            self.links[number] >> self.switches[1 - number]
        self.engine.load([*sources, *self.links])

    def send(self, port: int, *frames: bytes) -> list[int]:
        """How many frames each port delivers."""
        self.ports[port].inject(frames)
        advance(self.engine, self.engine.clock.now_ns)
        return [len(each.take()) for each in self.ports]

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()


@pytest.fixture
def two(pool):
    two = TwoSwitches(pool)
    yield two
    two.close()


def test_switches_that_lead_to_each_other(two):
    assert two.send(0, frame(1, None)) == [0, 1, 1, 1]
    assert two.send(3, frame(4, 1)) == [1, 0, 0, 0]  # both switches have learned the way back
    assert two.send(0, frame(1, 4)) == [0, 0, 0, 1]
    assert two.send(0, *[frame(1, 4)] * 1000) == [0, 0, 0, 1000]
    assert all(each.statistics()["held"] == 0 for each in two.links)


def test_a_running_engine_empties_its_links(pool):
    engine = Engine("e0", pool)
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx, link, tx = PortRx(a), Link(9), PortTx(b)
    rx >> link
    link >> Counter(name="behind") >> tx
    engine.load([rx, link])
    start(engine)
    for _ in range(50):
        a.inject([frame(1, 2)] * 20)
    while sum(engine.call(b.queue_statistics)[0][f"tx_{what}"] for what in ("packets", "dropped")) < 1000:
        pass
    assert len(b.take()) == 1000
    assert engine.conservation()["conserved"]
    engine.close()


def test_what_leaves_a_link_has_its_port(pool):
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a = MemoryPort("a", 0)
    rx, link, switch = PortRx(a), Link(3), L2Switch(MacTable(), 4)
    rx >> link
    link >> switch
    out = MemoryPort("out", 7)
    for gate in range(4):
        switch.connect(gate, PortTx(out) if gate == 1 else Discard(name=f"no{gate}"))
    switch.activate(1)
    engine.load([rx, link])
    a.inject([frame(1, None)])
    advance(engine, 0)
    assert switch.statistics()["dropped"]["unknown_port"] == 1  # port 3 is not open
    switch.activate(3)
    a.inject([frame(1, None)])
    advance(engine, 0)
    assert len(out.take()) == 1
    engine.close()


def test_a_graph_that_circulates_packets_does_not_stop_its_engine(pool):
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a = MemoryPort("a", 0)
    rx, one, other = PortRx(a), Link(0, name="one"), Link(0, name="other")
    rx >> one
    one >> Counter(name="around") >> other
    other >> one
    engine.load([rx, one, other])
    a.inject([frame(1, 2)])
    advance(engine, 0)
    held = one.statistics()["held"] + other.statistics()["held"]
    assert held == 1
    assert engine.conservation()["conserved"]
    engine.close()


def test_more_than_a_link_holds_is_dropped_and_counted(pool):
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    ports = [MemoryPort(f"p{i}", i) for i in range(3)]
    one, other = Link(0, name="one"), Link(1, name="other")
    sources = [PortRx(port) for port in ports]
    for source in sources:
        source >> one
    one >> other
    other >> one
    engine.load([*sources, one, other])
    for _ in range(2):
        for port in ports:
            port.inject([frame(1, 2)] * 1000)
        advance(engine, 0)
    dropped = one.statistics()["dropped"]["link_full"] + other.statistics()["dropped"]["link_full"]
    held = one.statistics()["held"] + other.statistics()["held"]
    assert dropped + held == 6000 and held <= 2 * CAPACITY
    assert engine.conservation()["conserved"]
    engine.close()
    assert one.statistics()["dropped"]["released"] + other.statistics()["dropped"]["released"] == held


def test_what_a_link_holds_is_handed_over(pool):
    def around(name):
        engine = Engine(name, pool, clock=clock)
        port = MemoryPort("a", 0)
        rx, one, other = PortRx(port), Link(0, name="one"), Link(0, name="other")
        rx >> one
        one >> other
        other >> one
        engine.load([rx, one, other])
        return engine, port, (one, other)

    clock = Clock(virtual=True)
    old, port, _ = around("e0")
    port.inject([frame(1, 2)] * 300)
    advance(old, 0)
    new, _, links = around("e0")
    load_engine(new, save_engine(old))
    forget_engine(old)
    old.close()
    assert sum(each.statistics()["held"] for each in links) == 300
    advance(new, 0)
    assert sum(each.statistics()["held"] for each in links) == 300
    for damaged in ({}, {"packets": [1, 2]}, {"packets": "x"}, {"packets": [], "more": 1}):
        with pytest.raises(VnicError, match="one: its state is not that of a Link"):
            links[0].load_state(damaged)
    assert new.conservation()["conserved"]
    new.close()


def test_a_link_that_no_engine_empties_is_refused(pool):
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    rx, link = PortRx(MemoryPort("a")), Link(0, name="lonely")
    rx >> link
    link >> Discard()
    with pytest.raises(GraphError, match="lonely: packets are led to it, but it is not among the engine's sources"):
        engine.load([rx])
    engine.close()


def test_a_link_can_be_taken_out_again(two):
    two.send(0, frame(1, None))
    nowhere = two.switches[0].outputs[5]

    def cut() -> None:
        two.switches[0].connect(4, nowhere)
        two.switches[1].connect(5, nowhere)

    two.engine.call(cut)
    two.engine.load([each for each in two.engine.sources if each not in two.links])
    assert two.send(0, frame(1, None)) == [0, 1, 0, 0]
