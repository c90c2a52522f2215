"""Handlers of a whole runtime: elements are found by name in all engines, and written values are
stored in the configuration."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from typing import Any

import pytest

from dataplane.config.scalars import User
from dataplane.engine.clock import Clock
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.port import PortTx
from tests.support.containers import Container
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_handlers_traffic import Stamp, circle, until
from tests.test_supervisor import kill_worker
from tests.wire_frames import UDP, Spec
from vnic.config.convert import decode_config, encode_config
from vnic.config.load import parse_config
from vnic.config.schema import Config, NicConfig
from vnic.daemon import upgrade
from vnic.device.kinds.memory import MemoryKind
from vnic.modules.devices import OneKind
from vnic.modules.module import Module
from vnic.runtime.runtime import Runtime

TEXT = """
engines: 2
nics:
  a:
    egress:
      rate: 10mbit
      elements:
        - element: Classifier
          name: split
          rules: [{protocol: udp, gate: 0}]
          default: 1
          branches: {1: [{element: "tests.test_handlers:Ttl", ttl: 17}, {element: Shaper, rate: 1gbit}]}
        - Counter
  b: {}
"""
SPLIT, TTL = "a.egress.split", "a.egress.split.1.ttl"


class KeptHere:
    """A Keeper without a supervisor: stores descriptors and documents in this process."""

    def __init__(self, inherited: dict[str, list[int]] | None = None) -> None:
        self.kept: dict[str, list[int]] = {}
        self.documents: dict[str, bytes] = {}
        self.left = inherited or {}

    def take(self, key: str) -> list[int] | None:
        return self.left.pop(key, None)

    def inherited(self, prefix: str) -> list[str]:
        return [key for key in self.left if key.startswith(prefix)]

    def put(self, key: str, descriptors: Any) -> None:
        self.drop(key)
        self.kept[key] = [os.dup(each) for each in descriptors]

    def put_document(self, key: str, content: bytes) -> None:
        self.documents[key] = content

    def drop(self, key: str) -> None:
        for each in self.kept.pop(key, []):
            os.close(each)

    def copies(self) -> dict[str, list[int]]:
        return {key: [os.dup(each) for each in descriptors] for key, descriptors in self.kept.items()}

    def close(self) -> None:
        for key in list(self.kept):
            self.drop(key)


def config() -> Config:
    return parse_config(TEXT, "<test>", os.getcwd(), contained=False)


class Running:
    def __init__(self, given: Config, **options: Any) -> None:
        self.devices = OneKind(MemoryKind())
        self.runtime = Runtime(given, devices=self.devices, **options)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.runtime.emit = lambda event, /, **fields: self.events.append((event, fields))
        self.runtime.start()

    def value(self, element: str, handler: str) -> Any:
        [entry] = self.runtime.read_handler(element, handler)
        return entry["value"]

    def element(self, name: str) -> Any:
        [found] = [each for home in self.runtime.hosted for each in home.engine.elements if each.name == name]
        return found

    def close(self) -> None:
        conserved = self.runtime.status()["conserved"]
        self.runtime.close()
        assert conserved and self.runtime.pool.in_use == 0


@pytest.fixture
def running():
    made = Running(config())
    yield made
    made.close()


def test_what_there_is(running):
    found = running.runtime.handlers()
    assert found[SPLIT]["type"] == "Classifier" and found[SPLIT]["engines"] == ["e0"]
    assert list(found[SPLIT]["handlers"]) == ["counters", "hits", "rules"]
    assert found["switch"]["engines"] == ["e0", "e1"]
    assert {"a.rx", "a.parse", "a.egress.rate", "a.egress.counter", TTL, "b.tx", "a.ring.tx"} <= set(found)
    assert running.runtime.handlers(TTL) == {TTL: found[TTL]}
    assert found[TTL]["handlers"]["ttl"] == {
        "read": True,
        "write": True,
        "mode": "live",
        "shared": False,
        "help": "TTL that packets get, 1 to 255",
    }


class Clients(Module):
    """Has a client."""

    def accounts(self):
        return {"guest": 0}


def test_names_of_clients_and_of_nics_that_wait_are_taken():
    given = parse_config("nics: {a: {}}\nmodules: [{module: 'tests.test_handlers_runtime:Clients'}]", contained=False)
    running = Running(given)
    nics = running.runtime.nics
    with pytest.raises(ConfigError, match="^nic guest: the name is that of a module's client; choose another one$"):
        nics.attach(NicConfig(name="guest"))
    waits = NicConfig(name="w", netns="/nowhere", waiting="its namespace is gone")
    nics.config.nics["w"] = waits
    with pytest.raises(ConfigError, match="^nic w: the name is that of another user's NIC; choose another one$"):
        nics.attach(NicConfig(name="w", owner=User(4711)))
    with pytest.raises(ConfigError, match="^nic w.x: begins like the name of another user's NIC; choose another name$"):
        nics.attach(NicConfig(name="w.x", owner=User(4711)))
    nics.attach(NicConfig(name="w"))
    assert nics.names() == ["a", "w"]
    running.close()


def test_a_mac_address_is_one_nics(running):
    nics = running.runtime.nics
    mac = nics.attached["a"].config.mac
    with pytest.raises(ConfigError, match=f"^nic c: mac: {mac} is a's already; choose another one$"):
        nics.attach(NicConfig(name="c", mac=mac))
    nics.attach(NicConfig(name="c"))


@pytest.mark.parametrize(
    "call",
    [
        lambda runtime: runtime.handlers("a.egress.splt"),
        lambda runtime: runtime.read_handler("a.egress.splt", "rules"),
        lambda runtime: runtime.write_handler("a.egress.splt", "rules", []),
    ],
)
def test_an_element_that_is_not_there(running, call):
    with pytest.raises(ConfigError, match=r"^element a.egress.splt: there is none; did you mean 'a.egress.split'\?$"):
        call(running.runtime)


def test_copies_are_read_one_by_one_and_what_they_share_once(running):
    read = running.runtime.read_handler
    ports = [{"port": number, "trunk": "1-4094", "native": None} for number in (0, 1)]
    assert read("switch", "ports") == [{"engine": name, "value": ports} for name in ("e0", "e1")]
    running.runtime.nics.tables["switch"].add_static("02:00:00:00:00:07", 1)
    [shared] = read("switch", "table")
    assert shared["engine"] is None and [entry["mac"] for entry in shared["value"]] == ["02:00:00:00:00:07"]
    assert running.runtime.write_handler("switch", "flush", {"mac": "02:00:00:00:00:07"}) == 1
    assert len(running.runtime.nics.tables["switch"]) == 0


def test_rules_are_written_and_kept(running):
    given = config()
    rules = [{"protocol": "tcp", "gate": 0, "mark": 7}, {"dscp": "ef", "gate": 1}]
    before = encode_config(running.runtime.config)
    for bad in ([{"protocol": "tpc"}], [{"gate": 2}], "x", None):
        with pytest.raises(ConfigError):
            running.runtime.write_handler(SPLIT, "rules", bad)
    assert encode_config(running.runtime.config) == before and running.events == []
    running.runtime.write_handler(SPLIT, "rules", rules)
    assert running.value(SPLIT, "rules") == rules
    assert running.events == [("handler", {"element": SPLIT, "handler": "rules"})]
    arguments = running.runtime.config.nics["a"].egress.elements[0].arguments
    assert arguments == {"rules": rules, "default": 1}
    assert given.nics["a"].egress.elements[0].arguments["rules"] == [{"protocol": "udp", "gate": 0}]


def test_a_configuration_that_a_caller_has_stays_his():
    given = config()
    running = Running(given)
    before = encode_config(given)
    running.runtime.write_handler(SPLIT, "rules", [])
    running.runtime.write_handler(TTL, "ttl", 9)
    assert encode_config(given) == before != encode_config(running.runtime.config)
    running.close()


def test_a_worker_after_a_crash_begins_with_what_was_written():
    keeping = KeptHere()
    first = Running(config(), keeping=keeping)
    for element, handler, value in [
        (SPLIT, "rules", [{"protocol": "tcp", "gate": 1}]),
        (TTL, "ttl", 9),
        ("a.egress.split.1.shaper", "rate", "none"),
        ("a.egress.rate", "rate", "none"),
        ("b.ingress.rate", "rate", "25mbit"),
    ]:
        first.runtime.write_handler(element, handler, value)
        kept = decode_config(keeping.documents["config"])
    first.close()
    second = Running(kept)
    assert second.value(SPLIT, "rules") == [{"protocol": "tcp", "gate": 1}]
    assert second.value(TTL, "ttl") == 9
    assert second.value("a.egress.split.1.shaper", "rate") == second.value("a.egress.rate", "rate") == "none"
    assert second.value("b.ingress.rate", "rate") == "25mbit"
    second.close()
    keeping.close()


def test_the_rate_of_a_nic_is_set_as_by_set_rate(running):
    write = running.runtime.write_handler
    write("a.egress.rate", "rate", "20mbit")
    assert running.runtime.config.nics["a"].egress.rate == 20_000_000
    assert running.runtime.status()["nics"][0]["egress_bps"] == 20_000_000
    assert running.events[0] == ("rate", {"nic": "a", "egress_bps": 20_000_000})
    for bad in ("fast", "20tbit", "1bit", [], 1.5, object()):
        with pytest.raises(ConfigError):
            write("a.egress.rate", "rate", bad)
        assert running.value("a.egress.rate", "rate") == "20mbit"
        assert running.runtime.config.nics["a"].egress.rate == 20_000_000
    write("a.egress.rate", "rate", None)
    assert running.runtime.config.nics["a"].egress.rate is None and running.value("a.egress.rate", "rate") == "none"
    assert running.value("a.egress.rate", "queue")["packets"] == 0


def test_a_quiescing_write_stops_all_engines_that_have_a_copy_and_only_for_so_long(running):
    events, stamps, loops = itertools.count(), [], []
    for home in running.runtime.hosted:
        stamp = Stamp(events, name="stamp")
        _, sources, loop = circle(f"{home.engine.name}.x", running.runtime.pool, 8, stamp)
        stamp >> PortTx(loop)
        home.load([*home.sources, *sources])
        stamps.append(stamp)
        loops.append(loop)
    until(lambda: all(0 in stamp.last for stamp in stamps))
    for value in range(1, 11):
        running.runtime.write_handler("stamp", "value", value)
        assert running.runtime.read_handler("stamp", "value") == [
            {"engine": "e0", "value": value},
            {"engine": "e1", "value": value},
        ]
        until(lambda: all(value in stamp.last for stamp in stamps))
    for value in range(1, 11):
        assert max(stamp.last[value - 1] for stamp in stamps) < min(stamp.first[value] for stamp in stamps)
    stamps[1].refuses = 11
    with pytest.raises(ConfigError):
        running.runtime.write_handler("stamp", "value", 11)
    assert [stamp.value for stamp in stamps] == [10, 10]
    assert all(home.engine.running for home in running.runtime.hosted)
    for home, loop in zip(running.runtime.hosted, loops, strict=True):
        running.runtime.group_of(home.engine).halt(home.engine)
        loop.drain(home.engine)
        running.runtime.group_of(home.engine).resume(home.engine)


def test_nothing_is_written_while_an_upgrade_is_under_way(running):
    running.runtime.begin_upgrade()
    with pytest.raises(VnicError, match="^an upgrade is under way"):
        running.runtime.write_handler(SPLIT, "rules", [])
    assert running.value(SPLIT, "rules") == [{"protocol": "udp", "gate": 0}]
    running.runtime.end_upgrade()
    running.runtime.write_handler(SPLIT, "rules", [])
    assert running.value(SPLIT, "rules") == []


def test_an_upgrade_takes_over_what_was_written_and_what_was_counted_by_it():
    keeping = KeptHere()
    old = Running(config(), keeping=keeping)
    old.runtime.write_handler(SPLIT, "rules", [{"protocol": "tcp", "gate": 1}, {"protocol": "udp", "gate": 0}])
    old.runtime.write_handler(TTL, "ttl", 9)
    old.devices.nics["a"].port.inject([Spec().build()] * 3 + [Spec(protocol=UDP).build()] * 2)
    until(lambda: old.value(SPLIT, "hits") == [3, 2])
    old.runtime.begin_upgrade()
    inherited = KeptHere(keeping.copies())
    document = keeping.documents["config"]
    new = Running(decode_config(document), keeping=inherited, role="successor")
    new.runtime.start_threads()
    ends = [upgrade.Channel(end) for end in socket.socketpair()]
    taking = threading.Thread(target=upgrade.take, args=(new.runtime, ends[1], document))
    taking.start()
    upgrade.give(old.runtime, ends[0])
    taking.join()
    assert new.value(SPLIT, "rules") == [{"protocol": "tcp", "gate": 1}, {"protocol": "udp", "gate": 0}]
    assert new.value(SPLIT, "hits") == [3, 2]
    assert new.value(TTL, "ttl") == 9
    new.devices.nics["a"].port.inject([Spec().build()])
    until(lambda: new.value(SPLIT, "hits") == [4, 2])
    old.runtime.end_upgrade()
    old.runtime.close()
    for end in ends:
        end.close()
    new.close()
    keeping.close()
    inherited.close()


def test_in_virtual_time():
    running = Running(config(), clock=Clock(virtual=True, start_ns=10**9))
    running.runtime.write_handler(SPLIT, "rules", [{"protocol": "tcp", "gate": 1}])
    running.runtime.write_handler(TTL, "ttl", 5)
    assert (running.value(SPLIT, "rules"), running.value(TTL, "ttl")) == ([{"protocol": "tcp", "gate": 1}], 5)
    running.close()


def test_by_the_command(environment, tmp_path, leak_check):  # noqa: F811
    """Lists, reads and writes handlers by the command; values written survive a crash and an
    upgrade."""
    rules = [{"protocol": "icmp", "gate": 0}]
    with Container() as a, Container() as b:
        nics = {
            name: {"pid": box.pid, "interface": "eth0", "addresses": [f"10.99.0.{number}/24"]}
            for number, (name, box) in enumerate({"a": a, "b": b}.items(), 1)
        }
        nics["a"]["egress"] = {"elements": [{"element": "Classifier", "rules": rules, "default": 0}]}
        (tmp_path / "net.yaml").write_text(json.dumps({"engines": 2, "nics": nics}))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            name = "a.egress.classifier"
            assert name in vnic(environment, "handler") and "quiescing" not in vnic(environment, "handler", "a.rx")
            listed = json.loads(vnic(environment, "handler", name, "--json"))[name]
            assert listed["engines"] == ["e0"] and listed["handlers"]["rules"]["write"]
            ping(a, "10.99.0.2", count=5)
            assert json.loads(vnic(environment, "handler", name, "hits"))
            changed = [{"protocol": "udp", "gate": 0}]
            vnic(environment, "handler", name, "rules", json.dumps(changed))
            vnic(environment, "handler", "a.egress.rate", "rate", "10mbit")
            for again in (lambda: None, lambda: kill_worker(environment), lambda: vnic(environment, "upgrade")):
                again()
                read = json.loads(vnic(environment, "handler", name, "rules"))
                assert "udp" in json.dumps(read) and "icmp" not in json.dumps(read)
                assert vnic(environment, "handler", "a.egress.rate", "rate") == "10mbit\n"
            both = json.loads(vnic(environment, "handler", "switch", "ports", "--json"))
            assert [each["engine"] for each in both] == ["e0", "e1"]
            assert int(vnic(environment, "handler", "switch", "flush", "all")) > 0
            ping(b, "10.99.0.1")
            for words, says in [(["nobody"], "there is none"), (["switch", "fly"], "fly"), (["a.rx", "counters", "0"], "only"),
                                ([name, "rules", "red"], "rules")]:  # fmt: skip
                assert says in vnic(environment, "handler", *words, status=2)
        finally:
            vnic(environment, "down")
