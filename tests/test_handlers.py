"""Handlers: what control reads and writes of elements, live and quiescing. Those of a whole runtime are in test_handlers_runtime.py."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.clock import Clock
from dataplane.element import BatchView, Element, PyElement
from dataplane.elements.classifier import Classifier
from dataplane.elements.counter import Counter, Discard
from dataplane.elements.departures import Departures
from dataplane.elements.l2_switch import L2Switch
from dataplane.elements.mac_table import MacTable
from dataplane.elements.mirror import Mirror
from dataplane.elements.parse import Parse
from dataplane.engine import Engine
from dataplane.errors import ConfigError, GraphError, VnicError
from dataplane.group import EngineGroup
from dataplane.handlers import Handler, Mode, describe, handlers_of, plain, read_handler, write_handler
from dataplane.handover import load_engine, save_engine
from dataplane.packet import PacketPool
from dataplane.port import PortRx, PortTx
from dataplane.ports.loopback import LoopbackPort
from dataplane.ports.memory import MemoryPort
from dataplane.work import Work
from examples.ttl import SetTtl
from shaping.shaper import Shaper
from tests.test_classifier import Rig, packets, rule_dicts
from tests.wire_frames import UDP, Spec
from vnic.device.nic_tx import NicTx

CLASSES = [Classifier, Counter, Departures, Discard, L2Switch, Mirror, NicTx, Parse, PortRx, PortTx, Shaper]
CPUS = sorted(os.sched_getaffinity(0))
SECOND_NS = 10**9


def until(condition, timeout_s=20.0):
    """Waits for what an engine's thread does."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "in vain"
        os.sched_yield()


def never(engine: Engine) -> None:
    raise AssertionError(f"{engine.name} must not be stopped")


def write(element: Element, name: str, value: object) -> Any:
    """A live write to an element that exists once."""
    return write_handler([element], name, value, halt=never, resume=never)


def loaded(element: Any, port: MemoryPort | None = None) -> Any:
    """The element in an engine that nobody runs, behind `port`."""
    rx = PortRx(port or MemoryPort("a", 0))
    rx >> element
    for gate in range(len(element.outputs)):
        element[gate] >> Discard(name=f"d{gate}")
    Engine("e0", PacketPool(small=64, large=4), clock=Clock(virtual=True, start_ns=SECOND_NS)).load([rx])
    return element


# -- what there is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_the_doc_block_says_which_handlers_there_are(kind):
    section = re.search(r"Handlers:(.*?)(?:\n *[A-Z]\w+: |\n\n|\. |\Z)", kind.__doc__, re.DOTALL)
    items = re.sub(r"\(.*?\)", "", section[1], flags=re.DOTALL).split(";")
    assert {item.split()[0].strip(".:,") for item in items} == set(handlers_of(kind))


def test_every_element_has_its_counters_and_what_its_bases_have():
    assert list(handlers_of(Counter)) == list(handlers_of(PyElement)) == ["counters"]
    found = describe(Classifier([{}]))
    assert list(found) == ["counters", "hits", "rules"]
    assert found["rules"] == {
        "read": True,
        "write": True,
        "mode": "live",
        "shared": False,
        "help": "the rules, a list as in the configuration",
    }
    assert not found["hits"]["write"]


def test_a_handler_without_its_method_is_an_error_of_the_class():
    class Lost(PyElement):
        HANDLERS = {"x": Handler(read="nowhere", help="")}

    class Empty(PyElement):
        HANDLERS = {"x": Handler(help="")}

    with pytest.raises(GraphError, match="^Lost: handler x: there is no method nowhere$"):
        describe(Lost())
    with pytest.raises(GraphError, match="^Empty: handler x: can neither be read nor written"):
        describe(Empty())


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("ruels", [], "has no handler ruels; a Classifier has counters, hits, rules"),
        ("hits", [], "handler hits can only be read"),
        ("rules", [object], "handler rules: [<class 'object'>]: want plain data"),
        ("rules", "tcp", "classifier: rules are 'tcp'; want a list of rules"),
        ("rules", [{"protocol": "tpc"}], "classifier rule 0: protocol: 'tpc'; want"),
        (
            "rules",
            [{}, {}],
            "with these rules it would have 3 outputs, and 2 are connected; want the highest gate: or default: to be 1",
        ),
    ],
)
def test_errors_say_what_and_leave_everything_as_it_was(name, value, error):
    classifier = loaded(Classifier([{"protocol": "udp"}]))
    with pytest.raises(ConfigError, match=re.escape(error)):
        write(classifier, name, value)
    assert read_handler(classifier, "rules") == [{"protocol": "udp"}]


def test_plain_data():
    assert plain({"a": (1, 2.5, None, True, "x"), "b": np.arange(2), "c": np.uint64(1 << 63)}) == {
        "a": [1, 2.5, None, True, "x"],
        "b": [0, 1],
        "c": 1 << 63,
    }
    with pytest.raises(TypeError):
        plain(object())


def test_an_element_in_no_engine_can_be_read_and_not_written():
    classifier = Classifier([{}])
    assert read_handler(classifier, "rules") == [{}]
    with pytest.raises(VnicError, match="is in no engine; load it first"):
        write(classifier, "rules", [{}])


# -- elements in Python ----------------------------------------------------------------------------------------------------


class Ttl(SetTtl):
    """SetTtl that can be asked and told while it runs."""

    HANDLERS = {
        "ttl": Handler(read="get_ttl", write="prepare_ttl", argument="ttl", help="TTL that packets get, 1 to 255"),
        "reset": Handler(write="prepare_reset", help="back to 64"),
        "odd": Handler(read="get_odd", write="prepare_odd", help="faulty"),
    }
    odd: Any = None

    def get_ttl(self):
        return np.uint8(self.ttl)

    def prepare_ttl(self, value):
        if not 1 <= value <= 255:
            raise ConfigError(f"{self.name}: ttl {value}; want 1 to 255")

        def change():
            before, self.ttl = self.ttl, value
            return before

        return change

    def prepare_reset(self, _):
        return lambda: setattr(self, "ttl", 64)

    def get_odd(self):
        return self.odd()

    def prepare_odd(self, value):
        return self.odd


def test_a_python_element_declares_handlers():
    element = loaded(Ttl(17))
    assert describe(element).keys() == {"counters", "ttl", "reset", "odd"}
    assert read_handler(element, "ttl") == 17
    assert write(element, "ttl", 9) == 17, "what the change returns"
    assert (element.ttl, read_handler(element, "ttl")) == (9, 9)
    for value, error in [(0, "^Ttl: ttl 0; want 1 to 255$"), ("x", "^Ttl: handler ttl: 'x' will not do: TypeError: ")]:
        with pytest.raises(ConfigError, match=error):
            write(element, "ttl", value)
        assert element.ttl == 9
    write(element, "reset", None)
    assert element.ttl == 64
    with pytest.raises(ConfigError, match="^Ttl: handler reset can only be written$"):
        read_handler(element, "reset")


def test_a_faulty_python_handler_harms_nobody():
    element = loaded(Ttl())
    element.odd = lambda: 1 // 0
    with pytest.raises(VnicError, match="^Ttl: handler odd: reading failed: ZeroDivisionError"):
        read_handler(element, "odd")
    with pytest.raises(VnicError, match="^Ttl: handler odd: the change failed in engine e0: ZeroDivisionError"):
        write(element, "odd", None)
    element.odd = lambda: object()
    with pytest.raises(VnicError, match="^Ttl: handler odd: reading failed: TypeError"):
        read_handler(element, "odd")
    assert write(element, "odd", None) is None, "the change is made, whatever it returns"
    element.odd = 5
    with pytest.raises(VnicError, match="^Ttl: handler odd: Ttl.prepare_odd must return the change, a Work or a callable"):
        write(element, "odd", None)
    assert element.engine.conservation()["conserved"]


def test_what_was_read_does_not_change_afterwards():
    class Lists(PyElement):
        HANDLERS = {"list": Handler(read="get", help="")}
        found = [1]

        def get(self):
            return self.found

    element = loaded(Lists())
    before = read_handler(element, "list")
    element.found.append(2)
    assert before == [1]


# -- built-in elements -----------------------------------------------------------------------------------------------------


def test_counters():
    rig = Rig(Classifier([{"protocol": "udp"}]))
    rig.send([Spec(protocol=UDP).build(), Spec().build()])
    assert read_handler(rig.classifier, "counters") == rig.classifier.statistics()
    assert read_handler(rig.classifier, "counters")["counters"] == {"matched": 1, "unmatched": 1, "unparsed": 0}


def test_rules_are_rewritten_and_hits_begin_anew():
    udp, tcp = Spec(protocol=UDP).build(), Spec().build()
    rig = Rig(Classifier([{"protocol": "udp", "gate": 0}, {"protocol": "tcp", "gate": 0}], default=1))
    assert rig.send([udp, tcp, udp]) == [[udp, tcp, udp], []]
    assert read_handler(rig.classifier, "hits") == [2, 1]
    given = [{"protocol": "tcp", "gate": 0}]
    write(rig.classifier, "rules", given)
    given[0]["protocol"] = "udp"  # the caller's own again
    assert read_handler(rig.classifier, "rules") == [{"protocol": "tcp", "gate": 0}]
    assert rig.send([udp, tcp, udp]) == [[tcp], [udp, udp]]
    assert rig.classifier.hits() == read_handler(rig.classifier, "hits") == [1]
    assert rig.classifier.statistics()["counters"] == {"matched": 4, "unmatched": 2, "unparsed": 0}
    assert [rule.protocol for rule in rig.classifier.rules] == [6] and rig.classifier.describe() == {"rules": 1}


def test_rewritten_rules_are_handed_over_to_who_has_them_too():
    rig = Rig(Classifier([{"protocol": "udp", "gate": 0}], default=1))
    write(rig.classifier, "rules", [{"protocol": "tcp", "gate": 0}, {"gate": 0}])
    rig.send([Spec().build()] * 3)
    data = save_engine(rig.engine)

    def successor(rules):
        source = PortRx(MemoryPort("s0", 0)), PortRx(MemoryPort("s7", 7))
        classifier = Classifier(rules, default=1)
        for each in source:
            each >> (first := source[0].outputs[0] or Parse("pass"))
        first >> classifier
        for gate in range(2):
            classifier[gate] >> PortTx(MemoryPort(f"r{gate}", 100 + gate))
        clock = Clock(virtual=True)
        clock.set(rig.engine.clock.now_ns)
        engine = Engine("e0", rig.pool, clock=clock)
        engine.load(source)
        return engine, classifier

    engine, _ = successor([{"protocol": "udp", "gate": 0}])
    with pytest.raises(VnicError, match="its state does not fit 1 rules"):
        load_engine(engine, data)
    engine, classifier = successor(read_handler(rig.classifier, "rules"))
    load_engine(engine, data)
    assert classifier.hits() == [3, 0]


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.lists(st.tuples(rule_dicts(), st.integers(0, 4)), max_size=4), st.lists(packets, min_size=1, max_size=6)),
        min_size=1,
        max_size=5,
    )
)
def test_a_rewritten_classifier_is_like_a_new_one(steps):
    rig = Rig(Classifier([], default=3))
    in_force: list[dict[str, Any]] = []
    for rules, frames in steps:
        rules = [{**rule, "gate": gate} for rule, gate in rules]
        if any(rule["gate"] > 3 for rule in rules):
            hits = rig.classifier.hits()
            with pytest.raises(ConfigError):
                write(rig.classifier, "rules", rules)
            assert rig.classifier.hits() == hits
        else:
            write(rig.classifier, "rules", rules)
            in_force = rules
            assert rig.classifier.hits() == [0] * len(rules)
        before = rig.classifier.hits()
        twin = Rig(Classifier(in_force, default=3))
        assert rig.send(frames) == twin.send(frames)
        assert [now - then for now, then in zip(rig.classifier.hits(), before, strict=True)] == twin.classifier.hits()
        assert read_handler(rig.classifier, "rules") == in_force


def test_the_shaper():
    port = MemoryPort("a", 0)
    shaper = loaded(Shaper("10mbit"), port)
    assert read_handler(shaper, "rate") == "10mbit"
    for value, text, bps in [
        ("2.5gbit", "2.5gbit", 2_500_000_000),
        ("None", "none", 0),
        (64_000, "64kbit", 64_000),
        (None, "none", 0),
    ]:
        write(shaper, "rate", value)
        assert (read_handler(shaper, "rate"), shaper.rate_bps) == (text, bps)
        assert Shaper(value).rate_bps == bps, "a configuration may say the same"
    write(shaper, "rate", "1mbit")
    for value in ("fast", "1bit", "20tbit", {}, True, 1.5):
        with pytest.raises(ConfigError):
            write(shaper, "rate", value)
        assert read_handler(shaper, "rate") == "1mbit"
    assert read_handler(shaper, "queue") == {"packets": 0, "bytes": 0, "limit_bytes": shaper.queue_limit_bytes}
    port.inject([bytes(1000)] * 4)  # 8 ms each
    shaper.engine.advance(SECOND_NS + 1)
    assert read_handler(shaper, "queue") == {"packets": 3, "bytes": 3000, "limit_bytes": shaper.queue_limit_bytes}
    write(shaper, "rate", "none")
    shaper.engine.advance(SECOND_NS + 2)
    assert read_handler(shaper, "queue")["packets"] == 0
    assert shaper.engine.conservation()["conserved"] and shaper.engine.pool.in_use == 0


def switch(ports: int = 4) -> L2Switch:
    return loaded(L2Switch(MacTable(64), ports))


def test_the_ports_of_a_switch():
    element = switch(6)
    element.activate(4)
    element.activate(1, access=10)
    element.activate(0, trunk=[20, *range(30, 41), 4094], native=7)
    element.activate(3, native=1)
    element.activate(2, trunk=range(8, 4090))
    assert read_handler(element, "ports") == [
        {"port": 0, "trunk": "7,20,30-40,4094", "native": 7},
        {"port": 1, "access": 10},
        {"port": 2, "trunk": "8-4089", "native": None},
        {"port": 3, "trunk": "1-4094", "native": 1},
        {"port": 4, "trunk": "1-4094", "native": None},
    ]


@given(st.sets(st.integers(1, 4094) | st.integers(4080, 4094) | st.integers(1, 20), min_size=1, max_size=300))
def test_vlans_as_ranges(vlans):
    element = switch(1)
    element.activate(0, trunk=sorted(vlans))
    [port] = read_handler(element, "ports")
    ends = [[int(end) for end in part.split("-")] for part in port["trunk"].split(",")]
    assert [vlan for end in ends for vlan in range(end[0], end[-1] + 1)] == sorted(vlans)


def fill(table: MacTable) -> None:
    for port in range(3):
        table.learn_all(np.arange(10 * port + 2, 10 * port + 6, dtype=np.uint64) | 0x020000000000, port, now_ns=SECOND_NS)
    table.learn_all(np.array([0x020000000002], np.uint64), 2, 10, now_ns=SECOND_NS)
    table.add_static("02:00:00:00:00:ff", 1)


def test_the_table_of_a_switch_and_its_flush():
    element = switch()
    fill(element.table)
    entries = read_handler(element, "table")
    assert len(entries) == 14
    assert entries[0] == {"mac": "02:00:00:00:00:02", "vlan": 0, "port": 0, "age_s": 0.0, "static": False}
    assert write(element, "flush", {"port": 0}) == 4
    assert write(element, "flush", {"mac": "02:00:00:00:00:02"}) == 1, "that of VLAN 10"
    assert write(element, "flush", {"mac": "02:00:00:00:00:0c", "vlan": 1}) == 0
    assert write(element, "flush", {"mac": "02:00:00:00:00:0c", "vlan": 0}) == 1
    assert {entry["port"] for entry in read_handler(element, "table")} == {1, 2}
    assert write(element, "flush", "all") == 7
    assert [entry["mac"] for entry in read_handler(element, "table")] == ["02:00:00:00:00:ff"], "the operator's stays"
    assert write(element, "flush", {"mac": "02:00:00:00:00:ff"}) == 1, "unless it is named"
    assert len(element.table) == 0 and element.table.port_count(1) == 0


@pytest.mark.parametrize(
    "value",
    ["nothing", [], {"port": 1024}, {"port": -1}, {"port": True}, {"port": None}, {"vlan": 1}, {"mac": "x"}, {"mac": "01:00:00:00:00:00"},
     {"mac": "02:00:00:00:00:02", "vlan": 4095}, {"mac": 5}, {"port": 1, "mac": "02:00:00:00:00:02"}],
)  # fmt: skip
def test_a_flush_that_is_none(value):
    element = switch()
    fill(element.table)
    with pytest.raises(ConfigError):
        write(element, "flush", value)
    assert len(element.table) == 14


# -- live, under traffic ---------------------------------------------------------------------------------------------------

LIVE = 4000  # rewrites


class Judge(PyElement):
    """Behind gate `gate`: each packet must have got gate and mark from one set of rules, all of a batch from the same one."""

    last: tuple[int, int] = (0, 0)  # a batch, by the instant at which it came, and the set that classified it

    def __init__(self, gate: int, *, name: str | None = None) -> None:
        self.gate = gate
        self.wrong: list[str] = []
        self.seen = {0xA: 0, 0xB: 0}

    def process(self, batch: BatchView) -> None:
        for came, mark, protocol in zip(batch.timestamp_ns, batch.mark, batch.ip_protocol, strict=True):
            letter, gate = int(mark) >> 8, int(mark) & 0xFF
            wanted = int(protocol == UDP) ^ (letter == 0xA)  # set A: UDP to gate 0, set B: UDP to gate 1
            if gate != self.gate or wanted != self.gate:
                self.wrong.append(f"gate {self.gate}, mark {mark:#x}, protocol {protocol}")
            if Judge.last[0] == came and Judge.last[1] != letter:
                self.wrong.append(f"batch {came} by two sets")
            Judge.last = (int(came), letter)
            self.seen[letter] += 1


def circle(name: str, pool: PacketPool, count: int, *first: Element):
    """An engine in which `count` packets go round for ever: sources, and the elements to put in front of the wire."""
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
    """Without Python on the packets' path. One set sends all to gate 0, the other all to gate 1, and whatever matches no rule would go to
    gate 2: so a batch leaves in one piece, or it was classified by both."""
    pool = PacketPool(small=512, large=4)
    parse, classifier = Parse(), Classifier([{"gate": 1}], default=2)
    counters = [Counter(name="c0"), Counter(name="c1"), Counter(name="c2")]
    engine, sources, loop = circle("e0", pool, 64, parse)
    tx = PortTx(loop)
    parse >> classifier
    for gate, counter in enumerate(counters):
        classifier[gate] >> counter >> tx
    engine.load(sources)
    engine.start()
    # Most of the engine's time goes into looking through the decoys: a swap within a batch would not go unseen.
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
    engine.start()
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
    # Frames from port 0 go to the wire; they come back from it as port 1's, to whom they came from, which is a hairpin once it is known.
    element[0] >> Discard()
    element[1] >> PortTx(loop)
    element.activate(0)
    element.activate(1)
    engine = Engine("e0", pool)
    engine.load(sources)
    engine.start()
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


# -- two engines -----------------------------------------------------------------------------------------------------------


class Stamp(PyElement):
    """Works by a value. All instances share one counter of events: for each value, the first and the last at which it worked by it."""

    HANDLERS = {
        "value": Handler(read="get", write="prepare", mode=Mode.QUIESCING, help="a number"),
        "slowly": Handler(read="get", write="prepare", mode=Mode.LIVE, help="the same, live"),
    }

    def __init__(self, events: Any, *, name: str | None = None) -> None:
        self.events, self.value = events, 0
        self.refuses: Any = None
        self.before_change: Any = lambda: None
        self.awaited, self.works = -1, threading.Event()  # it works by that value
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
    """Two engines, each with a copy of a Stamp and packets that go round."""

    def __init__(self, mode: str, cpus: list[int] | None) -> None:
        self.pool = PacketPool(small=512, large=4)
        self.group = EngineGroup("g", mode, cpus=cpus)
        self.stamps: list[Stamp] = []
        self.loops: list[LoopbackPort] = []
        self.calls: list[tuple[str, str]] = []
        events = itertools.count()  # next() is one step under the GIL
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


@pytest.mark.parametrize("error", [VnicError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [False, True])
def test_an_engine_that_cannot_be_halted_has_all_go_on_as_before(two, error, after):
    halt = two.halt

    def fails(engine: Engine) -> None:
        if after or engine.name == "e0":
            halt(engine)
        if engine.name == "e1":
            raise error

    two.halt = fails
    with pytest.raises(type(error)):
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
    two.group.stop()
    two.write("value", 3)
    assert two.calls == [] and two.values() == [3, 3] and not two.running()
    two.close()


def test_work_in_cython_is_a_change_too():
    shaper = Shaper("1mbit")
    assert isinstance(shaper.prepare_rate("2mbit"), Work)
    assert shaper.prepare_rate("2mbit").rate_bps == 2_000_000 and shaper.rate_bps == 1_000_000
