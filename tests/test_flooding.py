"""Flooding within bounds: every port gets its copies in order, one port's broadcasts do not hold up others, the rest is counted."""

import pytest

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handover import forget_engine, load_engine, save_engine
from dataplane.engine.running import advance, start
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable

PORTS = 200


@pytest.fixture
def pool():
    pool = PacketPool(small=16384, large=1024)
    yield pool
    assert pool.in_use == 0


def frame(source: int, destination: int | None, number: int = 0, size: int = 1000) -> bytes:
    there = b"\xff" * 6 if destination is None else bytes([2, 0, 0, 0, 1, destination])
    return there + bytes([2, 0, 0, 0, 1, source]) + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(size - 18)


class Bench:
    def __init__(self, pool, *, ports=PORTS, clock=None, taken=()):
        self.engine = Engine("e0", pool, clock=clock)
        self.ports = taken or [MemoryPort(f"p{i}", i) for i in range(ports)]
        self.switch = L2Switch(MacTable(), len(self.ports), name="switch")
        sources = []
        for number, port in enumerate(self.ports):
            rx = PortRx(port)
            rx >> self.switch
            self.switch.connect(number, PortTx(port))
            self.switch.activate(number)
            sources.append(rx)
        self.engine.load(sources)

    def delivered(self) -> int:
        return sum(port.queue_statistics()[0]["tx_packets"] for port in self.ports)

    def drops(self) -> dict[str, int]:
        return {reason: count for reason, count in self.switch.statistics()["dropped"].items() if count}

    def settle(self) -> None:
        """Waits until nothing is inside or comes any more."""
        before = None
        while before != (before := self.engine.call(lambda: (self.delivered(), self.drops()))) or self.held():
            pass

    def held(self) -> int:
        return self.engine.conservation()["held"]

    def close(self) -> None:
        assert self.engine.conservation()["conserved"]
        self.engine.close()


def numbers(port: MemoryPort) -> list[int]:
    return [int.from_bytes(each.data[14:18], "big") for each in port.take()]


def test_a_broadcast_reaches_every_port_however_long_it_takes(pool):
    bench = Bench(pool)
    bench.ports[0].inject([frame(1, None, number, 60_000) for number in range(10)])
    bench.ports[1].inject([frame(2, None, 100 + number) for number in range(10)])
    start(bench.engine)
    while bench.delivered() < 20 * (PORTS - 1):
        pass
    bench.settle()
    for number, port in enumerate(bench.ports):
        seen = numbers(port)
        assert [each for each in seen if each < 100] == ([] if number == 0 else list(range(10)))
        assert [each for each in seen if each >= 100] == ([] if number == 1 else list(range(100, 110)))
    assert bench.drops() == {} and bench.switch.statistics()["counters"]["flooded"] == 20
    assert bench.engine.status()["longest_turn_ns"] < 1_000_000_000
    bench.close()


def test_one_ports_broadcasts_do_not_hold_up_others(pool):
    """They wait, at most 64, and the rest is dropped and counted; unicast passes at once."""
    bench = Bench(pool)
    bench.ports[3].inject([frame(3, None)])  # it is learned
    start(bench.engine)
    bench.settle()
    for port in bench.ports:
        port.take()
    flooded = 0
    while bench.drops().get("flood_limit", 0) < 100:
        bench.ports[0].inject([frame(1, None, flooded + number, 60_000) for number in range(20)])
        flooded += 20
        bench.ports[1].inject([frame(2, 3, number) for number in range(5)])
        unicast = 0
        while unicast < 5:  # would not end if they waited for the copies
            unicast += sum(each.data[0] == 2 for each in bench.ports[3].take())
        assert bench.held() <= 64
    bench.settle()
    statistics = bench.switch.statistics()
    assert statistics["dropped"]["flood_limit"] >= 100
    assert statistics["counters"]["flooded"] == flooded + 1 - statistics["dropped"]["flood_limit"]
    bench.close()


@pytest.mark.parametrize("ports", [5, PORTS], ids=["ppoll", "epoll"])
def test_a_port_whose_broadcasts_are_refused_is_left_unread_now_and_then(pool, ports):
    """The engine sleeps although the port has packets; afterwards they are read, unicast too."""
    bench = Bench(pool, ports=ports)
    bench.ports[3].inject([frame(3, None)])  # it is learned
    start(bench.engine)
    bench.settle()
    bench.ports[3].take()
    before, sleeps, arrived = bench.engine.status()["sleeps"], 0, 0
    bench.ports[0].inject([frame(1, None, size=60_000)] * 1000 + [frame(1, 3)])
    while not arrived:
        sleeps = bench.engine.status()["sleeps"] - before
        arrived = sum(each.data[0] == 2 for each in bench.ports[3].take())
    assert bench.drops()["flood_limit"] > 0
    assert sleeps > 5  # it did not sleep once while packets waited
    bench.settle()
    bench.close()


def test_all_ports_have_their_turn(pool):
    bench = Bench(pool)
    for number in range(50):
        bench.ports[number].inject([frame(number, None, number, 60_000)] * 3)
    start(bench.engine)
    bench.settle()
    assert bench.switch.statistics()["counters"]["flooded"] + sum(bench.drops().values()) == 150
    assert len(set(numbers(bench.ports[-1]))) == 50
    bench.close()


def test_in_virtual_time_nothing_waits(pool):
    bench = Bench(pool, clock=Clock(virtual=True))
    bench.ports[0].inject([frame(1, None, number, 60_000) for number in range(40)])
    advance(bench.engine, 0)
    assert bench.delivered() == 40 * (PORTS - 1) and bench.held() == 0
    bench.close()


def flooding(pool):
    """A bench whose switch holds packets, stopped."""
    bench = Bench(pool)
    start(bench.engine)
    while not bench.held():
        bench.ports[0].inject([frame(1, None, 0, 60_000)] * 20)
        bench.ports[1].inject([frame(2, None, 1, 60_000)] * 20)
    bench.engine.stop()
    return bench


def test_what_waits_is_dropped_with_the_switch(pool):
    bench = flooding(pool)
    held = bench.held()
    bench.engine.load([])
    assert held > 0 and pool.in_use == 0
    bench.engine.close()


def test_a_port_that_closes_meanwhile_gets_nothing_more(pool):
    bench = flooding(pool)
    for number in range(PORTS):
        bench.switch.deactivate(number)
    start(bench.engine)
    bench.settle()
    assert bench.drops()["no_destination"] > 0
    bench.close()


def test_what_waits_is_handed_over(pool):
    old = flooding(pool)
    state = save_engine(old.engine)
    held, flooded = old.held(), old.switch.statistics()["counters"]["flooded"]
    for port in old.ports:
        port.take()
    new = Bench(pool, taken=old.ports)
    load_engine(new.engine, state)
    forget_engine(old.engine)
    old.engine.close()
    assert new.held() == held
    start(new.engine)
    new.settle()
    statistics = new.switch.statistics()
    assert statistics["counters"]["flooded"] >= flooded and new.held() == 0
    assert new.ports[-1].take()
    new.close()
