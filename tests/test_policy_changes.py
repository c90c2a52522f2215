"""Changes of the policy of shaping while packets wait, in virtual time: whatever policy follows whatever other, no packet is
lost, and none is overtaken by a later one of its flow."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.graph.element import Element
from tests.wire_frames import TCP, UDP, Spec
from vnic.modules.chain import Chain
from vnic.modules.engine_host import EngineHost
from vnic.testing import VirtualNetwork

NICS = {"a": 1, "b": 2, "c": 3, "d": 4}
NET = "engines: {engines}\nnodes: {{lan: switch, dmz: switch}}\nlinks: [lan -- dmz]\nnics:\n" + "".join(
    f"  {name}: {{{{on: {'dmz' if name == 'c' else 'lan'}, mac: '02:00:00:00:00:0{number}'}}}}\n"
    for name, number in NICS.items()
)
FLOWS = {1: ("a", "c"), 2: ("a", "c"), 3: ("b", "c"), 4: ("d", "c"), 5: ("c", "a")}
STREAM = ("a", "c")  # of TCP, in GSO frames


def mac(name: str) -> bytes:
    return bytes([2, 0, 0, 0, 0, NICS[name]])


def framed(data: bytes, source: str, target: str) -> bytes:
    return mac(target) + mac(source) + data[12:]


class Traffic:
    """Numbered packets of FLOWS, and bytes of a STREAM."""

    def __init__(self, net: VirtualNetwork) -> None:
        self.net = net
        self.sent = dict.fromkeys(FLOWS, 0)
        self.stream = 1
        for name in NICS:  # the switches learn where all are
            net.send(name, framed(Spec(protocol=UDP, payload=b"?").build(), name, "a" if name != "a" else "b"))
        net.run()
        for name in NICS:
            net.take(name)

    def send(self) -> None:
        for flow, (source, target) in FLOWS.items():
            number = struct.pack("!I", self.sent[flow])
            self.net.send(
                source, framed(Spec(protocol=UDP, payload=number + bytes(100), source_port=flow).build(), source, target)
            )
            self.sent[flow] += 1
        spec = Spec(protocol=TCP, payload=bytes(20_000), sequence=self.stream)
        frame = spec.frame(1448)
        self.net._push(self.net.now_ns, STREAM[0], frame._replace(data=framed(frame.data, *STREAM)))
        self.stream += 20_000

    def check(self) -> None:
        """All have come, in the order in which they were sent."""
        expected, stream = dict.fromkeys(FLOWS, 0), 1
        for name in NICS:
            # a switch that has forgotten an address floods
            for each in [each for each in self.net.take(name) if each.data[:6] == mac(name)]:
                protocol, source_port = each.data[23], struct.unpack("!H", each.data[34:36])[0]
                if protocol == TCP:
                    assert struct.unpack("!I", each.data[38:42])[0] == stream, "bytes of the stream"
                    stream += len(each.data) - 54
                else:
                    number = struct.unpack("!I", each.data[42:46])[0]
                    assert number == expected[source_port], f"flow {source_port}"
                    expected[source_port] += 1
        assert (expected, stream) == (self.sent, self.stream)


LINES = ("a -> c", "b <-> c", "d -> c", "c -> a", "a -> any", "any -> c", "a", "c", "lan--dmz", "lan--dmz -> dmz")
QUEUE = {"packets": 100_000}
SETTINGS: list[dict[str, Any]] = [
    {"delay": "2ms"},
    {"delay": "5ms"},
    {"delay": {"mean": "2ms", "jitter": "1ms"}},
    {"delay": {"mean": "2ms", "jitter": "1ms", "shape": "normal", "correlation": "50%"}},
    {"rate": "50mbit", "queue": QUEUE},
    {"rate": "20mbit", "queue": {"size": "10mb"}, "overhead": "ethernet"},
    {"rate": "30mbit", "queue": QUEUE, "delay": "1ms"},
    {"rate": "40mbit", "queue": QUEUE, "delay": {"mean": "2ms", "jitter": "500us"}},
    {"trace": [{"for": "3ms", "rate": "50mbit"}, {"for": "2ms", "rate": "0bit"}], "queue": QUEUE},
    {"trace": [{"for": "1ms", "rate": "20mbit"}, {"for": "1ms", "rate": "60mbit"}], "queue": QUEUE, "delay": "2ms"},
    {"loss": "0%", "duplicate": "0%"},
    {"reorder": "0%", "delay": "1ms"},
]
DEEP = {"size": "10mb"}


def own(flow: int) -> dict[str, Any]:
    return {f"flow{flow}": {"match": {"source_port": flow}, "queue": DEEP}}


REST = {"rest": {"queue": DEEP}}
TREES: list[dict[str, Any]] = [
    REST,
    {**own(1), **REST},
    {**own(1), **own(2), **own(3), **REST},
    {
        **own(3),
        "flow1": {"match": {"source_port": 1}, "guarantee": "5mbit", "queue": {"discipline": "fq", "size": "10mb"}},
        **REST,
    },
    {"group": {"ceiling": "20mbit", "tree": {**own(1), **own(3)}}, **REST},
    {
        "rest": {"queue": {"discipline": "fq", "size": "10mb"}},
        "flow2": {"match": {"source_port": 2}, "priority": 0, "queue": DEEP},
    },
]
PLACES = ("a.egress", "c.ingress", "lan--dmz -> dmz")

policies = st.builds(
    lambda lines, classes: {
        "version": 1,
        **({"links": lines} if lines else {}),
        **({"classes": classes} if classes else {}),
    },
    st.dictionaries(st.sampled_from(LINES), st.sampled_from(SETTINGS), max_size=4),
    st.dictionaries(
        st.sampled_from(PLACES),
        st.builds(
            lambda rate, tree: {"rate": rate, "default": "rest", "tree": tree},
            st.sampled_from(["30mbit", "60mbit"]),
            st.sampled_from(TREES),
        ),
        max_size=1,
    ),
)
changes = st.lists(
    st.tuples(st.none() | policies, st.integers(1, 5), st.sampled_from(["0", "100us", "1ms", "4ms"])), min_size=1, max_size=8
)


@pytest.mark.parametrize("engines", [1, 2])
@settings(max_examples=60, deadline=None)
@given(changes=changes)
def test_whatever_follows_nothing_is_lost_or_overtaken(engines: int, changes: Any) -> None:
    with VirtualNetwork(NET.format(engines=engines)) as net:
        traffic = Traffic(net)
        for policy, bursts, pause in changes:
            net.shape(policy)
            for _ in range(bursts):
                traffic.send()
                net.advance(pause)
        net.run()
        traffic.check()
        assert net.drops() == {}


def element(net: VirtualNetwork, name: str) -> Element:
    return next(each for engine in net._runtime.engines for each in engine.elements if each.name == name)


def names(net: VirtualNetwork) -> list[str]:
    return sorted(each.name for engine in net._runtime.engines for each in engine.elements if ".shape" in each.name)


def links(**lines: Any) -> dict[str, Any]:
    return {"version": 1, "links": {key.replace("_to_", " -> "): value for key, value in lines.items()}}


def test_what_waits_in_a_line_that_ends_leaves_at_once() -> None:
    with VirtualNetwork(NET.format(engines=1)) as net:
        traffic = Traffic(net)
        net.shape(links(a_to_c={"delay": "1s"}, d_to_c={"rate": "1kbit", "queue": QUEUE}))
        for _ in range(20):
            traffic.send()
        net.advance("1ms")
        assert sum(engine["held"] for engine in net._runtime.status()["engines"]) > 60
        net.shape(None)
        net.advance(0)
        traffic.check()
        assert names(net) == [] and net._runtime.status()["conserved"]


def test_lines_to_a_nic_come_and_go_and_the_others_stay() -> None:
    """They are told apart by the rules of one Classifier, whose outputs become more or fewer."""
    late, slow = {"delay": "5ms"}, {"rate": "1mbit", "queue": QUEUE}
    with VirtualNetwork(NET.format(engines=1)) as net:
        traffic = Traffic(net)
        net.shape(links(a_to_c=late, d_to_c=slow))
        line = element(net, "c.ingress.shape-pairs.shape-line-from-d")
        for policy in (links(d_to_c=slow), links(b_to_c=late, a_to_c=late, d_to_c=slow), links(d_to_c=slow, b_to_c=late)):
            traffic.send()
            net.advance("1ms")
            waiting = line.statistics()["held"]
            net.shape(policy)
            assert element(net, line.name) is line and line.statistics()["held"] == waiting > 0
            assert len(names(net)) == 1 + len(policy["links"])
        net.run()
        traffic.check()


def test_a_direction_of_a_link_stays_in_the_next_policy() -> None:
    with VirtualNetwork(NET.format(engines=2)) as net:
        for delay in ("5ms", "6ms", "7ms"):
            net.shape({"version": 1, "links": {"lan--dmz -> dmz": {"delay": delay}}})
            assert names(net) == ["lan--dmz.dmz.shape"]
            assert net._runtime.read_handler("lan--dmz.dmz.shape", "delay")[0]["value"] == delay
        for rate in ("5mbit", "6mbit"):
            net.shape({"version": 1, "classes": {"lan--dmz -> dmz": {"rate": rate, "default": "rest", "tree": REST}}})
            assert names(net) == ["lan--dmz.dmz.shape-classes", "lan--dmz.dmz.shape-split"]


@pytest.mark.parametrize("engines", [1, 2])
def test_switches_know_where_all_are_when_a_link_gets_its_first_line(engines: int) -> None:
    with VirtualNetwork(NET.format(engines=engines)) as net:
        traffic = Traffic(net)
        for policy in (links(**{"lan--dmz": {"delay": "1ms"}}), None):
            net.shape(policy)
            traffic.send()
            net.run()
            assert net.take("d") == net.take("b") == []  # nothing is flooded
        traffic.check()


def test_all_settings_of_a_direction_change_between_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of elements that stay, too, and with the elements that come or go."""
    depth, seen = 0, []
    do, settle = EngineHost.do, Chain.settle

    def counted(host: EngineHost, change: Any, touches: Any = ()) -> None:
        nonlocal depth
        depth += host._pending is None
        try:
            do(host, change, touches)
        finally:
            depth -= host._pending is None

    def watched(chain: Chain) -> None:
        seen.extend([depth] * len(chain.changes))
        settle(chain)

    with VirtualNetwork(NET.format(engines=1)) as net:
        before: dict[str, Any] = {
            "version": 1,
            "classes": {"a.egress": {"rate": "30mbit", "default": "rest", "tree": TREES[1]}},
        }
        after = {
            **before,
            "classes": {"a.egress": {"rate": "20mbit", "default": "rest", "tree": TREES[2]}},
            **links(a={"delay": "1ms"}),
        }
        net.shape(before)
        monkeypatch.setattr(EngineHost, "do", counted)
        monkeypatch.setattr(Chain, "settle", watched)
        net.shape(after)
        assert seen == [1, 1]  # the Classifier's rules and the Scheduler's classes
