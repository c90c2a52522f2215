"""NICs of kind vhost-user with QEMU's guests, beside a container and User-mode Linux."""

import os
import re
import signal
from contextlib import ExitStack, suppress

import pytest

from tests.support.qemu import MEMORY, Qemu
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_guests import ADDRESSES, Lab, send


@pytest.fixture
def lab(environment, tmp_path, leak_check):  # noqa: F811
    """Guest `one` connects to vnic, and vnic connects to guest `two`."""
    with ExitStack() as stack:
        yield Lab(environment, tmp_path, stack, connect=["two"])


def boot(lab, name, device="packed=off", **options):
    """A guest of QEMU behind the NIC, with its MAC address, which QEMU does not take from vnic, and
    an IP address."""
    server, mac = "connect" in lab.nics[name], lab.status(name)["mac"]
    guest = lab.stack.enter_context(
        Qemu(lab.directory / f"{name}.sock", server=server, device=f"{device},mac={mac}", **options)
    )
    address(guest, name)
    return guest


def address(guest, name):
    guest.run(f"ip link set eth0 up; ip addr add {ADDRESSES[name]}/24 dev eth0")


def lost(output):
    """Which of a ping's packets were not answered, of those before its last answer."""
    seen = {int(each) for each in re.findall(r"icmp_seq=(\d+) ttl", output)}
    return sorted(set(range(1, max(seen, default=0) + 1)) - seen)


@pytest.mark.parametrize("packed", ["off", "on"])
def test_both_directions(lab, packed):
    assert "waiting for the front end to listen" in lab.status("two")["problem"]
    # with the longer header of hashes, of which QEMU does not tell the key
    one = boot(lab, "one", device=f"packed={packed},hash={packed}")
    two = boot(lab, "two", device=f"packed={packed}")
    for to in ("two", "box"):
        one.run(f"ping -c 3 -i 0.01 {ADDRESSES[to]}")
    ping(lab.box, ADDRESSES["two"])
    two.begin("iperf3 -s -1")
    assert "iperf Done" in one.run(send("two", "64M"))
    two.finish()
    server = lab.box.popen(["iperf3", "-s", "-1"])
    assert "iperf Done" in one.run(send("box", "32M"))
    server.communicate(timeout=120)
    for name in ("one", "two"):
        found = lab.status(name)
        assert found["guest"] == "connected" and found["problem"] == ""
        assert ("ring_packed" in found["features"]) == (packed == "on")
        assert ("hash_report" in found["features"]) == (packed == "on" and name == "one")
        assert {"mrg_rxbuf", "guest_tso4", "host_tso4", "event_idx", "indirect_desc"} <= set(found["features"])
        assert all(ring["started"] and not ring["broken"] and not ring["faults"] for ring in found["rings"])


@pytest.mark.parametrize("packed", ["off", "on"])
def test_upgrades_and_kills_of_the_worker_are_not_noticed(lab, packed):
    one, two = lab.boot("one"), boot(lab, "two", device=f"packed={packed}")
    two.run(f"ping -c 1 {ADDRESSES['one']}")
    two.begin(f"ping -c 100 -i 0.02 -q {ADDRESSES['one']}")
    vnic(lab.environment, "upgrade")
    assert "100 packets transmitted, 100 received" in two.finish()
    one.begin("iperf3 -s -1")
    two.begin(send("one", "256M"))
    lab.kill_under_traffic("two", 200)
    assert "iperf Done" in two.finish()
    one.finish()
    assert [ring["broken"] for ring in lab.status("two")["rings"]] == ["", ""]


def test_the_instance_is_killed_and_comes_back(lab):
    """QEMU listens, so the guest waits for vnic: it loses no more than what was under way."""
    two = boot(lab, "two")
    two.run(f"ping -c 1 {ADDRESSES['box']}")
    two.begin(f"ping -c 120 -i 0.05 -W 1 {ADDRESSES['box']}")
    kill_instance(lab)
    lab.up()
    gaps = lost(two.finish(check=False))  # in one piece
    assert not gaps or gaps == [*range(gaps[0], gaps[-1] + 1)]
    two.run(f"ping -c 3 -i 0.01 {ADDRESSES['box']}")
    assert lab.status("two")["guest"] == "connected"


def kill_instance(lab):
    """Ends all processes of an instance at once."""
    found = lab.found()
    pids = [found["supervisor"]["pid"], found["pid"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        while alive(pid):
            pass


def alive(pid):
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def test_reboots(lab):
    for name, packed in (("one", "on"), ("two", "off")):
        guest = boot(lab, name, device=f"packed={packed}")
        guest.run(f"ping -c 1 {ADDRESSES['box']}")
        guest.begin("reboot -f")
        guest.wait_ready()
        address(guest, name)
        guest.run(f"ping -c 1 {ADDRESSES['box']}")
        assert lab.status(name)["problem"] == ""


def test_a_guest_migrates(lab):
    """From one QEMU to another, both on this vnic."""
    before, packets, uri = boot(lab, "one"), 100, f"unix:{lab.directory}/migration.sock"
    before.run(f"ping -c 1 {ADDRESSES['box']}")
    mac = lab.status("one")["mac"]
    after = lab.stack.enter_context(
        Qemu(lab.directory / "two.sock", server=True, incoming=True, device=f"packed=off,mac={mac}")
    )
    after.command("migrate-incoming", uri=uri)
    lab.wait("two", guest="connected")
    # The console is silent meanwhile: a serial port that migrates while it sends may stop.
    before.begin(f"ping -q -c {packets} -i 0.05 {ADDRESSES['box']} >/tmp/pings; cat /tmp/pings")
    before.command("migrate", uri=uri)
    while (state := before.command("query-migrate"))["status"] not in ("completed", "failed"):
        pass
    assert state["status"] == "completed", state
    assert f"{packets} packets transmitted, {packets} received" in after.finish()
    assert lab.status("one")["problem"] == lab.status("two")["problem"] == ""


@pytest.mark.parametrize("memory", ["", MEMORY.replace("share=on", "share=off")], ids=["QEMU's own", "share=off"])
def test_memory_that_is_not_shared_is_reported(lab, memory):
    guest = lab.stack.enter_context(Qemu(lab.directory / "one.sock", memory=memory))
    guest.run("ip link set eth0 up")
    assert "share=on" in lab.status("one")["problem"]
    assert "share=on" in vnic(lab.environment, "status")
