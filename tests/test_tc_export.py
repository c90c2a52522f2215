"""Policies as scripts of tc: what they say, the way back, and what the real tc makes of them."""

from __future__ import annotations

import copy
import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config.load import parse_yaml
from dataplane.elements.classifier_rules import read_rule
from dataplane.errors import ConfigError
from dataplane.units import parse_rate
from shaping.imports.export import export_tc, nics_of
from shaping.imports.form import Names
from shaping.imports.notes import Notes
from shaping.imports.tc import read_tc
from shaping.policy.compile import queue_of
from shaping.policy.load import convert_policy
from shaping.policy.network import Network
from shaping.policy.places import plan_of
from shaping.policy.schema import LossConfig
from tests.support.containers import Container
from tests.tools import need

NETWORK = Network(
    {"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:02", "lab": "02:00:00:00:00:03"}, {"lan--dmz": ("lan", "dmz")}
)


def export(text: str | dict, nic: str = "web", device: str | None = None):
    data = dict(parse_yaml(text, "p.yaml")[0] if isinstance(text, str) else text)
    data.setdefault("version", 1)
    classes = data.pop("classes", None) or {}
    return export_tc(convert_policy(data), classes, NETWORK, nic, device or nic)


def commands(text: str | dict, **more) -> list[str]:
    """Without comments and what removes the policy before."""
    lines = export(text, **more).text.splitlines()
    return [re.sub(r"\s+# \S+$", "", each) for each in lines if not each.startswith("#") and " del " not in each]


def again(script: str, given: dict[str, str] | None = None):
    notes = Notes()
    draft = read_tc(script, "tc.sh", Names(given or {}, None, notes))
    draft.check()
    assert not notes.refused
    return draft


# -- what a script says ----------------------------------------------------------------------------

LINES = [
    ("delay: 40ms", ["netem limit 66052 delay 40ms"]),
    ("delay: {mean: 40ms, jitter: 5ms, order: any}", ["netem limit 74308 delay 40ms 5ms"]),
    ("delay: {mean: 40ms, jitter: 5ms, shape: normal, order: any}", ["netem limit 74308 delay 40ms 5ms distribution normal"]),
    (
        "delay: {mean: 99.67ms, jitter: 8.2ms, shape: pareto, order: any}",
        ["netem limit 178122 delay 100ms 10ms distribution pareto"],
    ),
    ("loss: 1%", ["netem limit 1000 loss random 1%"]),
    ("loss: {share: 20%, burst: 4}", ["netem limit 1000 loss gemodel 6.25% 25%"]),
    ("loss: {share: 20%, correlation: 50%}", ["netem limit 1000 loss gemodel 10% 40%"]),
    ("loss: {to_bad: 1%, to_good: 25%, bad: 50%}", ["netem limit 1000 loss gemodel 1% 25% 50% 0%"]),
    ("loss: {p13: 1%, p14: 2%}", ["netem limit 1000 loss state 1% 99% 0% 100% 2%"]),
    ("duplicate: 1%, corrupt: 0.1%", ["netem limit 1000 duplicate 1% corrupt 0.1%"]),
    ("rate: 10mbit, queue: 50ms", ["tbf rate 10mbit burst 3200b latency 50ms"]),
    ("rate: 1gbit, queue: 64kb", ["tbf rate 1gbit burst 125000b limit 65536b"]),
    ("rate: 10mbit, queue: {packets: 7}", ["tbf rate 10mbit burst 3200b limit 10598b", "pfifo limit 7"]),
    ("rate: 10mbit, queue: 50ms, overhead: docsis", ["tbf rate 10mbit burst 3200b latency 50ms overhead 4 mpu 64"]),
    (
        "rate: 10mbit, queue: 50ms, overhead: pppoa-vcmux",
        ["stab overhead -4 linklayer atm tbf rate 10mbit burst 3200b latency 50ms"],
    ),
    (
        "rate: 10mbit, queue: 50ms, delay: 5ms, loss: 1%",
        ["netem limit 1000 delay 5ms loss random 1%", "tbf rate 10mbit burst 3200b latency 50ms"],
    ),
    ("loss: 0%", []),
]


@pytest.mark.parametrize(("line", "qdiscs"), LINES)
def test_a_line(line, qdiscs):
    found = commands(f"links: {{web -> any: {{{line}}}}}")
    parents = ["root", "parent 1:1", "parent 2:1"]
    assert found == [
        f"tc qdisc add dev web {parents[number]} handle {number + 1}: {each}" for number, each in enumerate(qdiscs)
    ]


CANNOT = [
    ("delay: {mean: 40ms, jitter: 5ms}", "order: keep: netem lets packets overtake each other"),
    ("delay: {mean: 40ms, jitter: 5ms, correlation: 30%, order: any}", "correlation of delays: netem's has no effect"),
    ("delay: {mean: 40ms, jitter: 5ms, shape: pareto, order: any}", "pareto: netem's table ends at 4 times its jitter"),
    ("reorder: {share: 1%, by: 3}", "reorder by 3: left out"),
    ("corrupt: {share: 1%, part: payload, checksum: mend}", "corrupt part: payload, checksum: mend"),
    ("rate: 10mbit, overhead: bridged-ptm", "cells of PTM"),
]


@pytest.mark.parametrize(("line", "says"), CANNOT)
def test_what_tc_cannot_say_is_a_comment_and_a_finding(line, says):
    script = export(f"links: {{web -> any: {{{line}}}}}")
    assert any(each.startswith("#") and says in each for each in script.text.splitlines())
    assert any(says in each.text for each in script.notes.findings)


def test_both_directions_and_lines_to_single_nics():
    text = """
        seed: 4
        links:
          web: {rate: 10mbit, queue: {packets: 100}}
          web -> db: {delay: 40ms}
          web -> lab: {rate: 1mbit, queue: 64kb, loss: 1%}
          lab -> web: {delay: 1ms}
          lan--dmz: {delay: 1ms}
    """
    assert commands(text) == [
        "tc qdisc add dev web root handle 1: tbf rate 10mbit burst 3200b limit 151400b",
        "tc qdisc add dev web parent 1:1 handle 2: prio bands 3 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "tc qdisc add dev web parent 2:2 handle 3: netem limit 66052 delay 40ms",
        "tc filter add dev web parent 2: protocol all pref 1 u32 match ether dst 02:00:00:00:00:02 flowid 2:2",
        "tc qdisc add dev web parent 2:3 handle 4: netem limit 1000 loss random 1%",
        "tc qdisc add dev web parent 4:1 handle 5: tbf rate 1mbit burst 3200b limit 65536b",
        "tc filter add dev web parent 2: protocol all pref 2 u32 match ether dst 02:00:00:00:00:03 flowid 2:3",
        "ip link add ifb-web type ifb 2>/dev/null || true",
        "ip link set ifb-web up",
        "tc qdisc add dev web handle ffff: ingress",
        "tc filter add dev web parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev ifb-web",
        "tc qdisc add dev ifb-web root handle 1: tbf rate 10mbit burst 3200b limit 151400b",
        "tc qdisc add dev ifb-web parent 1:1 handle 2: pfifo limit 100",
    ]
    script = export(text).text
    for words in ("# seed 4: ", "# lab -> web: in the script for lab", "# lan--dmz -> dmz: a link between switches has no interface",
                  "# web -> any: queue: below tbf"):  # fmt: skip
        assert words in script
    assert again(script).links == {
        "web -> any": {"rate": "10mbit", "queue": "151400b"}, "web -> db": {"delay": "40ms"},
        "web -> lab": {"rate": "1mbit", "queue": "64kb", "loss": "1%"}, "any -> web": {"rate": "10mbit", "queue": {"packets": 100}},
    }  # fmt: skip


EVERYTHING = "[{vlan: 0}, {destination: 0.0.0.0/0}, {destination: '::/0'}]"
PARTS = f"""
links:
  web -> any: {{rate: 10mbit, queue: 50ms}}
  web -> any/dns: {{match: {{protocol: udp, destination_port: 53}}, loss: 20%}}
  web -> any/ssh: {{match: {{destination_port: 22-23, destination: 10.0.0.0/8}}, rate: none}}
  web -> any/slow: {{match: [{{dscp: cs1}}, {{source: '2001:db8::/32'}}], rate: 1mbit, queue: {{packets: 5}}, delay: 5ms}}
  web -> any/rest: {{match: {EVERYTHING}, delay: 1ms}}
  any -> web/of-db: {{match: {{sender: db}}, delay: 1ms}}
"""


def test_parts_of_lines():
    """A band of prio for each, also for one to whose packets nothing happens."""
    assert commands(PARTS) == [
        "tc qdisc add dev web root handle 1: tbf rate 10mbit burst 3200b latency 50ms",
        "tc qdisc add dev web parent 1:1 handle 2: prio bands 5 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "tc qdisc add dev web parent 2:2 handle 3: netem limit 1000 loss random 20%",
        "tc filter add dev web parent 2: protocol ip pref 1 u32 match ip protocol 17 0xff match ip dport 53 0xffff flowid 2:2",
        "tc filter add dev web parent 2: protocol ipv6 pref 2 u32 match ip6 protocol 17 0xff match ip6 dport 53 0xffff flowid 2:2",
        "tc filter add dev web parent 2: protocol ip pref 3 u32 match ip dst 10.0.0.0/8 match ip dport 22 0xfffe flowid 2:3",
        "tc qdisc add dev web parent 2:4 handle 4: netem limit 1000 delay 5ms",
        "tc qdisc add dev web parent 4:1 handle 5: tbf rate 1mbit burst 3200b limit 7570b",
        "tc qdisc add dev web parent 5:1 handle 6: pfifo limit 5",
        "tc filter add dev web parent 2: protocol ip pref 4 u32 match ip tos 0x20 0xfc flowid 2:4",
        "tc filter add dev web parent 2: protocol ipv6 pref 5 u32 match ip6 priority 0x20 0xfc flowid 2:4",
        "tc filter add dev web parent 2: protocol ipv6 pref 6 u32 match ip6 src 2001:db8::/32 flowid 2:4",
        "tc qdisc add dev web parent 2:5 handle 7: netem limit 1652 delay 1ms",
        "tc filter add dev web parent 2: protocol all pref 7 u32 match u32 0 0 flowid 2:5",
        "ip link add ifb-web type ifb 2>/dev/null || true",
        "ip link set ifb-web up",
        "tc qdisc add dev web handle ffff: ingress",
        "tc filter add dev web parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev ifb-web",
        "tc qdisc add dev ifb-web root handle 1: prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "tc qdisc add dev ifb-web parent 1:2 handle 2: netem limit 1652 delay 1ms",
        "tc filter add dev ifb-web parent 1: protocol all pref 1 u32 match ether src 02:00:00:00:00:02 flowid 1:2",
    ]
    assert again(export(PARTS).text).links == {
        "web -> any": {"rate": "10mbit", "queue": "50ms"},
        "web -> any/dns": {"match": {"protocol": "udp", "destination_port": 53}, "loss": "20%"},
        "web -> any/net-10.0.0.0-8-ports-22-23": {
            "match": {"destination": "10.0.0.0/8", "destination_port": "22-23"}, "rate": "none",
        },
        "web -> any/slow": {
            "match": [{"dscp": "cs1"}, {"source": "2001:db8::/32"}], "delay": "5ms", "rate": "1mbit", "queue": {"packets": 5},
        },
        "web -> any/rest": {"match": [{"vlan": 0}, {"destination": "0.0.0.0/0"}, {"destination": "::/0"}], "delay": "1ms"},
        "any -> web/of-db": {"match": {"source_mac": "02:00:00:00:00:02"}, "delay": "1ms"},
    }  # fmt: skip


def test_parts_of_lines_to_single_nics_and_beside_them():
    """All packets pass the lines to single NICs: these are in each band."""
    text = """
        links:
          web -> any/dns: {match: {destination_port: 53, destination: 10.0.0.0/8}, loss: 20%}
          web -> db: {delay: 5ms}
          web -> db/x: {match: {source: 10.0.0.1}, loss: 1%}
          lab -> web/y: {match: {dscp: ef}, loss: 1%}
    """
    prio = "prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"

    def of_pair(parent, handle):
        pair, netem, parts, part = (f"{handle + n:x}" for n in range(4))
        return [
            f"tc qdisc add dev web parent {parent} handle {pair}: {prio}",
            f"tc qdisc add dev web parent {pair}:2 handle {netem}: netem limit 8258 delay 5ms",
            f"tc qdisc add dev web parent {netem}:1 handle {parts}: {prio}",
            f"tc qdisc add dev web parent {parts}:2 handle {part}: netem limit 1000 loss random 1%",
            f"tc filter add dev web parent {parts}: protocol ip pref 1 u32 match ip src 10.0.0.1/32 flowid {parts}:2",
            f"tc filter add dev web parent {pair}: protocol all pref 1 u32 match ether dst 02:00:00:00:00:02 flowid {pair}:2",
        ]

    assert commands(text) == [
        f"tc qdisc add dev web root handle 1: {prio}",
        *of_pair("1:1", 2),
        "tc qdisc add dev web parent 1:2 handle 6: netem limit 1000 loss random 20%",
        *of_pair("6:1", 7),
        "tc filter add dev web parent 1: protocol ip pref 1 u32 match ip dst 10.0.0.0/8 match ip dport 53 0xffff flowid 1:2",
    ]
    assert "# lab -> web/y: in the script for lab" in export(text).text
    script = export(text.replace("delay: 5ms", "rate: 5mbit"))
    assert any("web -> db: rate: for each part of web -> any by itself" in each.text for each in script.notes.findings)


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ("web -> any/x: {match: {vlan: 7}, delay: 1ms}", "web -> any/x.match: vlan: u32 does not know it"),
        (", ".join(f"web -> any/x{n}: {{match: {{source_port: {n}}}, delay: 1ms}}" for n in range(1, 20)),
         "19 parts of web -> any: prio has 16 bands: the first 15 are here"),
        ("web -> any/x: {match: {dscp: ef}, reorder: {share: 1%, by: 3}}", "web -> any/x: reorder by 3: left out"),
    ],
)  # fmt: skip
def test_parts_that_tc_cannot_say(links, says):
    script = export(f"links: {{{links}}}")
    assert any(each.startswith("#") and says in each for each in script.text.splitlines())
    assert any(says in each.text for each in script.notes.findings)


OF_CLASSES = f"""
links:
  web -> any/sync: {{match: {{destination_port: 873}}, delay: 9ms}}
  web -> any/gold: {{match: [{{destination: 10.0.0.5}}, {{dscp: ef}}], rate: none}}
  web -> any/rest: {{match: {EVERYTHING}, loss: 1%}}
classes:
  web.egress:
    rate: 10mbit
    default: bulk
    tree:
      sync: {{match: {{destination_port: 873}}, guarantee: 4mbit, queue: fq_codel}}
      gold: {{match: [{{destination: 10.0.0.5}}, {{dscp: ef}}], guarantee: 4mbit}}
      bulk: {{}}
"""


def test_parts_of_the_packets_of_classes():
    """netem in the classes, whose queues are behind it, as an import has them."""
    found = commands(OF_CLASSES)
    assert [each for each in found if " qdisc " in each] == [
        "tc qdisc add dev web root handle 1: htb default 12",
        "tc qdisc add dev web parent 1:10 handle 4010: netem limit 14862 delay 9ms",
        "tc qdisc add dev web parent 4010:1 handle 8010: fq_codel",
        "tc qdisc add dev web parent 1:12 handle 4012: netem limit 1000 loss random 1%",
    ]
    draft = again(export(OF_CLASSES).text)
    assert draft.links == {
        "web -> any/sync": {"match": {"destination_port": 873}, "delay": "9ms"},
        "web -> any/gold": {"match": [{"destination": "10.0.0.5/32"}, {"dscp": "ef"}], "rate": "none"},
        "web -> any/bulk": {"match": [{"vlan": 0}, {"destination": "0.0.0.0/0"}, {"destination": "::/0"}], "loss": "1%"},
    }
    assert draft.classes["web.egress"]["tree"]["sync"]["queue"] == "fq_codel"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sync: {match: {destination_port: 873}, g", "sync: {match: {destination_port: 874}, g"),
        ("  web -> any/sync: {match: {destination_port: 873}, delay: 9ms}\n", ""),
        ("  web -> any/gold: {match: [{destination: 10.0.0.5}, {dscp: ef}], rate: none}\n", ""),
    ],
)
def test_parts_of_other_packets_than_those_of_classes_are_left_out(old, new):
    assert old in OF_CLASSES
    script = export(OF_CLASSES.replace(old, new))
    told = [each.text for each in script.notes.findings if "left out beside classes" in each.text]
    assert len(told) == 1 and " netem " not in script.text
    rated = export(OF_CLASSES.replace("delay: 9ms", "rate: 1mbit"))
    assert any("web -> any/sync: rate: left out beside classes" in each.text for each in rated.notes.findings)


CLASSES = """
classes:
  web.egress:
    rate: 100mbit
    overhead: docsis
    default: bulk
    tree:
      voice: {match: {dscp: ef}, guarantee: 2mbit, ceiling: 5mbit, priority: 0}
      gold:
        match: [{destination: 10.0.0.0/24}, {protocol: tcp, destination_port: 873}]
        guarantee: 60mbit
        weight: 2
        tree: {sync: {match: {source_port: 873}, weight: 1}, rest: {weight: 3}}
      bulk: {queue: {discipline: codel, target: 5ms, packets: 100}}
"""


def test_classes():
    assert commands(CLASSES) == [
        "tc qdisc add dev web root handle 1: htb default 14",
        "tc class add dev web parent 1: classid 1:1 htb rate 100mbit ceil 100mbit overhead 4 mpu 64",
        "tc class add dev web parent 1:1 classid 1:10 htb rate 2mbit ceil 5mbit overhead 4 mpu 64 quantum 1514 prio 0",
        "tc class add dev web parent 1:1 classid 1:11 htb rate 60mbit ceil 100mbit overhead 4 mpu 64 quantum 3028",
        "tc class add dev web parent 1:11 classid 1:12 htb rate 8bit ceil 100mbit overhead 4 mpu 64 quantum 1514 prio 4",
        "tc class add dev web parent 1:11 classid 1:13 htb rate 8bit ceil 100mbit overhead 4 mpu 64 quantum 4542 prio 4",
        "tc class add dev web parent 1:1 classid 1:14 htb rate 8bit ceil 100mbit overhead 4 mpu 64 quantum 1514 prio 4",
        "tc qdisc add dev web parent 1:14 handle 8014: codel target 5000us limit 100",
        "tc filter add dev web parent 1: protocol ip pref 1 u32 match ip tos 0xb8 0xfc flowid 1:10",
        "tc filter add dev web parent 1: protocol ipv6 pref 2 u32 match ip6 priority 0xb8 0xfc flowid 1:10",
        "tc filter add dev web parent 1: protocol ip pref 3 u32 match ip dst 10.0.0.0/24 match ip sport 873 0xffff flowid 1:12",
        "tc filter add dev web parent 1: protocol ip pref 4 u32 match ip protocol 6 0xff match ip sport 873 0xffff "
        "match ip dport 873 0xffff flowid 1:12",
        "tc filter add dev web parent 1: protocol ipv6 pref 5 u32 match ip6 protocol 6 0xff match ip6 sport 873 0xffff "
        "match ip6 dport 873 0xffff flowid 1:12",
        "tc filter add dev web parent 1: protocol ip pref 6 u32 match ip dst 10.0.0.0/24 flowid 1:13",
        "tc filter add dev web parent 1: protocol ip pref 7 u32 match ip protocol 6 0xff match ip dport 873 0xffff flowid 1:13",
        "tc filter add dev web parent 1: protocol ipv6 pref 8 u32 match ip6 protocol 6 0xff match ip6 dport 873 0xffff flowid 1:13",
    ]
    found = again(export(CLASSES).text).classes["web.egress"]
    assert (found["rate"], found["overhead"], found["default"], list(found["tree"])) == (
        "100mbit",
        "docsis",
        "bulk",
        ["voice", "gold", "bulk"],
    )
    assert found["tree"]["gold"]["tree"]["rest"]["match"] == [
        {"destination": "10.0.0.0/24"},
        {"protocol": "tcp", "destination_port": 873},
    ]


def test_cake_of_a_class():
    tree = "{a: {queue: {discipline: cake, rtt: 30ms, hosts: source, size: 64kb, ecn: true}}, b: {queue: cake}, " \
        "c: {queue: {discipline: cake, quantum: 300, ecn: false, packets: 7}}}"  # fmt: skip
    script = export(f"classes: {{web.egress: {{rate: 1mbit, default: a, tree: {tree}}}}}")
    assert [line.split(": ", 1)[1] for line in script.text.splitlines() if " cake " in line and "qdisc" in line] == [
        "cake besteffort dual-srchost rtt 30000us memlimit 65536b",
        "cake besteffort triple-isolate",
        "cake besteffort triple-isolate",
    ]
    said = [line for line in script.text.splitlines() if line.startswith("#") and "cake of tc" in line]
    assert [line.split(".tree.")[1] for line in said] == [
        f"c.queue.{name}: cake of tc has none" for name in ("quantum", "ecn", "packets")
    ]


def test_classes_of_a_running_policy_have_their_overhead_as_a_mapping():
    for overhead in ("docsis", "{keyword: docsis}", "{bytes: 18, minimum: 64}"):
        text = f"classes: {{web.egress: {{rate: 1mbit, overhead: {overhead}, default: a, tree: {{a: {{}}}}}}}}"
        assert commands(text)[1].endswith("rate 1mbit ceil 1mbit overhead 4 mpu 64")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ("{a: {queue: {discipline: pie}}}", "'pie': expected one of fifo, codel"),
        ("{a: {guarantee: 10}}", "guarantee: rate '10' has no unit"),
        ("{a: {weight: 0}}", "weight: 0: expected a number above 0"),
        ("{a: {weight: .nan}}", "weight: '.nan': expected a number above 0"),
        ("{a: {priority: 9}}", "priority: 9: expected 0 to 7"),
        ("{a: {match: {port_of: 80}}}", "unknown key 'port_of'"),
        ("{a: {match: {sender: nobody}}}", "there is no NIC 'nobody'"),
        ("{a: 5}", "5: expected a mapping"),
        ("{b: {}}", "default: 'a': expected the path of a leaf such as b"),
        ("[]", "a list: expected a mapping"),
        ("{a: {queue: {discipline: cake, hosts: {}}}}", "a mapping: expected one of none, source, destination, both"),
        ("{a: {queue: {discipline: fifo, packets: -1}}}", "-1: expected a whole number"),
        ("{a: " + "{tree: {a: " * 9 + "{}" + "}}" * 9 + "}", "more than 7 levels"),
    ],
)
def test_classes_that_are_wrong(tree, says):
    with pytest.raises(ConfigError) as caught:
        export(f"classes: {{web.egress: {{rate: 10mbit, default: a, tree: {tree}}}}}")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_policy_is_about():
    data = parse_yaml("{version: 1, links: {web -> db: {delay: 1ms}, any -> lab: {delay: 1ms}}}", "p")[0]
    assert nics_of(convert_policy(data), {}, NETWORK) == ["web", "lab"]
    assert nics_of(convert_policy({"version": 1}), {"db.ingress": {}}, NETWORK) == ["db"]


@pytest.mark.parametrize("device", ["", "a" * 16, "eth0;reboot", "eth 0", "$(x)", "\u00e9"])
def test_a_device_that_cannot_be_one(device):
    with pytest.raises(ConfigError, match="no name of an interface"):
        export_tc(convert_policy({"version": 1}), {}, NETWORK, "web", device)


# -- there and back --------------------------------------------------------------------------------

MS = st.integers(0, 3_000_000_000)
RATES = st.integers(125, 10**9).map(lambda number: f"{number * 8}bit" if number >= 125 else "1kbit")
SHARES = st.integers(1, 10_000_000).map(lambda number: f"{number / 100_000:.5f}%")


@st.composite
def delays(draw):
    mean, jitter = draw(MS), draw(st.integers(0, 2_000_000_000))
    if not jitter:
        return f"{max(mean, 1)}ns"
    found = {"mean": f"{mean + 10**8}ns", "jitter": f"{jitter}ns", "order": "any"}
    shape = draw(st.sampled_from(["uniform", "normal", "pareto"]))
    if shape != "uniform":
        found["shape"] = shape
    return found


@st.composite
def losses(draw):
    kind = draw(st.sampled_from(["share", "gemodel", "state", "burst", "correlation"]))
    if kind == "share":
        return draw(SHARES)
    if kind == "gemodel":
        return {"to_bad": draw(SHARES), "to_good": draw(SHARES), "bad": draw(SHARES), "good": draw(SHARES)}
    half = st.integers(1, 5_000_000).map(lambda number: f"{number / 100_000:.5f}%")
    if kind == "state":
        return {"p13": draw(half), "p31": draw(half), "p32": draw(half), "p23": draw(SHARES), "p14": draw(half)}
    if kind == "burst":
        return {"share": draw(half), "burst": draw(st.integers(1, 64))}
    return {"share": draw(half), "correlation": draw(half)}


QUEUES = st.one_of(
    st.integers(1, 60_000_000).map(lambda us: f"{us}us"),
    st.integers(64, 2**30).map(lambda size: f"{size}b"),
    st.integers(1, 1 << 20).map(lambda packets: {"packets": packets}),
)
OVERHEADS = st.one_of(
    st.sampled_from(["docsis", "ethernet", "pppoe-vcmux", "ipoa-vcmux"]),
    st.fixed_dictionaries(
        {"bytes": st.integers(-50, 256), "minimum": st.integers(0, 256), "cell": st.sampled_from(["none", "atm"])}
    ),
)


@st.composite
def policy_lines(draw):
    found = {}
    if draw(st.booleans()):
        found["rate"] = draw(RATES)
        found["queue"] = draw(QUEUES)
        if draw(st.booleans()):
            found["overhead"] = draw(OVERHEADS)
    for name, values in (("delay", delays()), ("loss", losses()), ("duplicate", SHARES), ("corrupt", SHARES)):
        if draw(st.booleans()):
            found[name] = draw(values)
    return found


def canonical(data, about=list) -> dict:
    """What each line means: the settings as numbers, models of loss as Markov chains, whose shares
    `about` may compare."""
    plan = plan_of(convert_policy({"version": 1, "links": data}), NETWORK)
    found = {}
    for place, line in plan.lines.items():
        meaning = {name: line.value(name) for name in ("rate", "duplicate", "corrupt")}
        meaning["delay"] = None if line.delay is None or not line.delay.longest else line.delay
        meaning["queue"] = queue_of(line) if line.rate else None
        overhead = line.value("overhead")
        meaning["overhead"] = None if overhead is None or overhead.added == (0, 0, "none") else overhead.added
        loss: LossConfig | None = line.loss
        shares = [] if loss is None else [*loss.chain.loss, *(each for row in loss.chain.moves for each in row)]
        meaning["loss"] = about(shares)
        found[str(place)] = meaning
    return found


def near(shares):
    """A percentage of 12 decimals is not what was asked for to the last bit."""
    return pytest.approx(shares, rel=0, abs=1e-13)


@settings(deadline=None, max_examples=150)
@given(out=policy_lines(), back=policy_lines(), pair=policy_lines())
def test_lines_there_and_back(out, back, pair):
    """import(export(policy)) means the policy."""
    links = {"web -> any": out, "any -> web": back, "web -> db": pair}
    if "rate" in out and pair:
        out["queue"] = "50ms"  # a queue of packets cannot stand before lines to single NICs
    links = {place: line for place, line in links.items() if line}
    script = export({"links": links}).text
    assert canonical(again(script).links) == canonical(links, near)


MATCHES = st.one_of(
    st.integers(1, 63).map(lambda value: {"dscp": value}),
    st.integers(0, 255).map(lambda value: {"protocol": value}),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 32)).map(
        lambda each: {"destination": f"{'.'.join(str(byte) for byte in each[0].to_bytes(4, 'big'))}/{each[1]}"}
    ),
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
        lambda each: {"source_port": each[0], "destination_port": each[1]}
    ),
    st.integers(0, 2**40 - 1).map(lambda value: {"source_mac": (b"\2" + value.to_bytes(5, "big")).hex(":")}),
    st.just({"source": "2001:db8::/48", "protocol": "udp"}),
)


def told(match) -> set[str]:
    """Rules as numbers: protocols and DSCP by number, prefixes without host bits."""
    return {str(read_rule(0, rule)) for rule in (match if isinstance(match, list) else [match])}


@settings(deadline=None, max_examples=100)
@given(
    parts=st.lists(
        st.tuples(st.lists(MATCHES, min_size=1, max_size=3), policy_lines().filter(bool)),
        max_size=6,
        unique_by=lambda part: frozenset(told(part[0])),  # of equal ones the second has no packets
    ),
    place=st.sampled_from(["web -> any", "any -> web"]),
)
def test_parts_there_and_back(parts, place):
    links = {f"{place}/p{n}": {"match": match, **line} for n, (match, line) in enumerate(parts)}
    found = again(export({"links": links}).text).links
    assert canonical(found) == canonical(links, near) and list(found) == list(links)
    assert [told(each["match"]) for each in found.values()] == [told(match) for match, _ in parts]


LEAF_QUEUES = st.sampled_from([
    None, "fq_codel", "codel", "fq", {"discipline": "fifo", "packets": 7}, {"discipline": "fifo", "size": "10kb"},
    {"discipline": "codel", "target": "4ms", "interval": "90ms", "ecn": True, "packets": 50},
    {"discipline": "fq_codel", "flows": 64, "quantum": 300, "packets": 99}, {"discipline": "fq", "quantum": 4000, "packets": 5},
    "cake", {"discipline": "cake", "hosts": "source", "rtt": "30ms"}, {"discipline": "cake", "hosts": "none", "size": "1mb"},
])  # fmt: skip


@st.composite
def trees(draw, depth=0):
    names = draw(st.lists(st.sampled_from(["a", "b-1", "c.x", "d_2", "7", "on"]), min_size=1, max_size=4, unique=True))
    found = {}
    for name in names:
        entry = found[name] = {}
        if depth < 2 and draw(st.integers(0, 3)) == 0:
            entry["tree"] = draw(trees(depth=depth + 1))
        elif (queue := draw(LEAF_QUEUES)) is not None:
            entry["queue"] = queue
        if draw(st.booleans()) and "tree" not in entry:
            entry["match"] = draw(st.lists(MATCHES, min_size=1, max_size=3))
        if draw(st.booleans()):
            entry["weight"] = draw(st.integers(1, 60))
        if draw(st.booleans()) and "tree" not in entry:
            entry["guarantee"] = f"{draw(st.integers(1, 50))}kbit"
        if draw(st.booleans()):
            entry["ceiling"] = f"{draw(st.integers(200, 900))}mbit"
    return found


def leaves_in(tree, above=(), outer=10**9):
    """Leaves with what they mean: path, guarantee, ceiling, weights along the path, rules, queue."""
    total = [each.get("weight", 1) for each in tree.values()]
    for name, each in tree.items():
        path = (*above, (name, each.get("weight", 1) / sum(total)))
        ceiling = min(outer, int(each.get("ceiling", "1000mbit")[:-4]) * 10**6)
        if "tree" in each:
            yield from leaves_in(each["tree"], path, ceiling)
            continue
        queue, rules = each.get("queue"), each.get("match") or []
        queue = {"discipline": queue} if isinstance(queue, str) else queue
        yield [step for step, _ in path], [round(share, 6) for _, share in path], each.get("guarantee"), ceiling, queue, [
            str(sorted(rule.items())) for rule in (rules if isinstance(rules, list) else [rules])]  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(tree=trees())
def test_classes_there_and_back(tree):
    path, inner = [], tree
    while inner:
        name = next(iter(inner))
        path.append(name)
        inner = inner[name].get("tree")
    data = {"rate": "1000mbit", "default": "/".join(path), "tree": tree}
    script = export({"classes": {"web.egress": data}}).text
    found = again(script).classes["web.egress"]
    assert found["default"] == data["default"]

    def meaning(tree):
        return sorted(map(repr, (
            (*each[:5], sorted(set(each[5]))) for each in leaves_in(tree))))  # fmt: skip

    def numbers(tree):
        """Protocols and DSCP by number, prefixes without host bits: the form of a rule does not matter."""
        for each in tree_of(tree):
            rules = each.get("match")
            if rules:
                each["match"] = [
                    {key: str(value) for key, value in read_rule(0, rule)._asdict().items() if value is not None}
                    for rule in (rules if isinstance(rules, list) else [rules])]  # fmt: skip
                each["match"] = [rule for number, rule in enumerate(each["match"]) if rule not in each["match"][:number]]
            if (rate := each.get("ceiling")) is not None:
                each["ceiling"] = f"{parse_rate(rate) // 10**6}mbit"

    def tree_of(tree):
        for each in tree.values():
            yield each
            yield from tree_of(each.get("tree") or {})

    first, second = copy.deepcopy(tree), copy.deepcopy(found["tree"])
    numbers(first)
    numbers(second)
    # A rule of the default class that matches a whole family says nothing.
    assert meaning(second) == meaning(first)


# -- the real tc -----------------------------------------------------------------------------------

# Kernels may lack a kind of qdisc or of filter; tc itself has read the command then.
LACKS = ("kind is unknown", "No such file or directory", "TC classifier not found", "Failed to load TC action module")

REAL = """
links:
  web: {rate: 10mbit, queue: 50ms, overhead: docsis}
"""
REAL_CLASSES = """
classes:
  web.egress:
    rate: 100mbit
    overhead: docsis
    default: gold/rest
    tree:
      voice: {match: [{dscp: ef}, {source_mac: '02:00:00:00:00:03'}], guarantee: 2mbit, ceiling: 5mbit, priority: 0, queue: fifo}
      gold:
        guarantee: 60mbit
        weight: 2
        tree:
          sync: {match: {protocol: tcp, source_port: 873, destination: 10.1.0.0/16}, queue: {discipline: fifo, packets: 77}}
          rest: {weight: 3, queue: {discipline: fifo, size: 9kb}}
  web.ingress:
    rate: 8mbit
    default: all
    tree: {all: {}}
"""


class Machine:
    """A network namespace with a veth pair, whose end is called web."""

    def __init__(self, container: Container) -> None:
        self.container = container
        container.run("ip", "link", "add", "web", "type", "veth", "peer", "name", "peer")
        container.run("ip", "link", "set", "web", "up")

    def run(self, script: str) -> None:
        """Runs a script to its end; every command must succeed."""
        done = subprocess.run(
            self.container.command(["sh", "-ex"]), input=script, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr

    def show(self, *options: str) -> str:
        """What tc tells of web and its ifb device, as a user would ask."""
        parts = [["qdisc", "show"]]
        for device in ("web", "ifb-web"):
            parts += [["class", "show", "dev", device]]
        asked = [self.container.run("tc", *options, *part) for part in parts]
        classes = "".join(
            re.sub(r"^(class \S+ \S+ )", rf"\1dev {device} ", line) + "\n"
            for device, text in zip(("web", "ifb-web"), asked[1:], strict=True) for line in text.splitlines() if line.startswith("class")
        )  # fmt: skip
        filters = self.container.run("tc", *options, "filter", "show", "dev", "web")
        hooks = self.container.run("tc", *options, "filter", "show", "dev", "web", "parent", "ffff:")
        return "\n".join([asked[0], classes, filters, hooks])


@pytest.fixture
def machine():
    need("tc")
    with Container() as container:
        yield Machine(container)


@pytest.mark.parametrize("options", [(), ("-s",), ("-d",), ("-j",)])
def test_the_kernel_takes_the_rates_and_tells_them_again(machine, options):
    machine.run(export(REAL).text)
    found = again(machine.show(*options), {"web": "web"}).links
    for place in ("web -> any", "any -> web"):
        assert found[place]["rate"] == "10mbit"
        assert found[place]["queue"] in ("50ms", "49.997ms", "49996us", "50.002ms")
        # mpu is listed with -d only
        assert found[place]["overhead"] == ("docsis" if options == ("-d",) else {"bytes": 18})


@pytest.mark.parametrize("options", [(), ("-s",), ("-d",), ("-j",)])
def test_the_kernel_takes_the_classes_and_tells_them_again(machine, options):
    machine.run(export(REAL_CLASSES).text)
    found = again(machine.show(*options), {"web": "web"}).classes
    tree = found["web.egress"]["tree"]
    assert found["web.egress"]["rate"] == "100mbit" and found["web.ingress"]["rate"] == "8mbit"
    by_guarantee = {each.get("guarantee"): each for each in tree.values()}
    voice, gold = by_guarantee["2mbit"], by_guarantee["60mbit"]
    assert voice["ceiling"] == "5mbit" and voice["priority"] == 0
    assert voice["match"] == [{"dscp": "ef"}, {"source_mac": "02:00:00:00:00:03"}]
    leaves = list(gold["tree"].values())
    assert {"discipline": "fifo", "packets": 77} in [each["queue"] for each in leaves]
    assert {"discipline": "fifo", "size": "9kb"} in [each["queue"] for each in leaves]
    assert {"protocol": "tcp", "source_port": 873, "destination": "10.1.0.0/16"} in [each.get("match") for each in leaves]
    if options == ("-d",):  # the quantum is listed with it
        assert sorted(each.get("weight", 1) for each in leaves) == [1, 3]


ALL_WORDS = """
links:
  web -> any: {delay: {mean: 40ms, jitter: 5ms, shape: normal, order: any}, loss: {share: 1%, burst: 4}, duplicate: 0.5%, corrupt: 0.1%}
  web -> db: {loss: {p13: 1%, p14: 2%}, delay: 3ms, rate: 1mbit, overhead: pppoa-vcmux}
  web -> lab: {loss: {to_bad: 1%, to_good: 25%, bad: 50%, good: 0.1%}}
  any -> web: {loss: 1%, rate: 2mbit, queue: {packets: 9}}
"""
ALL_QUEUES = """
classes:
  web.egress:
    rate: 10mbit
    default: a
    tree:
      a: {queue: {discipline: fq_codel, target: 4ms, interval: 80ms, ecn: false, flows: 64, quantum: 300, packets: 99}}
      b: {queue: {discipline: codel, target: 4ms, interval: 80ms, ecn: true, packets: 99}}
      c: {queue: {discipline: fq, quantum: 3000, packets: 99}}
      e: {match: [{source: '2001:db8::/32', protocol: udp, destination_port: 80-90}, {source_port: 7}]}
"""


def test_the_kernel_takes_the_filters_of_parts(machine):
    """Below htb, which kernels without prio have, too."""
    made = [each.replace("parent 2:", "parent 1:") for each in commands(PARTS) if " filter " in each and "parent 2:" in each]
    assert len(made) == 7
    machine.run(
        "\n".join(["tc qdisc add dev web root handle 1: htb", *(each.replace("flowid 2:", "flowid 1:") for each in made)])
    )


@pytest.mark.parametrize("policy", [ALL_WORDS, ALL_QUEUES])
def test_tc_reads_every_word(machine, policy):
    """Each command by itself, where the kernel lacks kinds: only the kernel may refuse it."""
    run = 0
    for command in commands(policy):
        if not command.startswith("tc "):
            continue
        words = command.split()
        if words[1] == "qdisc" and "parent" in words:  # its parent may be of a kind that is missing
            at = words.index("parent")
            words[at : at + 2] = ["root"]
        if words[1] != "qdisc":
            continue
        device = words[words.index("dev") + 1]
        words[words.index("dev") + 1] = "web"
        assert device in ("web", "ifb-web")
        machine.container.run("tc", "qdisc", "del", "dev", "web", "root", check=False)
        done = subprocess.run(machine.container.command(words), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or any(each in done.stderr for each in LACKS), (command, done.stderr)
        run += 1
    assert run >= 4
