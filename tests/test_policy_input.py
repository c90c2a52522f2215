"""Policies of hostile and of clumsy users: one clear line, or what `vnic shape check` accepts can be applied."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.errors import ConfigError
from shaping.policy.check import check_policy
from shaping.policy.load import convert_policy, parse_policy
from shaping.policy.network import Network
from vnic.config.shape import network_of
from vnic.testing import VirtualNetwork

NET = "nics: {a: {}, b: {}, c: {}}"
ENTRY = "version: 1\nlinks:\n  a -> b: "
TREE = "version: 1\nclasses:\n  a.egress: {rate: 1mbit, default: y, tree: {y: {}, x: {match: "
# A thousand matches in each of three levels would be 10^9 rules.
CROSSED = (
    "version: 1\nclasses:\n  a.egress: {rate: 1mbit, default: y, tree: {y: {}, x: "
    + "".join(
        f"{{match: [{', '.join(f'{{{key}: {n}}}' for n in range(1000))}], tree: {{x: "
        for key in ("source_port", "vlan", "destination_port")
    )
    + "{}"
    + "}}" * 3
    + "}}"
)


def refused(text: str, network: Network | None = None) -> str:
    """The error that a policy is refused with."""
    with pytest.raises(ConfigError) as caught:
        policy = parse_policy(text, "p.yaml")
        errors = [each for each in check_policy(policy, network or Network({"a": "", "b": ""})) if each.kind == "error"]
        raise ConfigError(str(errors[0]) if errors else "accepted")
    said = str(caught.value)
    assert said.startswith("p.yaml") and len(said.splitlines()) == 1 and len(said) < 400 and said.isprintable(), said
    return said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "p.yaml: has no version: expected version: 1"),
        ("\0", "no YAML"),
        ("[1, 2]", "invalid value a list: expected a mapping"),
        ("version: 1\nlinks: " + "[" * 5000, "too deep"),
        ("version: 1\nlinks: &l {a -> b: *l}", "too deep"),
        ("a: &a [x,x,x,x,x,x,x,x]\n" + "".join(f"{y}: &{y} [{','.join([f'*{x}'] * 8)}]\n" for x, y in zip("abcdef", "bcdefg", strict=True)),
         "too much"),
        ("version: 1\nversion: 1", "'version' is there already"),
        ("version: 1\nlinks: !!python/object/apply:os.system ['id']", "is not allowed"),
        ("version: 99999999999999999999", "version: invalid value 99999999999999999999: expected 1"),
        ("version: 1\nseed: -1", "seed: invalid value -1"),
        ("version: 1\nlinks:\n" + "".join(f"  n{n} -> b: {{loss: 1%}}\n" for n in range(10_001)),
         "links: invalid value of 10001 entries: expected at most 4096 entries"),
        (ENTRY.replace("b:", "a:") + "{loss: 1%}", "leads from a to itself"),
        (ENTRY.replace("a ->", "any ->").replace("b:", "any:") + "{loss: 1%}", "names no NIC"),
        (ENTRY.replace("->", "=>") + "{loss: 1%}", "write a -> b"),
        ("version: 1\nlinks:\n  \"a\\e[31m -> b\": {loss: 1%}", "is not a place"),
        (f"version: 1\nlinks:\n  {'x' * 100} -> b: {{loss: 1%}}", "longer than 66 characters"),
        (ENTRY + "{loss: .nan}", "share '.nan'"),
        (ENTRY + "{loss: 1.0e+30}", "p.yaml:3: links.a -> b.loss: share"),
        (ENTRY + "{loss: -1%}", "expected 0% to 100%"),
        (ENTRY + "{rate: 0bit}", "rate 0bit could mean no limit or nothing at all: write none, or loss: 100%"),
        (ENTRY + "{rate: 1000000000000000000000000000000mbit}", "is too large: the limit is"),
        (ENTRY + "{preset: x}", "there is no preset 'x'; `vnic shape presets` lists them"),
        (ENTRY + "{preset: wpt3g}", "did you mean 'wpt-3g'?"),
        (ENTRY + "{corrupt: {share: 1%, part: header, checksum: mend}}", "expected part: payload"),
        (ENTRY + "{reorder: {share: 1%, by: 65}}", "expected a number of packets, 1 to 64"),
        (ENTRY + "{loss: {share: 66.66666666666666666667%, burst: 2}}", "expected share to be at most that"),
        (ENTRY + "{rate: 10gbit, delay: 10s}", "the largest pool has"),
        (ENTRY + "{loss: 1%}\n  a  ->  b: {loss: 1%}", "p.yaml:4: links.a -> b: is there twice, at p.yaml:3"),
        (f"version: 1\nlinks:\n  '{'-' * 120}': {{loss: 1%}}", "is not a place"),
        (ENTRY + '{trace: "x\\e[31m"}', "links.a -> b.trace: file 'x\\x1b[31m': expected characters that can be printed"),
        ("version: 1\nclasses:\n  \"a\\e[31m\\nb.egress\": {rate: 1mbit, default: x, tree: {x: {}}}", "invalid name 'a\\x1b[31m\\nb'"),
        ("version: 1\nclasses:\n  a -> b.egress: {rate: 1mbit, default: x, tree: {x: {}}}", "invalid name 'a -> b'"),
        ("version: 1\nclasses:\n  a.egress: {rate: 1mbit, default: x, tree: {x: {}}}\n  a -> any: {rate: 1mbit, default: x, tree: {x: {}}}",
         "p.yaml:4: classes.a -> any: is the place of a.egress, too"),
        (TREE + '{sender: "\\e[31m"}}}}', "sender: invalid name '\\x1b[31m'"),
        (TREE + f"{{sender: {'x' * 100_000}}}}}}}}}", "sender: invalid name 'xxx"),
        (TREE + f"{{source: {'x' * 100_000}}}}}}}}}", "source 'xxx"),
        (TREE + "{dscp: ef}, queue: {discipline: codel, ecn: maybe}}}}", "queue.ecn: ecn 'maybe': expected yes or no"),
        ("version: 1\nclasses:\n  a.egress: {rate: 1mbit, default: c0, tree: {"
         + ", ".join(f"c{n}: {{queue: {{discipline: fq, flows: 65536}}}}" for n in range(65)) + "}}",
         "its queues have 4259840 flows together: expected at most 4194304"),
        (CROSSED, "more than 1024 matches, each of a class with each of the classes around it"),
        ('version: 1\nshares: {"u\\e[31m": {capacity: 1gbit, a: {weight: 1}}}', "is not a share: expected letters"),
        ('version: 1\nshares: {u: {capacity: 1gbit, "a\\e[31m": {weight: 1}}}', "invalid name 'a\\x1b[31m'"),
        ("version: 1\nlinks: {a -> any: {trace: [{for: 1s, rate: 1mbit}]}}\nshares: {u: {capacity: 1gbit, a: {weight: 1}}}",
         "p.yaml:2: error: a -> any: has a trace, and share u sets its rate: remove one of them"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(text, says):
    assert says in refused(text)


@pytest.mark.parametrize(("written", "means"), [("yes", True), ("no", False), ("true", True), ("false", False)])
def test_yes_and_no_are_flags(written, means):
    policy = parse_policy(TREE + f"{{dscp: ef}}, queue: {{discipline: codel, ecn: {written}}}}}}}}}", "p.yaml")
    assert policy.classes[0].config.tree["x"].queue.ecn is means


def test_many_classes_without_packets_are_a_few_warnings():
    tree = ", ".join(f"c{n}: {{}}" for n in range(4096))
    policy = parse_policy(f"version: 1\nclasses:\n  a.egress: {{rate: 1mbit, default: c0, tree: {{{tree}}}}}", "p.yaml")
    found = [each.text for each in check_policy(policy, Network({"a": ""})) if each.kind == "warning"]
    assert len(found) == 21 and found[-1] == "a.egress: 4075 more classes get no packets"


def test_what_a_client_may_send_is_bounded():
    """A file has at most 50,000 values, a client's document 64 MB."""
    tree = {f"c{n}": {} for n in range(4096)}
    classes = {f"n{n}.egress": {"rate": "1gbit", "default": "c0", "tree": tree} for n in range(17)}
    with pytest.raises(ConfigError, match="classes: all places so far have 69632 classes: expected at most 65536"):
        convert_policy({"version": 1, "classes": classes})
    lines = {f"n{n} -> any": {"loss": "1%"} for n in range(4000)}
    with pytest.raises(ConfigError, match=r"scenario\[2\]: all steps so far have 12000 lines: expected at most 10000"):
        convert_policy({"version": 1, "scenario": [{"at": "1s", "set": lines}] * 1000})


def test_an_unknown_name_in_a_large_network_is_one_short_line():
    nics = {f"nic{n}": "02:00:00:00:00:00" for n in range(10_000)}
    said = refused(ENTRY + "{loss: 1%}", Network(nics))
    assert "there is no NIC or link a; expected one of nic0, nic1, " in said and "and 9960 more" in said


SHARES = ["0%", "1%", "100%", "33.333333333333333333%", "0.00000000000000000001%", "99.99999999999999999999%"]
TIMES = ["0", "1ns", "1ms", "1.5ms", "1h"]
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "rate": st.sampled_from(["1kbit", "10tbit", "none", "1.6mbit"]),
    "queue": st.sampled_from(["1us", "60s", "64b", "1gb", "{packets: 1}", "{packets: 1048576}", "{time: 5ms}", "{size: 10m}"]),
    "overhead": st.sampled_from(["raw", "conservative", "{bytes: -50}", "{bytes: 256, minimum: 256, cell: atm}"]),
    "duplicate": st.sampled_from(SHARES),
    "loss": st.one_of(
        st.sampled_from(SHARES),
        st.builds(
            "{{share: {}, burst: {}}}".format, st.sampled_from(SHARES), st.floats(1, 1e6) | st.sampled_from([1, 2, 1_000_000])
        ),
        st.builds("{{share: {}, correlation: {}}}".format, st.sampled_from(SHARES), st.sampled_from([*SHARES[:2], "99%"])),
        st.builds(
            "{{to_bad: {}, to_good: {}, bad: {}, good: {}}}".format,
            *[st.sampled_from(SHARES)] * 4,
        ),
        st.builds("{{p13: {}, p31: {}, p32: {}, p23: {}, p14: {}}}".format, *[st.sampled_from(SHARES)] * 5),
    ),
    "corrupt": st.builds(
        "{{share: {}, part: {}, checksum: {}}}".format,
        st.sampled_from(SHARES),
        st.sampled_from(["any", "header", "payload"]),
        st.sampled_from(["keep", "mend"]),
    ),
    "reorder": st.builds(
        "{{share: {}, by: {}, within: {}}}".format,
        st.sampled_from(SHARES),
        st.sampled_from([1, 64, 65, 1024]),
        st.sampled_from(["1us", "60s"]),
    ),
    "delay": st.one_of(
        st.sampled_from(TIMES),
        st.builds(
            "{{mean: {}, jitter: {}, shape: {}, correlation: {}, order: {}}}".format,
            st.sampled_from(TIMES),
            st.sampled_from(TIMES),
            st.sampled_from(["uniform", "normal", "pareto"]),
            st.sampled_from([*SHARES, "99%"]),
            st.sampled_from(["keep", "any"]),
        ),
    ),
}


@settings(max_examples=300, deadline=None)
@given(entry=st.fixed_dictionaries({}, optional=PARTS))
def test_what_check_accepts_can_be_applied(entry):
    """All layers have the same bounds: the file's, the foretelling's and the elements'."""
    text = ENTRY + "{" + ", ".join(f"{name}: {value}" for name, value in entry.items()) + "}"
    with VirtualNetwork(NET) as net:
        try:
            errors = [
                each for each in check_policy(parse_policy(text, "p.yaml"), network_of(net.config)) if each.kind == "error"
            ]
        except ConfigError as error:
            assert re.match(r"p\.yaml:3: links\.a -> b", str(error)), error
            errors = [error]
        if errors:
            with pytest.raises(ConfigError):
                net.shape(text)
            assert net.shape(None) == []
        else:
            net.shape(text)
            net.send("a", bytes(6) + net.config.nics["a"].mac.packed + bytes(100))
            net.run()
