"""Files and command lines of other tools read as policies, and the commands that do it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dataplane.config.load import parse_yaml
from dataplane.errors import ConfigError
from shaping.imports.detect import READERS, tool_of
from shaping.imports.form import TEXT_MOST, Draft, Names, check_nic
from shaping.imports.notes import Notes
from shaping.policy.load import parse_policy
from vnic.cli.main import cli


def draft_of(tool: str, text: str, given: dict[str, str] | None = None, nic: str | None = None) -> Draft:
    notes = Notes()
    draft = READERS[tool](text, "f", Names(given or {}, nic, notes))
    draft.check()
    assert draft.text
    return draft


def links(tool: str, text: str, given: dict[str, str] | None = None, nic: str | None = None) -> dict:
    draft = draft_of(tool, text, given, nic)
    assert not draft.notes.refused
    return draft.links


def refused(tool: str, text: str, given: dict[str, str] | None = None, nic: str | None = None) -> list[str]:
    return [str(each) for each in draft_of(tool, text, given, nic).notes.refused]


def wrong(tool: str, text: str, given: dict[str, str] | None = None, nic: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        draft_of(tool, text, given, nic)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# -- tcconfig --------------------------------------------------------------------------------------

TCSHOW = """{
    "eth0": {
        "outgoing": {
            "dst-network=192.168.0.10/32, protocol=ip": {
                "filter_id": "800::800", "delay": "10.0ms", "delay-distro": "2.0ms", "loss": "0.01%", "rate": "250Kbps"
            },
            "protocol=ip": {"delay": 5}
        },
        "incoming": {"protocol=ip": {"filter_id": "800::800", "delay": "1.0ms", "loss": 0.02, "rate": "1.5 Mbit/s"}}
    }
}"""


def test_tcconfig():
    """The first filter that matches has a packet alone: packets to db are not late by the 5 ms of all others."""
    slow = {"delay": {"mean": "10ms", "jitter": "2ms", "shape": "normal", "order": "any"}, "loss": "0.01%", "rate": "250kbit"}
    to_db = {"match": {"destination": "192.168.0.10/32"}, **slow}
    others = {
        "web -> any/rest": {"match": {"destination": "0.0.0.0/0"}, "delay": "5ms"},
        "any -> web": {"delay": "1ms", "loss": "0.02%", "rate": "1.5mbit"},
    }
    assert links("tcconfig", TCSHOW, {"eth0": "web"}) == {"web -> any/host-192.168.0.10": to_db, **others}
    given = {"eth0": "web", "192.168.0.10": "db"}
    draft = draft_of("tcconfig", TCSHOW, given)
    assert draft.links == {"web -> any/db": to_db, **others} and not draft.notes.refused
    assert any("filters by addresses of NICs, and others for the same packets" in each.text for each in draft.notes.findings)
    alone = TCSHOW.replace(',\n            "protocol=ip": {"delay": 5}', "")
    assert links("tcconfig", alone, given) == {"web -> db": slow, "any -> web": others["any -> web"]}


def test_tcset():
    assert links("tcconfig", "sudo tcset eth0 --delay 10 --loss=0.1 --rate 2Mbps --direction incoming\n", nic="web") == {
        "any -> web": {"delay": "10ms", "loss": "0.1%", "rate": "2mbit"}}  # fmt: skip
    assert links("tcconfig", "tcset eth0 --delay 2min --network 10.0.0.1", {"eth0": "web", "10.0.0.1": "db"}) == {
        "web -> db": {"delay": "120s"}
    }


PART_OF_TCSET = [
    ("--port 80", "port-80", {"destination_port": 80}),
    ("--src-port 53 --src-network 10.1.0.0/16", "from-10.1.0.0-16-from-port-53", {"source_port": 53, "source": "10.1.0.0/16"}),
    ("--network 10.0.0.9 --port 443", "host-10.0.0.9-port-443", {"destination": "10.0.0.9", "destination_port": 443}),
    (
        "--network 10.0.0.0/8 --src-port 53 --port 65000",
        "net-10.0.0.0-8-e59c5e",
        {"destination": "10.0.0.0/8", "source_port": 53, "destination_port": 65000},
    ),
    ("--dst-network 2001:db8::/32 --ipv6", "net-2001-db8-0-32", {"destination": "2001:db8::/32"}),
]


@pytest.mark.parametrize(("options", "name", "match"), PART_OF_TCSET)
def test_filters_of_tcset_are_parts(options, name, match):
    given = {"eth0": "web", "10.0.0.5": "db"}
    for direction, place in (("outgoing", "web -> any"), ("incoming", "any -> web")):
        found = links("tcconfig", f"tcset eth0 --delay 1ms --direction {direction} {options}", given)
        assert found == {f"{place}/{name}": {"match": match, "delay": "1ms"}}


def test_a_part_of_the_line_to_a_known_nic():
    given = {"eth0": "web", "10.0.0.5": "db", "10.0.0.6": "cam"}
    commands = (
        "tcset eth0 --delay 1ms --network 10.0.0.5 --port 80\n"
        "tcset eth0 --add --delay 2ms --network 10.0.0.5\n"
        "tcset eth0 --add --loss 1 --network 10.0.0.6\n"
        "tcset eth0 --direction incoming --delay 3ms --src-network 10.0.0.5 --src-port 80"
    )
    everything = [{"vlan": 0}, {"destination": "0.0.0.0/0"}, {"destination": "::/0"}]
    assert links("tcconfig", commands, given) == {
        "web -> db/port-80": {"match": {"destination_port": 80}, "delay": "1ms"},
        "web -> db/rest": {"match": everything, "delay": "2ms"},
        "web -> cam": {"loss": "1%"},
        "db -> web/from-port-80": {"match": {"source_port": 80}, "delay": "3ms"},
    }


def test_what_tcset_excludes_comes_first_and_nothing_happens_to_it():
    found = links("tcconfig", "tcset eth0 --delay 9ms --exclude-dst-port 22 --exclude-dst-network 10.0.0.0/8", nic="web")
    assert list(found.items()) == [
        ("web -> any/net-10.0.0.0-8-port-22", {"match": {"destination_port": 22, "destination": "10.0.0.0/8"}, "rate": "none"}),
        ("web -> any/rest", {"match": {"destination": "0.0.0.0/0"}, "delay": "9ms"}),
    ]
    assert links("tcconfig", "tcset eth0 --delay 9ms --port 80 --exclude-dst-port 22", nic="web") == {
        "web -> any/port-80": {"match": {"destination_port": 80}, "delay": "9ms"}
    }


def test_commands_of_tcset_change_and_replace_filters():
    first = "tcset eth0 --delay 1ms --port 80\ntcset eth0 --add --delay 2ms --port 81\n"
    part = {"match": {"destination_port": 80}, "delay": "7ms"}
    found = links("tcconfig", f"{first}tcset eth0 --change --delay 7ms --port 80", nic="web")
    assert list(found) == ["web -> any/port-80", "web -> any/port-81"] and found["web -> any/port-80"] == part
    assert links("tcconfig", f"{first}tcset eth0 --overwrite --delay 7ms --port 80", nic="web") == {"web -> any/port-80": part}
    draft = draft_of("tcconfig", first.replace("81", "80"), nic="web")
    assert draft.links["web -> any/port-80"]["delay"] == "1ms"
    assert any(
        "f:2: warning: a filter for the packets of one before it: it never matches" in str(each)
        for each in draft.notes.findings
    )
    [line] = refused("tcconfig", "tcset eth0 --delay 1ms --dst-container db", nic="web")
    assert line == (
        "f:1: error: tcset --dst-container db: not supported: Docker knows its address: write --network or --src-network ADDRESS"
    )
    [line] = refused("tcconfig", '{"eth0": {"outgoing": {"protocol=icmp, dst-port=5": {"delay": 1}}}}', nic="web")
    assert "a filter: not supported: destination_port: protocol 'icmp' has no ports" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}[", "no JSON"),
        ("[]", "expected commands of tcset"),
        ('{"eth0": 5}', "expected outgoing and incoming"),
        ('{"eth0": {"sideways": {}}}', "expected outgoing and incoming"),
        ('{"eth0": {"outgoing": {"": {"delya": 1}}}}', "expected keys of tcshow"),
        ('{"eth0": {"outgoing": {"": {"delay": "nan"}}}}', "delay 'nan': expected a number"),
        ('{"eth0": {"outgoing": {"": {"rate": "10MBps/s"}}}}', "rate '10MBps/s': expected a rate such as 10Mbps"),
        ('{"eth0": {"outgoing": {"": {"loss": 1e30}}}}', "loss"),
        ('{"eth0": {"outgoing": {"": {"loss": true}}}}', "loss True".replace("True", "'True'")),
        ('{"eth0": {"outgoing": {"colour=red": {"loss": 1}}}}', "filter 'colour': expected dst-network"),
        ('{"eth0": {"outgoing": {"dst-port=99999": {"loss": 1}}}}', "dst-port '99999': expected a port or a range"),
        (
            '{"eth0": {"outgoing": {"dst-network=10.0.0": {"loss": 1}}}}',
            "dst-network '10.0.0': expected an address or a prefix",
        ),
        ("tcset eth0 --loss 1 --direction up", "direction 'up': expected outgoing or incoming"),
        ("tcset eth0 eth1 --delay 1ms", "expected one device"),
        ("tcset eth0 --speed 5", "unknown option '--speed'"),
        ("tcset eth0 --delay", "'--delay': has no value"),
        ("tcdel eth0 --all", "expected commands of tcset"),
    ],
)
def test_tcconfig_that_is_wrong(text, says):
    assert says in wrong("tcconfig", text, nic="web")


# -- ATC -------------------------------------------------------------------------------------------

ATC = """{"content": {
  "down": {"corruption": {"correlation": 0, "percentage": 0}, "delay": {"correlation": 0, "delay": "100", "jitter": 0},
           "iptables_options": [], "loss": {"correlation": 0, "percentage": 0}, "rate": "780",
           "reorder": {"correlation": 0, "gap": 0, "percentage": 0}},
  "up": {"delay": {"delay": 90, "jitter": 5, "correlation": 25.0}, "loss": {"percentage": 1.5, "correlation": 25}, "rate": 330}},
  "id": 1, "name": "3G - Average"}"""


def test_options_of_iptables_in_atc_are_parts():
    text = """{"up": {"rate": 100, "iptables_options": ["-p tcp --dport 80", "-p udp -m multiport --dports 53,1000:2000 -d 10.0.0.5"]},
               "down": {"loss": {"percentage": 1}, "iptables_options": ["-p tcp --sport 80"]}}"""
    to_5 = {"protocol": "udp", "destination": "10.0.0.5"}
    assert links("atc", text, nic="phone") == {
        "phone -> any/tcp-port-80-and-2-more": {
            "match": [
                {"protocol": "tcp", "destination_port": 80},
                {**to_5, "destination_port": 53}, {**to_5, "destination_port": "1000-2000"},
            ], "rate": "100kbit",
        },
        "any -> phone/tcp-from-port-80": {"match": {"protocol": "tcp", "source_port": 80}, "loss": "1%"},
    }  # fmt: skip
    [line] = refused("atc", text.replace("-p tcp --dport", "! -p tcp --dport"), nic="phone")
    assert line == "f: up: error: iptables_options '!': not supported: expected -p, -s, -d, --sport or --dport"
    for option, says in (("-p", "iptables_options -p: has no value"), ("--dport 99999", "--dport '99999': expected a port"),
        ("-d x", "-d 'x': expected an address"), ("-p " + ",".join(map(str, range(256))) + " --dports " + ",".join(map(str, range(9))),
            "not supported: expected at most 1024")):  # fmt: skip
        if "not supported" in says:
            assert says in refused("atc", f'{{"up": {{"iptables_options": ["{option}"]}}}}', nic="phone")[0]
        else:
            assert says in wrong("atc", f'{{"up": {{"iptables_options": ["{option}"]}}}}', nic="phone")
    assert "expected a list of at most" in wrong("atc", '{"up": {"iptables_options": "-p tcp"}}', nic="phone")


def test_atc():
    found = links("atc", ATC, nic="phone")
    assert found == {
        "any -> phone": {"delay": "100ms", "rate": "780kbit"},
        "phone -> any": {
            "delay": {"mean": "90ms", "jitter": "5ms", "correlation": "25%", "order": "any"},
            "loss": {"share": "1.5%", "correlation": "25%"}, "rate": "330kbit",
        },
    }  # fmt: skip
    assert any("netem loses 0.002%" in each.text for each in draft_of("atc", ATC, nic="phone").notes.findings)
    assert links("atc", '{"up": {"loss": {"percentage": 100}}, "down": {"rate": 0}}', nic="phone") == {
        "phone -> any": {"loss": "100%"}
    }
    assert "names no device: write --nic NAME" in wrong("atc", ATC)
    for text, says in (
        ('{"up": 5}', "'5': expected corruption"), ('{"up": {"speed": 1}}', "expected corruption"), ('{"up": {"delay": 5}}', "delay '5'"),
        ('{"up": {"rate": "fast"}}', "rate 'fast': expected a number of kbit/s"), ('{"left": {}}', "expected a profile of ATC"),
        ('{"up": {"reorder": {"percentage": 5}}}', "netem reorder: needs a delay"),
    ):  # fmt: skip
        assert says in wrong("atc", text, nic="phone")


# -- Chaos Mesh ------------------------------------------------------------------------------------

CHAOS = """apiVersion: chaos-mesh.org/v1alpha1
kind: NetworkChaos
metadata: {name: slow, namespace: chaos-testing}
spec:
  action: delay
  mode: one
  selector:
    namespaces: [default]
    labelSelectors: {app: web}
  delay:
    latency: "90ms"
    correlation: "25"
    jitter: "10ms"
  direction: both
  target:
    selector: {labelSelectors: {"app.kubernetes.io/component": tikv}}
    mode: all
  duration: "10s"
---
kind: NetworkChaos
spec:
  action: bandwidth
  mode: all
  selector: {pods: {default: [web]}}
  bandwidth: {rate: 1mbps, limit: 20971520, buffer: 10000}
  direction: from
---
kind: Schedule
spec:
  schedule: '@every 15s'
  networkChaos:
    action: netem
    selector: {labelSelectors: {app: cam}}
    loss: {loss: "5", correlation: "0"}
    duplicate: {duplicate: "1"}
    rate: {rate: 1mbps}
"""


def test_chaos_mesh():
    draft = draft_of("chaos-mesh", CHAOS, {"tikv": "db", "web": "web", "cam": "cam"})
    assert draft.links == {
        "web <-> db": {"delay": {"mean": "90ms", "jitter": "10ms", "correlation": "25%", "order": "any"}},
        "any -> web": {"rate": "8388608bit", "queue": "20mb"},
        "cam -> any": {"loss": "5%", "duplicate": "1%", "rate": "8mbit", "queue": {"packets": 1000}},
    } or draft.links["any -> web"]["rate"] == "8388.608kbit"  # fmt: skip
    notes = "\n".join(str(each) for each in draft.notes.findings)
    for words in ("f:18: note: duration: apply it with --for 10s", "f:6: warning: mode 'one'", "bytes a second, in prefixes of 1024",
                  "schedule: left out"):  # fmt: skip
        assert words in notes, words


CHAOS_SPECS = [
    ("action: partition, direction: from, externalTargets: [10.0.0.5]", {"db -> web": {"loss": "100%"}}),
    ("action: loss, loss: {loss: '25'}, externalTargets: [10.0.0.5, 1.1.1.0/24, '8.8.8.8:53', '10.0.0.5:80']", {
        "web -> db": {"loss": "25%"},
        "web -> any/net-1.1.1.0-24-and-1-more": {
            "match": [{"destination": "1.1.1.0/24"}, {"destination": "8.8.8.8", "protocol": "tcp", "destination_port": 53}],
            "loss": "25%",
        },
    }),
    ("action: partition, direction: both, externalTargets: ['[2001:db8::1]:53', db.example]", {
        "web <-> db": {"loss": "100%"},
        "web -> any/tcp-host-2001-db8-0-1-port-53": {
            "match": {"destination": "2001:db8::1", "protocol": "tcp", "destination_port": 53}, "loss": "100%"},
        "any -> web/tcp-from-2001-db8-0-1-port-53": {
            "match": {"source": "2001:db8::1", "protocol": "tcp", "destination_port": 53}, "loss": "100%"},
    }),
    ("action: corrupt, corrupt: {corrupt: '1'}, externalTargets: [10.0.0.5, db.example]", {"web -> db": {"corrupt": "1%"}}),
    ("action: loss, loss: {loss: '25', correlation: '25'}", {"web -> any": {"loss": {"share": "25%", "correlation": "25%"}}}),
    ("action: corrupt, corrupt: {corrupt: '1'}, direction: both", {"web": {"corrupt": "1%"}}),
    ("action: delay, delay: {latency: 1m30s}", {"web -> any": {"delay": "90s"}}),
    ("action: delay, delay: {latency: 10ms, reorder: {reorder: '50', gap: 2, correlation: '0'}}",
     {"web -> any": {"delay": "10ms", "reorder": {"share": "33.333333%", "by": 1}}}),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "found"), CHAOS_SPECS)
def test_a_spec_of_chaos_mesh(spec, found):
    text = f"kind: NetworkChaos\nspec: {{selector: {{labelSelectors: {{app: web}}}}, {spec}}}"
    assert links("chaos-mesh", text, {"10.0.0.5": "db", "db.example": "db", "web": "web"}) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: PodChaos\nspec: {}", "f:1: kind: kind 'PodChaos': expected NetworkChaos"),
        ("kind: NetworkChaos", "f:1: spec: 'None': expected a mapping"),
        ("kind: NetworkChaos\nspec:\n  action: fly", "f:3: spec.action: 'fly': expected one of delay"),
        ("kind: NetworkChaos\nspec:\n  action: delay\n  delay: {latency: 90}\n  selector: {labelSelectors: {a: b}}",
         "f:4: spec.delay: latency '90': expected a duration such as 90ms or 5m"),
        ("kind: NetworkChaos\nspec: {action: loss, loss: {loss: .nan}, selector: {pods: {x: [b]}}}", "loss"),
        ("kind: NetworkChaos\nspec: {action: partition, direction: up, selector: {pods: {x: [b]}}}", "'up': expected to, from or both"),
        ("kind: NetworkChaos\nspec: {action: partition, selector: 5}", "'5': expected a mapping"),
        ("kind: NetworkChaos\nspec: {action: partition, selector: {pods: {x: [" + ", ".join(f"p{n}" for n in range(99)) + "]}}}",
         "more than 64 pods"),
        ("---\n" * 100, "more than 64 documents"),
        ("kind: [", "no YAML"),
        ("5", "'5': expected a mapping"),
    ],
)  # fmt: skip
def test_chaos_mesh_that_is_wrong(text, says):
    assert says in wrong("chaos-mesh", text)


def test_chaos_mesh_that_a_policy_cannot_say():
    spec = "kind: NetworkChaos\nspec: {action: partition, selector: {labelSelectors: {a: web, b: x}}}"
    assert "a selector of 2 labels: not supported" in refused("chaos-mesh", spec)[0]
    spec = "kind: NetworkChaos\nspec: {action: partition, selector: {labelSelectors: {a: web}}, externalTargets: [example.org]}"
    assert (
        "externalTargets 'example.org': not supported: no NIC is known to have it: write --map example.org=NIC"
        in refused("chaos-mesh", spec)[0]
    )


# -- docker-tc, comcast, pumba ---------------------------------------------------------------------

COMPOSE = """services:
  web:
    image: x
    labels: ["com.docker-tc.enabled=1", "com.docker-tc.limit=1mbps", "com.docker-tc.delay=100ms", "other=1"]
  db:
    labels: {com.docker-tc.enabled: 1, com.docker-tc.loss: 5%, com.docker-tc.duplicate: 1, com.docker-tc.corrupt: 2%}
  off:
    labels: {com.docker-tc.enabled: 0, com.docker-tc.loss: 5%}
  none: {image: y}
"""


def test_docker_tc():
    assert links("docker-tc", COMPOSE) == {
        "web -> any": {"rate": "8mbit", "queue": "50ms", "delay": "100ms"}, "db -> any": {"loss": "5%", "duplicate": "1%",
            "corrupt": "2%"}}  # fmt: skip
    command = 'docker run -d --name web --label "com.docker-tc.enabled=1" --label=com.docker-tc.loss=5% busybox'
    assert links("docker-tc", command) == {"web -> any": {"loss": "5%"}}
    assert links("docker-tc", "com.docker-tc.loss=5%\ncom.docker-tc.delay=1ms\n", nic="web") == {
        "web -> any": {"loss": "5%", "delay": "1ms"}
    }
    assert "f:1: netem delay '100'" not in wrong("docker-tc", "com.docker-tc.delay=100", nic="web")
    for text, says in (
        ("com.docker-tc.delay=100", "f:1: delay '100' has no unit"), ("com.docker-tc.colour=red",
            "label 'com.docker-tc.colour': expected limit"),
        ("com.docker-tc.loss", "expected com.docker-tc.NAME=VALUE"), ("services: 5", "expected services with labels"),
    ):  # fmt: skip
        assert says in wrong("docker-tc", text, nic="web")


def test_comcast():
    command = "comcast --device=eth0 --latency=250 --target-bw=1000 --packet-loss=10% --target-addr=8.8.8.8,10.0.0.0/24"
    assert links("comcast", command, {"eth0": "web", "8.8.8.8": "dns", "10.0.0.0/24": "lab"}) == {
        place: {"delay": "250ms", "loss": "10%", "rate": "1mbit"} for place in ("web -> dns", "web -> lab")
    }
    assert links("comcast", "comcast -latency 40 -packet-loss 0.5 -default-bw 9", nic="web") == {
        "web -> any": {"delay": "40ms", "loss": "0.5%"}
    }
    assert links("comcast", "comcast --latency=40\ncomcast --stop\n", nic="web") == {}
    for options, says in (("--latency=fast", "latency 'fast'"), ("--target-proto=sctp", "target-proto 'sctp': expected tcp, udp or icmp"),
        ("--target-port=x", "target-port 'x': expected a port"), ("--target-addr=1.2.3", "target-addr '1.2.3': expected an address"),
 ("--packet-loss=101", "packet-loss '101'"), ("--speed=1",
        "unknown option '--speed=1'"),
                          ("--target-bw=x", "target-bw 'x': expected a number of kbit/s")):  # fmt: skip
        assert says in wrong("comcast", f"comcast {options}", nic="web")


COMCAST_PARTS = [
    ("--target-addr=10.0.0.9", {"host-10.0.0.9": {"destination": "10.0.0.9"}}),
    ("--target-addr=10.0.0.0/24,2001:db8::1", {
        "net-10.0.0.0-24-and-1-more": [{"destination": "10.0.0.0/24"}, {"destination": "2001:db8::1"}]}),
    ("--target-proto=TCP", {"tcp": {"protocol": "tcp"}}),
    ("--target-proto=udp --target-port=53", {"udp-port-53": {"protocol": "udp", "destination_port": 53}}),
    ("--target-proto=tcp --target-port=22,1000:1010 --target-addr=10.0.0.9", {"tcp-host-10.0.0.9-and-1-more": [
        {"protocol": "tcp", "destination_port": 22, "destination": "10.0.0.9"},
        {"protocol": "tcp", "destination_port": "1000-1010", "destination": "10.0.0.9"}]}),
    ("--target-port=80", {"tcp-port-80-and-2-more": [
        {"protocol": "tcp", "destination_port": 80}, {"protocol": "udp", "destination_port": 80}, {"protocol": "icmp"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "parts"), COMCAST_PARTS)
def test_targets_of_comcast_are_parts(options, parts):
    found = links("comcast", f"comcast --device=eth0 --latency=1 {options}", {"eth0": "web", "10.0.0.5": "db"})
    assert found == {f"web -> any/{name}": {"match": match, "delay": "1ms"} for name, match in parts.items()}


def test_other_packets_of_comcast_have_the_default_bandwidth():
    command = "comcast --latency=1 --target-proto=udp --default-bw="
    assert links("comcast", f"{command}5000", nic="web") == {
        "web -> any/udp": {"match": {"protocol": "udp"}, "delay": "1ms"},
        "web -> any/rest": {"match": [{"vlan": 0}, {"destination": "0.0.0.0/0"}, {"destination": "::/0"}], "rate": "5mbit"},
    }
    draft = draft_of("comcast", f"{command}1000000", nic="web")
    assert list(draft.links) == ["web -> any/udp"]
    assert any("--default-bw: left out" in each.text for each in draft.notes.findings)
    draft = draft_of("comcast", "comcast --latency=1 --target-port=80", nic="web")
    assert any("--target-port: does not limit ICMP" in each.text for each in draft.notes.findings)
    ports = ",".join(map(str, range(1, 1000)))
    [line] = refused("comcast", f"comcast --latency=1 --target-port={ports}", nic="web")
    assert "more targets: not supported: expected at most 1024" in line


PUMBA = [
    ("netem --duration 5m delay --time 3000 --jitter 30 --correlation 20 web", {
        "web -> any": {"delay": {"mean": "3s", "jitter": "30ms", "correlation": "20%", "order": "any"}}}),
    ("netem -d 5m delay -t 3000 -j 0 web db", {"web -> any": {"delay": "3s"}, "db -> any": {"delay": "3s"}}),
    ("--log-level info --dry-run netem --tc-image x --duration=5m loss --percent 5 web", {"web -> any": {"loss": "5%"}}),
    ("netem --duration 5m loss-state --p13 5 --p31 90 web", {"web -> any": {"loss": {"p13": "5%", "p31": "90%"}}}),
    ("netem --duration 5m loss-gemodel --pg 5 --pb 90 --one-h 50 web", {
        "web -> any": {"loss": {"to_bad": "5%", "to_good": "90%", "bad": "50%"}}}),
    ("netem --duration 5m rate --rate 1mbit --packetoverhead 20 web", {
        "web -> any": {"rate": "1mbit", "queue": {"packets": 1000}, "overhead": {"bytes": 34}}}),
    ("netem --duration 5m --target 10.0.0.5/32 duplicate --percent 10 web", {"web -> db": {"duplicate": "10%"}}),
    ("netem --duration 5m corrupt --percent 10 web", {"web -> any": {"corrupt": "10%"}}),
    ("iptables --duration 5m loss --probability 0.2 web", {"any -> web": {"loss": "20%"}}),
    ("netem --duration 5m --egress-port 80 loss --percent 1 web", {
        "web -> any/from-port-80": {"match": {"source_port": 80}, "loss": "1%"}}),
    ("netem --duration 5m --target 10.0.0.9 --target 10.0.1.0/24 --ingress-port 53,54 loss --percent 1 web", {
        "web -> any/host-10.0.0.9-and-3-more": {
            "match": [{"destination": "10.0.0.9"}, {"destination": "10.0.1.0/24"}, {"destination_port": 53}, {"destination_port": 54}],
            "loss": "1%"}}),
    ("netem --duration 5m --target 10.0.0.5,10.0.0.9 loss --percent 1 web", {
        "web -> db": {"loss": "1%"}, "web -> any/host-10.0.0.9": {"match": {"destination": "10.0.0.9"}, "loss": "1%"}}),
    ("iptables --protocol tcp loss --probability 0.1 web", {"any -> web/tcp": {"match": {"protocol": "tcp"}, "loss": "10%"}}),
    ("iptables --protocol udp --source 10.0.0.5 --dst-port 53 loss --probability 0.1 web", {"any -> web/udp-from-10.0.0.5-and-1-more": {
        "match": [{"protocol": "udp", "source": "10.0.0.5"}, {"protocol": "udp", "destination_port": 53}], "loss": "10%"}}),
    ("iptables --protocol udp --source 10.0.0.5 loss --probability 0.1 web", {
        "db -> web/udp": {"match": {"protocol": "udp"}, "loss": "10%"}}),
    ("iptables --duration 5m --source 10.0.0.5 loss --mode nth --every 8 web", {"db -> web": {"loss": "12.5%"}}),
]  # fmt: skip


@pytest.mark.parametrize(("command", "found"), PUMBA)
def test_pumba(command, found):
    assert links("pumba", f"pumba {command}", {"web": "web", "db": "db", "10.0.0.5": "db"}) == found


def test_pumbas_own_jitter():
    draft = draft_of("pumba", "pumba netem --duration 5m delay --time 100 web")
    assert draft.links["web -> any"]["delay"] == {"mean": "100ms", "jitter": "10ms", "correlation": "20%", "order": "any"}
    notes = "\n".join(str(each) for each in draft.notes.findings)
    assert "has a jitter of 10ms where it is told none" in notes and "apply it with --for 5m" in notes
    for command, says in (("netem --duration 5m loss --percent 1 re2:^web", "containers re2:^web: not supported"),):
        assert says in refused("pumba", f"pumba {command}")[0]
    for command, says in (
        ("kill web", "pumba 'kill': expected netem, iptables"), ("netem --duration 5m fly web", "pumba 'fly': expected delay"),
        ("netem loss --percent 101 web", "percent '101'"), ("iptables loss --probability nan web",
            "probability 'nan': expected 0.0 to 1.0"),
        ("netem --target x loss --percent 1 web", "target 'x': expected an address"),
        ("netem --egress-port 70000 loss --percent 1 web", "egress-port '70000': expected a port"),
        ("netem --duration 5parsec loss --percent 1 web", "duration '5parsec'"), ("netem", "expected delay"), ("", "expected netem"),
        ("netem --duration 5m loss --percent 1", "names no container"),
    ):  # fmt: skip
        assert says in wrong("pumba", f"pumba {command}")


# -- wondershaper ----------------------------------------------------------------------------------

WONDER = {
    "rate": "512kbit", "default": "bulk",
    "tree": {
        "interactive": {
            "match": [{"dscp": 4}, {"protocol": "icmp"}], "guarantee": "102.4kbit", "ceiling": "486.4kbit", "weight": 1, "priority": 1,
                "queue": "fq",
        },
        "low": {"guarantee": "102.4kbit", "ceiling": "460.8kbit", "weight": 1, "priority": 3, "queue": "fq"},
        "bulk": {"guarantee": "204.8kbit", "ceiling": "486.4kbit", "weight": 2, "priority": 2, "queue": "fq"},
    },
}  # fmt: skip


@pytest.mark.parametrize("text", [
    "wondershaper -a eth0 -d 1024 -u 512", "wondershaper eth0 1024 512", "sudo ./wondershaper -u 512 -d 1024 -a eth0",
    '[wondershaper]\n# Adapter\nIFACE="eth0"\nDSPEED="1024"\nUSPEED="512"\nHIPRIODST=()\nCOMMONOPTIONS=()\n',
])  # fmt: skip
def test_wondershaper(text):
    draft = draft_of("wondershaper", text, nic="web")
    assert draft.links == {"any -> web": {"rate": "1.024mbit"}} or draft.links == {"any -> web": {"rate": "1024kbit"}}
    assert draft.classes == {"web.egress": WONDER}


def test_lists_of_wondershaper():
    draft = draft_of("wondershaper", "IFACE=web\nUSPEED=512\nHIPRIODST=(10.0.0.1 10.0.0.2)\nNOPRIOPORTDST=(80 443); # slow\n")
    tree = draft.classes["web.egress"]["tree"]
    assert tree["interactive"]["match"][2:] == [{"destination": "10.0.0.1"}, {"destination": "10.0.0.2"}]
    assert tree["low"]["match"] == [{"destination_port": "80"}, {"destination_port": "443"}]
    assert draft_of("wondershaper", "wondershaper eth0 1024 512\nwondershaper clear eth0\n", nic="web").empty
    for text, says in (("wondershaper -a eth0", "has no rate"), ("wondershaper -a eth0 -u fast", "upload 'fast'"),
        ("wondershaper -s -a eth0", "expected -a"),
                       ("IFACE=web\nUSPEED=$UP;$DOWN\n", "f:2: "), ("wondershaper eth0 1", "expected DEVICE DOWN UP")):  # fmt: skip
        assert says in wrong("wondershaper", text, nic="web")


# -- which tool ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "tool"), [
    (TCSHOW, "tcconfig"), (ATC, "atc"), (CHAOS, "chaos-mesh"), (COMPOSE, "docker-tc"), ("comcast --stop\n", "comcast"),
    ("sudo pumba netem loss x", "pumba"), ("wondershaper eth0 1 2", "wondershaper"), ("IFACE=eth0\n", "wondershaper"),
        ("tcset eth0 --delay 1", "tcconfig"),
    ("# x\ntc qdisc add dev eth0 root netem", "tc"), ("qdisc netem 1: root", "tc"), ('[{"kind":"netem"}]', "tc"),
        ("qdisc add dev x root netem", "tc"),
])  # fmt: skip
def test_the_tool_is_told_by_the_content(text, tool):
    assert tool_of(text, "f") == tool


@pytest.mark.parametrize("text", ["", "hello", "\0", "{}" * 100_000, "a: b", "'" * 100_000])
def test_a_file_of_no_tool(text):
    with pytest.raises(ConfigError, match="f: is of no tool that is known: expected a file of tc, tcconfig"):
        tool_of(text, "f")


HOSTILE = ["", "\0", "{", "[", "[]", "{}", "null", "5", '"x"', "- 1\n- 2\n", "a: &a [*a]", "é" * 5000, "{" * 5000, '{"up": ' * 5000,
    "'" * 99, '"' * 99, "$(reboot)",
           "x " * 5000, "kind: NetworkChaos\nspec: " + "[" * 5000, "IFACE=" + "x" * 99_999, "com.docker-tc.delay=" + "9" * 9999,
               "\n" * 5000]  # fmt: skip


@pytest.mark.parametrize("tool", list(READERS))
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_files_are_one_line(tool, text):
    try:
        draft_of(tool, text, nic="web")
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 600


@pytest.mark.parametrize("name", ["", "any", "a b", "-x", "x" * 33, "\u00e9"])
def test_names_that_a_nic_cannot_have(name):
    with pytest.raises(ConfigError, match="no name of a NIC"):
        check_nic(name)


# -- commands --------------------------------------------------------------------------------------


def run(*words: str, text: str = ""):
    """(exit status, stdout, stderr)"""
    done = CliRunner().invoke(cli, ["shape", *words], input=text, catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def test_tc_import_prints_a_policy_and_notes(tmp_path):
    status, out, err = run("tc", "import", "--nic", "web", text="tc qdisc add dev eth0 root netem delay 20ms loss 10% 25%\n")
    assert status == 0 and parse_policy(out).entries[0].settings.delay.mean == 20_000_000
    assert "<stdin>:1: warning: netem loss 10% 25%: netem loses 1.75%" in err
    script, policy = tmp_path / "setup.sh", tmp_path / "slow.yaml"
    script.write_text("tc qdisc add dev eth0 root netem delay 20ms\n")
    assert run("tc", "import", str(script), "--map", "eth0=web", "-o", str(policy))[:2] == (0, "")
    assert parse_yaml(policy.read_text(), "p")[0] == {"version": 1, "links": {"web -> any": {"delay": "20ms"}}}


def test_what_is_not_supported_fails_as_a_whole_or_is_left_out(tmp_path):
    text = "tc qdisc add dev eth0 root netem delay 20ms\ntc qdisc add dev eth1 root red limit 1\n"
    text += "tc qdisc add dev eth2 root netem slot 1ms\n"
    policy = tmp_path / "slow.yaml"
    policy.write_text("as it was")
    status, out, err = run("tc", "import", "-o", str(policy), text=text)
    assert (status, out) == (2, "") and policy.read_text() == "as it was"
    assert err.splitlines()[-1] == "vnic: error: <stdin>: 2 things not supported; --partial leaves them out"
    assert "<stdin>:2: error: qdisc red: not supported" in err and "<stdin>:3: error: netem slot: not supported" in err
    status, out, err = run("tc", "import", "--partial", text=text)
    assert (
        status == 0
        and parse_yaml(out, "p")[0]["links"] == {"eth0 -> any": {"delay": "20ms"}}
        and "<stdin>:2: error: qdisc red" in err
    )
    status, out, _ = run("tc", "import", "--json", text=text)
    answer = json.loads(out)
    assert status == 2 and answer["ok"] is False and [each["kind"] for each in answer["findings"]].count("error") == 2


def test_import_of_other_tools():
    status, out, err = run("import", "--json", "--nic", "phone", text=ATC)
    answer = json.loads(out)
    assert status == 0 and err == "" and answer["ok"] and answer["policy"]["links"]["any -> phone"]["rate"] == "780kbit"
    assert {each["kind"] for each in answer["findings"]} == {"note", "warning"}
    assert run("import", "--from", "pumba", text="pumba netem -d 1m loss --percent 5 web")[0] == 0
    assert parse_yaml(run("tc", "import", text="# nothing\n")[1], "p")[0] == {"version": 1}


@pytest.mark.parametrize(("words", "text", "says"), [
    (("tc", "import"), "tc qdisc add dev eth0 root netem delay 100", "<stdin>:1: netem delay '100' has no unit"),
    (("tc", "import", "--map", "eth0"), "", "--map eth0: expected NAME=NIC"),
    (("tc", "import", "--nic", "a b"), "", "'a b' is no name of a NIC"),
    (("tc", "import", "/nowhere/x"), "", "/nowhere/x: No such file or directory"),
    (("import", "--from", "morse"), "", "morse"),
    (("import",), "hello", "is of no tool that is known"),
    (("tc", "import", "-o", "/nowhere/x"), "tc qdisc add dev eth0 root netem delay 1ms", "/nowhere/x: No such file or directory"),
    (("tc", "import"), "\xff", ""),
])  # fmt: skip
def test_commands_that_are_wrong(words, text, says):
    status, out, err = run(*words, text=text)
    assert status == 2 and out == "" and says in err and err.rstrip().count("\n") <= 1


NET = "nics: {web: {netns: /run/netns/web, mac: '02:00:00:00:00:01'}, db: {netns: /run/netns/db, mac: '02:00:00:00:00:02'}}\n"


def test_tc_export(tmp_path):
    net, policy, script = tmp_path / "net.yaml", tmp_path / "slow.yaml", tmp_path / "setup.sh"
    net.write_text(NET)
    policy.write_text("version: 1\nlinks: {web -> any: {delay: 20ms}, web -> db: {loss: 1%}, any -> db: {rate: 1mbit}}\n")
    asked = ("tc", "export", "-f", str(policy), "-c", str(net))
    status, out, _ = run(*asked)
    assert (
        status == 0 and "tc qdisc add dev web root handle 1: netem limit 33026 delay 20ms" in out and "dev ifb-db root" in out
    )
    status, out, _ = run(*asked, "web", "--dev", "eth0", "-o", str(script))
    assert (
        status == 0
        and out == f"{script}: written, 0 notes\n"
        and "dev eth0 root" in script.read_text()
        and "dev web" not in script.read_text()
    )
    answer = json.loads(run(*asked, "db", "--json")[1])
    assert "dev ifb-db root handle 1: tbf rate 1mbit" in answer["script"] and answer["findings"] == []
    status, back, _ = run("tc", "import", text=run(*asked, "web")[1])
    assert parse_yaml(back, "p")[0]["links"] == {"web -> any": {"delay": "20ms"}, "web -> db": {"loss": "1%"}}
    for words, says in (
        (("nobody",), "there is no NIC nobody"), (("--dev", "eth0"), "--dev is for one NIC, and there are web, db"),
        (("web", "--dev", "x" * 20), "no name of an interface"),
    ):  # fmt: skip
        status, out, err = run(*asked, *words)
        assert status == 2 and out == "" and says in err
    policy.write_text("version: 1\nclasses: {web.egress: {rate: 1mbit, default: a, tree: {a: {}}}}\n")
    assert "htb default 10" in run(*asked)[1]
    policy.write_text("version: 1\nclasses: []\n")
    assert run(*asked)[0] in (0, 2)
    policy.write_text("version: 1\n")
    assert "the policy is about no NIC" in run(*asked)[2]


@pytest.mark.parametrize("tool", list(READERS))
def test_large_hostile_files_are_refused_soon(tool):
    """Texts as long as a file may be, for which the work of a naive reader grows with the square."""
    for text in ("\n" * TEXT_MOST, " " * TEXT_MOST, "[" * TEXT_MOST, "{}" * (TEXT_MOST // 2), '{"up":{}}' * 100_000,
                 "pumba netem -d 1m loss --percent 1 web\n" * 20_000, "echo 'x'\n" * 100_000, "a\\\n" * 100_000):  # fmt: skip
        try:
            draft_of(tool, text, nic="web")
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
