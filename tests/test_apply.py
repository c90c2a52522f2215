"""`apply` in virtual time: what changes, what stays, failures that leave the old network, random changes and back."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.virtual_time import VirtualTime
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.element import Element
from vnic.config.convert import convert_nic
from vnic.config.written import written_config
from vnic.modules.chain import Chain
from vnic.modules.engine_host import EngineHost
from vnic.testing import VirtualNetwork


def frame(source: int, destination: int | None = None, size: int = 60) -> bytes:
    there = b"\xff" * 6 if destination is None else bytes([2, 0, 0, 0, 0, destination])
    return there + bytes([2, 0, 0, 0, 0, source]) + b"\x88\xb5" + bytes(size - 14)


def reached(net: VirtualNetwork, sender: str, packet: bytes) -> str:
    """The NICs that a packet reaches, in order."""
    for name in net.config.nics:
        net.take(name)
    net.send(sender, packet)
    net.run()
    return "".join(sorted(name for name in net.config.nics if net.take(name)))


def element(net: VirtualNetwork, name: str) -> Element:
    return next(each for engine in net._runtime.engines for each in engine.elements if each.name == name)


class Refuses(Element):
    def initialize(self):
        raise VnicError(f"{self.name}: refuses to start")


TWO = """
engines: {engines}
nodes: {{lan: switch, dmz: switch}}
links: [{link}]
nics: {{a: {{on: lan}}, b: {{on: lan}}, c: {{on: dmz}}}}
"""


@pytest.fixture(params=[1, 3])
def engines(request):
    return request.param


def test_nothing_to_change(engines):
    with VirtualNetwork(f"engines: {engines}\nnics: {{a: , b: }}") as net:
        assert net.apply(f"engines: {engines}\nnics: {{a: , b: }}") == []


def test_nics_come_and_go(engines):
    with VirtualNetwork(f"engines: {engines}\nnics: {{a: , b: }}") as net:
        assert reached(net, "a", frame(1)) == "b"
        assert net.apply(f"engines: {engines}\nnics: {{a: , c: }}") == ["remove nic b", "add nic c"]
        assert reached(net, "a", frame(1)) == "c"


def test_switches_and_links_come_and_go(engines):
    with VirtualNetwork(f"engines: {engines}\nnics: {{a: , b: , c: }}") as net:
        assert reached(net, "a", frame(1)) == "bc"
        net.apply(TWO.format(engines=engines, link=""))
        assert reached(net, "a", frame(1)) == "b"
        net.apply(TWO.format(engines=engines, link="lan -- dmz"))
        assert reached(net, "a", frame(1)) == "bc"
        assert reached(net, "c", frame(3, 1)) == "a"  # both switches know where it is
        net.apply(TWO.format(engines=engines, link="{link: lan -- dmz, rate: 1mbit, elements: [Counter]}"))
        assert reached(net, "a", frame(1)) == "bc"
        net.apply(f"engines: {engines}\nnics: {{a: , b: , c: }}")
        assert reached(net, "c", frame(3)) == "ab"
        assert set(net._runtime.nics.tables) == {"switch"}


def test_a_link_changes_its_rate_and_elements_in_place(engines):
    with VirtualNetwork(TWO.format(engines=engines, link="{link: lan -- dmz, rate: 1mbit, elements: [Counter]}")) as net:
        net.send("a", [frame(1, size=1000)] * 10)
        net.advance("1ms")
        shaper, counter = element(net, "lan--dmz.dmz.rate"), element(net, "lan--dmz.dmz.counter")
        assert shaper.statistics()["held"] == 9
        changed = "{link: lan -- dmz, rate: 2mbit, elements: [Counter, {element: Shaper, rate: 1gbit, name: more}]}"
        assert net.apply(TWO.format(engines=engines, link=changed)) == ["change link lan--dmz"]
        assert element(net, "lan--dmz.dmz.rate") is shaper and element(net, "lan--dmz.dmz.counter") is counter
        assert shaper.statistics()["held"] == 9
        net.run()
        assert len(net.received("c")) == 10
        assert element(net, "lan--dmz.dmz.more").statistics()["packets"] == 0
        assert reached(net, "a", frame(1)) == "bc"
        assert element(net, "lan--dmz.dmz.more").statistics()["packets"] == 1


def test_elements_that_stay_keep_their_packets(engines):
    first = f"engines: {engines}\nnics: {{a: {{egress: {{rate: 1mbit, elements: [Counter]}}}}, b: }}"
    more = f"engines: {engines}\nnics: {{a: {{egress: {{rate: 1mbit, elements: [Counter, {{element: Counter, name: late}}]}}}}, b: }}"
    with VirtualNetwork(first) as net:
        net.send("a", [frame(1, size=1000)] * 10)
        net.advance("1ms")
        shaper = element(net, "a.egress.rate")
        assert net.apply(more) == ["change nic a"]
        assert element(net, "a.egress.rate") is shaper and shaper.statistics()["held"] == 9
        net.send("a", frame(1))
        net.run()
        assert len(net.received("b")) == 11 and net.drops() == {}
        assert element(net, "a.egress.counter").statistics()["packets"] == 11
        assert element(net, "a.egress.late").statistics()["packets"] == 1
        assert net.apply(first) == ["change nic a"]
        assert reached(net, "a", frame(1)) == "b"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{egress: {rate: 1mbit}}", "{egress: {rate: 5mbit}}"),
        ("{egress: {rate: 1mbit, queue: 10ms}}", "{egress: {rate: 1mbit, queue: 20ms}}"),
        ("{malformed: drop}", "{malformed: forward}"),
        ("{vlan: {access: 10}}", "{vlan: {access: 20}}"),
        ("{vlan: {access: 10}}", ""),
        ("{spoof_check: true}", "{spoof_check: false}"),
        ("{engine: 0}", "{engine: 1}"),
        ("{engine: 1, ingress: {elements: [Counter]}}", "{engine: 0}"),
        ("{mtu: 1500}", "{mtu: 9000}"),
        ("{queues: 1}", "{queues: 4}"),
        (
            "{ingress: {elements: [{element: Classifier, rules: [{protocol: udp}], branches: {0: [Counter]}}]}}",
            "{ingress: {elements: [Counter]}}",
        ),
    ],
)
def test_each_setting_of_a_nic_there_and_back(before, after):
    text = "engines: 2\nnics: {{a: {}, b: {{engine: 1}}}}"
    with VirtualNetwork(text.format(before)) as net, VirtualNetwork(text.format(after)) as fresh:
        for wanted in (after, before, after):
            assert net.apply(text.format(wanted)) == ["change nic a"]
        mine, other = ({each.name: each.describe() for each in _elements(one)} for one in (net, fresh))
        assert mine == other
        source = int(fresh.config.nics["a"].mac[-2:], 16)
        for packet in (frame(source), frame(9)):
            assert reached(net, "a", packet) == reached(fresh, "a", packet)
            assert reached(net, "b", packet) == reached(fresh, "b", packet)


def _elements(net: VirtualNetwork) -> list[Element]:
    return [each for engine in net._runtime.engines for each in engine.elements if each.name != "switch"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("engines: 2\nnics: {a: , b: }", "engines: cannot change while vnic runs"),
        ("pool: {small: 128}\nnics: {a: }", "pool: cannot change while vnic runs"),
        ("groups: {x: {}}\nnics: {a: }", "cannot (come or go|change) while vnic runs"),
        ("switch: {table: 64}\nnics: {a: , b: {egress: {elements: ['tests.test_apply:Refuses']}}}", "refuses to start"),
        ("nics: {a: , c: {egress: {elements: ['tests.test_apply:Refuses']}}}", "c.egress.refuses: refuses to start"),
        ("nics: {a: {egress: {elements: ['tests.test_apply:Refuses']}}, b: }", "a.egress.refuses: refuses to start"),
        (
            "nodes: {l: switch, d: switch}\nlinks: [{link: l -- d, elements: ['tests.test_apply:Refuses']}]\n"
            "nics: {a: {on: l}, b: {on: d}}",
            r"l--d\.[ld]\.refuses: refuses to start",
        ),
        ("nics: {a: {mtu: 9000}, b: {mtu: 9000, egress: {elements: ['tests.test_apply:Refuses']}}}", "refuses to start"),
    ],
)
def test_a_change_that_fails_leaves_the_old_network(wanted, says):
    with VirtualNetwork("nics: {a: {egress: {rate: 1mbit}}, b: }") as net:
        assert reached(net, "a", frame(1)) == "b"
        before, graph = written_config(net._runtime.config), net._runtime.graph()
        with pytest.raises(VnicError, match=says):
            net.apply(wanted)
        assert written_config(net._runtime.config) == before
        assert sorted(net._runtime.graph().splitlines()) == sorted(graph.splitlines())
        assert reached(net, "a", frame(1)) == "b"
        assert net.apply("nics: {a: , b: , c: }") == ["change nic a", "add nic c"]
        assert reached(net, "a", frame(1)) == "bc"


def test_undo_goes_back_step_by_step():
    texts = ["nics: {a: , b: }", "nics: {a: , b: , c: }", TWO.format(engines=1, link="lan -- dmz")]
    with VirtualNetwork(texts[0]) as net:
        states = [written_config(net._runtime.config)]
        for text in texts[1:]:
            net.apply(text)
            states.append(written_config(net._runtime.config))
        for state in reversed(states[:-1]):
            assert net._runtime.undo(dry=True)
            net._runtime.undo()
            assert written_config(net._runtime.config) == state
        with pytest.raises(ConfigError, match="nothing to undo"):
            net._runtime.undo()


def test_undo_takes_no_port_that_another_has_by_now(engines):
    with VirtualNetwork(TWO.format(engines=engines, link="lan -- dmz")) as net:
        net.apply(TWO.format(engines=engines, link=""))
        nics = net._runtime.nics
        with net._runtime.lock:
            nics.attach(convert_nic("d", {"on": "lan"}, contained=False))
        net._time = VirtualTime(net._runtime.engines)
        net._runtime.undo()
        net._time = VirtualTime(net._runtime.engines)
        assert reached(net, "a", frame(1)) == "bc"


def test_a_link_whose_rate_was_lifted_still_changes(engines):
    link = "{{link: lan -- dmz, name: x, rate: 1mbit, vlan: {}}}"
    with VirtualNetwork(TWO.format(engines=engines, link=link.format("{untagged: true}"))) as net:
        for end in ("dmz", "lan"):
            net._runtime.write_handler(f"x.{end}.rate", "rate", "none")
        assert not net._runtime.config.links[0].plain
        net.apply(TWO.format(engines=engines, link=link.format("{trunk: [5]}")))
        assert reached(net, "a", frame(1)) == "b"
        net.apply(TWO.format(engines=engines, link="{link: lan -- dmz, name: x}"))
        assert reached(net, "a", frame(1)) == "bc" and net._runtime.config.links[0].plain


def test_a_link_is_turned(engines):
    with VirtualNetwork(TWO.format(engines=engines, link="{link: lan -- dmz, name: x, rate: 1mbit}")) as net:
        assert net.apply(TWO.format(engines=engines, link="{link: dmz -- lan, name: x, rate: 1mbit}")) == ["change link x"]
        assert reached(net, "a", frame(1)) == "bc"


def test_a_switch_gets_another_table_and_keeps_its_addresses(engines):
    text = f"engines: {engines}\nnodes: {{{{lan: {{{{switch: {{{{table: {{}}, ageing: {{}}}}}}}}}}}}}}\nnics: {{{{a: , b: , c: }}}}"
    with VirtualNetwork(text.format(64, "300s")) as net:
        assert reached(net, "a", frame(1)) == "bc" and reached(net, "b", frame(2, 1)) == "a"
        net.advance("20s")
        for size, ageing in ((4096, "300s"), (32, "60s"), (64, "40s")):
            assert net.apply(text.format(size, ageing)) == ["change switch lan"]
            assert reached(net, "c", frame(3, 1)) == "a"  # nothing is flooded
            assert net._runtime.nics.tables["lan"].capacity == size
        net.advance("19s")
        assert reached(net, "c", frame(3, 1)) == "a"
        net.advance("1s")  # it has sent nothing for 40 s
        assert reached(net, "c", frame(3, 1)) == "ab"
        net.advance("100s")
        assert len(net._runtime.nics.tables["lan"]) == 0  # removed, too
        net._runtime.undo()
        assert net._runtime.nics.tables["lan"].ageing_ns == 60_000_000_000


def test_the_implied_switch_changes_too():
    with VirtualNetwork("nics: {a: , b: }") as net:
        assert net.apply("switch: {table: 64, ageing: 10s}\nnics: {a: , b: }") == ["change switch switch"]
        assert net._runtime.nics.tables["switch"].capacity == 64
        assert reached(net, "a", frame(1)) == "b"


def test_values_of_handlers_are_kept_after_a_change():
    text = "nics: {{a: {{egress: {{elements: [{{element: Shaper, rate: 5mbit, name: lim}}]}}, vlan: {{access: {}}}}}, b: }}"
    with VirtualNetwork(text.format(5)) as net:
        net.apply(text.format(6))
        net._runtime.write_handler("a.egress.lim", "rate", "1mbit")
        assert net._runtime.config.nics["a"].egress.elements[0].arguments["rate"] == "1mbit"


# -- random networks ---------------------------------------------------------------------------------------------------------

WAYS = st.fixed_dictionaries(
    {},
    optional={"rate": st.sampled_from(["1mbit", "10mbit"]), "elements": st.sampled_from([["Counter"], ["Counter", "Counter"]])},
)


@st.composite
def networks(draw):
    switches = draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3, unique=True))
    links = []
    for number, switch in enumerate(switches[1:], 1):
        other = switches[draw(st.integers(0, number - 1))]
        links.append({"link": f"{other} -- {switch}", **draw(WAYS)})
    nics = {
        name: {
            "on": draw(st.sampled_from(switches)),
            "egress": draw(WAYS),
            "ingress": draw(WAYS),
            "mtu": draw(st.sampled_from([1500, 9000])),
            "engine": draw(st.integers(0, 1)),
        }
        for name in draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=4, unique=True))
    }
    nodes = {name: {"switch": {"table": draw(st.sampled_from([64, 4096]))}} for name in switches}
    through = draw(st.sampled_from(switches))
    senders = [name for name, nic in nics.items() if nic["on"] == through and draw(st.booleans())]
    if senders:
        rules = [{"protocol": "udp", "gate": 0}, {"protocol": "tcp", "gate": 1}]
        nodes["split"] = {
            "element": "Classifier",
            "rules": rules,
            "default": draw(st.integers(0, 1)),
            "engine": draw(st.integers(0, 1)),
        }
        nodes["seen"] = {"element": "Counter", "engine": draw(st.integers(0, 1))}
        links += [*(f"{name} -> split" for name in senders), f"split[1] -> {through}"]
        links += draw(
            st.sampled_from([[], ["split -> seen", f"seen -> {draw(st.sampled_from(sorted(nics)))}"], ["split -> seen"]])
        )
    return {"engines": 2, "nodes": nodes, "links": links, "nics": nics}


@settings(max_examples=60, deadline=None)
@given(st.lists(networks(), min_size=2, max_size=4), st.data())
def test_a_network_that_changed_is_like_one_that_began_so(wanted, data):
    """Whatever it was before: the same elements, connected alike, and the same packets arrive. Nothing is unaccounted for."""
    texts = [msgspec.json.encode(each).decode() for each in wanted]
    with VirtualNetwork(texts[0]) as net:
        for text in texts[1:]:
            sender = data.draw(st.sampled_from(sorted(net.config.nics)))
            net.send(sender, [frame(ord(sender), size=500)] * 3)
            net.advance("1ms")
            net.apply(text)
            with VirtualNetwork(text) as fresh:
                assert _connections(net) == _connections(fresh)
                net.run()
                for name in net.config.nics:
                    assert reached(net, name, frame(ord(name))) == reached(fresh, name, frame(ord(name)))


def _connections(net: VirtualNetwork) -> set[tuple[str, str, str]]:
    """(engine, element, the one behind it), without the outputs that lead nowhere."""
    return {
        (engine.name, each.name, target.name)
        for engine in net._runtime.engines
        for each in engine.elements
        for target in each.outputs
        if target is not None and not target.name.endswith(".unused")
    }


@pytest.mark.parametrize(("wanted", "which"), [
    ("{a: , b: , c: }", 0),
    ("{a: , b: , c: }", 1),
    ("{a: , c: }", 0),
    ("{a: {egress: {rate: 1gbit, elements: [Counter]}}, b: }", 0),
    ("{a: {egress: {rate: 1gbit, elements: [Counter]}}, b: }", 1),
    ("{a: {malformed: drop}, b: {vlan: {access: 5}}}", 0),
    ("{a: , b: }\nnodes: {s: Counter}\nlinks: [a -> s -> switch]", 0),
    ("{a: , b: }\nnodes: {s: Counter}\nlinks: [a -> s -> switch]", 1),
    ("{a: , b: , c: }\nnodes: {s: Counter}\nlinks: [c -> s -> a, b -> s]", 1),
])  # fmt: skip
def test_a_graph_that_an_engine_refuses_at_last_leaves_the_old_network(monkeypatch, engines, wanted, which):
    """All steps are prepared, outputs are connected, and then an engine does not load its graph."""
    with VirtualNetwork(f"engines: {engines}\nnics: {{a: , b: }}") as net:
        assert reached(net, "a", frame(1)) == "b"
        before, elements = written_config(net.config), _connections(net)
        load, calls = EngineHost.load, []

        def refuses(self, *arguments, **named):
            if self._pending is None:
                calls.append(self)
                if len(calls) == which + 1:
                    raise VnicError("no memory for the graph")
            return load(self, *arguments, **named)

        monkeypatch.setattr(EngineHost, "load", refuses)
        try:
            net.apply(f"engines: {engines}\nnics: {wanted}")
        except VnicError as error:
            assert str(error) == "no memory for the graph"
            monkeypatch.setattr(EngineHost, "load", load)
            assert (written_config(net.config), _connections(net)) == (before, elements)
            assert reached(net, "a", frame(1)) == "b"
            net.apply(f"engines: {engines}\nnics: {wanted}")
        else:
            assert len(calls) <= which  # it took fewer loads
        monkeypatch.setattr(EngineHost, "load", load)
        assert net.apply(f"engines: {engines}\nnics: {wanted}") == []


def test_a_classifier_gets_another_rule_and_branch():
    """The element behind another output stays, and packets take no way of others."""

    def text(rules: str, branches: str) -> str:
        return f"nics: {{a: {{egress: {{elements: [{{element: Classifier, name: s, rules: {rules}, branches: {branches}}}]}}}}, b: }}"

    slow, other = "[{element: Link, rate: none, delay: 1s, name: slow}]", "[{element: Counter, name: other}]"
    with VirtualNetwork(text("[{source_mac: '02:00:00:00:00:01'}]", f"{{0: {slow}}}")) as net:
        net.send("a", [frame(1)] * 5)
        net.advance("1ms")
        net.apply(text("[{source_mac: '02:00:00:00:00:01'}, {source_mac: '02:00:00:00:00:02'}]", f"{{0: {slow}, 1: {other}}}"))
        net.send("a", [frame(2, size=70)] * 3)
        net.run()
        assert [len(each.data) for each in net.take("b")] == [70] * 3 + [60] * 5
        with pytest.raises(ConfigError, match="colour"):
            net.apply(text("[{colour: red}, {vlan: 5}, {vlan: 6}]", f"{{0: {slow}, 1: {other}}}"))


def test_rules_and_what_is_behind_them_change_between_the_same_batches(monkeypatch):
    """So that a flow that comes into another class overtakes nothing of its own."""

    def text(dscp: str, rate: str) -> str:
        rules = f"[{{dscp: {dscp}, gate: 0, mark: 1}}]"
        classes = f"{{rate: {rate}, default: a, tree: {{a: {{}}, b: {{mark: 1}}}}}}"
        elements = f"[{{element: Classifier, name: s, rules: {rules}, default: 0}}, {{element: Scheduler, classes: {classes}}}]"
        return f"nics: {{a: {{egress: {{elements: {elements}}}}}, b: }}"

    with VirtualNetwork(text("ef", "1mbit")) as net:
        posted = []
        handlers = element(net, "a.egress.s").engine, element(net, "a.egress.scheduler").engine
        assert handlers[0] is handlers[1]
        real = Chain.settle
        monkeypatch.setattr(
            Chain, "settle", lambda chain: (posted.append((len(chain.changes), chain.of_rules)), real(chain))[1]
        )
        net.apply(text("cs1", "2mbit"))
        assert (2, True) in posted
        assert element(net, "a.egress.s").get_rules()[0]["dscp"] == "cs1"
        assert element(net, "a.egress.scheduler").get_tree()["rate"] == "2mbit"
