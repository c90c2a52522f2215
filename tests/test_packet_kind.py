"""NICs of kind packet: an interface that is there is served and stays as it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from dataplane.errors import ConfigError, PortError
from tests.support.containers import Container
from tests.support.veths import Station, open_nic, quiet_container
from tests.test_command import TREE, VNIC, environment, vnic  # noqa: F401 - a fixture
from vnic.config.load import parse_config
from vnic.config.written import written_config
from vnic.device.agent import NamespaceAgent
from vnic.device.kinds.packet import PacketRequest
from vnic.modules.devices import AgentDevices
from vnic.runtime.runtime import Runtime

MAC = "02:00:00:00:00:07"
FRAME = bytes.fromhex("0200000000aa0200000000bb88b5") + bytes(range(46))


@pytest.fixture(scope="module")
def agent() -> Iterator[NamespaceAgent]:
    with NamespaceAgent.start() as agent:
        yield agent


@pytest.fixture
def machine(leak_check) -> Iterator[Container]:
    """A namespace with an interface eth1, whose other end is `peer`."""
    with quiet_container() as container:
        container.run("ip", "link", "add", "eth1", "address", MAC, "mtu", "1400", "type", "veth", "peer", "name", "peer")
        for name in ("eth1", "peer"):
            container.run("ip", "link", "set", name, "up", "arp", "off")
        container.run("ip", "address", "add", "10.0.0.1/24", "dev", "eth1")
        yield container


def link(container: Container) -> dict[str, object]:
    found: dict[str, object] = json.loads(container.run("ip", "-d", "-j", "address", "show", "dev", "eth1"))[0]
    found.pop("stats64", None)
    return found


def test_the_interface_is_used_and_stays_as_it_is(agent, machine):
    before = link(machine)
    nic = open_nic(agent, "up", 3, PacketRequest(name="eth1", pid=machine.pid, queues=2))
    status = nic.status()
    assert (status["kind"], status["interface"], status["mac"], status["mtu"]) == ("packet", "eth1", MAC, 1400)
    assert nic.mac == MAC and nic.queue_drops() == 0 and nic.port.queues == 2
    during = link(machine)
    assert during.pop("promiscuity") == before.pop("promiscuity") + 1
    assert during == before
    nic.set_carrier(False)
    assert link(machine)["operstate"] == "UP"
    for change in (lambda: nic.tap.set_mtu(1500), lambda: nic.tap.set_mac(MAC), lambda: nic.tap.set_up(False)):
        with pytest.raises(PortError, match="packet eth1: the interface is not vnic's to change"):
            change()
    nic.close()
    nic.close()
    after = link(machine)
    assert after.pop("promiscuity") == 0
    assert after == before


def test_it_takes_what_arrives_and_not_what_the_machine_sends(agent, machine):
    config = parse_config(f"nics: {{up: {{kind: packet, pid: {machine.pid}, interface: eth1, queues: 4}}}}")
    runtime = Runtime(config, devices=AgentDevices())
    stack, peer = Station(machine, "eth1"), Station(machine, "peer")
    try:
        runtime.start()
        for count in range(1, 9):
            stack.send(FRAME)  # leaves by eth1, as the machine's own frames do
            assert peer.receive() == FRAME
            peer.send(FRAME)  # arrives at eth1, for another address than its own
            assert stack.receive() == FRAME
            while received(runtime) < count:
                pass
        assert received(runtime) == 8
        assert runtime.status()["conserved"]
    finally:
        runtime.close()
        stack.close()
        peer.close()


def received(runtime: Runtime) -> int:
    [nic] = runtime.stats()["nics"]
    return sum(queue["rx_packets"] for queue in nic["queues"])


def test_what_it_refuses(agent, machine):
    with pytest.raises(
        ConfigError, match="packet eth9: there is no such interface in that network namespace: expected one of lo"
    ):
        agent.open_nic(PacketRequest(name="eth9", pid=machine.pid))
    with pytest.raises(ConfigError, match="packet lo: is no Ethernet interface"):
        agent.open_nic(PacketRequest(name="lo", pid=machine.pid))
    assert link(machine)["promiscuity"] == 0


def test_deleting_the_interface_is_reported(agent, machine):
    with agent.open_nic(PacketRequest(name="eth1", pid=machine.pid)) as interface, interface.watch() as watch:
        assert not watch.gone
        machine.run("ip", "link", "set", "eth1", "down")
        assert interface.present()
        machine.run("ip", "link", "del", "eth1")
        assert watch.wait(5) and watch.deleted


@pytest.mark.parametrize(
    "setting", ["mtu: 1500", "mac: '02:00:00:00:00:01'", "addresses: [10.0.0.1/24]", "gateway: 10.0.0.1", "routes: []"]
)
def test_settings_of_the_interface_are_refused(setting):
    name = setting.partition(":")[0]
    message = f"f.yaml:1: nics.up.{name}: is not a setting of NICs of kind packet: the interface exists and keeps its own"
    with pytest.raises(ConfigError) as caught:
        parse_config(f"nics: {{up: {{kind: packet, {setting}}}}}", "f.yaml")
    assert str(caught.value) == message


def test_an_interface_is_that_of_one_nic():
    with pytest.raises(ConfigError, match=r"nics.b.interface: eth1 is that of NIC a, too; take out one$"):
        parse_config("nics: {a: {kind: packet, interface: eth1}, b: {kind: packet, interface: eth1}}")


def test_what_config_show_says_is_read_again():
    config = written_config(parse_config("nics: {up: {kind: packet, interface: eth1, egress: {rate: 1mbit}}}"))
    assert "mac" not in config["nics"]["up"]
    assert written_config(parse_config(json.dumps(config))) == config


@pytest.mark.root
@pytest.mark.parametrize("allowed", [False, True])
def test_an_interface_of_the_host_takes_permission(environment, tmp_path, leak_check, allowed):  # noqa: F811
    """vnic and its interface are in a namespace that plays the host's."""
    file = tmp_path / "net.json"
    file.write_text(json.dumps({"nics": {"up": {"kind": "packet", "interface": "eth1"}}, "host_interfaces": allowed}))
    with Container() as host:
        host.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "peer")
        command = host.command([*VNIC, "up", "-d", str(file)])
        done = subprocess.run(command, env=environment, cwd=TREE, capture_output=True, text=True, timeout=120)
        if not allowed:
            assert done.returncode == 2 and done.stderr.count("\n") == 1
            assert "put 'host_interfaces: true' into the configuration file" in done.stderr
            return
        assert done.returncode == 0, done.stderr
        [nic] = json.loads(vnic(environment, "status", "--json"))["nics"]
        assert (nic["kind"], nic["interface"], nic["pid"], nic["netns"]) == ("packet", "eth1", None, None)
        vnic(environment, "apply", str(file))
        vnic(environment, "down")
        assert "eth1" in host.interfaces()
