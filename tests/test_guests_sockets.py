"""NICs of kinds stream and dgram with QEMU's guests, beside a container; passt as an uplink."""

import json
import os
import signal
import socket
from contextlib import ExitStack, suppress

import pytest

from dataplane.errors import ConfigError
from tests.support.containers import Container
from tests.support.qemu import Qemu
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_guests import ADDRESSES
from tests.test_supervisor import conserved, kill_worker
from tests.tools import need
from vnic.api.client import Client
from vnic.config.load import parse_config
from vnic.device.kinds.sockets import bind, check_places

BOX, ONE = ADDRESSES["box"], ADDRESSES["one"]


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """An instance with the container `box` and the NIC `one`."""

    def __init__(self, environment, directory, stack, one):  # noqa: F811
        self.environment, self.directory, self.stack, self.one = environment, directory, stack, one
        self.box = stack.enter_context(Container())
        box = {"pid": self.box.pid, "interface": "eth0", "addresses": [f"{BOX}/24"]}
        self.file = directory / "net.yaml"
        self.file.write_text(json.dumps({"nics": {"one": one, "box": box}}))
        vnic(environment, "up", "-d", str(self.file))
        stack.callback(self.down)

    def down(self):
        assert conserved(self.environment)
        with suppress(AssertionError):
            vnic(self.environment, "down")
        assert not os.path.exists(self.one.get("listen", "/none"))

    def status(self):
        found = json.loads(vnic(self.environment, "status", "--json"))
        return next(nic for nic in found["nics"] if nic["name"] == "one")

    def wait(self, **wanted):
        """Waits until the NIC's status says so."""
        while not wanted.items() <= (found := self.status()).items():
            pass  # the test's own timeout ends this
        return found

    def boot(self, netdev):
        """A guest behind the NIC."""
        guest = self.stack.enter_context(Qemu(self.directory / "one", netdev=netdev, device=f"mac={self.status()['mac']}"))
        guest.run(f"ip link set eth0 up; ip addr add {ONE}/24 dev eth0")
        return guest

    def passes(self, packets):
        """Waits until so many packets have passed since, in both directions together."""

        def passed():
            nics = client.call("Status")["status"]["nics"]
            return next(nic["rx_packets"] + nic["tx_packets"] for nic in nics if nic["name"] == "one")

        with Client() as client:
            until = passed() + packets
            while passed() < until:
                pass

    def check(self, guest, *transfers):
        """Traffic through an upgrade, and transfers (arguments of iperf3) each through a kill of the worker."""
        guest.run(f"ping -c 3 -i 0.01 {BOX}")
        guest.begin(f"ping -c 100 -i 0.02 -q {BOX}")
        vnic(self.environment, "upgrade")
        assert "100 packets transmitted, 100 received" in guest.finish()
        for arguments in transfers:
            server = self.box.popen(["iperf3", "-s", "-1"])
            guest.begin(f"for n in $(seq 50); do iperf3 -c {BOX} {arguments} && break; sleep 0.1; done")
            self.passes(1000)
            kill_worker(self.environment)
            assert "iperf Done" in guest.finish()
            server.communicate(timeout=120)
        ping(self.box, ONE)


@pytest.fixture
def lab(environment, tmp_path, leak_check, monkeypatch):  # noqa: F811
    monkeypatch.setenv("VNIC_RUNTIME_DIR", environment["VNIC_RUNTIME_DIR"])  # for Client
    with ExitStack() as stack:
        yield lambda **one: Lab(environment, tmp_path, stack, one)


def test_a_stream_to_a_socket_of_vnic(lab, tmp_path):
    path = tmp_path / "one.sock"
    made = lab(kind="stream", listen=str(path), socket_mode="0600")
    assert path.stat().st_mode & 0o777 == 0o600 and made.status()["guest"] == "absent"
    guest = made.boot(f"stream,server=off,addr.type=unix,addr.path={path}")
    made.check(guest, "-b 120M -n 20M", "-b 120M -n 20M -R")
    found = made.status()
    assert (found["kind"], found["guest"], found["problem"]) == ("stream", "connected", "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
        second.connect(str(path))
        assert second.recv(1) == b""  # refused: the first one has the NIC
    guest.close()
    made.wait(guest="absent")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hostile:
        hostile.connect(str(path))
        made.wait(guest="connected")
        hostile.sendall(b"\xff" * 4)
        assert hostile.recv(1) == b""
        assert "4294967295 bytes" in made.wait(guest="absent")["problem"]
    made.boot(f"stream,server=off,addr.type=unix,addr.path={path}").run(f"ping -c 1 {BOX}")


def test_a_stream_to_a_socket_of_qemu_by_tcp(lab):
    port = free_port()
    made = lab(kind="stream", connect=f"127.0.0.1:{port}")
    assert "waiting for the peer to listen" in made.wait(guest="absent")["problem"]
    guest = made.boot(f"stream,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port={port}")
    made.wait(guest="connected")
    made.check(guest, "-b 120M -n 20M -R")
    vnic(made.environment, "down")
    vnic(made.environment, "up", "-d", str(made.file))  # QEMU listens on
    made.wait(guest="connected")
    guest.run(f"ping -c 1 {BOX}")


@pytest.mark.parametrize("family", ["unix", "inet"])
def test_datagrams(lab, tmp_path, family):
    if family == "unix":
        ours, theirs = tmp_path / "vnic.sock", tmp_path / "vm.sock"
        made = lab(kind="dgram", listen=str(ours), connect=str(theirs))
        ends = f"local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}"
    else:
        ours, theirs = (free_port(socket.SOCK_DGRAM) for _ in range(2))
        made = lab(kind="dgram", listen=f"127.0.0.1:{ours}", connect=f"127.0.0.1:{theirs}")
        ends = (
            f"local.type=inet,local.host=127.0.0.1,local.port={theirs},remote.type=inet,"
            f"remote.host=127.0.0.1,remote.port={ours}"
        )
    made.check(made.boot(f"dgram,{ends}"))


def test_passt_is_an_uplink(lab, environment, tmp_path):  # noqa: F811
    """passt joins a network namespace of the test, in place of the machine's network, by ordinary sockets: TCP from a container
    behind vnic reaches a server there."""
    with ExitStack() as stack:
        outside = stack.enter_context(Container())
        outside.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "other")
        outside.run("ip", "link", "set", "other", "up")
        outside.run("ip", "addr", "add", "10.77.0.2/24", "dev", "uplink")
        outside.run("ip", "link", "set", "uplink", "up")
        outside.run("ip", "route", "add", "default", "via", "10.77.0.1")
        path = tmp_path / "passt.sock"
        passt = outside.popen(["env", "-u", "LD_PRELOAD", need("passt"), "--runas", "0", "-f", "-1", "-s", str(path),
                               "-i", "uplink"])  # fmt: skip
        stack.callback(passt.communicate)
        stack.callback(passt.send_signal, signal.SIGKILL)
        made = lab(kind="stream", connect=str(path), mtu=65520)
        made.wait(guest="connected")
        # passt gives its guest the machine's address
        made.box.run("ip", "addr", "flush", "dev", "eth0")
        made.box.run("ip", "addr", "add", "10.77.0.2/24", "dev", "eth0")
        made.box.run("ip", "route", "add", "default", "via", "10.77.0.1")
        server = outside.popen([need("iperf3"), "-s", "-1"])
        client = made.box.popen(
            ["sh", "-c", "for n in $(seq 50); do iperf3 -c 10.77.0.1 -b 100M -n 16M && break; sleep 0.1; done"]
        )
        made.passes(100)
        vnic(environment, "upgrade")
        assert "iperf Done" in client.communicate(timeout=120)[0]
        server.communicate(timeout=120)


# -- bad input -------------------------------------------------------------------------------------


def refused(**nic):
    """Why such a NIC is refused."""
    config = parse_config(json.dumps({"nics": {"one": nic}}), contained=False).nics["one"]
    with pytest.raises(ConfigError) as error:
        check_places(config, addresses=True, both=nic["kind"] == "dgram")
    return str(error.value)


def test_sockets_that_cannot_be(environment, tmp_path):  # noqa: F811
    path = str(tmp_path / "one.sock")
    said = refused(kind="stream")
    assert "one of listen and connect" in said and '"127.0.0.1:5000"' in said
    assert "both of listen and connect" in refused(kind="dgram", listen=path)
    assert "no loopback address" in refused(kind="stream", listen="192.0.2.1:5000")
    assert "port of 1 to 65535" in refused(kind="stream", listen="[::1]:70000")
    assert "of two kinds" in refused(kind="dgram", listen=path, connect="127.0.0.1:5000")
    assert "are the same" in refused(kind="dgram", listen=path, connect=path)
    file = tmp_path / "net.yaml"
    file.write_text(json.dumps({"nics": {"one": {"kind": "stream", "listen": path, "queues": 2}}}))
    assert "queues" in vnic(environment, "up", str(file), status=2)


def test_sockets_that_are_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        nic = parse_config(json.dumps({"nics": {"one": {"kind": "stream", "listen": place}}})).nics["one"]
        with pytest.raises(ConfigError, match="choose another port"):
            bind(nic, socket.SOCK_STREAM)
    path = str(tmp_path / "one.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        nic = parse_config(json.dumps({"nics": {"one": {"kind": "stream", "listen": path}}})).nics["one"]
        with pytest.raises(ConfigError, match="in use by another program"):
            bind(nic, socket.SOCK_STREAM)


def test_addresses_are_no_paths():
    nics = parse_config(
        "nics: {a: {kind: stream, listen: '127.0.0.1:5000'}, b: {kind: stream, connect: b.sock}}", directory="/srv"
    ).nics
    assert nics["a"].listen == "127.0.0.1:5000" and nics["b"].connect == "/srv/b.sock"
