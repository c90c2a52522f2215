"""`classes` of policy files: read, checked, compiled, applied in virtual time."""

from __future__ import annotations

import msgspec
import pytest

from dataplane.errors import ConfigError
from shaping.policy.check import check_policy
from shaping.policy.compile import compile_policy
from shaping.policy.load import convert_policy, parse_policy, policy_data
from shaping.policy.network import Network
from tests.wire_frames import UDP, Spec
from vnic.testing import VirtualNetwork

NETWORK = Network(
    nics={"web": "02:00:00:00:00:01", "db": "02:00:00:00:00:02", "cam.1": "02:00:00:00:00:03"},
    links={"lan--dmz": ("lan", "dmz")},
)
OFFICE = """\
version: 1
classes:
  web.egress:
    rate: 10mbit
    default: bulk
    tree:
      voice: {match: {dscp: ef}, guarantee: 1mbit, ceiling: 2mbit, priority: 0}
      gold:
        match: [{destination: 10.0.0.0/24}, {protocol: tcp, destination_port: 80-90}]
        guarantee: 6mbit
        tree:
          sync: {match: {source_port: 873}}
          rest: {weight: 3, queue: fq_codel}
      bulk: {queue: {discipline: fq_codel, target: 10ms}}
"""


def compiled(text: str) -> dict:
    return {str(chain): entries for chain, entries in compile_policy(parse_policy(text), NETWORK).items()}


def test_classes_become_a_classifier_and_a_scheduler():
    chains = compiled(OFFICE)
    [split, scheduler] = chains["web.egress"]
    tree = scheduler["classes"]["tree"]
    voice, sync, rest = tree["voice"]["mark"], tree["gold"]["tree"]["sync"]["mark"], tree["gold"]["tree"]["rest"]["mark"]
    assert split == {
        "element": "Classifier", "name": "shape-split", "default": 0, "rules": [
            {"dscp": "ef", "mark": voice, "gate": 0},
            {"destination": "10.0.0.0/24", "source_port": 873, "mark": sync, "gate": 0},
            {"protocol": "tcp", "destination_port": "80-90", "source_port": 873, "mark": sync, "gate": 0},
            {"destination": "10.0.0.0/24", "mark": rest, "gate": 0},
            {"protocol": "tcp", "destination_port": "80-90", "mark": rest, "gate": 0},
        ],
    }  # fmt: skip
    assert scheduler["classes"]["rate"] == "10mbit" and scheduler["classes"]["default"] == "bulk"
    assert tree["voice"] == {"guarantee": "1mbit", "ceiling": "2mbit", "priority": 0, "mark": voice}
    assert tree["bulk"]["queue"] == {"discipline": "fq_codel", "target": "10ms"}


def test_a_policy_is_read_back_from_its_data():
    data = msgspec.json.decode(msgspec.json.encode(policy_data(parse_policy(OFFICE))))
    assert compile_policy(convert_policy(data), NETWORK) == compile_policy(parse_policy(OFFICE), NETWORK)


def test_a_class_with_cake():
    text = HEAD + "      a: {queue: {discipline: cake, rtt: 20ms, hosts: source, ecn: false}}\n"
    queue = {"discipline": "cake", "rtt": "20ms", "hosts": "source", "ecn": False}
    assert compiled(text)["web.egress"][-1]["classes"]["tree"]["a"]["queue"] == queue
    assert compiled(HEAD + "      a: {queue: cake}\n")["web.egress"][-1]["classes"]["tree"]["a"]["queue"] == {
        "discipline": "cake"
    }


def test_marks_stay_when_a_class_is_added():
    more = OFFICE.replace("      bulk:", "      aaa: {match: {vlan: 7}}\n      bulk:")
    before = compiled(OFFICE)["web.egress"][1]["classes"]["tree"]
    after = compiled(more)["web.egress"][1]["classes"]["tree"]
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(("key", "chain"), [
    ("web.egress", "web.egress"), ("web -> any", "web.egress"), ("any -> web", "web.ingress"),
    ("cam.1.ingress", "cam.1.ingress"), ("lan--dmz -> dmz", "lan--dmz.dmz"),
])  # fmt: skip
def test_places_of_classes(key, chain):
    text = f"version: 1\nclasses: {{'{key}': {{rate: 1mbit, default: a, tree: {{a: {{}}}}}}}}"
    assert list(compiled(text)) == [chain]


def test_classes_are_in_front_of_the_line_and_behind_pairs():
    text = """\
version: 1
classes: {web.ingress: {rate: 1mbit, default: a, tree: {a: {}}}}
links: {db -> web: {delay: 1ms}, any -> web: {rate: 2mbit, loss: 1%}}
"""
    names = [entry["name"] for entry in compiled(text)["web.ingress"]]
    assert names == ["shape-pairs", "shape-split", "shape-classes", "shape-line", "shape"]


HEAD = "version: 1\nclasses:\n  web.egress:\n    rate: 10mbit\n    default: a\n    tree:\n"


@pytest.mark.parametrize(("text", "error"), [
    (HEAD + "      a: {guarantee: 20mbit}\n",
     "x.yaml:3: classes.web.egress: a rate of 10mbit is less than the 20mbit that its classes are guaranteed together: lower them"),
    (HEAD + "      a: {guarantee: fast}\n",
     "x.yaml:7: classes.web.egress.tree.a.guarantee: rate 'fast': expected a number with a unit such as 100mbit"),
    (HEAD + "      a: {guarantee: 10}\n",
     "x.yaml:7: classes.web.egress.tree.a.guarantee: rate '10' has no unit (bit/s in tc, Mbit/s elsewhere): "
     "write 10bit or 10mbit"),
    (HEAD + "      a: {guarantee: 10mbps}\n",
     "x.yaml:7: classes.web.egress.tree.a.guarantee: rate '10mbps' could mean bits (as elsewhere) or bytes (as in tc): "
     "write 10mbit or 80mbit"),
    (HEAD + "      a: {guarentee: 1mbit}\n",
     "x.yaml:7: classes.web.egress.tree.a.guarentee: unknown key; did you mean 'guarantee'?"),
    (HEAD + "      a: {match: {dscp: 64}}\n", None),
    (HEAD + "      a: {match: {}}\n", None),
    (HEAD + "      a: {weight: 1.5}\n", None),
    (HEAD + "      a: {weight: -1}\n", None),
    (HEAD + "      a: {queue: red}\n", None),
    (HEAD + "      a:\n        queue: {discipline: cake, hosts: dual}\n",
     "x.yaml:8: classes.web.egress.tree.a.queue.hosts: invalid value 'dual': expected one of none, source, destination, both"),
    (HEAD + "      a:\n        queue: {discipline: cake, rtt: 19us}\n",
     "x.yaml:8: classes.web.egress.tree.a.queue.rtt: rtt 19us is out of range: expected 20us to 3600s"),
    (HEAD + "      a:\n        queue: {discipline: cake, rtt: 61min}\n",
     "x.yaml:8: classes.web.egress.tree.a.queue.rtt: rtt 3660s is out of range: expected 20us to 3600s"),
    (HEAD + "      a:\n        queue: {discipline: cake, rtt: 100}\n",
     "x.yaml:8: classes.web.egress.tree.a.queue.rtt: rtt '100' has no unit (ns or us in tc, depending on its version, "
     "ms elsewhere): write 100us or 100ms"),
    (HEAD + "      a: {queue: {discipline: cake, target: 5ms}}\n",
     "x.yaml:3: classes.web.egress: a: queue: target has no effect on cake: expected codel or fq_codel, or no such key"),
    (HEAD + "      a: {queue: {discipline: fq_codel, hosts: source}}\n",
     "x.yaml:3: classes.web.egress: a: queue: hosts has no effect on fq_codel: expected cake, or no such key"),
    (HEAD + "      a: {queue: {discipline: cake, flows: 4}}\n",
     "x.yaml:3: classes.web.egress: a: queue: flows 4: expected a number, 8 to 65536"),
    (HEAD + "      a: {queue: {discipline: fifo, target: 5ms}}\n", None),
    (HEAD + "      a: {queue: fifo, tree: {b: {}}}\n", None),
    (HEAD + "      b: {}\n", None),
    (HEAD + "      a: &a {tree: *a}\n", None),
    (HEAD + "      a b: {}\n", None),
    (HEAD + "".join(f"      a{i}: {{}}\n" for i in range(10_001)), None),
    ("version: 1\nclasses: {web: {rate: 1mbit, default: a, tree: {a: {}}}}", None),
    ("version: 1\nclasses: {web.egress: 5}", None),
    ("version: 1\nclasses: {web.egress: {default: a, tree: {a: {}}}}", None),
    ("version: 1\nclasses: {web.egress: {rate: .nan, default: a, tree: {a: {}}}}", None),
    ("version: 1\nclasses: {web.egress: {rate: 1e30, default: a, tree: {a: {}}}}", None),
    ("version: 1\nclasses: [web]", None),
])  # fmt: skip
def test_bad_classes_are_one_line_with_their_place(text, error):
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "x.yaml")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("x.yaml:") and len(message) < 400
    if error is not None:
        assert message == error


@pytest.mark.parametrize(("text", "kind", "words"), [
    ("nope.egress: {rate: 1mbit, default: a, tree: {a: {}}}", "error", "there is no NIC nope"),
    ("'web -> db': {rate: 1mbit, default: a, tree: {a: {}}}", "error", "is a pair of NICs"),
    ("web.egress: {rate: 1mbit, default: a, tree: {a: {}, b: {}}}", "warning", "b gets no packets"),
    ("web.egress: {rate: 1mbit, default: a, tree: {b: {match: {protocol: tcp}}, "
     "a: {match: {protocol: tcp, dscp: ef}}}}", "warning", "a class before it has all packets of one match"),
    ("web.egress: {rate: 1mbit, default: a, tree: {a: {queue: {packets: 10000}}}}", "warning", "packets wait up to 121s"),
    ("web.egress: {rate: 1mbit, default: a, tree: {a: {match: {sender: dbs}}}}", "error", "there is no NIC dbs; did you mean 'db'?"),
    ("web.egress: {rate: 1mbit, default: x/a, tree: {x: {match: {vlan: 1}, tree: {a: {match: {vlan: 2}}}}}}",
     "error", "its vlan and that of its parent exclude each other"),
])  # fmt: skip
def test_findings(text, kind, words):
    found = check_policy(parse_policy(f"version: 1\nclasses:\n  {text}\n", "x.yaml"), NETWORK)
    assert [each.kind for each in found if words in each.text] == [kind], found


NET = "nics: {web: {mac: '02:00:00:00:00:01'}, db: {mac: '02:00:00:00:00:02'}}"
SHARED = """\
version: 1
classes:
  web.egress:
    rate: RATE
    default: bulk
    tree: {voice: {match: {dscp: ef}, priority: 0}, bulk: {queue: {packets: 100}}}
"""
MS = 1_000_000


def frame(length: int, tos: int, number: int) -> bytes:
    """From web to db, with a number in its payload."""
    payload = number.to_bytes(4, "big") + bytes(length - 46)
    data = bytes(Spec(protocol=UDP, tos=tos, payload=payload).frame().data)
    return bytes.fromhex("020000000002020000000001") + data[12:]


def arrived(net: VirtualNetwork, start_ns: int) -> list[tuple[float, int]]:
    """When, in ms, and which."""
    return [((each.time_ns - start_ns) / MS, bytes(each.data)[45]) for each in net.take("db")]


def test_voice_overtakes_bulk_and_a_change_keeps_what_waits():
    with VirtualNetwork(NET) as net:
        net.shape(SHARED.replace("RATE", "1mbit"))
        start_ns = net.now_ns
        net.send("web", [*(frame(1000, 0, number) for number in range(4)), frame(125, 46 << 2, 9)])
        net.advance("8ms")  # a packet takes 8 ms, and 250 us are a burst
        assert arrived(net, start_ns) == [(0, 0), (7.75, 9)]
        changes = net.shape(SHARED.replace("RATE", "2mbit"))
        assert changes == ["change shape policy", "change nic web"]
        net.run()
        # 0.75 of voice's 1 ms are left, at half the time
        assert arrived(net, start_ns) == [(8.375, 1), (12.375, 2), (16.375, 3)]
        assert net.shape(None) == ["remove shape policy", "change nic web"]
