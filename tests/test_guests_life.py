"""The life of QEMU's guests: several queue pairs, reboots, pauses, a device that is unplugged and plugged in again, and what is
known of a guest whose rings another vnic has used."""

from contextlib import ExitStack

import pytest

from tests.support.qemu import Qemu
from tests.test_command import environment, vnic  # noqa: F401 - a fixture
from tests.test_guests import ADDRESSES, Lab
from tests.test_guests_qemu import address, boot, kill_instance
from tests.test_supervisor import kill_worker

PAIRS = 4
REBOOTS, PAUSES = 1, 2


@pytest.fixture
def lab(environment, tmp_path, leak_check):  # noqa: F811
    """vnic connects to guest `two`."""
    with ExitStack() as stack:
        yield Lab(environment, tmp_path, stack, connect=["two"], queues=PAIRS)


def boot_pairs(lab, packed):
    guest = boot(lab, "two", device=f"packed={packed},mq=on,id=nic", queues=PAIRS)
    assert f"Combined:\t{PAIRS}" in guest.run("ethtool -l eth0")
    return guest


def use(lab, guest, pairs):
    """Has the guest use so many pairs, and sends over them."""
    guest.run(f"ethtool -L eth0 combined {pairs}", check=False)  # fails where it changes nothing
    reach(guest)
    check_rings(lab, pairs)


def reach(guest):
    guest.run(f"ping -c 3 -i 0.01 {ADDRESSES['box']}")


def check_rings(lab, pairs):
    found = lab.status("two")
    assert found["guest"] == "connected" and found["problem"] == "" and found["queues_used"] == pairs
    assert [ring["started"] for ring in found["rings"]] == [ring < 2 * pairs for ring in range(2 * PAIRS)]
    assert not any(ring["broken"] or ring["faults"] for ring in found["rings"])


@pytest.mark.parametrize("packed", ["off", "on"])
def test_queue_pairs(lab, packed):
    guest = boot_pairs(lab, packed)
    check_rings(lab, 1)
    for pairs in (PAIRS, 2, 3, 1, PAIRS):
        use(lab, guest, pairs)
    guest.run("iperf3 -s > /dev/null 2>&1 &")
    client = f"for n in $(seq 50); do iperf3 -P 16 -c {ADDRESSES['two']} -t 3600 && break; sleep 0.1; done"
    sending = lab.box.popen(["sh", "-c", client])
    lab.kill_under_traffic("two", 100)
    assert sending.poll() is None
    found = lab.status("two")["rings"]
    moved = [pair for pair in range(PAIRS) if found[2 * pair]["position"] not in (0, 0x80008000)]
    assert len(moved) > 1  # of 16 streams, as their hashes say
    sending.kill()
    guest.run("kill $!")  # ends the client, too
    sending.communicate()
    check_rings(lab, PAIRS)
    vnic(lab.environment, "upgrade")
    use(lab, guest, 2)


@pytest.mark.parametrize("packed", ["off", "on"])
def test_reboots_pauses_and_a_device_that_is_unplugged(lab, packed):
    guest = boot_pairs(lab, packed)
    for _ in range(REBOOTS):
        use(lab, guest, 3)
        guest.begin("reboot -f")
        guest.wait_ready()
        check_rings(lab, 1)
        address(guest, "two")
    use(lab, guest, 2)
    for _ in range(PAUSES):
        guest.command("stop")
        assert not any(ring["started"] for ring in lab.status("two")["rings"])
        guest.command("cont")
        reach(guest)
    check_rings(lab, 2)
    unplug(lab, guest)
    mac = lab.status("two")["mac"]
    # QEMU removes the socket with the device
    backend = {
        "type": "socket",
        "data": {"addr": {"type": "unix", "data": {"path": str(lab.directory / "two.sock")}}, "wait": False},
    }
    guest.command("chardev-add", id="again", backend=backend)
    lab.wait("two", guest="connected")
    guest.command("netdev_add", type="vhost-user", id="net", chardev="again", queues=PAIRS)
    options = {"romfile": "", "vectors": 0, "mq": True, "packed": packed == "on", "mac": mac}
    guest.command("device_add", driver="virtio-net-pci", netdev="net", id="nic", **options)
    guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done")
    address(guest, "two")
    use(lab, guest, PAIRS)


def unplug(lab, guest):
    guest.command("device_del", id="nic")
    guest.run("while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done")
    assert not any(ring["started"] for ring in lab.status("two")["rings"])
    while "nic" in [each["name"] for each in guest.command("qom-list", path="/machine/peripheral")]:
        pass
    guest.command("netdev_del", id="net")
    lab.wait("two", guest="absent")


def test_packed_rings_that_a_former_instance_has_used(lab):
    """QEMU does not know how far, and the guest has no network: status says so until it reboots."""
    guest = boot_pairs(lab, "on")
    reach(guest)
    kill_instance(lab)
    lab.up()
    lab.wait("two", guest="connected")
    assert "used by a former instance of vnic" in lab.status("two")["problem"]
    assert "PROBLEM" in vnic(lab.environment, "status")
    kill_worker(lab.environment)
    assert "used by a former instance of vnic" in lab.status("two")["problem"]
    guest.begin("reboot -f")
    guest.wait_ready()
    address(guest, "two")
    reach(guest)
    check_rings(lab, 1)


@pytest.mark.parametrize("announces", ["guest", "vnic"])
def test_a_silent_guest_that_has_moved_is_found_at_once(lab, announces):
    """A guest with GUEST_ANNOUNCE announces itself. For another one QEMU asks vnic to (SEND_RARP)."""
    options = "packed=off" + (",guest_announce=off" if announces == "vnic" else "")
    before, uri = boot(lab, "two", device=options), f"unix:{lab.directory}/migration.sock"
    reach(before)
    mac = lab.status("two")["mac"]
    after = lab.stack.enter_context(Qemu(lab.directory / "one.sock", incoming=True, device=f"{options},mac={mac}"))
    after.command("migrate-incoming", uri=uri)
    lab.wait("one", guest="connected")
    before.command("migrate", uri=uri)
    while (state := before.command("query-migrate"))["status"] not in ("completed", "failed"):
        pass
    assert state["status"] == "completed", state
    while {"mac": mac, "nic": "one"} not in [
        {key: entry[key] for key in ("mac", "nic")} for entry in lab.found()["switch"]["entries"]
    ]:
        pass
    after.run("ip link show eth0")
