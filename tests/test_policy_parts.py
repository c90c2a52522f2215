"""Parts of lines: packets by their headers that have rates, delays and losses of their own."""

from __future__ import annotations

import json

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from dataplane.elements.classifier_rules import MAX_RULES
from dataplane.errors import ConfigError
from shaping.imports.detect import READERS
from shaping.imports.form import Names
from shaping.imports.notes import Notes
from shaping.policy.check import check_policy
from shaping.policy.compile import Chain, compile_policy
from shaping.policy.keys import parse_key
from shaping.policy.load import convert_policy, names_in, parse_policy, policy_data
from shaping.policy.network import Network
from shaping.policy.places import Place, plan_of
from vnic.testing import AnyNetwork, VirtualNetwork

MACS = {"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:02", "cam": "02:00:00:00:00:03"}
NETWORK = Network(MACS, {"lan--dmz": ("lan", "dmz")})
NICS = "nics:\n" + "".join(f"  {name}: {{mac: '{mac}'}}\n" for name, mac in MACS.items())
ADDRESSES = {"web": "10.0.0.1", "db": "10.0.0.2", "cam": "10.0.0.3"}
DNS = "match: {protocol: udp, destination_port: 53}"


def policy(*links: str, more: str = ""):
    return parse_policy("\n".join(("version: 1", "seed: 1", "links:", *(f"  {each}" for each in links), more)), "p.yaml")


def packet(source: str, target: str, protocol=UDP, sport: int = 1000, dport: int = 53, size: int = 100):
    head = Ether(src=MACS[source], dst=MACS[target]) / IP(src=ADDRESSES[source], dst=ADDRESSES[target])
    whole = head / protocol(sport=sport, dport=dport)
    return bytes(whole / Raw(bytes(size - len(whole))))


def learned(net: AnyNetwork) -> AnyNetwork:
    """The switch knows where all NICs are."""
    for name in MACS:
        net.send(name, bytes(Ether(src=MACS[name], dst="02:00:00:00:00:99") / Raw(bytes(50))))
    net.run()
    for name in MACS:
        net.take(name)
    return net


@pytest.fixture
def shaped():
    made = []

    def make(*links: str, more: str = "") -> VirtualNetwork:
        made.append(learned(VirtualNetwork(NICS)))
        made[-1].shape(policy_data(policy(*links, more=more)))
        return made[-1]

    yield make
    for net in made:
        net.close()


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["web -> db/dns", "web <-> db/a.b-c_1", "web/calls", "lan--dmz -> dmz/x"])
def test_keys_of_parts(text):
    key = parse_key(text)
    assert str(key) == text and key.part == text.partition("/")[2]
    assert parse_key(text.replace("/", " / ")) == key


def test_a_part_is_read_and_written_in_full():
    found = policy(f"web <-> db/dns: {{{DNS}, loss: 5%}}")
    data = policy_data(found)
    assert data["links"] == {
        "web <-> db/dns": {"match": [{"protocol": "udp", "destination_port": 53}], "loss": {"share": "5%"}}
    }
    assert convert_policy(data).config == found.config and names_in(data) == {"web", "db"}
    assert names_in(policy_data(policy("any -> db/x: {match: {sender: cam}, loss: 1%}"))) == {"db", "cam"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("web -> db/dns: {loss: 5%}", "p.yaml:4: links.web -> db/dns: has no match: expected the packets of dns"),
        ("web -> db: {match: {dscp: ef}, loss: 5%}", "is of a part of the line: give it a name, such as web -> db/calls"),
        ("web -> db/dns: {match: {dscp: ef}}", "has no settings besides match"),
        ("web -> db/dns: {match: {}, loss: 5%}", "matches nothing: expected conditions"),
        ("web -> db/dns: {match: [], loss: 5%}", "expected conditions such as"),
        ("web -> db/dns: {match: 5, loss: 5%}", "expected conditions such as"),
        ("web -> db/dns: {match: {port: 53}, loss: 5%}", "unknown"),
        ("web -> db/dns: {match: {destination_port: 99999}, loss: 5%}", "destination_port 99999"),
        ("web <-> db/x: {match: {source_mac: '02:00:00:00:00:09'}, loss: 5%}", "source_mac is of one way"),
        ("web/x: {match: {sender: cam}, loss: 5%}", "sender is of one way: expected a key of one way"),
        (f"web -> db/{'x' * 33}: {{{DNS}, loss: 5%}}", "the part's name is longer than 32 characters"),
        ("web -> db/a/b: {loss: 5%}", "is not a place"),
        (f"web -> db/dns: {{{DNS}, loss: 5%}}\nscenario: [{{at: 1s, set: {{web -> db/dns: {{match: {{dscp: ef}}}}}}}}]",
         "match: cannot change while packets flow"),
    ],
)  # fmt: skip
def test_a_wrong_part_is_refused_with_one_line(line, message):
    with pytest.raises(ConfigError) as found:
        policy(line)
    assert message in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("any -> db/x: {match: {sender: dog}, loss: 5%}", "any -> db/x: there is no NIC dog"),
        ("web -> dog/x: {match: {dscp: ef}, loss: 5%}", "there is no NIC or link dog"),
        (f"web -> db/dns: {{{DNS}, loss: 5%}}\nscenario: [{{at: 1s, set: {{web -> db/other: {{loss: 1%}}}}}}]",
         "there is no part web -> db/other in links"),
        ("\n  ".join(f"web -> db/p{n}: {{match: [{', '.join(f'{{source_port: {k}}}' for k in range(1, 65))}], loss: 5%}}"
                     for n in range(MAX_RULES // 64 + 1)),
         f"web -> db: its parts have more than {MAX_RULES} matches"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_network(line, message):
    errors = [str(each) for each in check_policy(policy(line), NETWORK) if each.kind == "error"]
    assert any(message in each for each in errors), errors


def test_conditions_of_the_way_back():
    found = plan_of(
        policy("web <-> db/x: {match: {source: 10.0.0.1, destination_port: 80, dscp: ef}, delay: 1ms}"), NETWORK
    ).lines
    assert found[Place("web", "db", "", "x")].matches == [{"source": "10.0.0.1", "destination_port": 80, "dscp": "ef"}]
    assert found[Place("db", "web", "", "x")].matches == [{"destination": "10.0.0.1", "source_port": 80, "dscp": "ef"}]
    both = plan_of(policy("web/x: {match: {destination_port: 80}, delay: 1ms}"), NETWORK).lines
    assert both[Place("any", "web", "", "x")].matches == [{"source_port": 80}]
    link = plan_of(policy("lan--dmz/x: {match: {destination_port: 80}, delay: 1ms}"), NETWORK).lines
    assert link[Place("dmz", "lan", "lan--dmz", "x")].matches == [{"source_port": 80}]
    one = plan_of(policy("lan--dmz -> lan/x: {match: {destination_port: 80}, delay: 1ms}"), NETWORK).lines
    assert one[Place("dmz", "lan", "lan--dmz", "x")].matches == [{"destination_port": 80}]


def test_elements_of_parts():
    chains = compile_policy(
        policy(
            "web -> db: {delay: 5ms}",
            f"web -> db/dns: {{{DNS}, loss: 5%}}",
            "web -> db/voice: {match: [{dscp: ef}, {dscp: cs5}], rate: 1mbit, loss: 1%}",
            "web -> any/bulk: {match: {dscp: cs1}, rate: 5mbit}",
        ),
        NETWORK,
    )
    [pairs] = chains[Chain("db", "ingress")]
    split, whole = pairs["branches"][0]
    assert whole["name"] == "shape-from-web" and whole["delay"] == "5ms"
    assert split["rules"] == [
        {"protocol": "udp", "destination_port": 53, "gate": 0}, {"dscp": "ef", "gate": 1}, {"dscp": "cs5", "gate": 1},
    ]  # fmt: skip
    assert split["default"] == 2 and [each["element"] for each in split["branches"][1]] == ["Link", "Impairment"]
    names = [each["name"] for each in (split, whole, *split["branches"][0], *split["branches"][1])]
    assert len(set(names)) == len(names) and all(len(each) <= 32 for each in names)
    assert names[2].startswith("shape-of-dns.") and names[3].startswith("shape-line-of-voice.")
    [split] = chains[Chain("web", "egress")]
    assert split["name"] == "shape-parts"
    again = compile_policy(policy(f"web -> db/dns: {{{DNS}, loss: 5%}}"), NETWORK)
    assert again[Chain("db", "ingress")][0]["branches"][0][0]["branches"][0][0]["name"] == names[2]


def test_check_adds_up_what_a_part_passes():
    found = [
        str(each)
        for each in check_policy(policy("web <-> db: {rtt: 40ms}", f"web <-> db/dns: {{{DNS}, rtt: 20ms, loss: 1%}}"), NETWORK)
    ]
    assert any("web <-> db: round trip 40ms" in each for each in found)
    assert any("web <-> db/dns: round trip 60ms" in each for each in found)
    assert any("web -> db/dns: 1% of packets are lost" in each for each in found)


def test_a_part_without_elements_keeps_its_packets():
    """No rate means no element; the packets are still not those of the part behind it."""
    everything = "match: [{destination: 0.0.0.0/0}]"
    links = (
        f"web -> any/dns: {{{DNS}, rate: none}}",
        f"web -> any/rest: {{{everything}, loss: 100%}}",
        "web -> any: {delay: 1ms}",
    )
    split, whole = compile_policy(policy(*links), NETWORK)[Chain("web", "egress")]
    assert split["rules"] == [
        {"protocol": "udp", "destination_port": 53, "gate": 1}, {"destination": "0.0.0.0/0", "gate": 0},
    ]  # fmt: skip
    assert split["default"] == 1 and list(split["branches"]) == [0] and whole["delay"] == "1ms"
    assert compile_policy(policy(links[0]), NETWORK) == {}


# -- packets ---------------------------------------------------------------------------------------


def test_a_part_of_a_pair(shaped):
    """DNS is late and goes the pair's way, too; the answers are told by their source port."""
    net = shaped("web <-> db: {delay: 10ms}", f"web <-> db/dns: {{{DNS}, delay: 5ms}}")
    query, other, tcp = packet("web", "db"), packet("web", "db", dport=54), packet("web", "db", TCP)
    answer, stray = packet("db", "web", sport=53, dport=1000), packet("db", "web", dport=53)
    begin = net.now_ns
    net.send("web", [query, other, tcp])
    net.send("db", [answer, stray])
    net.run()
    ms = 10**6
    assert [(each.data, each.time_ns - begin) for each in net.take("db")] == [
        (other, 10 * ms), (tcp, 10 * ms), (query, 15 * ms),
    ]  # fmt: skip
    assert [(each.data, each.time_ns - begin) for each in net.take("web")] == [(stray, 10 * ms), (answer, 15 * ms)]


def test_the_first_part_that_matches_has_the_packet(shaped):
    net = shaped(
        "web -> any/calls: {match: {destination_port: 1000-2000}, delay: 1ms}",
        "web -> any/most: {match: {protocol: udp}, delay: 2ms}",
        "web -> any: {delay: 10ms}",
    )
    begin = net.now_ns
    packets = [packet("web", "db", dport=1500), packet("web", "db", dport=3000), packet("web", "cam", TCP, dport=3000)]
    net.send("web", packets)
    net.run()
    times = {each.data: each.time_ns - begin for name in ("db", "cam") for each in net.take(name)}
    assert [times[each] // 10**6 for each in packets] == [11, 12, 10]


def test_a_part_that_is_lost_and_one_that_is_slow(shaped):
    net = shaped(
        f"any -> db/dns: {{{DNS}, loss: 100%}}",
        "any -> db/bulk: {match: {sender: cam}, rate: 800kbit, queue: {packets: 5}}",
    )
    slow = [packet("cam", "db", dport=1, size=100 + n) for n in range(10)]
    net.send("web", [packet("web", "db")] * 5 + [packet("web", "db", dport=9)])
    net.send("cam", slow)
    net.run()
    got = [each.data for each in net.take("db")]
    assert got[0] in (packet("web", "db", dport=9), slow[0]) and packet("web", "db") not in got
    assert packet("web", "db", dport=9) in got and 5 <= sum(each in slow for each in got) < 10
    drops = net.drops()
    assert sum(count for key, count in drops.items() if key.endswith(": loss")) == 5


def test_a_part_without_elements_and_one_for_the_rest(shaped):
    net = shaped(
        f"web -> any/dns: {{{DNS}, rate: none}}",
        "web -> any/rest: {match: [{vlan: 0}, {destination: 0.0.0.0/0}], loss: 100%}",
    )
    arp = bytes(Ether(src=MACS["web"], dst=MACS["db"], type=0x0806) / Raw(bytes(46)))
    net.send("web", [packet("web", "db", dport=54), arp, packet("web", "db"), packet("web", "cam", TCP)])
    net.run()
    assert [each.data for each in net.take("db")] == [packet("web", "db")] and net.take("cam") == []


IMPORTS = [
    ("tc", """
        tc qdisc add dev web root handle 1: prio bands 3 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
        tc qdisc add dev web parent 1:3 handle 30: netem loss 100%
        tc filter add dev web parent 1: protocol ip prio 1 u32 match ip dst 10.0.0.3 flowid 1:1
        tc filter add dev web parent 1: protocol ip prio 2 u32 match ip protocol 17 0xff match ip dport 53 0xffff flowid 1:3
     """),
    ("comcast", "comcast --device=web --packet-loss=100% --target-addr=10.0.0.2 --target-proto=udp --target-port=53"),
    ("tcconfig", "tcset web --loss 100 --exclude-dst-network 10.0.0.3\n"),
    ("pumba", "pumba netem --duration 5m --ingress-port 53 loss --percent 100 web"),
    ("chaos-mesh", "kind: NetworkChaos\nspec: {action: partition, selector: {pods: {x: [web]}}, externalTargets: ['10.0.0.2:53']}"),
]  # fmt: skip
KINDS = {
    "db udp 53": ("db", UDP, 53),
    "db udp 54": ("db", UDP, 54),
    "db tcp 53": ("db", TCP, 53),
    "cam udp 53": ("cam", UDP, 53),
}
LOST = {
    "tc": {"db udp 53"},  # the filter for cam comes first
    "comcast": {"db udp 53"},
    "tcconfig": {"db udp 53", "db udp 54", "db tcp 53"},
    "pumba": {"db udp 53", "db tcp 53", "cam udp 53"},
    "chaos-mesh": {"db tcp 53"},
}


@pytest.mark.parametrize(("tool", "text"), IMPORTS)
def test_an_imported_policy_loses_exactly_the_packets_of_its_filters(shaped, tool, text):
    draft = READERS[tool](text, "f", Names({}, None, Notes()))
    assert not draft.notes.refused and all("/" in place for place in draft.links)
    net = shaped()
    net.shape(draft.text)
    for target, protocol, port in KINDS.values():
        net.send("web", [packet("web", target, protocol, dport=port)] * 100)
    net.run()
    arrived = [each.data for name in ("db", "cam") for each in net.take(name)]
    counts = {
        kind: arrived.count(packet("web", target, protocol, dport=port)) for kind, (target, protocol, port) in KINDS.items()
    }
    assert counts == {kind: 0 if kind in LOST[tool] else 100 for kind in KINDS}
    assert sum(net.drops().values()) == 100 * len(LOST[tool])


def test_a_part_changes_live_and_by_a_scenario(shaped):
    net = shaped(
        f"web -> db/dns: {{{DNS}, delay: 5ms}}",
        more="scenario: [{at: 1s, set: {web -> db/dns: {delay: 1ms, loss: 0%}}}, {at: 2s, set: {web -> db/dns: {loss: 100%}}}]",
    )
    begin = net.now_ns
    for at_ms, late_ms in ((500, 5), (1500, 1), (2500, None)):
        net.advance(begin + at_ms * 10**6 - net.now_ns)
        sent = net.now_ns
        net.send("web", packet("web", "db"))
        net.advance("20ms")
        assert [(each.time_ns - sent) // 10**6 for each in net.take("db")] == ([] if late_ms is None else [late_ms])
    changes = net.shape(policy_data(policy(f"web -> db/dns: {{{DNS}, delay: 3ms}}")))
    assert changes
    net.send("web", packet("web", "db"))
    sent = net.now_ns
    net.run()
    assert [each.time_ns - sent for each in net.take("db")] == [3_000_000]
    net.shape(None)
    net.send("web", packet("web", "db"))
    sent = net.now_ns
    net.run()
    assert [each.time_ns - sent for each in net.take("db")] == [0]


def test_a_part_is_not_measured_by_the_kit(shaped):
    net = shaped(f"web -> db/dns: {{{DNS}, loss: 5%}}")
    with pytest.raises(ConfigError, match="is a part, which is not measured by itself"):
        net.measured("web -> db/dns")


def test_a_replay_judges_parts(tmp_path, vnic_network):
    from click.testing import CliRunner

    from tests.support.capture_files import pcap
    from vnic.cli.main import cli

    frames = [(10**18 + n * 10**6, packet("web", "db", dport=53 + n % 2)) for n in range(400)]
    (tmp_path / "in.pcap").write_bytes(pcap(frames))
    (tmp_path / "net.yaml").write_text(NICS)
    (tmp_path / "p.yaml").write_text(f"version: 1\nseed: 3\nlinks:\n  web -> db/dns: {{{DNS}, loss: 20%}}\n")
    done = CliRunner().invoke(
        cli,
        ["replay", str(tmp_path / "in.pcap"), "-c", str(tmp_path / "net.yaml"), "--split", "none",
         "--shape", str(tmp_path / "p.yaml"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    [line] = json.loads(done.stdout)["shape"]["lines"]
    assert line["line"] == "web -> db/dns" and line["kept"]
    lost = json.loads(done.stdout)["dropped"]
    assert 15 <= sum(lost.values()) <= 75 and len(lost) == 1
