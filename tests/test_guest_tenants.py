"""examples/guest-tenants.yaml with its guests and containers: tenants are separated, limited, delayed, and captured."""

import json
import re
import subprocess
import sys
from contextlib import suppress

import pytest

from dataplane.config.load import parse_yaml
from tests.support.containers import Container
from tests.support.shell import without_sanitizer
from tests.support.uml import Uml
from tests.test_command import TREE, environment, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved
from tests.tools import need

EXAMPLE = TREE / "examples" / "guest-tenants.yaml"
NETWORKS = {"red-vm": "10.0.1", "blue-vm": "10.0.2"}  # the machine is .1, the container .2


@pytest.fixture
def network(environment, tmp_path, leak_check):  # noqa: F811
    """The example, with sockets of this test's directory and its containers; guests and containers by the NIC's name."""
    text = EXAMPLE.read_text()
    names = list(parse_yaml(text, "example")[0]["nics"])
    with Container() as red, Container() as blue:
        machines = {"red-box": red, "blue-box": blue}
        text = text.replace("/run/vnic-guests", str(tmp_path))
        for name, box in machines.items():
            text = text.replace(f"netns: /run/netns/{name}", f"pid: {box.pid}, interface: eth0")
        file = tmp_path / "net.yaml"
        file.write_text(text)
        vnic(environment, "up", "-d", str(file))
        guests = {}
        try:
            for name in names:
                if name.endswith("-vm"):
                    home = tmp_path / name
                    home.mkdir()
                    guests[name] = Uml(home, tmp_path / f"{name}.sock")
                    guests[name].run(f"ip link set eth0 up; ip addr add {NETWORKS[name]}.1/24 dev eth0")
            yield machines | guests
        finally:
            assert conserved(environment)
            for guest in guests.values():
                guest.close()
            with suppress(AssertionError):
                vnic(environment, "down")


def rtt_ms(output):
    return float(re.search(r"rtt min/avg/max/mdev = ([\d.]+)/", output)[1])


def test_two_tenants(network, environment, tmp_path):  # noqa: F811
    red, blue = network["red-vm"], network["blue-vm"]
    capture = tmp_path / "red.pcapng"
    capturing = subprocess.Popen([sys.executable, "-m", "vnic.cli.main", "capture", "red-vm", "-w", str(capture), "-c", "30"],
                                 env=environment, stderr=subprocess.DEVNULL)  # fmt: skip
    outputs = []
    while capturing.poll() is None:
        for guest, network_of in ((red, "10.0.1"), (blue, "10.0.2")):
            outputs.append(guest.run(f"ping -c 5 -i 0.01 {network_of}.2", check=False))
    assert capturing.returncode == 0
    assert all(rtt_ms(each) >= 20 for each in outputs[::2])  # the policy's, between red's two
    assert all(2 <= rtt_ms(each) for each in outputs[1::2])
    red.run("ip addr add 10.0.2.9/24 dev eth0")  # it would reach blue's, were it in that VLAN
    assert ", 0 received" in red.run("ping -c 3 -i 0.01 -W 1 10.0.2.2", check=False)

    # The frames are those of red only.
    fields = ["-T", "json", "-e", "eth.src", "-e", "ip.src", "-e", "icmp.type"]
    done = subprocess.run([need("tshark"), "-r", str(capture), *fields], env=without_sanitizer(environment),
                          capture_output=True, text=True, check=True)  # fmt: skip
    packets = [each["_source"]["layers"] for each in json.loads(done.stdout)]
    nics = {nic["name"]: nic["mac"] for nic in json.loads(vnic(environment, "status", "--json"))["nics"]}
    assert len(packets) == 30
    assert {each["eth.src"][0] for each in packets} == {nics["red-vm"], nics["red-box"]}
    assert sum(each.get("icmp.type") == ["0"] for each in packets) >= 5

    # Red's machine cannot speak for another.
    red.run("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up")
    assert ", 0 received" in red.run("ping -c 2 -i 0.01 -W 1 10.0.1.2", check=False)

    # TCP has the slower of the NIC's limit and the line's.
    server = network["blue-box"].popen(["iperf3", "-s", "-1"])
    found = json.loads(blue.run("while ! iperf3 -J -c 10.0.2.2 -n 4M > /tmp/out; do sleep 0.1; done; cat /tmp/out"))
    server.communicate(timeout=120)
    assert found["end"]["sum_received"]["bits_per_second"] < 21e6


def test_the_picture_in_the_documentation(network, environment):  # noqa: F811
    assert vnic(environment, "graph").strip() in (TREE / "docs" / "guests.md").read_text()
