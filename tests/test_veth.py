"""Veth interfaces in containers: they appear as asked for, need no /dev/net/tun, and are all there or not at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dataplane.errors import ConfigError, PortError
from dataplane.graph.port import TX_REASONS
from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container
from tests.support.veths import Station, open_nic, quiet_container
from vnic.device.agent import NamespaceAgent
from vnic.device.kinds.veth import Veth, VethReport, VethRequest
from vnic.device.namespaces import NetNamespace
from vnic.device.tap import Offload, Route, check

MAC = "02:00:00:00:00:02"


@pytest.fixture(scope="module")
def agent() -> Iterator[NamespaceAgent]:
    with NamespaceAgent.start() as agent:
        yield agent


@pytest.fixture
def make_container(leak_check) -> Iterator[Callable[..., Container]]:
    """As tests/conftest.py has it, but without /dev/net/tun."""
    with ExitStack() as stack:
        yield lambda **kind: stack.enter_context(quiet_container(**kind))


@pytest.fixture
def container(make_container) -> Container:
    return make_container()


def link(container: Container, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(container.run("ip", "-d", "-j", "addr", "show", "dev", name))[0]
    return answer


def features(container: Container) -> set[str]:
    """What the interface leaves to the device, by name."""
    shown = container.run("ethtool", "-k", "eth0")
    return set(re.findall(r"^\s*(tx-(?:checksum|gso|\S*segmentation)\S*): on", shown, re.MULTILINE)) - {
        "tx-generic-segmentation",
        "tx-checksumming",
    }


# --- what is there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user_namespace", [pytest.param(False, marks=pytest.mark.root), True])
def test_a_veth_appears_as_asked_for(agent, make_container, user_namespace):
    container = make_container(user_namespace=user_namespace)
    container.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    request = VethRequest(
        name="eth0", pid=container.pid, queues=4, mac=MAC, mtu=9000, addresses=("10.0.0.2/24", "fd00::2/64"),
        routes=(Route("default", "10.0.0.1"), Route("fd01::/64", "fd00::1"), Route("10.9.0.0/16")),
    )  # fmt: skip
    with agent.open_nic(request) as veth:
        seen = link(container, "eth0")
        assert seen["linkinfo"]["info_kind"] == "veth"
        assert (seen["address"], seen["mtu"], seen["ifindex"], seen["ifalias"]) == (MAC, 9000, veth.ifindex, "vnic")
        assert (veth.mac, veth.mtu, veth.name, veth.queues) == (MAC, 9000, "eth0", 4)
        assert {"UP", "LOWER_UP"} <= set(seen["flags"])
        addresses = {f"{each['local']}/{each['prefixlen']}": each for each in seen["addr_info"]}
        assert {"10.0.0.2/24", "fd00::2/64"} <= set(addresses)
        assert not addresses["fd00::2/64"].get("tentative"), "an IPv6 address can be used at once"
        assert "default via 10.0.0.1" in container.run("ip", "route")
        assert "10.9.0.0/16" in container.run("ip", "route")
        assert "fd01::/64 via fd00::1" in container.run("ip", "-6", "route")
        assert veth.netns_identity == (os.stat(container.netns_path).st_dev, os.stat(container.netns_path).st_ino)
        for fd in (*veth.fds, veth.far.fd, veth.netlink, veth.link_events):
            assert not os.get_inheritable(fd)
        assert not any(os.get_blocking(fd) for fd in veth.fds)
        assert veth.present()
    assert container.interfaces() == []


def test_in_a_user_namespace_within_another(agent, make_container):
    container = make_container(nested=True)
    with agent.open_nic(VethRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24",))) as veth:
        assert container.interfaces() == ["eth0"]
        veth.set_carrier(False)
        assert "NO-CARRIER" in link(container, "eth0")["flags"]
    assert container.interfaces() == []


@pytest.mark.parametrize(
    "offloads",
    [
        Offload.ALL,
        Offload(0),
        Offload.CSUM,
        Offload.CSUM | Offload.TSO4,
        Offload.CSUM | Offload.TSO6 | Offload.ECN | Offload.TSO4,
    ],
)
def test_the_container_leaves_to_the_device_what_is_asked_for(agent, container, offloads):
    """And nothing that the virtio-net header cannot describe, such as tunnels and SCTP."""
    names = {
        Offload.CSUM: "tx-checksum-ip-generic",
        Offload.TSO4: "tx-tcp-segmentation",
        Offload.TSO6: "tx-tcp6-segmentation",
        Offload.USO: "tx-udp-segmentation",
        Offload.ECN: "tx-tcp-ecn-segmentation",
    }
    with agent.open_nic(VethRequest(name="eth0", pid=container.pid, offloads=int(offloads))) as veth:
        assert veth.offloads | Offload.USO == offloads | Offload.USO
        assert features(container) == {name for offload, name in names.items() if offload & veth.offloads}


def test_defaults_and_down(agent, container):
    with agent.open_nic(VethRequest(name="a" * 15, pid=container.pid, up=False, mtu=65521)) as veth:
        seen = link(container, "a" * 15)
        assert "UP" not in seen["flags"]
        assert seen["address"] == veth.mac
        assert seen["mtu"] == veth.mtu == 65521
        veth.set_up(True)
        assert "LOWER_UP" in link(container, "a" * 15)["flags"]


def test_the_far_end_says_nothing(agent, container):
    """No IPv6 of its own, no answer to ARP, nothing when the link comes up."""
    container.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    with agent.open_nic(VethRequest(name="eth0", pid=container.pid, addresses=("10.0.0.2/24", "fd00::2/64"))) as veth:
        station = Station(container)
        veth.set_carrier(False)
        veth.set_carrier(True)
        container.run("ping", "-c", "1", "-W", "1", "10.0.0.1", check=False)
        container.run("ping", "-c", "1", "-W", "1", "ff02::1%eth0", check=False)
        assert veth.counters()["rx_packets"] == 0 and veth.counters()["tx_packets"] > 0
        station.close()


def test_by_netns_path_of_a_process(agent, container):
    with agent.open_nic(VethRequest(name="eth0", netns=container.netns_path)) as veth:
        assert container.interfaces() == ["eth0"]
        assert veth.namespace.pid == container.pid


# --- live change ------------------------------------------------------------------------------------------------------


def test_live_changes(agent, container):
    with agent.open_nic(VethRequest(name="eth0", pid=container.pid)) as veth:
        veth.set_mtu(1400)
        veth.set_mac(MAC)
        assert (link(container, "eth0")["mtu"], link(container, "eth0")["address"]) == (1400, MAC) == (veth.mtu, veth.mac)
        veth.set_carrier(False)
        assert "NO-CARRIER" in link(container, "eth0")["flags"]
        veth.set_carrier(True)
        assert "LOWER_UP" in link(container, "eth0")["flags"]
        veth.set_up(False)
        assert "UP" not in link(container, "eth0")["flags"]
        container.run("ip", "link", "set", "eth0", "name", "renamed")
        veth.set_up(True)
        assert "UP" in link(container, "renamed")["flags"]
        with pytest.raises(ConfigError, match="veth eth0: mtu: 65522"):
            veth.set_mtu(65522)
        with pytest.raises(ConfigError, match="veth eth0: mac: 01:00:00:00:00:01 is a multicast address"):
            veth.set_mac("01:00:00:00:00:01")


def test_delete_though_somebody_holds_a_queue(agent, container):
    veth = agent.open_nic(VethRequest(name="eth0", pid=container.pid))
    held = os.dup(veth.fds[0])
    veth.delete()
    assert container.interfaces() == []
    os.close(held)
    with pytest.raises(PortError, match="veth eth0: is closed"):
        veth.delete()


def test_an_interface_deleted_in_the_container(agent, container):
    """A watch tells, and every use is a clear error."""
    with agent.open_nic(VethRequest(name="eth0", pid=container.pid)) as veth, veth.watch() as watch:
        assert not watch.gone
        container.run("ip", "link", "add", "other", "type", "dummy", check=False)
        assert not watch.gone
        container.run("ip", "link", "del", "eth0")
        assert watch.wait(60)
        assert watch.deleted and watch.why == "its interface eth0 was deleted inside its container"
        assert not veth.present()
        assert veth.queue_drops() is None
        for use in (lambda: veth.set_up(True), veth.counters, lambda: veth.set_carrier(False), lambda: veth.set_mac(MAC)):
            with pytest.raises(PortError, match="gone from its network namespace; attach it again"):
                use()
    with pytest.raises(PortError, match="veth eth0: is closed"):
        veth.counters()
    with pytest.raises(PortError, match="veth eth0: is closed"):
        veth.set_carrier(True)


ATTACK = """
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
with IPRoute() as ip:  # the far end has index 2 in its namespace, which has the id 0 here
    for command, settings in (("set", {"state": "down"}), ("del", {})):
        try:
            ip.link(command, index=2, IFLA_IF_NETNSID=0, **settings)
            print(command, "done")
        except NetlinkError as error:
            print(command, "refused")
"""


def test_what_root_of_the_container_may_do_to_the_far_end(agent, make_container):
    """Take its own interface away, if the far namespace belongs to the container's user namespace; it does where a plain user's
    agent made it."""
    container = make_container(user_namespace=True)
    with agent.open_nic(VethRequest(name="eth0", pid=container.pid)) as veth, veth.watch() as watch:
        result = "refused" if IS_ROOT else "done"
        assert container.python(ATTACK).splitlines() == [f"set {result}", f"del {result}"]
        assert watch.gone != IS_ROOT and veth.present() == IS_ROOT


# --- who holds it -----------------------------------------------------------------------------------------------------


class Nobody:
    """The agent of a process that has none."""

    def run(self, namespace, work):
        raise PortError("no agent here")


def test_another_process_goes_on_with_the_descriptors(agent, container):
    """As a supervisor keeps a NIC for the next worker: the interface stays while one of them has the descriptors."""
    veth = agent.open_nic(VethRequest(name="eth0", pid=container.pid, queues=2))
    report = veth.report()
    assert isinstance(report, VethReport)
    held = veth.let_go()
    assert veth.closed and veth.present()
    veth.close()
    for _ in range(2):
        again = Veth(report, [os.dup(fd) for fd in held], NetNamespace.find(container.pid), Nobody())
        assert (again.name, again.mac, again.queues, again.present()) == ("eth0", veth.mac, 2, True)
        again.close()
    veth.namespace.close()
    assert container.interfaces() == ["eth0"]
    for fd in held:
        os.close(fd)
    while container.interfaces():  # the kernel takes a moment
        pass


DAEMON = """
import sys
from vnic.device.agent import NamespaceAgent
from tests.support.veths import open_nic
from vnic.device.kinds.veth import VethRequest
agent = NamespaceAgent.start()
nic = open_nic(agent, "eth0", 1, VethRequest(name="eth0", pid=int(sys.argv[1]), queues=2))
print(agent.pid, flush=True)
sys.stdin.read()
"""


def test_the_interface_goes_with_a_killed_process(container):
    """kill -9, with rings mapped: nobody has to clean up."""
    for _ in range(2):  # the name is free again at once, or waited for
        daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(container.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert daemon.stdout is not None and daemon.stdout.readline()
        assert container.interfaces() == ["eth0"]
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.communicate()
    while container.interfaces():
        pass


def test_a_container_that_ends(agent, make_container):
    container = make_container()
    veth = agent.open_nic(VethRequest(name="eth0", pid=container.pid))
    with veth.watch() as watch:
        container.close()
        assert watch.wait(60)
        assert watch.why == f"its container ended (process {veth.namespace.pid})"
    veth.close()


def test_many_veths_leave_nothing(agent, container):
    def open_and_close() -> set[str]:
        with agent.open_nic(VethRequest(name="eth0", pid=container.pid, queues=3)):
            pass
        with pytest.raises(ConfigError):
            agent.open_nic(VethRequest(name="lo", pid=container.pid))
        return set(os.listdir(f"/proc/{agent.pid}/fd"))

    first = open_and_close()
    assert all(open_and_close() == first for _ in range(5))
    assert container.interfaces() == []


# --- the NIC ----------------------------------------------------------------------------------------------------------


def test_a_nic_over_a_veth(agent, container):
    nic = open_nic(agent, "web", 3, VethRequest(name="eth0", pid=container.pid, mac=MAC, queues=2))
    status = nic.status()
    assert (status["interface"], status["mac"], status["mtu"], status["queues"]) == ("eth0", MAC, 1500, 2)
    assert {"csum", "tso4", "tso6"} <= set(status["offloads"])
    assert (nic.port.number, nic.port.name, nic.tx.name, nic.port.descriptors()) == (3, "web", "web.tx", nic.tap.fds)
    assert nic.tap.queue_drops() == 0
    assert len(nic.queue_statistics()) == 2
    assert set(nic.tx.statistics()["dropped"]) == set(TX_REASONS)
    nic.set_carrier(False)
    assert "NO-CARRIER" in link(container, "eth0")["flags"]
    nic.close()
    nic.close()
    assert container.interfaces() == []


# --- all or nothing ---------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken(agent, container):
    container.run("ip", "link", "add", "own", "type", "dummy", check=False)
    with agent.open_nic(VethRequest(name="eth0", pid=container.pid)):
        for name in {"lo", "eth0", *container.interfaces()}:
            with pytest.raises(ConfigError, match=f"veth {name}: the name is taken in that network namespace"):
                agent.open_nic(VethRequest(name=name, pid=container.pid))


def test_nothing_stays_of_a_veth_that_failed_half_way(agent, container):
    failing = [
        (VethRequest(name="eth0", pid=container.pid, queues=8, addresses=("10.0.0.2/24", "10.0.0.2/24")), "is there already"),
        (VethRequest(name="eth0", pid=container.pid, routes=(Route("default", "10.9.9.9"),)), "no address reaches its gateway"),
    ]
    for request, message in failing:
        with pytest.raises(ConfigError, match=message):
            agent.open_nic(request)
        assert container.interfaces() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a" * 16}, "veth 'aaaaaaaaaaaaaaaa': no valid interface name"),
        ({"queues": 65}, "veth vnic0: queues: 65 is out of range"),
        ({"mac": "01:00:00:00:00:01"}, "veth vnic0: mac: 01:00:00:00:00:01 is a multicast address"),
        ({"offloads": int(Offload.TSO4)}, "veth vnic0: offloads: segmentation needs checksum offload too"),
    ],
)
def test_bad_requests_are_one_clear_line(change, message):
    with pytest.raises(ConfigError) as caught:
        check(VethRequest(**({"name": "vnic0"} | change)))
    assert str(caught.value).startswith(message)


@pytest.mark.root
def test_too_many_namespaces(make_container):
    container = make_container(user_namespace=True)
    container.run("sh", "-c", "echo 1 > /proc/sys/user/max_net_namespaces")
    done = subprocess.run(
        container.command([sys.executable, "-c", HERE]), capture_output=True, text=True, timeout=120, cwd=plain_user.REPOSITORY
    )
    assert done.stdout == "veth eth0: too many network namespaces: raise user.max_net_namespaces (see namespaces(7))\n", (
        done.stderr
    )


HERE = """
from dataplane.errors import ConfigError
from vnic.device.agent import NamespaceAgent
from vnic.device.kinds.veth import VethRequest
with NamespaceAgent.start() as agent:
    try:
        agent.open_nic(VethRequest(name="eth0"))
    except ConfigError as error:
        print(error)
"""


@pytest.mark.root
def test_a_plain_user_may_not_have_the_machines_namespace(leak_check):
    done = plain_user.run([sys.executable, "-c", HERE.replace("eth0", "vnic-try")], tun="missing")
    assert done.stdout.startswith("veth vnic-try: not permitted to make a network namespace beside the container's"), (
        done.stderr
    )


if IS_ROOT:

    @pytest.mark.timeout(1200)
    @pytest.mark.again
    @pytest.mark.parametrize("file", ["test_veth.py", "test_packet_port.py"])
    def test_all_this_as_a_plain_user_without_a_tun_device(file, leak_check):
        """In user namespaces, on a machine where /dev/net/tun does not exist."""
        path = str(Path(__file__).parent / file)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
        done = plain_user.run(command, tun="missing", timeout_s=1000)
        assert done.returncode == 0, done.stdout + done.stderr
