"""Random policies, one after the other, while packets flow: nothing is lost but what a removed line held, packets of a flow stay in
order, and a line that all policies have is the same element all the time."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire_frames import UDP, Spec
from vnic.testing import VirtualNetwork

NICS = {"web": 1, "db": 2, "cam": 3}
NET = "nics: {" + ", ".join(f"{name}: {{mac: '02:00:00:00:00:0{n}'}}" for name, n in NICS.items()) + "}"
KEPT = {"cam -> db": {"delay": "7ms", "loss": "0%"}}
PAIRS = ["web -> db", "db -> web", "web -> cam", "db -> cam"]
SETTINGS = st.fixed_dictionaries({}, optional={
    "rate": st.sampled_from(["1mbit", "2mbit", "100mbit"]), "delay": st.sampled_from(["1ms", "5ms", "30ms"]),
}).filter(bool)  # fmt: skip
# Of a name, the match is always the same: packets whose match changes may overtake those that wait where they were.
PARTS = {"web -> db/x": {"protocol": "udp"}, "cam -> db/y": {"destination_port": 53}, "web -> any/z": {"destination_port": 80}}
MATCHES = {"a": {"destination_port": 53}, "b": {"destination_port": 80}, "c": {"dscp": "ef"}}
LEAF = st.fixed_dictionaries({}, optional={
    "guarantee": st.sampled_from(["100kbit", "200kbit"]), "weight": st.integers(1, 5), "priority": st.integers(0, 7),
    "queue": st.sampled_from(["fifo", "fq", {"discipline": "fifo", "packets": 20}]),
})  # fmt: skip
CLASSES = st.builds(
    lambda tree, rate: {
        "rate": rate,
        "default": "rest",
        "tree": {**{name: {**each, "match": MATCHES[name]} for name, each in tree.items()}, "rest": {}},
    },
    st.dictionaries(st.sampled_from(list(MATCHES)), LEAF, max_size=3),
    st.sampled_from(["1mbit", "5mbit", "none"]),
)


def made(pairs: dict, parts: dict, classes: dict, order: list[int]) -> dict[str, Any]:
    """A policy with its lines in some order."""
    parts = {name: {**each, "match": PARTS[name]} for name, each in parts.items()}
    links = list({**pairs, **parts, **KEPT}.items())
    return {"version": 1, "seed": 1, "links": dict(links[n] for n in order if n < len(links)), "classes": classes}


POLICIES = st.builds(
    made,
    st.dictionaries(st.sampled_from(PAIRS), SETTINGS, max_size=4),
    st.dictionaries(st.sampled_from(list(PARTS)), SETTINGS, max_size=2),
    st.dictionaries(st.sampled_from(["web.egress", "db.ingress", "cam.egress"]), CLASSES, max_size=2),
    st.permutations(range(7)),
)


def frame(source: int, target: int, flow: int, number: int) -> bytes:
    spec = Spec(
        protocol=UDP,
        source_port=1000 + flow,
        destination_port=53 if flow else 80,
        payload=number.to_bytes(4, "big") + bytes(60),
    )
    return bytes([2, 0, 0, 0, 0, target]) + bytes([2, 0, 0, 0, 0, source]) + spec.build()[12:]


def number_of(data: bytes) -> tuple[int, int, int]:
    """(sender, flow, number)"""
    return data[11], int.from_bytes(data[34:36], "big") - 1000, int.from_bytes(data[42:46], "big")


@settings(max_examples=300, deadline=None)
@given(policies=st.lists(POLICIES, min_size=2, max_size=6), data=st.data())
def test_changes_lose_and_reorder_nothing(policies: list[dict[str, Any]], data):
    with VirtualNetwork(NET) as net:
        for name, number in NICS.items():
            net.send(name, frame(number, 9, 0, 0))
        net.run()
        for name in NICS:
            net.take(name)
        sent = dict.fromkeys(NICS, 0)
        for each in policies:
            net.shape(each)
            for name, number in NICS.items():
                other = data.draw(st.sampled_from([each for each in NICS if each != name]))
                for flow in (0, 1):
                    net.send(name, [frame(number, NICS[other], flow, sent[name] + n) for n in range(8)], gap="100us")
                sent[name] += 8
            net.advance(data.draw(st.sampled_from(["800us", "3ms", "20ms"])))
        net.run()
        stats = {each["name"]: each for engine in net._stats()["engines"] for each in engine["elements"]}
        kept = stats["db.ingress.shape-pairs.shape-from-cam"]
        seen: dict[tuple[str, int, int], int] = {}
        arrived = 0
        for name in NICS:
            for each in net.take(name):
                sender, flow, number = number_of(each.data)
                assert seen.get((name, sender, flow), -1) < number, (name, sender, flow, number)
                seen[name, sender, flow] = number
                arrived += 1
        dropped = net.drops()
        assert {key.rsplit(": ")[1] for key in dropped} <= {"released", "queue_full"}, dropped
        # besides, elements that are gone have released what they held
        assert arrived + sum(dropped.values()) <= 2 * sum(sent.values())
        assert kept["dropped"]["released"] == 0 == kept["counters"]["lost"]
