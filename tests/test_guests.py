"""NICs of kind vhost-user with real guests: User-mode Linux, whose virtio-net driver is Linux's own, beside containers."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import pytest

from tests.support.containers import Container
from tests.support.uml import Uml
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker
from vnic.config.load import parse_config
from vnic.device.kinds.sockets import PATH_MOST

ADDRESSES = {"one": "10.99.0.1", "two": "10.99.0.2", "box": "10.99.0.3"}


class Lab:
    """An instance with the guests `one` and `two` and the container `box`. connect: the guests whose
    front ends listen; sockets: the directory of the guests' sockets, if it is another one."""

    def __init__(self, environment, directory, stack, connect=(), sockets=None, **settings):  # noqa: F811
        self.environment, self.directory, self.stack = environment, directory, stack
        self.sockets = sockets or directory
        self.box = stack.enter_context(Container())
        self.nics = {
            name: {"kind": "vhost-user", "connect" if name in connect else "listen": f"{self.sockets}/{name}.sock", **settings}
            for name in ("one", "two")
        }
        self.nics["box"] = {"pid": self.box.pid, "interface": "eth0", "addresses": [f"{ADDRESSES['box']}/24"], **settings}
        self.file = directory / "net.yaml"
        self.file.write_text(json.dumps({"nics": self.nics}))
        self.up()
        stack.callback(self.down)

    def up(self):
        vnic(self.environment, "up", "-d", str(self.file))

    def down(self):
        assert conserved(self.environment)
        with suppress(AssertionError):
            vnic(self.environment, "down")
        for nic in self.nics.values():
            assert not os.path.exists(nic.get("listen", "/none"))

    def boot(self, name, mtu=1500):
        """A guest behind the NIC, with an address."""
        home = self.directory / f"{name}-files"
        home.mkdir(exist_ok=True)
        guest = self.stack.enter_context(Uml(home, self.directory / f"{name}.sock"))
        guest.run(f"ip link set eth0 mtu {mtu} up; ip addr add {ADDRESSES[name]}/24 dev eth0")
        return guest

    def found(self):
        return json.loads(vnic(self.environment, "status", "--json"))

    def status(self, name):
        return next(nic for nic in self.found()["nics"] if nic["name"] == name)

    def kill_under_traffic(self, name, packets):
        """Kills the worker three times, each time after so many packets of the NIC."""
        for _ in range(3):
            before = self.status(name)["rx_packets"]
            while self.status(name)["rx_packets"] < before + packets:
                pass
            kill_worker(self.environment)

    def wait(self, name, **wanted):
        """Waits until the NIC's status says so."""
        while not wanted.items() <= (found := self.status(name)).items():
            time.sleep(0.02)  # the test's own timeout ends this
        return found


@pytest.fixture
def lab(environment, tmp_path, leak_check):  # noqa: F811
    with ExitStack() as stack:
        yield Lab(environment, tmp_path, stack)


def send(to, size):
    """A command that sends by TCP, once iperf3 listens there."""
    return f"for n in $(seq 50); do iperf3 -c {ADDRESSES[to]} -n {size} && break; sleep 0.1; done"


def test_guests_and_a_container_talk(lab):
    one, two = lab.boot("one"), lab.boot("two")
    for address in (ADDRESSES["two"], ADDRESSES["box"]):
        one.run(f"ping -c 3 -i 0.01 {address}")
    ping(lab.box, ADDRESSES["two"])
    assert one.run("cat /sys/class/net/eth0/address").strip() == lab.status("one")["mac"]
    offloads = one.run("ethtool -k eth0")
    for feature in ("rx-checksumming", "tx-checksumming", "tcp-segmentation-offload"):
        assert f"{feature}: on" in offloads
    # frames of 64 KB, cut nowhere: between guests, and from a guest to the container and back
    two.begin("iperf3 -s -1")
    assert "64.0 MBytes" in one.run(send("two", "64M"))
    two.finish()
    server = lab.box.popen(["iperf3", "-s", "-1"])
    assert "32.0 MBytes" in one.run(send("box", "32M"))
    server.communicate(timeout=120)
    found = lab.status("one")
    assert found["guest"] == "connected" and found["problem"] == ""
    assert {"mrg_rxbuf", "guest_tso4", "host_tso4", "ring_packed", "event_idx"} <= set(found["features"])
    assert found["offloads"] == ["csum", "tso4", "tso6", "ecn"]
    receive, transmit = found["rings"]
    assert receive["started"] and transmit["started"] and receive["faults"] == transmit["faults"] == {}
    # 64 MB in fewer frames than there are segments of 1448 bytes
    assert found["rx_packets"] < (96 << 20) / 1448 / 2


def test_upgrades_and_kills_of_the_worker_are_not_noticed(lab):
    one, two = lab.boot("one"), lab.boot("two")
    one.run(f"ping -c 1 {ADDRESSES['two']}")
    one.begin(f"ping -c 300 -i 0.01 -q {ADDRESSES['two']}")
    for _ in range(3):
        vnic(lab.environment, "upgrade")
    assert "300 packets transmitted, 300 received" in one.finish()
    two.begin("iperf3 -s -1")
    one.begin(send("two", "2G"))
    lab.kill_under_traffic("one", 1000)
    assert "2.00 GBytes" in one.finish()
    two.finish()
    assert [ring["broken"] for name in ("one", "two") for ring in lab.status(name)["rings"]] == [""] * 4


def test_a_guest_goes_and_another_comes(lab):
    assert "no guest" in vnic(lab.environment, "status")
    one = lab.boot("one")
    assert "guest connected" in vnic(lab.environment, "status")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
        second.connect(str(lab.directory / "one.sock"))
        assert second.recv(1) == b""  # refused: the first one has the NIC
    one.run(f"ping -c 1 {ADDRESSES['box']}")
    one.close()
    found = lab.wait("one", guest="absent")
    assert not any(ring["started"] for ring in found["rings"])
    lab.boot("one").run(f"ping -c 1 {ADDRESSES['box']}")


def test_the_guest_sees_its_link(lab):
    one = lab.boot("one")
    one.run(f"ping -c 1 {ADDRESSES['box']}")
    for state, carrier in (("down", "0"), ("up", "1")):
        vnic(lab.environment, "link", "one", state)
        one.run(f"while [ $(cat /sys/class/net/eth0/carrier) != {carrier} ]; do sleep 0.02; done", timeout_s=60)
    one.run(f"ping -c 1 {ADDRESSES['box']}")


def test_a_rate_a_capture_and_a_detach(lab):
    one = lab.boot("one")
    capture = lab.directory / "one.pcap"
    vnic(lab.environment, "rate", "one", "--egress", "10mbit")
    command = [sys.executable, "-m", "vnic.cli.main", "capture", "one", "-w", str(capture), "-c", "6"]
    capturing = subprocess.Popen(command, env=lab.environment, stderr=subprocess.DEVNULL)
    while capturing.poll() is None:
        one.run(f"ping -c 2 -i 0.01 {ADDRESSES['box']}")
    assert capturing.returncode == 0 and capture.stat().st_size > 6 * 60
    assert lab.status("one")["egress_bps"] == 10**7
    vnic(lab.environment, "detach", "one")
    assert not (lab.directory / "one.sock").exists()
    vnic(lab.environment, "attach", "vhost-user", "one", "--listen", str(lab.directory / "one.sock"))


@pytest.mark.parametrize("mtu", [9000, 65521])
def test_long_packets(environment, tmp_path, leak_check, mtu):  # noqa: F811
    with ExitStack() as stack:
        lab = Lab(environment, tmp_path, stack, mtu=mtu)
        one = lab.boot("one", mtu)
        one.run(f"ping -M do -s {mtu - 28} -c 3 -i 0.01 {ADDRESSES['box']}")


# -- bad input -------------------------------------------------------------------------------------


def up(environment, directory, nic):  # noqa: F811
    file = directory / "net.yaml"
    file.write_text(json.dumps({"nics": {"one": {"kind": "vhost-user", **nic}}}))
    return vnic(environment, "up", "-d", str(file), status=2)


def test_sockets_that_cannot_be(environment, tmp_path):  # noqa: F811
    path = tmp_path / "one.sock"
    assert "one of listen and connect" in up(environment, tmp_path, {})
    assert "one of listen and connect" in up(environment, tmp_path, {"listen": str(path), "connect": str(path)})
    long = str(tmp_path / ("x" * (PATH_MOST + 1)))
    assert f"at most {PATH_MOST} bytes" in up(environment, tmp_path, {"listen": long})
    assert "make its directory first" in up(environment, tmp_path, {"listen": str(tmp_path / "none" / "one.sock")})
    assert "no group nobodys" in up(environment, tmp_path, {"listen": str(path), "socket_group": "nobodys"})
    assert 'such as "0660"' in up(environment, tmp_path, {"listen": str(path), "socket_mode": "rw"})
    assert "interface" in up(environment, tmp_path, {"listen": str(path), "interface": "eth0"})
    path.write_text("a file")
    assert "is there and no socket" in up(environment, tmp_path, {"listen": str(path)})
    assert path.read_text() == "a file"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        assert "in use by another program" in up(environment, tmp_path, {"listen": str(path)})
        assert path.exists()


def test_a_socket_that_a_killed_instance_left_is_replaced(environment, tmp_path):  # noqa: F811
    path = tmp_path / "one.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
    file = tmp_path / "net.yaml"
    file.write_text(json.dumps({"nics": {"one": {"kind": "vhost-user", "listen": str(path), "socket_mode": "0600"}}}))
    vnic(environment, "up", "-d", str(file))
    try:
        assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_uid == os.geteuid()
    finally:
        vnic(environment, "down")
    assert not path.exists()


def test_paths_begin_at_the_file():
    nics = parse_config(
        "nics: {a: {kind: vhost-user, listen: a.sock}, b: {kind: vhost-user, connect: /b.sock}}", directory="/srv"
    ).nics
    assert nics["a"].listen == "/srv/a.sock" and nics["b"].connect == "/b.sock"
