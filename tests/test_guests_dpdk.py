"""NICs of kind vhost-user with programs that use DPDK, beside a container. As root's children they
run as a plain user."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.dpdk import DpdkProgram
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_guests import ADDRESSES, Lab
from tests.test_guests_qemu import kill_instance
from tests.test_supervisor import kill_worker

DEVICES = ["", "in_order=0", "mrg_rxbuf=0", "packed_vq=1", "packed_vq=1,in_order=0", "packed_vq=1,mrg_rxbuf=0"]


@pytest.fixture
def lab(environment, tmp_path, leak_check):  # noqa: F811
    """Guest `one` connects to vnic, and vnic connects to guest `two`; both are of another user."""
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sockets.chmod(0o1777)
        made = Lab(environment, tmp_path, stack, connect=["two"], sockets=sockets)
        (sockets / "one.sock").chmod(0o666)
        yield made


def boot(lab, name, forward, device=""):
    directory = lab.sockets / f"{name}-files"
    server = "connect" in lab.nics[name]
    mac = lab.status(name)["mac"]
    pmd = lab.stack.enter_context(
        DpdkProgram(directory, lab.sockets / f"{name}.sock", mac, forward, server=server, device=device)
    )
    lab.wait(name, guest="connected")
    return pmd


def healthy(lab, *names):
    """Whether the rings of these guests run, and nothing was wrong in them."""
    for name in names:
        found = lab.status(name)
        assert found["problem"] == ""
        assert all(ring["started"] and not ring["broken"] and not ring["faults"] for ring in found["rings"])
    return True


def received(pmd, more):
    """Waits until so many more packets have come."""
    before = pmd.statistics()["RX-packets"]
    while pmd.statistics()["RX-packets"] < before + more:
        pass


@pytest.mark.parametrize("device", DEVICES)
def test_traffic(lab, device):
    one, two = boot(lab, "one", "icmpecho", device), boot(lab, "two", "icmpecho", device)
    for name in ("one", "two"):
        lab.box.run("ping", "-c", "50", "-i", "0.002", "-s", "1400", ADDRESSES[name])
    features = set(lab.status("one")["features"])
    assert ("ring_packed" in features) == ("packed" in device)
    assert ("in_order" in features) == ("in_order=0" not in device)
    assert ("mrg_rxbuf" in features) == ("mrg_rxbuf=0" not in device)
    two.forward("rxonly")
    one.forward("txonly", to=lab.status("two")["mac"])
    received(two, 20_000)
    one.run("stop")
    assert healthy(lab, "one", "two")


def test_kills_and_upgrades_of_the_worker_are_not_noticed(lab):
    one, two = boot(lab, "one", "txonly", "packed_vq=1"), boot(lab, "two", "rxonly")
    one.forward("txonly", to=lab.status("two")["mac"])
    received(two, 1000)
    for _ in range(3):
        kill_worker(lab.environment)
        received(two, 1000)
    vnic(lab.environment, "upgrade")
    received(two, 1000)
    one.run("stop")
    assert healthy(lab, "one", "two")


def test_a_program_ends_and_another_comes(lab):
    for name in ("one", "two"):
        boot(lab, name, "icmpecho").close()
        lab.wait(name, guest="absent")
        boot(lab, name, "icmpecho", "packed_vq=1")
        ping(lab.box, ADDRESSES[name])


@pytest.mark.parametrize("device", ["", "packed_vq=1"])
def test_the_instance_is_killed_and_comes_back(lab, device):
    """A program that listens waits for vnic."""
    boot(lab, "two", "icmpecho", device)
    ping(lab.box, ADDRESSES["two"])
    kill_instance(lab)
    lab.up()
    # until it answers: it sets its rings up after vnic has connected
    lab.box.run("ping", "-c", "1", "-i", "0.1", "-w", "30", ADDRESSES["two"])
    assert healthy(lab, "two")
