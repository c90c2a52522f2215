"""Pictures of the network: text, Graphviz, data; drawn where Graphviz is installed."""

import json
import subprocess

import pytest

from tests.tools import need
from vnic.config.load import parse_config
from vnic.runtime.picture import network_dot, network_text
from vnic.testing import VirtualNetwork

CONFIG = """
engines: 2
nodes: {lan: switch, dmz: {switch: {table: 64}}, empty: switch}
links:
  - {link: lan -- dmz, vlan: {trunk: [10, 11, 12, 20]}, rate: 1gbit}
  - {link: dmz -- empty, name: 'uplink', to: {empty: {rate: 1mbit, elements: [Counter]}}}
nics:
  web: {on: lan, engine: 1, vlan: {access: 10}, egress: {rate: 100mbit, elements: [Counter, {element: 'shaping.shaper:Shaper'}]}}
  database: {on: lan, engine: 0}
  vpn: {on: dmz, engine: 0, vlan: {untagged: true}}
"""

TEXT = """\
lan
  |-- web       engine e1, VLAN 10, egress Counter > Shaper, egress 100mbit
  |-- database  engine e0
  `== dmz       trunk 10-12, 20, 1gbit
dmz
  |-- vpn    engine e0, untagged
  |== lan    trunk 10-12, 20, 1gbit
  `== empty  link uplink, to empty Counter, to empty 1mbit
empty
  `== dmz  link uplink, to empty Counter, to empty 1mbit
"""


@pytest.fixture
def runtime():
    with VirtualNetwork(CONFIG) as net:
        yield net._runtime


def test_text(runtime):
    assert runtime.graph(elements=False) == TEXT


def test_data(runtime):
    data = json.loads(runtime.graph("json", elements=False))
    assert data["switches"]["dmz"] == {"table": 64}
    assert data["nics"]["vpn"] == {"on": "dmz", "details": ["engine e0", "untagged"]}
    assert data["links"]["uplink"]["ends"] == ["dmz", "empty"]


def test_graphviz_reads_it(runtime):
    dot = runtime.graph("dot", elements=False)
    assert dot.startswith("graph vnic {") and '"lan" -- "dmz"' in dot and '"nic web" -- "lan"' in dot
    program = need("dot")
    done = subprocess.run([program, "-Tplain"], input=dot, text=True, capture_output=True, check=True, timeout=60)
    assert sum(line.startswith("node ") for line in done.stdout.splitlines()) == 6
    assert sum(line.startswith("edge ") for line in done.stdout.splitlines()) == 5


def test_one_way_links():
    text = "nodes: {seen: Counter}\nlinks: [a -> seen -> switch, b -> c]\nnics: {a: {}, b: {}, c: {vlan: {access: 5}}}"
    config = parse_config(text, contained=False)
    for nic in config.nics.values():
        nic.on = "switch"
    assert network_text(config).splitlines() == [
        "switch",
        "  |-- a  -> seen",
        "  |-- b  -> c",
        "  `-- c  VLAN 5",
        "seen  Counter",
        "  `-> switch",
    ]
    dot = network_dot(config)
    assert '"nic a" -- "switch" [dir=back, label=""];' in dot and '"nic c" -- "switch" [label="VLAN 5"];' in dot
    assert '"nic b" -- "nic c" [dir=forward, label=""];' in dot and '"seen" -- "switch" [dir=forward, label=""];' in dot
