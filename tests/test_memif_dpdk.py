"""NICs of kind memif with programs that use DPDK's net_memif, and with each other, beside a container. As root's children
the programs run as a plain user."""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.containers import Container
from tests.support.dpdk import MemifProgram
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_guests import ADDRESSES, Lab
from tests.test_supervisor import kill_worker


class MemifLab(Lab):
    """An instance with the memifs `one`, a server, and `two`, a client, and the container `box`. settings: of the memifs."""

    def __init__(self, environment, directory, stack, sockets, **settings):  # noqa: F811
        self.environment, self.directory, self.stack, self.sockets = environment, directory, stack, sockets
        self.box = stack.enter_context(Container())
        self.settings = {"kind": "memif", **settings}
        self.nics = {
            "one": {"listen": f"{sockets}/one.sock", "socket_mode": "0666", **self.settings},
            "two": {"connect": f"{sockets}/two.sock", **self.settings},
            "box": {"pid": self.box.pid, "interface": "eth0", "addresses": [f"{ADDRESSES['box']}/24"]},
        }
        self.file = directory / "net.yaml"
        self.file.write_text(json.dumps({"nics": self.nics}))
        self.up()
        stack.callback(self.down)

    def boot(self, name, forward, device="", queues=1):
        """A program behind the NIC."""
        program = self.stack.enter_context(
            MemifProgram(self.sockets / f"{name}-files", self.sockets / f"{name}.sock", self.status(name)["mac"], forward,
                         server=name == "two", device=device, queues=queues)
        )  # fmt: skip
        self.wait(name, guest="connected")
        return program

    def healthy(self, *names):
        """Whether these programs are connected, and nothing was wrong in their rings."""
        for name in names:
            found = self.status(name)
            assert (found["guest"], found["problem"]) == ("connected", "")
            assert [(ring["broken"], ring["faults"]) for ring in found["rings"]] == [("", {})] * len(found["rings"])
        return True


@pytest.fixture
def make(environment, tmp_path, leak_check):  # noqa: F811
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sockets.chmod(0o1777)
        yield lambda **settings: MemifLab(environment, tmp_path, stack, sockets, **settings)


def received(program, more):
    """Waits until so many more packets have come."""
    before = program.statistics()["RX-packets"]
    while program.statistics()["RX-packets"] < before + more:
        pass


@pytest.mark.parametrize(("device", "settings"), [
    ("", {}),
    ("id=7,secret=sesame,rsize=6", {"id": 7, "secret": "sesame", "ring_size": 64}),
])  # fmt: skip
def test_traffic(make, device, settings):
    lab, queues = make(**settings), settings.get("queues", 1)
    one, two = lab.boot("one", "icmpecho", device, queues), lab.boot("two", "icmpecho", device, queues)
    assert [lab.status(name)["queues_used"] for name in ("one", "two")] == [queues, queues]
    for name in ("one", "two"):
        lab.box.run("ping", "-c", "50", "-i", "0.002", "-s", "1400", ADDRESSES[name])
    found = lab.status("one")
    assert found["role"] == "server" and lab.status("two")["role"] == "client"
    assert found["peer"]["interface"] == "net_memif0" and "DPDK" in found["peer"]["name"]
    two.forward("rxonly")
    one.forward("txonly", to=lab.status("two")["mac"])
    received(two, 2000)
    one.run("stop")
    assert lab.healthy("one", "two")


def test_frames_in_several_buffers(make):
    """Long frames only: before version 26.03, net_memif leaves the flag NEXT in descriptors that a short frame uses later
    ("net/memif: fix descriptor Tx flags corruption")."""
    lab = make()
    lab.boot("one", "icmpecho", "bsize=512")
    lab.box.run("ping", "-c", "50", "-i", "0.002", "-s", "1400", ADDRESSES["one"])
    assert lab.healthy("one")


def test_kills_and_upgrades_of_the_worker_are_not_noticed(make):
    lab = make()
    one, two = lab.boot("one", "txonly"), lab.boot("two", "rxonly")
    one.forward("txonly", to=lab.status("two")["mac"])
    received(two, 1000)
    for _ in range(2):
        kill_worker(lab.environment)
        received(two, 1000)
    vnic(lab.environment, "upgrade")
    received(two, 1000)
    one.run("stop")
    assert lab.healthy("one", "two")
    one.forward("icmpecho")
    ping(lab.box, ADDRESSES["one"])


def test_a_program_ends_and_another_comes(make):
    lab = make()
    for name in ("one", "two"):
        lab.boot(name, "icmpecho").close()
        lab.wait(name, guest="absent")
        lab.boot(name, "icmpecho")
        ping(lab.box, ADDRESSES[name])


def test_two_memifs_of_one_instance(make):
    """A server and a client at each other's ends, each on a switch of its own: they carry what the containers send."""
    lab = make()
    here = {"kind": "memif", "mtu": 1500}
    path = f"{lab.sockets}/pair.sock"
    other = lab.stack.enter_context(Container())
    nics = {
        "box": {**lab.nics["box"], "on": "lan"},
        "near": {**here, "listen": path, "on": "lan"},
        "far": {**here, "connect": path, "on": "dmz"},
        "other": {"pid": other.pid, "interface": "eth0", "addresses": ["10.99.0.4/24"], "on": "dmz"},
    }
    lab.file.write_text(json.dumps({"nodes": {"lan": {"switch": {}}, "dmz": {"switch": {}}}, "nics": nics}))
    vnic(lab.environment, "down")
    lab.up()
    for name in ("near", "far"):
        lab.wait(name, guest="connected")
    ping(lab.box, "10.99.0.4")
    kill_worker(lab.environment)
    ping(lab.box, "10.99.0.4")
    vnic(lab.environment, "upgrade")
    ping(other, ADDRESSES["box"])
    assert lab.healthy("near", "far")
