"""Lines and parts of lines for what filters select: each packet has what the first filter that matches gives it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.elements.classifier_rules import MAX_RULES, read_rule
from dataplane.errors import ConfigError
from shaping.imports.form import EGRESS, INGRESS, Draft
from shaping.imports.notes import Unsupported
from shaping.imports.parts import Selection, put_selected
from shaping.imports.rules import EVERYTHING, condition, disjoint, numbers_of, part_name
from shaping.policy.compile import compile_policy
from shaping.policy.keys import PART_MOST, parse_key
from shaping.policy.load import convert_policy
from shaping.policy.network import Network
from shaping.policy.places import Place, plan_of

NETWORK = Network({name: f"02:00:00:00:00:0{n}" for n, name in enumerate(("web", "db", "cam", "lab"))}, {})
NIC_OF = {"10.0.0.1/32": "db", "10.0.0.2/32": "cam", NETWORK.nics["lab"]: "lab"}
# Addresses and the NICs that have them; lab's are not known, but its MAC address is.
TARGETS = {"10.0.0.0": "lab", "10.0.0.1": "db", "10.0.0.2": "cam", "10.0.0.3": "lab", "2001:db8::1": "lab"}


def put(*selections: Selection, direction: str = EGRESS) -> Draft:
    draft = Draft()
    put_selected(draft, "web", direction, selections, NIC_OF.get)
    draft.check()
    return draft


def matches(rule: dict, packet: dict) -> bool:
    """A Classifier's rule, the obvious way."""
    for key, value in rule.items():
        if key in ("source", "destination"):
            network = ipaddress.ip_network(value)
            address = ipaddress.ip_address(packet[key])
            if address.version != network.version or address not in network:
                return False
        elif key.endswith("_port"):
            low, _, high = str(value).partition("-")
            if not int(low) <= packet[key] <= int(high or low):
                return False
        elif packet[key] != value:
            return False
    return True


def delay_of(draft: Draft, packet: dict, direction: str) -> int:
    """What the lines and parts of a policy add up to for a packet, in ms."""
    lines = plan_of(convert_policy(draft.data), NETWORK).lines
    other = TARGETS[packet["destination" if direction == EGRESS else "source"]]
    total = 0
    for near, far in (("any", "web"), (other, "web")) if direction == INGRESS else (("web", "any"), ("web", other)):
        place = Place(near, far)
        for line in lines.values():
            if line.place.part and line.place.whole == place and any(matches(rule, packet) for rule in line.matches):
                total += line.delay.mean // 10**6 if line.delay else 0
                break
        whole = lines.get(place)
        total += whole.delay.mean // 10**6 if whole is not None and whole.delay else 0
    return total


NETWORKS = [
    "10.0.0.1/32",
    "10.0.0.2/32",
    "10.0.0.3/32",
    "10.0.0.0/31",
    "10.0.0.2/31",
    "10.0.0.0/30",
    "0.0.0.0/0",
    "::/0",
    "2001:db8::1",
]


@st.composite
def rules(draw, end: str, mac: str):
    found = {}
    if draw(st.booleans()):
        found[end] = draw(st.sampled_from(NETWORKS))
    elif draw(st.integers(0, 5)) == 0:
        found[mac] = NETWORK.nics["lab"]
    if draw(st.integers(0, 2)) == 0:
        found["protocol"] = draw(st.sampled_from(["tcp", "udp"]))
    if draw(st.integers(0, 2)) == 0:
        found["destination_port"] = draw(st.sampled_from([1, 2, "1-2"]))
    return found


@settings(deadline=None, max_examples=300)
@given(data=st.data(), direction=st.sampled_from([EGRESS, INGRESS]))
def test_each_packet_has_what_the_first_filter_gives_it(data, direction):
    end, mac = ("destination", "destination_mac") if direction == EGRESS else ("source", "source_mac")
    chosen = data.draw(st.lists(st.tuples(st.lists(rules(end, mac), min_size=1, max_size=3), st.booleans()), max_size=6))
    selections = [
        Selection(f"f:{n}", each, {"delay": f"{2**n}ms"} if delayed else {}) for n, (each, delayed) in enumerate(chosen)
    ]
    draft = put(*selections, direction=direction)
    compile_policy(convert_policy(draft.data), NETWORK)
    if draft.notes.refused:  # of what MAC addresses cannot tell
        assert all("match ether dst beside other filters" in each.text for each in draft.notes.refused)
        return
    whole = len(draft.links) == 1 and next(iter(draft.links)) in ("web -> any", "any -> web")
    for address, nic in TARGETS.items():
        for protocol in ("tcp", "udp"):
            for port in (1, 2, 3):
                packet = {"protocol": protocol, "destination_port": port, "vlan": 0, end: address, mac: NETWORK.nics[nic]}
                expected = next(
                    (each.settings for each in selections if any(matches(rule, packet) for rule in each.rules)), {}
                ).get("delay", "0ms")
                found = delay_of(draft, packet, direction)
                # filters for all of one family alone are a line for all packets
                assert found == int(expected[:-2]) or (whole and expected == "0ms"), (draft.links, packet)


def test_a_filter_for_all_packets_of_a_family_alone_is_a_line():
    for rule in ({}, {"destination": "0.0.0.0/0"}, {"destination": "::/0"}):
        assert put(Selection("f:1", [rule], {"delay": "1ms"})).links == {"web -> any": {"delay": "1ms"}}
    found = put(
        Selection("f:1", [{"destination": "0.0.0.0/0"}], {"delay": "1ms"}),
        Selection("f:2", [{"destination": "::/0"}], {"delay": "2ms"}),
    ).links
    assert found == {
        "web -> any/rest": {"match": {"destination": "0.0.0.0/0"}, "delay": "1ms"},
        "web -> any/rest-2": {"match": {"destination": "::/0"}, "delay": "2ms"},
    }


def test_parts_of_equal_packets_are_one_and_of_others_have_names_of_their_own():
    ports = [{"destination_port": n} for n in range(1, 200)]
    found = put(
        Selection("f:1", ports[:1], {"delay": "1ms"}, "x"),
        Selection("f:2", ports[:1], {"delay": "2ms"}, "x"),
        Selection("f:3", ports[1:2], {"loss": "2%"}, "x"),
        Selection("f:4", ports[2:3], {"loss": "3%"}, "any such name"),
        Selection("f:5", ports, {"loss": "4%", "rate": "1mbit"}, "y" * PART_MOST),
    )
    assert found.links["web -> any/x"] == {"match": ports[0], "delay": "1ms"}
    assert any("f:2: warning: a filter for the packets of one before it" in str(each) for each in found.notes.findings)
    assert found.links["web -> any/x-2"] == {"match": ports[1], "loss": "2%"}
    assert found.links["web -> any/port-3"] == {"match": ports[2], "loss": "3%"}
    # a part has 64 matches at most
    assert [len(each["match"]) for place, each in found.links.items() if "yy" in place] == [64, 64, 64, 7]
    assert list(found.links)[-1] == f"web -> any/{'y' * (PART_MOST - 2)}-4"
    assert any(
        "f:5: warning: rate 1mbit: of several lines together; here each has it" in str(each) for each in found.notes.findings
    )
    put_selected(found, "web", EGRESS, [Selection("f:6", ports[:1], {"loss": "1%"}, "x")], NIC_OF.get)
    assert found.links["web -> any/x"] == {"match": ports[0], "delay": "1ms", "loss": "1%"}
    with pytest.raises(ConfigError, match="f:7: web -> any/x: has loss 1% already, and now 2%"):
        put_selected(found, "web", EGRESS, [Selection("f:7", ports[:1], {"loss": "2%"}, "x")], NIC_OF.get)
    with pytest.raises(ConfigError, match="f:1: 10.0.0.9/32 is web: expected another NIC"):
        put_selected(
            Draft(), "web", EGRESS, [Selection("f:1", [{"destination": "10.0.0.9/32"}], {"loss": "1%"})], lambda _: "web"
        )


@pytest.mark.parametrize("count", [1, 100, 10_000])
def test_many_filters_for_known_addresses(count):
    """Each is a line; and all are parts where more filters than can be compared are beside them."""
    addresses = [f"10.{n >> 8}.{n & 255}.1/32" for n in range(count)]
    nics = {each: f"n{n}" for n, each in enumerate(addresses)}
    selections = [Selection("f:1", [{"destination": each}], {"loss": "1%"}) for each in addresses]
    draft = Draft()
    put_selected(draft, "web", EGRESS, selections, nics.get)
    assert draft.links == {f"web -> {nic}": {"loss": "1%"} for nic in nics.values()}
    draft = Draft()
    other = Selection("f:2", [{"source_port": n + 1} for n in range(min(count, MAX_RULES))], {"loss": "1%"})
    put_selected(draft, "web", EGRESS, [*selections[: MAX_RULES // 2], other], nics.get)
    if count > MAX_RULES:
        assert "more filters for web -> any: not supported: expected at most 1024" in draft.notes.refused[0].text
    else:
        assert all(place.startswith("web -> any/") for place in draft.links)


def test_lines_with_equal_settings_are_written_out():
    """YAML has references for what is there twice, which a policy is easier to read without."""
    draft = put(
        Selection(
            "f:1", [{"destination": "10.0.0.1/32"}, {"destination": "10.0.0.2/32"}], {"delay": {"mean": "5ms", "jitter": "1ms"}}
        )
    )
    assert list(draft.links) == ["web -> db", "web -> cam"] and "&" not in draft.text and "*" not in draft.text


NUMBERS = [
    ({"protocol": "tcp"}, {"protocol": "udp"}, True),
    ({"protocol": "icmp"}, {"destination_port": 5}, True),
    ({"source_port": "1-5"}, {"source_port": "5-9"}, False),
    ({"source_port": "1-5"}, {"source_port": "6-9"}, True),
    ({"source_port": 1}, {"destination_port": 2}, False),
    ({"destination": "10.0.0.0/8"}, {"destination": "10.1.0.0/16"}, False),
    ({"destination": "10.0.0.0/16"}, {"destination": "10.1.0.0/16"}, True),
    ({"destination": "0.0.0.0/0"}, {"destination": "::/0"}, True),
    ({"source": "0.0.0.0/0"}, {"destination": "::/0"}, True),
    ({"dscp": "ef"}, {"dscp": 46}, False),
    ({"vlan": 0}, {"vlan": 7}, True),
    ({}, {"source_mac": "02:00:00:00:00:01"}, False),
]


@pytest.mark.parametrize(("first", "second", "apart"), NUMBERS)
def test_rules_without_a_packet_in_common(first, second, apart):
    assert disjoint(read_rule(0, first), read_rule(0, second)) == disjoint(read_rule(0, second), read_rule(0, first)) == apart


@settings(deadline=None)
@given(data=st.data())
def test_the_name_of_a_part_is_one(data):
    found = data.draw(st.dictionaries(st.sampled_from(["protocol", "dscp", "vlan"]), st.integers(0, 63)))
    for key in ("source", "destination"):
        if data.draw(st.booleans()):
            found[key] = str(data.draw(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))))
    if data.draw(st.booleans()):
        found["source_port"] = data.draw(st.sampled_from([0, 80, "80-65535"]))
    for count in (1, 2, 1000):
        name = part_name([found or {"destination_port": 1}] * count)
        assert parse_key(f"web -> any/{name}").part == name and len(name) <= PART_MOST


def test_conditions_of_options():
    assert condition("--port", "destination_port", "80") == 80 and condition("--port", "source_port", "80-90") == "80-90"
    for key, text in (("destination_port", "80:90"), ("source", "10.0.0.256"), ("source", "fe80::1%eth0"), ("protocol", "x")):
        with pytest.raises(ConfigError, match="--option '.*': expected"):
            condition("--option", key, text)
    with pytest.raises(Unsupported, match="one is IPv4, one IPv6"):
        numbers_of({"source": "10.0.0.1", "destination": "::1"})
    assert all(numbers_of(rule) for rule in EVERYTHING)
