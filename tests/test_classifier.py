"""Classifier compared with a slow evaluation of the rules in Python, and its configuration
errors."""

from __future__ import annotations

import ipaddress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.classifier import Classifier
from dataplane.elements.classifier_rules import PROTOCOLS, read_rules
from dataplane.elements.counter import Discard
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.engine.running import advance
from dataplane.errors import ConfigError, GraphError
from dataplane.graph.element import PyElement
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from dataplane.ports.memory import MemoryPort
from tests.parse_reference import reference
from tests.wire_frames import UDP, Spec

ARP = bytes(12) + b"\x08\x06" + bytes(46)


class Rig:
    """Two sending ports (0 and 7), and a receiving port after each gate."""

    def __init__(self, classifier, parse=True):
        self.classifier = classifier
        self.pool = PacketPool(small=2048, large=4)
        self.engine = Engine("e0", self.pool, clock=Clock(virtual=True))
        self.senders = {number: MemoryPort(f"s{number}", number) for number in (0, 7)}
        sources = [PortRx(port) for port in self.senders.values()]
        first = Parse() if parse else classifier
        for source in sources:
            source >> first
        if parse:
            first >> classifier
        self.receivers = [MemoryPort(f"r{gate}", 100 + gate) for gate in range(len(classifier.outputs))]
        for gate, port in enumerate(self.receivers):
            classifier[gate] >> PortTx(port)
        self.engine.load(sources)

    def send(self, frames, port=0):
        """The frames that leave each gate."""
        self.senders[port].inject(frames)
        advance(self.engine, self.engine.clock.now_ns + 1)
        assert self.engine.conservation()["conserved"] and self.pool.in_use == 0
        return [[frame.data for frame in receiver.take()] for receiver in self.receivers]

    def gate(self, frame, port=0):
        (gate,) = (i for i, frames in enumerate(self.send([frame], port)) if frames)
        return gate


# -- single conditions -----------------------------------------------------------------------------

TCP4 = Spec(payload=b"x", tos=46 << 2 | 1).build()
UDP6 = Spec(version=6, protocol=UDP, tags=[(0x8100, 0x600A)], source_port=5353, destination_port=53).build()
FROM_81 = TCP4[:6] + bytes.fromhex("020000000081") + TCP4[12:]
LATER = Spec(fragment=3, payload=b"later fragment: no ports").build()


@pytest.mark.parametrize(
    ("rule", "frame", "matches"),
    [
        ({}, ARP, True),
        ({"protocol": "tcp"}, TCP4, True),
        ({"protocol": "TCP"}, TCP4, True),
        ({"protocol": 6}, TCP4, True),
        ({"protocol": "17"}, TCP4, False),
        ({"protocol": "udp"}, UDP6, True),
        ({"protocol": 0}, ARP, False),
        ({"protocol": "tcp"}, LATER, True),
        ({"source": "10.0.0.1"}, TCP4, True),
        ({"source": "10.0.0.2"}, TCP4, False),
        ({"source": "10.0.0.0/31"}, TCP4, True),
        ({"destination": "10.0.0.0/31"}, TCP4, False),
        ({"destination": "10.128.0.0/8"}, TCP4, True),
        ({"source": "0.0.0.0/0"}, TCP4, True),
        ({"source": "0.0.0.0/0"}, ARP, False),
        ({"source": "0.0.0.0/0"}, UDP6, False),
        ({"source": "::/0"}, TCP4, False),
        ({"source": "::/0"}, UDP6, True),
        ({"destination": "fd00::2/128"}, UDP6, True),
        ({"destination": "fd00::2:0:0/64"}, UDP6, True),
        ({"destination": "fd00:0:0:1::/64"}, UDP6, False),
        ({"destination": "fd00::3"}, UDP6, False),
        ({"destination_port": 80}, TCP4, True),
        ({"destination_port": "80-90"}, TCP4, True),
        ({"destination_port": "70 - 80"}, TCP4, True),
        ({"destination_port": "81-90"}, TCP4, False),
        ({"destination_port": "0-79"}, TCP4, False),
        ({"destination_port": "0-65535"}, TCP4, True),
        ({"destination_port": "0-65535"}, LATER, False),
        ({"destination_port": "0-65535"}, ARP, False),
        ({"source_port": "1234"}, TCP4, True),
        ({"source_port": 53}, UDP6, False),
        ({"dscp": 46}, TCP4, True),
        ({"dscp": "ef"}, TCP4, True),
        ({"dscp": "0x2e"}, TCP4, True),
        ({"dscp": "cs5"}, TCP4, False),
        ({"dscp": 0}, UDP6, True),
        ({"dscp": 0}, ARP, False),
        ({"vlan": 10}, UDP6, True),
        ({"vlan": "11"}, UDP6, False),
        ({"vlan": 0}, TCP4, True),
        ({"vlan": 0}, UDP6, False),
        ({"port": 0}, TCP4, True),
        ({"port": 7}, TCP4, False),
        ({"source_mac": "02:00:00:00:00:81"}, FROM_81, True),
        ({"source_mac": "02:00:00:00:00:81"}, TCP4, False),
        ({"source_mac": "02:00:00:00:00:01"}, FROM_81, False),
        ({"source_mac": "02:00:00:00:00:81", "protocol": "TCP"}, FROM_81, True),
        ({"source_mac": "02:00:00:00:00:81", "protocol": "udp"}, FROM_81, False),
        ({"source_mac": "00:00:00:00:00:00"}, ARP, True),
        ({"protocol": "tcp", "destination": "10.0.0.0/8", "destination_port": "80-90", "dscp": 46}, TCP4, True),
        ({"protocol": "tcp", "destination": "10.0.0.0/8", "destination_port": "80-90", "dscp": 45}, TCP4, False),
    ],
)
def test_a_condition(rule, frame, matches):
    assert Rig(Classifier([rule])).gate(frame) == (0 if matches else 1)


def test_the_first_rule_wins_and_order_is_kept():
    classifier = Classifier([{"destination_port": "80"}, {"protocol": "tcp"}, {}])
    web, other = Spec(payload=b"web").build(), Spec(destination_port=22).build()
    rig = Rig(classifier)
    assert rig.send([other, web, ARP, UDP6, other + b"\0", web]) == [[web, web], [other, other + b"\0"], [ARP, UDP6], []]
    assert classifier.hits() == [2, 2, 2]
    assert classifier.statistics()["counters"] == {"matched": 6, "unmatched": 0, "unparsed": 0}


def test_the_ingress_port():
    rig = Rig(Classifier([{"port": 7}]))
    assert rig.gate(ARP, port=7) == 0 and rig.gate(ARP, port=0) == 1


def test_gates_that_rules_name_and_the_default():
    classifier = Classifier(
        [{"protocol": "tcp", "gate": 1}, {"protocol": "udp", "gate": "0"}, {"vlan": 9, "gate": 1}], default=0
    )
    rig = Rig(classifier)
    assert len(classifier.outputs) == 2
    assert (rig.gate(TCP4), rig.gate(UDP6), rig.gate(ARP)) == (1, 0, 0)
    assert len(Classifier([{"gate": 0}, {"gate": 0}]).outputs) == 2
    assert len(Classifier([]).outputs) == 1


def test_marks():
    seen = []

    class Look(PyElement):
        def process(self, batch):
            seen.extend(int(mark) for mark in batch.mark)

    classifier = Classifier(
        [{"protocol": "tcp", "mark": "0xdeadbeef", "gate": 0}, {"protocol": "udp", "mark": 0, "gate": 0}, {"gate": 0}],
        default=0,
        name="second",
    )
    pool = PacketPool(small=64, large=1)
    engine = Engine("e0", pool, clock=Clock(virtual=True))
    a = MemoryPort("a", 0)
    rx, first, look = PortRx(a), Classifier([{"mark": 5, "gate": 0}], default=0), Look()
    rx >> Parse() >> first >> classifier >> look >> Discard()
    engine.load([rx])
    a.inject([TCP4, UDP6, ARP])
    advance(engine, 1)
    assert seen == [0xDEADBEEF, 0, 5]
    assert engine.conservation()["conserved"] and pool.in_use == 0


def test_packets_that_did_not_pass_parse_match_nothing():
    classifier = Classifier([{}])
    assert Rig(classifier, parse=False).gate(TCP4) == 1
    assert classifier.statistics()["counters"]["unparsed"] == 1


def test_a_thousand_rules_and_more_packets_than_a_batch():
    rules = [{"protocol": "udp", "destination_port": 1000 + i} for i in range(1024)]
    classifier = Classifier(rules)
    rig = Rig(classifier)
    frames = [Spec(protocol=UDP, destination_port=1000 + i * 3).build() for i in range(400)]
    got = rig.send(frames)
    for i, frame in enumerate(frames):
        assert frame in got[min(i * 3, 1024)]
    assert sum(classifier.hits()) == 342 and len(got[1024]) == 58
    assert classifier.describe() == {"rules": 1024}


# -- twin ------------------------------------------------------------------------------------------


def slow_match(rule, found, port):
    ip = found["ipv4"] or found["ipv6"]
    for key, value in rule.items():
        if key == "protocol" and not (ip and found["ip_protocol"] == PROTOCOLS.get(value, value)):
            return False
        if key in ("source", "destination"):
            network = ipaddress.ip_network(value, strict=False)
            if not found["ipv4" if network.version == 4 else "ipv6"]:
                return False
            raw = found[f"{key}_address"]
            if ipaddress.ip_address(raw[:4] if network.version == 4 else raw) not in network:
                return False
        if key in ("source_port", "destination_port"):
            low, high = (int(each) for each in value.split("-"))
            if not (found["l4"] and low <= found[key] <= high):
                return False
        if key == "dscp" and not (ip and found["tos"] >> 2 == value):
            return False
        if key == "vlan" and (found["vlan_tci"] & 0xFFF if found["vlan_count"] else 0) != value:
            return False
        if key == "port" and value != port:
            return False
        if key == "source_mac" and found["source_mac"] != value:
            return False
    return True


MACS = ["00:00:00:00:00:00", "02:00:00:00:00:01", "02:00:00:00:00:81"]
some_ports = st.integers(0, 4)
ranges = st.tuples(some_ports, some_ports).map(lambda pair: f"{min(pair)}-{max(pair)}")
prefixes = {
    4: st.builds("10.0.0.{}/{}".format, st.integers(0, 3), st.integers(28, 32)),
    6: st.builds("fd00::{}/{}".format, st.integers(0, 3), st.integers(124, 128)),
}


@st.composite
def rule_dicts(draw):
    family = draw(st.sampled_from([4, 6]))
    return draw(
        st.fixed_dictionaries(
            {},
            optional={
                "source": prefixes[family],
                "destination": prefixes[family],
                "dscp": st.integers(0, 2),
                "vlan": st.integers(0, 2),
                "port": st.sampled_from([0, 7]),
                "source_mac": st.sampled_from(MACS),
                **draw(
                    st.sampled_from(
                        [
                            {"source_port": ranges, "destination_port": ranges},
                            {"protocol": st.sampled_from(["tcp", "udp", 1, 47])},
                        ]
                    )
                ),
            },
        )
    )


def with_source(frame, mac):
    return frame[:6] + bytes.fromhex(mac.replace(":", "")) + frame[12:]


packets = st.builds(
    lambda version, source, destination, mac, **rest: with_source(
        Spec(version=version, source=bytes([10, 0, 0, source]), destination=bytes([10, 0, 0, destination]), **rest).build(), mac
    ),
    mac=st.sampled_from(MACS),
    version=st.sampled_from([4, 6]),
    source=st.integers(0, 3),
    destination=st.integers(0, 3),
    protocol=st.sampled_from([6, UDP]),
    source_port=some_ports,
    destination_port=some_ports,
    tos=st.integers(0, 11),
    tags=st.sampled_from([[], [(0x8100, 1)], [(0x88A8, 0x2002), (0x8100, 1)]]),
    fragment=st.sampled_from([0, 0x2000, 2]),
)


@settings(deadline=None, max_examples=100)
@given(
    rules=st.lists(rule_dicts(), max_size=6),
    frames=st.lists(packets | st.just(ARP), min_size=1, max_size=12),
    port=st.sampled_from([0, 7]),
)
def test_twin(rules, frames, port):
    classifier = Classifier(rules)
    want = [[] for _ in range(len(rules) + 1)]
    for frame in frames:
        found = {**reference(frame)[1], "source_mac": frame[6:12].hex(":")}
        want[next((i for i, rule in enumerate(rules) if slow_match(rule, found, port)), len(rules))].append(frame)
    assert Rig(classifier).send(frames, port) == want
    assert classifier.hits() == [len(each) for each in want[:-1]]


# -- configuration ---------------------------------------------------------------------------------


def test_rules_as_yaml_gives_them():
    rules = yaml.safe_load("""
    - {protocol: tcp, destination: 10.0.0.0/8, destination_port: 80-90, dscp: 46, vlan: 10}
    - {source: "fd00::/8", source_port: 53, mark: 0x10, gate: 0}
    """)
    compiled, default, gates = read_rules(rules)
    assert (default, gates) == (1, 2)
    assert compiled[0].destination_port == (80, 90) and compiled[0].protocol == 6
    assert compiled[1].mark == 16 and compiled[1].source_port == (53, 53)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"proto": "tcp"}, "rule 1: unknown key 'proto': expected one of protocol, source"),
        ({1: 2}, "rule 1: unknown key 1"),
        ({"protocol": "tpc"}, "rule 1: protocol: 'tpc': expected a number from 0 to 255, or a name such as icmp"),
        ({"protocol": 256}, "rule 1: protocol: 256"),
        ({"protocol": True}, "rule 1: protocol: True"),
        ({"protocol": None}, "protocol: None"),
        ({"protocol": "+6"}, "protocol"),
        ({"protocol": "1_7"}, "protocol"),
        ({"protocol": "٦"}, "protocol"),
        ({"protocol": ""}, "protocol"),
        ({"protocol": "6" * 5000}, "protocol"),
        ({"protocol": 6.0}, "protocol"),
        ({"source": "10.0.0.0/33"}, "rule 1: source: '10.0.0.0/33': expected an address or a prefix such as 10.0.0.0/8"),
        ({"source": "10.0.0"}, "source"),
        ({"source": 10}, "source"),
        ({"destination": "fe80::1%eth0"}, "destination"),
        ({"destination": ""}, "destination"),
        ({"source": "10.0.0.1", "destination": "::1"}, "rule 1: source and destination: one is IPv4"),
        ({"source_port": "90-80"}, "rule 1: source_port: '90-80': expected a port or a range such as 80 or 80-90"),
        ({"source_port": 65536}, "source_port"),
        ({"source_port": "-"}, "source_port"),
        ({"source_port": "80-"}, "source_port"),
        ({"destination_port": -1}, "destination_port"),
        ({"destination_port": [80]}, "destination_port"),
        (
            {"protocol": "icmp", "destination_port": 80},
            "rule 1: destination_port: protocol 'icmp' has no ports: expected tcp, udp or sctp",
        ),
        ({"dscp": 64}, "rule 1: dscp: 64: expected a number from 0 to 63"),
        ({"dscp": "af14"}, "dscp"),
        ({"source_mac": "02:00"}, "rule 1: source_mac: '02:00': expected a MAC address such as 02:00:00:00:00:01"),
        ({"source_mac": "02:00:00:00:00:01\n"}, "source_mac"),
        ({"source_mac": 2}, "source_mac"),
        ({"vlan": 4095}, "rule 1: vlan: 4095: expected a number from 0 to 4094"),
        ({"port": 65535}, "port"),
        ({"gate": 1025}, "gate"),
        ({"gate": -1}, "gate"),
        ({"mark": 2**32}, "mark"),
        ("tcp", "rule 1: 'tcp': expected keys and values"),
    ],
)
def test_errors_name_rule_and_key(rule, message):
    with pytest.raises(ConfigError) as error:
        Classifier([{}, rule])
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 250


def test_errors_of_the_list():
    for rules in ({"protocol": "tcp"}, "tcp", 5, None):
        with pytest.raises(ConfigError, match="expected a list of rules"):
            Classifier(rules)
    with pytest.raises(ConfigError, match="1025 rules: expected at most 1024"):
        Classifier([{}] * 1025)
    with pytest.raises(ConfigError, match="default: 'x': expected a number"):
        Classifier([], default="x")


def test_a_gate_that_no_rule_uses_must_lead_somewhere():
    classifier = Classifier([{"gate": 2}])
    rx = PortRx(MemoryPort("a", 0))
    rx >> classifier
    for gate in (1, 2, 3):
        classifier[gate] >> Discard()
    with pytest.raises(GraphError, match="gate 0 leads nowhere"):
        Engine("e0", PacketPool(small=8, large=1), clock=Clock(virtual=True)).load([rx])
