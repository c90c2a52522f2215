"""Handlers under traffic: live and quiescing writes while engines run; each packet and each batch
is checked."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

import pytest

from dataplane.elements.classifier import Classifier
from dataplane.elements.counter import Counter, Discard
from dataplane.elements.parse import Parse
from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import read_handler, write_handler
from dataplane.engine.running import start
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.element import BatchView, Element, PyElement
from dataplane.graph.handlers import Handler, Mode
from dataplane.graph.port import PortRx, PortTx
from dataplane.groups.group import EngineGroup
from dataplane.packet.pool import PacketPool
from dataplane.ports.loopback import LoopbackPort
from dataplane.ports.memory import MemoryPort
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from tests.test_handlers import write
from tests.wire_frames import UDP, Spec

CPUS = sorted(os.sched_getaffinity(0))


def until(condition, timeout_s=120):
    """Waits for an effect of an engine's thread."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "in vain"
        os.sched_yield()


# -- live, under traffic ---------------------------------------------------------------------------

LIVE = 4000  # rewrites


class Judge(PyElement):
    """Checks packets after gate `gate`: each has gate and mark of one set of rules, all of a batch
    those of the same set."""

    # a batch, identified by its timestamp, and the set that classified it
    last: tuple[int, int] = (0, 0)

    def __init__(self, gate: int, *, name: str | None = None) -> None:
        self.gate = gate
        self.wrong: list[str] = []
        self.seen = {0xA: 0, 0xB: 0}

    def process(self, batch: BatchView) -> None:
        for came, mark, protocol in zip(batch.timestamp_ns, batch.mark, batch.ip_protocol, strict=True):
            letter, gate = int(mark) >> 8, int(mark) & 0xFF
            # set A: UDP to gate 0, set B: UDP to gate 1
            wanted = int(protocol == UDP) ^ (letter == 0xA)
            if gate != self.gate or wanted != self.gate:
                self.wrong.append(f"gate {self.gate}, mark {mark:#x}, protocol {protocol}")
            if Judge.last[0] == came and Judge.last[1] != letter:
                self.wrong.append(f"batch {came} by two sets")
            Judge.last = (int(came), letter)
            self.seen[letter] += 1


def circle(name: str, pool: PacketPool, count: int, *first: Element):
    """An engine in which `count` packets circulate: its sources, and the elements to insert before
    the loopback port."""
    loop, memory = LoopbackPort(f"{name}.loop", 1), MemoryPort(f"{name}.in", 0)
    memory.inject([Spec(protocol=UDP if i % 2 else 6, source_port=i + 1).build() for i in range(count)])
    sources = [PortRx(memory), PortRx(loop)]
    for source in sources:
        source >> first[0]
    return Engine(name, pool), sources, loop


def set_a(decoys: int) -> list[dict[str, Any]]:
    return [
        *[{"source_port": 60_000 + i, "gate": i % 2, "mark": 0xC00} for i in range(decoys)],
        {"protocol": "udp", "gate": 0, "mark": 0xA00},
        {"gate": 1, "mark": 0xA01},
    ]


def set_b() -> list[dict[str, Any]]:
    return [{"protocol": "udp", "gate": 1, "mark": 0xB01}, {"gate": 0, "mark": 0xB00}]


def test_rules_rewritten_thousands_of_times_under_traffic_are_never_mixed():
    """Without Python on the packets' path. One set sends all packets to gate 0, the other all to
    gate 1; a packet that matches no rule would go to gate 2. So all packets of a batch leave by one
    gate, unless both sets classified it."""
    pool = PacketPool(small=512, large=4)
    parse, classifier = Parse(), Classifier([{"gate": 1}], default=2)
    counters = [Counter(name="c0"), Counter(name="c1"), Counter(name="c2")]
    engine, sources, loop = circle("e0", pool, 64, parse)
    tx = PortTx(loop)
    parse >> classifier
    for gate, counter in enumerate(counters):
        classifier[gate] >> counter >> tx
    engine.load(sources)
    start(engine)
    # Most of the engine's time is spent on rules that do not match, so a swap within a batch would
    # be detected.
    a, b = [*[{"source_port": 60_000 + i, "gate": 2} for i in range(40)], {"gate": 0}], [{"gate": 1}]
    try:
        for turn in range(LIVE):
            write(classifier, "rules", (a, b)[turn % 2])
            if turn % 10 == 0:
                assert read_handler(classifier, "rules") == (a, b)[turn % 2]
                hits = read_handler(classifier, "hits")
                assert len(hits) == len((a, b)[turn % 2]) and not any(hits[:-1])
            if turn % 100 == 99:
                with pytest.raises(ConfigError):
                    write(classifier, "rules", [{"gate": 7}])
        assert engine.conservation()["conserved"]
    finally:
        engine.stop()
    passed = [counter.statistics() for counter in counters]
    whole = classifier.statistics()
    assert sum(each["batches"] for each in passed) == whole["batches"], "some batch was classified by both sets"
    assert passed[2]["packets"] == whole["counters"]["unmatched"] == 0
    assert min(passed[0]["batches"], passed[1]["batches"]) > LIVE // 4, "both sets had their share of the traffic"
    assert loop.drain(engine) == 64
    engine.close()
    assert pool.in_use == 0


def test_gate_and_mark_come_from_one_rule_under_traffic():
    pool = PacketPool(small=512, large=4)
    parse, classifier = Parse(), Classifier(set_b(), default=0)
    judges = [Judge(0, name="j0"), Judge(1, name="j1")]
    engine, sources, loop = circle("e0", pool, 64, parse)
    tx = PortTx(loop)
    parse >> classifier
    for gate, judge in enumerate(judges):
        classifier[gate] >> judge >> tx
    engine.load(sources)
    start(engine)
    try:
        for letter in [0xA, 0xB] * 100:
            before = [judge.seen[letter] for judge in judges]
            write(classifier, "rules", set_a(10) if letter == 0xA else set_b())
            until(lambda: all(judge.seen[letter] > then for judge, then in zip(judges, before, strict=True)))
    finally:
        engine.stop()
    assert [judge.wrong for judge in judges] == [[], []] and [judge.last_error for judge in judges] == [None, None]
    law = engine.conservation()
    assert law["conserved"] and law["dropped"] == 0
    assert loop.drain(engine) == 64
    engine.close()
    assert pool.in_use == 0


def test_a_flush_under_traffic_loses_nothing():
    pool, table = PacketPool(small=512, large=4), MacTable(64)
    element, loop, memory = L2Switch(table, 2), LoopbackPort("loop", 1), MemoryPort("in", 0)
    sources = [PortRx(memory), PortRx(loop)]
    for source in sources:
        source >> element
    # Frames from port 0 are flooded to port 1, the loopback port. Received again, they move their
    # source address to port 1, are flooded to port 0, and are discarded.
    element[0] >> Discard()
    element[1] >> PortTx(loop)
    element.activate(0)
    element.activate(1)
    engine = Engine("e0", pool)
    engine.load(sources)
    start(engine)
    try:
        for turn in range(300):
            memory.inject([bytes([2, 0, 0, 0, 0, 99, 2, 0, 0, 0, 0, turn % 8 + 1, 8, 0]) + bytes(46)] * 8)
            write(element, "flush", ("all", {"port": 1}, {"mac": "02:00:00:00:00:01"})[turn % 3])
            assert all(entry["port"] < 2 for entry in read_handler(element, "table"))
        until(lambda: engine.conservation()["received"] >= 300 * 8 * 2)
    finally:
        engine.stop()
    assert engine.conservation()["conserved"]
    loop.drain(engine)
    engine.close()
    assert pool.in_use == 0


# -- two engines -----------------------------------------------------------------------------------


class Stamp(PyElement):
    """Uses a value. All instances share one counter of events: for each value, the first and last
    event at which it was used."""

    HANDLERS = {
        "value": Handler(read="get", write="prepare", mode=Mode.QUIESCING, help="a number"),
        "slowly": Handler(read="get", write="prepare", mode=Mode.LIVE, help="the same, live"),
    }

    def __init__(self, events: Any, *, name: str | None = None) -> None:
        self.events, self.value = events, 0
        self.refuses: Any = None
        self.before_change: Any = lambda: None
        self.awaited, self.works = -1, threading.Event()  # set when it uses the awaited value
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def get(self) -> int:
        return self.value

    def prepare(self, value: int) -> Any:
        if value == self.refuses:
            raise ConfigError(f"{self.name}: not {value}")

        def change() -> None:
            self.before_change()
            self.value = value

        return change

    def process(self, batch: BatchView) -> None:
        begin, value = next(self.events), self.value
        self.first.setdefault(value, begin)
        self.last[value] = next(self.events)
        if value == self.awaited:
            self.works.set()


class Two:
    """Two engines, each with a copy of a Stamp and circulating packets."""

    def __init__(self, mode: str, cpus: list[int] | None) -> None:
        self.pool = PacketPool(small=512, large=4)
        self.group = EngineGroup("g", mode, cpus=cpus)
        self.stamps: list[Stamp] = []
        self.loops: list[LoopbackPort] = []
        self.calls: list[tuple[str, str]] = []
        events = itertools.count()  # next() is atomic under the GIL
        for name in ("e0", "e1"):
            stamp = Stamp(events, name="stamp")
            engine, sources, loop = circle(name, self.pool, 8, stamp)
            stamp >> PortTx(loop)
            engine.load(sources)
            self.group.add(engine)
            self.stamps.append(stamp)
            self.loops.append(loop)
        self.group.start()

    def halt(self, engine: Engine) -> None:
        self.calls.append(("halt", engine.name))
        self.group.halt(engine)

    def resume(self, engine: Engine) -> None:
        self.calls.append(("resume", engine.name))
        self.group.resume(engine)

    def write(self, name: str, value: object) -> None:
        self.calls.clear()
        write_handler(self.stamps, name, value, halt=self.halt, resume=self.resume)

    def values(self) -> list[int]:
        return [read_handler(stamp, "value") for stamp in self.stamps]

    def working(self, value: int) -> bool:
        return all(value in stamp.last for stamp in self.stamps)

    def running(self) -> bool:
        return all(engine.running for engine in self.group.engines)

    def close(self) -> None:
        self.group.stop()
        for engine, loop in zip(self.group.engines, self.loops, strict=True):
            law = engine.conservation()
            assert law["conserved"] and law["dropped"] == 0
            assert loop.drain(engine) == 8
            engine.close()
        assert self.pool.in_use == 0
        assert [stamp.last_error for stamp in self.stamps] == [None, None]


@pytest.fixture(params=[("spreading", None), ("compacting", None), ("dedicated", CPUS[-1:])], ids=lambda each: each[0])
def two(request):
    made = Two(*request.param)
    yield made
    made.close()


def test_quiescing_no_engine_works_by_the_new_value_while_another_one_works_by_the_old(two):
    until(lambda: two.working(0))
    for value in range(1, 31):
        two.write("value", value)
        assert two.calls == [("halt", "e0"), ("halt", "e1"), ("resume", "e1"), ("resume", "e0")]
        assert two.values() == [value, value]
        until(lambda: two.working(value))
    for value in range(1, 31):
        assert max(stamp.last[value - 1] for stamp in two.stamps) < min(stamp.first[value] for stamp in two.stamps)


def test_live_the_first_engine_works_by_the_new_value_before_the_second_has_it():
    two = Two("spreading", None)
    first, second = two.stamps
    worked: list[bool] = []
    second.before_change = lambda: worked.append(first.works.wait(20))
    first.awaited = 5
    two.write("slowly", 5)
    assert worked == [True] and two.calls == [] and two.values() == [5, 5]
    two.close()


def test_live_nobody_stops(two):
    two.write("slowly", 5)
    assert two.calls == [] and two.values() == [5, 5] and two.running()
    until(lambda: two.working(5))


def test_an_error_in_preparation_leaves_all_copies_as_they_were(two):
    two.stamps[1].refuses = 7
    for name in ("value", "slowly"):
        with pytest.raises(ConfigError, match="^stamp: not 7$"):
            two.write(name, 7)
        assert two.calls == [] and two.values() == [0, 0] and two.running()


@pytest.mark.parametrize("error", [VnicError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True])
def test_an_engine_that_cannot_be_halted_has_all_go_on_as_before(two, error, after):
    halt = two.halt

    def fails(engine: Engine) -> None:
        if after or engine.name == "e0":
            halt(engine)
        if engine.name == "e1":
            raise error("no")

    two.halt = fails
    with pytest.raises(error):
        two.write("value", 7)
    assert two.running() and two.values() == [0, 0]
    assert two.calls[-2:] == [("resume", "e1"), ("resume", "e0")]


def test_an_engine_that_says_it_has_stopped_and_has_not(two):
    two.halt = lambda engine: None
    with pytest.raises(VnicError, match="^stamp: handler value: engine e0 did not stop$"):
        two.write("value", 7)
    assert two.running() and two.values() == [0, 0]


@pytest.mark.parametrize("name", ["value", "slowly"])
def test_a_change_that_fails_is_made_in_the_others_and_all_go_on(two, name):
    two.stamps[0].before_change = lambda: 1 // 0
    with pytest.raises(VnicError, match=rf"^stamp: handler {name}: the change failed in engine e0: Zero.*; it was made in e1$"):
        two.write(name, 7)
    assert two.running() and two.values() == [0, 7]


def test_engines_that_nobody_runs_are_not_started():
    two = Two("spreading", None)
    until(lambda: two.working(0))  # their packets circulate
    two.group.stop()
    two.write("value", 3)
    assert two.calls == [] and two.values() == [3, 3] and not two.running()
    two.close()
