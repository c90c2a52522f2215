"""One-way links: elements that NICs share, taps, and NICs that are joined without a switch."""

import json
from contextlib import suppress

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from dataplane.engine.virtual_time import VirtualTime
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.element import Element
from tests.support.containers import Container
from tests.test_apply import element, frame, reached
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker
from tests.test_upgrade import an_engine_each
from vnic.config.load import parse_config
from vnic.config.written import written_config
from vnic.modules.chain import check_node
from vnic.testing import VirtualNetwork

NICS = "engines: {engines}\nnics: {{a: {{engine: 0}}, b: {{engine: {last}}}, c: {{}}}}\n"
SPLIT = """
nodes:
  split: {element: Classifier, rules: [{protocol: udp}]}
  seen: Counter
links:
  - a -> split -> c
  - split[1] -> seen -> switch
"""


@pytest.fixture(params=[1, 3])
def engines(request):
    return request.param


def network(engines, text=SPLIT):
    return NICS.format(engines=engines, last=engines - 1) + text


def udp(source: int, destination: int) -> bytes:
    ether = Ether(src=f"02:00:00:00:00:{source:02x}", dst=f"02:00:00:00:00:{destination:02x}")
    return bytes(ether / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2))


def test_an_element_leads_by_its_outputs(engines):
    with VirtualNetwork(network(engines)) as net:
        assert reached(net, "a", udp(1, 2)) == "c"  # to its container, whatever the address is
        assert reached(net, "a", frame(1)) == "bc"  # by the switch, which learns it at a's port
        assert reached(net, "b", frame(2, 1)) == "a"


def test_nics_share_a_limit(engines):
    text = "nodes: {limit: {element: Shaper, rate: 8mbit, queue: 1s}}\nlinks: [a -> limit, b -> limit -> switch]"
    with VirtualNetwork(network(engines, text)) as net:
        for name in "ab":
            net.send(name, [frame(ord(name) - 96, 3, size=1000)] * 5)
        net.run()
        instants = [each.time_ns for each in net.take("c")]
        assert len(instants) == 10 and instants[-1] - instants[1] == 8_000_000  # 1 ms each, of both together
        net._runtime.write_handler("limit", "rate", "16mbit")
        assert net._runtime.config.nodes["limit"].arguments["rate"] == "16mbit"
        net.send("a", [frame(1, 3, size=1000)] * 3)
        net.run()
        instants = [each.time_ns for each in net.take("c")]
        assert instants[-1] - instants[1] == 500_000
        assert net.apply(network(engines, text)) == ["change node limit"]  # back to what the file says


def test_two_nics_without_a_switch(engines):
    with VirtualNetwork(network(engines, "links: [a -> b, b -> a]")) as net:
        assert reached(net, "a", frame(1)) == "b" and reached(net, "b", frame(2)) == "a"
        assert reached(net, "c", frame(3)) == "ab"


def test_an_output_that_leads_nowhere_drops_and_counts(engines):
    text = "nodes: {split: {element: Classifier, rules: [{protocol: udp}]}}\nlinks: [a -> split, 'split[1] -> switch']"
    with VirtualNetwork(network(engines, text)) as net:
        assert reached(net, "a", udp(1, 2)) == "" and reached(net, "a", frame(1)) == "bc"
        assert net.drops() == {"e0.unused: discarded": 1}


def test_elements_that_nothing_leads_to_are_in_no_graph():
    with VirtualNetwork(network(1, "nodes: {s: Counter, t: Counter}\nlinks: [s -> t -> switch]")) as net:
        assert not {"s", "t"} & {each.name for each in net._runtime.engines[0].elements}
        net.apply(network(1, "nodes: {s: Counter, t: Counter}\nlinks: [s -> t -> switch, a -> s]"))
        assert {"s", "t"} <= {each.name for each in net._runtime.engines[0].elements}
        assert reached(net, "a", frame(1)) == "bc"


def test_what_stays_keeps_its_counts(engines):
    with VirtualNetwork(network(engines)) as net:
        reached(net, "a", frame(1))
        seen, split = element(net, "seen"), element(net, "split")
        changes = net.apply(network(engines, SPLIT.replace("a -> split", "b -> split")))
        assert changes == ["remove link a -> split", "add link b -> split"]
        assert (element(net, "seen"), element(net, "split")) == (seen, split)
        assert reached(net, "b", udp(2, 1)) == "c" and reached(net, "a", udp(1, 2)) == "bc"
        assert net.apply(network(engines, SPLIT.replace("a -> split", "b -> split").replace("udp", "tcp"))) == [
            "change node split"
        ]
        assert element(net, "seen") is seen and element(net, "split") is not split
        assert reached(net, "b", udp(2, 1)) == "a"


def test_an_element_moves_to_another_engine():
    with VirtualNetwork(network(3)) as net:
        assert reached(net, "a", frame(1)) == "bc"
        moved = SPLIT.replace("[{protocol: udp}]", "[{protocol: udp}], engine: 2")
        assert net.apply(network(3, moved)) == ["change node split"]
        assert element(net, "split").engine.name == "e2"
        assert reached(net, "a", udp(1, 2)) == "c" and reached(net, "a", frame(1)) == "bc"
        net._runtime.undo()
        assert element(net, "split").engine.name == "e0"
        assert reached(net, "a", udp(1, 2)) == "c"


@pytest.mark.parametrize("which", ["nodes", "moved"])
def test_a_change_of_an_element_that_fails_is_undone(engines, which):
    """Its successor has fewer outputs, or is in another engine and refuses to be made; the links of before are there again."""
    three = SPLIT.replace("[{protocol: udp}]", "[{protocol: udp}, {protocol: tcp}]").replace("split[1]", "split[2]")
    with VirtualNetwork(network(engines, three)) as net:
        before = written_config(net._runtime.config)
        assert reached(net, "a", udp(1, 2)) == "c" and reached(net, "a", frame(1)) == "bc"
        element_class = "tests.test_one_way_links:RefusesToBeMade"
        if which == "nodes":
            wanted = network(engines, SPLIT.replace("seen: Counter", f"seen: '{element_class}'"))
        else:
            seen = f"seen: {{element: '{element_class}', engine: {engines - 1}}}"
            wanted = network(engines, three.replace("seen: Counter", seen))
        with pytest.raises(VnicError, match="refuses its arguments: not today"):
            net.apply(wanted)
        assert written_config(net._runtime.config) == before
        assert reached(net, "a", udp(1, 2)) == "c" and reached(net, "a", frame(1)) == "bc"


class RefusesToBeMade(Element):
    def __init__(self, *, name=None):
        raise RuntimeError("not today")


def test_a_nic_that_is_detached_takes_its_links_along(engines):
    with VirtualNetwork(network(engines)) as net:
        runtime = net._runtime
        runtime.nics.detach("c")
        assert [hop.text for hop in runtime.config.hops] == ["a -> split", "split[1] -> seen", "seen -> switch"]
        net._time = VirtualTime(runtime.engines)
        net.send("a", [udp(1, 2), frame(1)])
        net.run()
        assert [each.data for each in net.take("b")] == [frame(1)]
        assert net.drops() == {"e0.unused: discarded": 1}
        text = json.dumps(written_config(runtime.config))
        assert written_config(parse_config(text, contained=False)) == written_config(runtime.config)
        runtime.nics.detach("a")
        assert [hop.text for hop in runtime.config.hops] == ["split[1] -> seen", "seen -> switch"]
        net._time = VirtualTime(runtime.engines)


def test_no_packet_of_a_new_nic_passes_by_its_elements(engines):
    """The links of a NIC are there before the NIC."""
    guard = "nodes: {guard: Discard}\nlinks: [d -> guard]"
    with VirtualNetwork(network(engines, "")) as net:
        wire, seen = net._runtime.nics.wire, []

        def watched(without=()):
            wire(without)
            attached = net._runtime.nics.attached.get("d")
            seen.append(None if attached is None else attached.egress.shaper.outputs[0].name)

        net._runtime.nics.wire = watched
        net.apply(network(engines, guard).replace("c: {}", "c: {}, d: {}"))
        assert {each for each in seen if each is not None} <= {"guard", "guard.ring"}
        assert reached(net, "d", frame(4)) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("links: [a -> x]", "links: a -> x: there is no node or NIC x"),
        ("links: [x -> a]", "links: x -> a: there is no NIC or element x"),
        ("links: [switch -> a]", "switch is a switch: a one-way link begins at a NIC or an element"),
        ("links: ['a[1] -> b']", "NIC a has output 0 only"),
        ("links: ['a -> b[1]']", r"b\[1\] leads nowhere: expected b\[1\] -> NODE"),
        ("links: [a -> b, a -> c]", "a -> c: there is a -> b already; a packet can go one way only"),
        ("links: [a ->]", "invalid value 'a ->': expected a row such as"),
        ("links: [a -> b -- c]", "invalid value 'a -> b -- c': expected a row such as"),
        ("links: [{link: a -> b, rate: 1mbit}]", r"links\[0\].rate: one-way links have no settings"),
        ("nodes: {s: Counter, t: Counter}\nlinks: [a -> s -> t, t -> s]", "s -> t -> s is a loop|t -> s -> t is a loop"),
        ("nodes: {s: {element: Counter, engine: 7}}", "nodes.s.engine: engine 7 does not exist"),
        ("nodes: {s: {element: Counter, name: x}}", "nodes.s.name: an element's node has the node's name instead"),
        ("nodes: {s: {element: Classifier, rules: [], branches: {}}}", "nodes.s.branches: .*one-way links such as"),
        ("nodes: {s: {element: Counter, switch: {}}}", "nodes.s: needs either switch or element"),
        ("nodes: {s: {}}", "nodes.s: needs either switch or element"),
        ("nodes: {l: switch, s: Counter}\nlinks: [l -- s]", "links.*there is no switch 's': expected l"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        parse_config(f"nics: {{a: {{on: null}}, b: {{}}, c: {{}}}}\n{text}".replace("on: null", ""), contained=False)
    assert "\n" not in str(caught.value)


def test_bounds():
    def row(length):
        nodes = ", ".join(f"c{number}: Counter" for number in range(length))
        return f"nics: {{a: }}\nnodes: {{{nodes}}}\nlinks: [a -> {' -> '.join(f'c{number}' for number in range(length))} -> switch]"

    with VirtualNetwork(row(256)) as net:
        net.send("a", frame(1))
        net.run()
        assert element(net, "c255").statistics()["packets"] == 1
    with pytest.raises(ConfigError, match="links: 257 elements in a row: expected at most 256"):
        parse_config(row(257), contained=False)
    many = "".join(f"  - 'a -> {'s -> ' * 9}s'\n" for _ in range(410))
    with pytest.raises(ConfigError, match="links: 4100 one-way links: expected at most 4096"):
        parse_config(f"nics: {{a: }}\nnodes: {{s: Counter}}\nlinks:\n{many}", contained=False)


def test_a_nic_leads_to_its_own_switch_only():
    text = "nodes: {l: switch, m: switch, s: Counter}\nnics: {a: {on: l}, b: {on: m}}\nlinks: [a -> s -> m]"
    with pytest.raises(ConfigError, match="a leads to switch m, but a is on l; set on: m"):
        parse_config(text, contained=False)
    parse_config(text.replace("on: l", "on: m"), contained=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodes: {s: Counter}\nlinks: [a -> s, 's[1] -> b']", r"s\[1\] -> b: s has one output"),
        ("nodes: {s: Discard}\nlinks: [a -> s -> b]", "s -> b: s has no output"),
        ("nodes: {s: {element: Classifier, rules: []}}\nlinks: [a -> s, 's[4] -> b']", r"s\[4\] -> b: s has one output"),
        ("nodes: {s: Conter}", "element Conter: unknown; did you mean 'Counter'"),
        ("nodes: {s: {element: Counter, x: 1}}", "Counter has no argument 'x'"),
        ("nodes: {s: {element: 'dataplane.graph.link:Link', port: 1}}", "is a source: expected an element that packets pass"),
    ],
)
def test_an_element_that_does_not_fit_is_refused(text, says):
    config = f"nics: {{a: , b: }}\n{text}"
    with pytest.raises(VnicError, match=says):
        VirtualNetwork(config)
    with VirtualNetwork("nics: {a: , b: }") as net:
        with pytest.raises(VnicError, match=says):
            net.apply(config)
        assert reached(net, "a", frame(1)) == "b"
    if "Link" not in text:
        found = parse_config(config, contained=False)
        with pytest.raises(ConfigError, match=says):
            for name, node in found.elements.items():
                check_node(name, node, found.hops)


def test_it_is_written_as_a_file_has_it():
    text = """
nodes:
  lan: {switch: {table: 64}}
  split: {element: Classifier, rules: [{protocol: udp}], engine: e0}
nics: {a: {on: lan}, b: {on: lan}, d.e: {on: lan}}
links:
  - d.e -> split -> b
  - split[1] -> lan
"""
    config = parse_config(text, contained=False)
    found = written_config(config)
    assert found["links"] == ["d.e -> split", "split -> b", "split[1] -> lan"]
    assert found["nodes"]["split"] == {"element": "Classifier", "engine": "e0", "rules": [{"protocol": "udp"}]}
    assert written_config(parse_config(json.dumps(found), contained=False)) == found


def test_upgrade_and_crash(environment, tmp_path, leak_check):  # noqa: F811
    """A limit that both containers share keeps its packets, counts and clock."""
    with Container() as a, Container() as b:
        config = {
            "engines": 2,
            "nics": an_engine_each(a=a, b=b),
            "nodes": {"limit": {"element": "Shaper", "rate": "100mbit"}, "seen": {"element": "Counter", "engine": 1}},
            "links": ["a -> limit -> seen -> switch", "b -> limit"],
        }
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            ping(a, "10.99.0.2")
            before = json.loads(vnic(environment, "stats", "--json"))
            vnic(environment, "upgrade")
            ping(a, "10.99.0.2")
            after = json.loads(vnic(environment, "stats", "--json"))
            assert 0 < _received(before, "seen") < _received(after, "seen")
            vnic(environment, "handler", "limit", "rate", "50mbit")
            kill_worker(environment)
            ping(b, "10.99.0.1")
            assert vnic(environment, "handler", "limit", "rate").strip().endswith("50mbit")
            assert "seen" in vnic(environment, "status") and "limit  Shaper" in vnic(environment, "graph")
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


FAILS = """
import os
from dataplane.errors import VnicError
from dataplane.graph.element import PyElement

class Guard(PyElement):
    def __init__(self, broken, *, name=None):
        if os.path.exists(broken):
            raise VnicError("the guard is broken")

    def process(self, batch):
        pass
"""


def test_after_a_crash_packets_for_a_node_that_is_lost_are_dropped(environment, tmp_path, leak_check):  # noqa: F811
    """They are not led past it."""
    (tmp_path / "fails.py").write_text(FAILS)
    with Container() as a, Container() as b:
        config = {
            "nics": {name: {**nic, "engine": 0} for name, nic in an_engine_each(a=a, b=b).items()},
            "nodes": {"guard": {"element": "fails:Guard", "broken": str(tmp_path / "broken")}},
            "links": ["a -> guard -> switch"],
        }
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            ping(a, "10.99.0.2")
            (tmp_path / "broken").touch()
            kill_worker(environment)
            a.run("ping", "-c", "1", "-W", "1", "10.99.0.2", check=False)
            stats = json.loads(vnic(environment, "stats", "--json"))
            dropped = {
                each["name"]: each["dropped"].get("discarded", 0) for engine in stats["engines"] for each in engine["elements"]
            }
            assert dropped["e0.unused"] > 0 and dropped["b.tx"] == 0
            assert "node guard" in vnic(environment, "status") and "the guard is broken" in vnic(environment, "status")
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


def _received(stats, name):
    return sum(each["counters"]["bytes"] for engine in stats["engines"] for each in engine["elements"] if each["name"] == name)
