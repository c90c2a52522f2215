"""The network that a configuration describes: switches, links, and what cannot be built."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.load import dump_yaml
from dataplane.errors import ConfigError
from vnic.config.convert import decode_config, encode_config
from vnic.config.load import parse_config
from vnic.config.written import written_config


def parsed(text):
    return parse_config(text, "net.yaml", contained=False)


def test_one_switch_is_implied():
    config = parsed("nics: {a: , b: }")
    assert list(config.switches) == ["switch"] and config.switch_of(None) == "switch"


def test_a_lone_switch_needs_no_on():
    config = parsed("nodes: {lan: {switch: {table: 64}}}\nnics: {a: , b: {on: lan}}")
    assert {config.switch_of(nic.on) for nic in config.nics.values()} == {"lan"}
    assert config.switches["lan"].table == 64


def test_short_forms_mean_the_long_ones():
    short = parsed("nodes: {lan: switch, dmz: switch}\nlinks: [lan -- dmz]")
    long = parsed("nodes: {lan: {switch: {}}, dmz: {switch: }}\nlinks: [{link: '  lan  --  dmz ', name: lan--dmz}]")
    assert written_config(short) == written_config(long)
    both = parsed("nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, rate: 1mbit, elements: [Counter]}]")
    way = "{rate: 1mbit, elements: [Counter]}"
    each = parsed(f"nodes: {{a: switch, b: switch}}\nlinks: [{{link: a -- b, to: {{a: {way}, b: {way}}}}}]")
    assert written_config(both) == written_config(each)


def test_a_link_whose_directions_differ():
    [link] = parsed("nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, to: {b: {rate: 1mbit}}}]").links
    assert link.to["b"].rate == 1_000_000 and link.to["a"].rate is None and not link.plain


def test_the_running_form_reads_back():
    text = """
nodes: {lan: switch, dmz: switch}
links: [{link: lan -- dmz, vlan: {trunk: [10]}, rate: 1gbit, elements: [{element: Counter, name: seen}]}]
nics: {a: {on: lan, egress: {elements: [{element: Classifier, rules: [{protocol: udp}], branches: {0: [Counter]}}]}}, b: {on: dmz}}
"""
    config = parsed(text)
    again = decode_config(encode_config(config))
    assert written_config(again) == written_config(config)
    assert written_config(parsed(dump_yaml(written_config(config)))) == written_config(config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "nodes: {lan: switch, dmz: switch}\nnics: {a: }",
            "net.yaml:2: nics.a: is connected to no switch: expected on: lan or dmz",
        ),
        ("nics: {a: {on: lan}}", "net.yaml:1: nics.a: on: there is no switch 'lan': expected switch"),
        ("nodes: {a: switch}\nnics: {a: }", "net.yaml:2: nics.a: is the name of a node, too; choose another one"),
        ("nodes: {lan: {switch: {tble: 1}}}", "net.yaml:1: nodes.lan.switch.tble: unknown key; did you mean 'table'?"),
        ("nodes: {lan: {router: {}}}", "net.yaml:1: nodes.lan.router: unknown key; expected one of switch, element, engine"),
        ("nodes: {lan.x: switch}", "net.yaml:1: nodes.lan.x: invalid name: expected a name"),
        ("nodes: [lan]", "net.yaml:1: nodes: invalid value a list: expected a mapping"),
        ("switch: {table: 64}\nnodes: {lan: switch}", "net.yaml:1: switch: is the switch of a network whose nodes have none"),
        ("links: {a: b}", "net.yaml:1: links: invalid value a mapping: expected a list of links such as [lan -- dmz]"),
        ("links: [a - b]", "net.yaml:1: links[0].link: invalid value 'a - b': expected two switches, such as lan -- dmz"),
        ("links: [a--b]", "net.yaml:1: links[0].link: invalid value 'a--b': expected two switches"),
        ("links: [a -- a]", "net.yaml:1: links[0]: a -- a leads from a switch to itself: expected two switches"),
        ("links: [a -- b]", "net.yaml:1: links[0]: there is no switch 'a': expected switch"),
        ("links: [3]", "net.yaml:1: links[0]: invalid value 3: expected a link such as lan -- dmz"),
        (
            "nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, to: {c: {}}}]",
            "to: c is not a switch of the link: expected a or b",
        ),
        ("nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, rate: 1mbit, to: {a: {}}}]", "has both to and settings"),
        (
            "nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, elements: [Counter], to: {a: {}}}]",
            "has both to and elements",
        ),
        ("nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, engine: 3}]", "links[0].engine: engine 3 does not exist"),
        (
            "nodes: {a: switch, b: switch}\nlinks: [a -- b, a -- b]",
            "a--b is the name of link 1, too; give one of them name: OTHER",
        ),
        ("nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, name: a}]", "a is the name of something else, too"),
        (
            "nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, vlan: {trunk: [5], native: 7}}]",
            "links[0].vlan.native: unknown key",
        ),
        ("nodes: {a: switch, b: switch}\nlinks: [{link: a -- b, name: x}]\nnics: {x.b: {on: a}}", "like the name of NIC x.b"),
        ("clients: {'1': {on: lan}}", "clients.1.on: there is no switch 'lan': expected switch"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(text, says):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


NODES = "nodes: {a: switch, b: switch, c: switch, d: switch}\n"


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ("[a -- b, b -- c, c -- d, d -- a]", "links[3]: d -- a closes a loop: d -- c -- b -- a are joined already"),
        ("[a -- b, {link: b -- a, name: two}]", "links[1]: b -- a closes a loop: b -- a are joined already"),
        (
            "[{link: a -- b, vlan: {trunk: [1, 2]}}, {link: b -- c, vlan: {access: 2}}, {link: c -- a, vlan: {trunk: [2, 3]}}]",
            "links[2]: c -- a closes a loop in VLAN 2: c -- b -- a are joined already",
        ),
        ("[a -- b, {link: b -- a, name: two, vlan: {untagged: true}}]", "links[1]: b -- a closes a loop in VLAN 0"),
        ("[a -- b, {link: b -- a, name: two, vlan: {trunk: [5]}}]", "links[1]: b -- a closes a loop in VLAN 5"),
    ],
)
def test_a_loop_of_switches_is_named(links, says):
    with pytest.raises(ConfigError) as caught:
        parsed(NODES + f"links: {links}")
    assert says in str(caught.value) and "take out one of these links" in str(caught.value)


@pytest.mark.parametrize(
    "links",
    [
        "[a -- b, b -- c, c -- d]",
        "[{link: a -- b, vlan: {trunk: [1]}}, {link: b -- a, name: two, vlan: {trunk: [2]}}]",
        "[{link: a -- b, vlan: {untagged: true}}, {link: b -- a, name: two, vlan: {trunk: [2]}}]",
    ],
)
def test_a_tree_in_each_vlan_is_no_loop(links):
    assert parsed(NODES + f"links: {links}").links


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.sets(st.integers(1, 3), min_size=1)), max_size=6)
)
def test_loops_are_those_of_the_obvious_search(links):
    links = [(one, other, vlans) for one, other, vlans in links if one != other]

    def has_loop(vlan):
        groups = {name: {name} for name in "abcd"}
        for one, other, vlans in links:
            if vlan in vlans:
                if groups[one] is groups[other]:
                    return True
                both = groups[one] | groups[other]
                for name in both:
                    groups[name] = both
        return False

    text = (
        NODES
        + "links:"
        + (
            "".join(
                f"\n  - {{link: {one} -- {other}, name: l{n}, vlan: {{trunk: {sorted(vlans)}}}}}"
                for n, (one, other, vlans) in enumerate(links)
            )
            or " []"
        )
    )
    try:
        parsed(text)
        refused = False
    except ConfigError as error:
        refused = "closes a loop" in str(error)
        assert refused
    assert refused == any(map(has_loop, (1, 2, 3)))


def test_five_hundred_links_are_checked_at_once():
    names = [f"s{n}" for n in range(501)]
    nodes = ", ".join(f"{name}: switch" for name in names)
    links = "\n".join(
        f"  - {{link: {one} -- {other}, vlan: {{trunk: [{n % 4000 + 8}, 7]}}}}"
        for n, (one, other) in enumerate(itertools.pairwise(names))
    )
    assert len(parsed(f"nodes: {{{nodes}}}\nlinks:\n{links}").links) == 500
