"""Replays through two switches and a link: the same bytes whatever the number of engines, a hundred times."""

import hashlib

import pytest

from tests.support.capture_files import pcap
from tests.test_replay import EVERYBODY, A, B, C, replay, traffic

D = bytes([2, 0, 0, 0, 0, 4])
NETWORK = """
engines: {engines}
nodes: {{lan: switch, dmz: switch}}
links: [{{link: lan -- dmz, {link}}}]
nics:
  a: {{on: lan, engine: {a}, egress: {{rate: 20mbit, queue: 5ms}}}}
  b: {{on: lan, engine: {b}}}
  c: {{on: dmz, engine: {c}, ingress: {{rate: 30mbit, elements: [Counter]}}}}
  d: {{on: dmz, engine: {d}}}
"""
LINKS = {
    "plain": "name: x",
    "trunk": "vlan: {trunk: [10, 20]}",
    "untagged": "vlan: {untagged: true}",
    "shaped": "rate: 10mbit, queue: 3ms, elements: [Counter]",
    "asymmetric": "engine: {last}, to: {dmz: {rate: 5mbit}, lan: {elements: [Counter]}}",
}


@pytest.fixture(scope="module")
def inputs():
    macs = {"a": A, "b": B, "c": C, "d": D}
    return {
        name: pcap(traffic(mac, [*(each for each in macs.values() if each != mac), EVERYBODY], 600, seed))
        for seed, (name, mac) in enumerate(macs.items())
    }


@pytest.mark.parametrize("link", LINKS)
def test_engines_do_not_change_the_outcome(tmp_path, inputs, link):
    outcomes, crossed = set(), 0
    for places in ([0, 0, 0, 0], [0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]):
        engines = max(places) + 1
        settings = LINKS[link].replace("{last}", str(engines - 1))
        config = NETWORK.format(engines=engines, link=settings, **dict(zip("abcd", places, strict=True)))
        for _ in range(20):
            results, content = replay(tmp_path, config, inputs, seed=7)
            outcomes.add(hashlib.sha256(content).hexdigest())
            crossed = sum(each["transmitted"] for each in results["nics"])
    assert len(outcomes) == 1 and crossed > 600
