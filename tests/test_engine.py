"""Engine: mailbox, timers in virtual time, reload while running, sleep and wake, the conservation
law."""

import os
import threading
import time

import pytest

from dataplane.elements.counter import Counter, Discard
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine, MailboxFull
from dataplane.engine.running import advance, start
from dataplane.errors import ConfigError, GraphError, VnicError
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from shaping.shaper import Shaper


@pytest.fixture
def pool():
    return PacketPool(small=256, large=16)


@pytest.fixture
def running(pool):
    engine = Engine("e0", pool)
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx, tx = PortRx(a), PortTx(b)
    rx >> tx
    engine.load([rx])
    start(engine)
    yield engine, a, b
    engine.close()
    assert pool.in_use == 0


def test_work_runs_on_the_engine_thread_and_returns(running):
    engine, _, _ = running
    assert engine.call(lambda: threading.current_thread().name) == "vnic-e0"
    assert engine.call(lambda: engine.call(lambda: 7)) == 7  # work posted by work runs at once


def test_work_that_raises_raises_at_the_poster(running):
    engine, _, _ = running
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0)
    assert engine.call(lambda: "still there") == "still there"


def test_many_posters_all_get_their_own_answer(running):
    engine, _, _ = running
    answers: dict[int, int] = {}

    def ask(number: int) -> None:
        for i in range(50):
            answers[number] = engine.call(lambda: number * 1000 + i)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {n: n * 1000 + 49 for n in range(8)}


def test_the_mailbox_is_one_deep(running):
    engine, _, _ = running
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(10)

    poster = threading.Thread(target=engine.call, args=(slow,))
    poster.start()
    assert begun.wait(10)
    from dataplane.graph.work import Call

    with pytest.raises(MailboxFull):
        engine.post(Call(lambda: None), wait=False)
    go_on.set()
    poster.join(10)
    assert not poster.is_alive()


def test_a_sleeping_engine_uses_no_cpu(running):
    engine, _, _ = running
    engine.call(lambda: None)
    before = engine.status()
    threading.Event().wait(0.3)
    after = engine.status()
    assert after["cpu_ns"] - before["cpu_ns"] < 6_000_000  # 2 % of 0.3 s
    assert after["polls"] - before["polls"] <= 3


def test_spinning_costs_cpu_and_is_counted(pool):
    engine = Engine("e0", pool, spin_ns=10_000_000_000)
    start(engine)
    before = engine.status()
    threading.Event().wait(0.1)
    after = engine.status()
    engine.close()
    assert after["sleeps"] == before["sleeps"]
    assert after["polls"] > before["polls"] + 100


def test_elements_come_and_go_while_traffic_runs(running):
    engine, a, b = running
    c = MemoryPort("c", 2)
    rx = PortRx(c)
    counter = Counter()
    rx >> counter >> Discard()
    engine.load([*engine.sources, rx])
    c.inject([bytes(60)] * 5)
    a.inject([bytes(60)] * 3)
    while sum(statistics["received"] for _, statistics in engine.snapshot()) < 8:
        pass
    assert engine.conservation()["dropped"] == 5
    left = engine.load([source for source in engine.sources if source is not rx])
    retired = {element.name: statistics for element, statistics in left}
    assert retired["Counter"]["packets"] == 5
    assert rx.engine is None
    assert len(b.take()) == 3


def test_names_are_unique_and_elements_belong_to_one_engine(pool):
    engine, other = Engine("e0", pool), Engine("e1", pool)
    rx = PortRx(MemoryPort("a"))
    rx >> Counter() >> Counter() >> Discard()
    with pytest.raises(GraphError, match="Counter: two elements"):
        engine.load([rx])
    rx = PortRx(MemoryPort("a"))
    rx >> Discard()
    engine.load([rx])
    with pytest.raises(GraphError, match="runs in engine e0 already"):
        other.load([rx])


def test_a_failing_initialize_leaves_nothing_bound(pool):
    class Refuses(Counter):
        def initialize(self):
            raise ConfigError("refuses: no")

    engine = Engine("e0", pool)
    rx = PortRx(MemoryPort("a"))
    rx >> Refuses() >> Discard()
    with pytest.raises(ConfigError, match="refuses: no"):
        engine.load([rx])
    assert rx.engine is None and engine.elements == []


def test_a_cpu_that_is_not_there(pool):
    engine = Engine("e0", pool, cpu=4096)
    with pytest.raises(ConfigError, match="cpu 4096: not usable here"):
        start(engine)
    engine = Engine("e0", pool, cpu=min(os.sched_getaffinity(0)))
    start(engine)
    assert engine.call(lambda: os.sched_getaffinity(0)) == {min(os.sched_getaffinity(0))}
    engine.close()


def test_clocks_do_not_mix(pool):
    with pytest.raises(VnicError, match="virtual clock; use advance"):
        start(Engine("e0", pool, clock=Clock(virtual=True)))
    with pytest.raises(VnicError, match="machine's clock; use start"):
        advance(Engine("e0", pool), 5)
    clock = Clock(virtual=True, start_ns=10)
    with pytest.raises(ConfigError, match="time does not go back"):
        clock.set(9)


def test_exhausted_pool_is_counted_and_nothing_stops():
    pool = PacketPool(small=4, large=2)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a, b = MemoryPort("a", 0), MemoryPort("b", 1)
    rx = PortRx(a)
    rx >> PortTx(b)
    engine.load([rx])
    a.inject([bytes(60)] * 10)
    advance(engine, 1)
    terms = engine.conservation()
    assert terms["received"] == 10 and terms["dropped"] == 6 and terms["transmitted"] == 4 and terms["conserved"]
    a.inject([bytes(60)])
    advance(engine, 2)
    assert len(b.take()) == 5


class Busy(PyElement):
    """Takes `ms` milliseconds of CPU time for each packet."""

    ms, batches = 2.0, None

    def process(self, batch):
        self.batches.append(len(batch))
        end = time.thread_time() + self.ms * len(batch) / 1000
        while time.thread_time() < end:
            pass


def test_a_source_whose_packets_take_long_is_polled_in_shorter_bursts(pool):
    """So that control and other sources wait for one packet, not for 32. Later bursts grow
    again."""
    engine = Engine("e0", pool)
    into, out, busy = MemoryPort("a", 0), MemoryPort("b", 1), Busy(name="busy")
    busy.batches = []
    rx = PortRx(into)
    rx >> busy >> PortTx(out)
    engine.load([rx])
    start(engine)
    try:

        def send(count):
            into.inject([bytes(60)] * count)
            sent[0] += count
            while sum(statistics["transmitted"] for _, statistics in engine.snapshot()) < sent[0]:
                pass

        sent = [0]
        send(160)
        assert max(busy.batches) <= 32 and busy.batches[-1] == 1, busy.batches
        busy.ms = 0.0
        for _ in range(100):
            send(64)
            if max(busy.batches[-4:]) == 32:
                break
        assert max(busy.batches[-4:]) == 32, busy.batches
    finally:
        engine.close()
        into.close()
        out.close()
    assert pool.in_use == 0


class Lane:
    """A port, a shaper and a port, of which an engine may have many."""

    def __init__(self, number: int, *, name: str = "") -> None:
        self.a, self.b = MemoryPort(f"a{number}"), MemoryPort(f"b{number}")
        self.rx, self.shaper = PortRx(self.a), Shaper("1mbit", name=name or f"rate{number}")
        self.rx >> self.shaper >> PortTx(self.b)


@pytest.mark.parametrize("first", [1, 20, 200])
def test_an_engine_that_was_extended_does_what_one_that_loaded_does(first):
    """One by one, beyond all spare room; shapers hold packets meanwhile, timers run, and all leave on time."""
    results = []
    for extends in (True, False):
        engine = Engine("e0", PacketPool(8192, 8), clock=Clock(virtual=True))
        lanes = [Lane(number) for number in range(first)]
        engine.load([lane.rx for lane in lanes])
        out = []
        for number in range(first, first + 300):
            lanes.append(Lane(number))
            left = engine.extend([lanes[-1].rx]) if extends else engine.load([lane.rx for lane in lanes])
            assert left == []
            for lane in lanes[-3:]:
                lane.a.inject([bytes([2]) * 12 + b"\x88\xb5" + bytes(486)] * 2)  # 4 ms each at the rate
            advance(engine, engine.clock.now_ns + 1_500_000)
            out += [(number, place, frame) for place, lane in enumerate(lanes[-8:]) for frame in lane.b.take()]
        assert engine.conservation()["conserved"] and engine.conservation()["held"] > 0
        advance(engine, engine.clock.now_ns + 10**9)
        out += [(place, frame) for place, lane in enumerate(lanes) for frame in lane.b.take()]
        assert len(out) == 2 * (3 * 300 - (first == 1))
        counters = dict(engine.snapshot())
        assert engine.sources == [lane.rx for lane in lanes] and len(counters) == 3 * len(lanes) == len(engine.elements)
        results.append((out, counters, engine.conservation()))
        engine.close()
    assert results[0] == results[1]


def test_a_failed_extension_changes_nothing():
    class Refuses(Counter):
        def initialize(self):
            raise VnicError(f"{self.name}: refuses")

    engine = Engine("e0", PacketPool(512, 8), clock=Clock(virtual=True))
    lanes = [Lane(number) for number in range(200)]
    engine.load([lane.rx for lane in lanes])
    before, sources = engine.snapshot(), list(engine.sources)
    twice, refused, stray = Lane(200, name="rate7"), Lane(201), Counter(name="stray")
    refused.rx >> Refuses(name="r") >> Discard()
    for wrong, says in (
        ([twice.rx], "rate7: two elements of engine e0 have this name"),
        ([refused.rx], "r: refuses"),
        ([stray], "stray: is no source"),
    ):
        with pytest.raises(VnicError, match=says):
            engine.extend(wrong)
        assert (engine.snapshot(), engine.sources) == (before, sources)
        assert refused.rx.engine is None and twice.rx.engine is None
    other = Engine("e1", engine.pool, clock=Clock(virtual=True))
    theirs = Lane(202)
    other.load([theirs.rx])
    with pytest.raises(VnicError, match="runs in engine e1 already"):
        engine.extend([theirs.rx])
    fine = Lane(203)
    engine.extend([fine.rx])
    fine.a.inject([bytes([2]) * 12 + b"\x88\xb5" + bytes(46)])
    advance(engine, engine.clock.now_ns + 10**6)
    assert len(fine.b.take()) == 1
    other.close()
    engine.close()


def test_a_running_engine_is_extended():
    engine = Engine("e0", PacketPool(2048, 8))
    lanes = [Lane(number) for number in range(100)]
    engine.load([lane.rx for lane in lanes])
    start(engine)
    try:
        for number in range(100, 260):
            lane = Lane(number)
            engine.extend([lane.rx])
            lane.a.inject([bytes([2]) * 12 + b"\x88\xb5" + bytes(46)])
            while engine.call(lambda lane=lane: lane.shaper.statistics()["packets"]) == 0:
                pass
            lanes.append(lane)
        assert engine.conservation()["received"] == 160
    finally:
        engine.close()
