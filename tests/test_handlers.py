"""Handlers of elements: live and quiescing reads and writes.

Under traffic: test_handlers_traffic.py. Of a whole runtime: test_handlers_runtime.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.classifier import Classifier
from dataplane.elements.counter import Counter, Discard
from dataplane.elements.departures import Departures
from dataplane.elements.mirror import Mirror
from dataplane.elements.nic_tx import NicTx
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.handler_access import describe, plain, read_handler, write_handler
from dataplane.engine.handover import load_engine, save_engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError, GraphError, VnicError
from dataplane.graph.element import Element, PyElement
from dataplane.graph.handlers import Handler, handlers_of
from dataplane.graph.port import PortRx, PortTx
from dataplane.graph.work import Work
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from examples.ttl import SetTtl
from shaping.shaper import Shaper
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from tests.test_classifier import Rig, packets, rule_dicts
from tests.wire_frames import UDP, Spec

CLASSES = [Classifier, Counter, Departures, Discard, L2Switch, Mirror, NicTx, Parse, PortRx, PortTx, Shaper]
SECOND_NS = 10**9


def never(engine: Engine) -> None:
    raise AssertionError(f"{engine.name} must not be stopped")


def write(element: Element, name: str, value: object) -> Any:
    """A live write to an element that exists once."""
    return write_handler([element], name, value, halt=never, resume=never)


def loaded(element: Any, port: MemoryPort | None = None) -> Any:
    """The element in an engine that does not run, after `port`."""
    rx = PortRx(port or MemoryPort("a", 0))
    rx >> element
    for gate in range(len(element.outputs)):
        element[gate] >> Discard(name=f"d{gate}")
    Engine("e0", PacketPool(small=64, large=4), clock=Clock(virtual=True, start_ns=SECOND_NS)).load([rx])
    return element


# -- descriptions ----------------------------------------------------------------------------------


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
        ("rules", [object], "handler rules: [<class 'object'>]: expected plain data"),
        ("rules", "tcp", "classifier: rules are 'tcp': expected a list of rules"),
        ("rules", [{"protocol": "tpc"}], "classifier rule 0: protocol: 'tpc': expected"),
        (
            "rules",
            [{}, {}],
            "with these rules it would have 3 outputs, and 2 are connected; expected the highest gate: or default: to be 1",
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


# -- elements in Python ----------------------------------------------------------------------------


class Ttl(SetTtl):
    """SetTtl with handlers."""

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
            raise ConfigError(f"{self.name}: ttl {value}: expected 1 to 255")

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
    for value, error in [(0, "^Ttl: ttl 0: expected 1 to 255$"), ("x", "^Ttl: handler ttl: invalid value 'x': TypeError: ")]:
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


# -- built-in elements -----------------------------------------------------------------------------


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
    given[0]["protocol"] = "udp"  # the handler has copied the caller's value
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
            each >> (first := source[0].outputs[0] or Parse())
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
    advance(shaper.engine, SECOND_NS + 1)
    assert read_handler(shaper, "queue") == {"packets": 3, "bytes": 3000, "limit_bytes": shaper.queue_limit_bytes}
    write(shaper, "rate", "none")
    advance(shaper.engine, SECOND_NS + 2)
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


def test_a_flush_of_a_port_that_is_not_there_is_refused():
    """One that is not open but has addresses is flushed: its link is down."""
    element = switch()
    fill(element.table)
    element.activate(1)
    assert write(element, "flush", {"port": 2}) == 5
    with pytest.raises(ConfigError, match="^.*: flush: there is no port 99; open ports: 1$"):
        write(element, "flush", {"port": 99})
    assert write(element, "flush", {"port": 1}) == 4
    assert write(element, "flush", {"port": 1}) == 0


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


def test_work_in_cython_is_a_change_too():
    shaper = Shaper("1mbit")
    assert isinstance(shaper.prepare_rate("2mbit"), Work)
    assert shaper.prepare_rate("2mbit").rate_bps == 2_000_000 and shaper.rate_bps == 1_000_000
