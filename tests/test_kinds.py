"""The same tests over every kind of NIC, on a running instance: link, MTU, queues, statistics, changes, upgrade, kill -9, its
container's end. What does not apply to a kind is in the table of docs/kinds.md."""

import json
import subprocess
from contextlib import ExitStack, suppress

import pytest

from tests.support.containers import Container
from tests.test_command import TREE, VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker, status
from tests.test_upgrade import Traffic
from vnic.api.client import Client

KINDS = ("tap", "veth", "packet")
MADE = ("tap", "veth")  # those that make the interface; the others are given one


class Instance:
    """An instance with containers a and b, whose NICs are of one kind. place, interfaces: the container of a NIC's interface, and its
    name there."""

    def __init__(self, environment, directory, kind, a, b, machine):  # noqa: F811
        self.environment, self.kind, self.a, self.b, self.machine = environment, kind, a, b, machine
        self.file = directory / "net.yaml"
        self.place = {"a": a, "b": b} if kind in MADE else {"a": machine, "b": machine}
        self.interfaces = {name: "eth0" if kind in MADE else f"{name}0" for name in "ab"}
        self.nics = {
            name: {"pid": self.place[name].pid, "kind": kind, "interface": self.interfaces[name], "queues": 2} for name in "ab"
        }
        for number, (name, box) in enumerate((("a", a), ("b", b)), 1):
            address = f"10.99.0.{number}/24"
            if kind in MADE:
                self.nics[name]["addresses"] = [address]
            else:
                join(machine, self.interfaces[name], box, address)
        self.write()

    def write(self, **changes):
        nics = {name: {**nic, **changes.get(name, {})} for name, nic in self.nics.items()}
        self.file.write_text(json.dumps({"engines": 2, "nics": nics}))

    def nic(self, name):
        return next(nic for nic in status(self.environment)["nics"] if nic["name"] == name)


def join(machine, interface, box, address):
    """Joins a container by a veth pair, as a cable would, to an interface of the machine that vnic is on."""
    machine.run("ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", str(box.pid))
    machine.run("ip", "link", "set", interface, "up")
    box.run("ip", "address", "add", address, "dev", "eth0")
    box.run("ip", "link", "set", "eth0", "up")


@pytest.fixture(params=KINDS)
def instance(request, environment, tmp_path, leak_check):  # noqa: F811
    with ExitStack() as stack:
        a, b, machine = (stack.enter_context(Container()) for _ in range(3))
        made = Instance(environment, tmp_path, request.param, a, b, machine)
        vnic(environment, "up", "-d", str(made.file))
        try:
            yield made
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")
        if request.param in MADE:
            assert a.interfaces() == b.interfaces() == []


def test_status_says_the_kind(instance):
    nic = instance.nic("a")
    assert (nic["kind"], nic["interface"], nic["queues"], nic["mtu"]) == (instance.kind, instance.interfaces["a"], 2, 1500)
    assert nic["mac"] in instance.place["a"].run("ip", "link", "show", instance.interfaces["a"])
    assert set(nic["offloads"]) >= {"csum", "tso4", "tso6"}
    ping(instance.a, "10.99.0.2")


@pytest.mark.parametrize("instance", MADE, indirect=True)
def test_the_link_is_cut_and_raised(instance):
    def carrier():  # the kernel may need a second to tell that a veth has lost it
        return "NO-CARRIER" not in instance.a.run("ip", "link", "show", "eth0")

    ping(instance.a, "10.99.0.2")
    vnic(instance.environment, "link", "a", "down")
    while carrier():
        pass
    assert instance.nic("a")["link"] == "down"
    vnic(instance.environment, "link", "a", "up")
    while not carrier():
        pass
    ping(instance.a, "10.99.0.2")


def beside(instance):
    """Packets that were dropped where the machine was busy, and of which no sender hears: for want of room in the rings of vnic's
    packet sockets, and at interfaces that are not vnic's."""
    if instance.kind == "tap":
        return 0
    stats = json.loads(vnic(instance.environment, "stats", "--json"))
    dropped = sum(nic["queue_drops"] or 0 for nic in stats["nics"])
    if instance.kind == "packet":
        lines = [line.split() for line in instance.machine.run("cat", "/proc/net/dev").splitlines()[2:]]
        dropped += sum(int(words[4]) + int(words[12]) for words in lines if words[0] in ("a0:", "b0:"))
    return dropped


def test_traffic_goes_on_through_upgrades(instance):
    ping(instance.a, "10.99.0.2")
    before = beside(instance)
    with Traffic(instance.a, instance.b) as traffic:
        for _ in range(3):
            report = json.loads(vnic(instance.environment, "upgrade", "--json"))
            assert report["packets_lost"] == 0 or instance.kind != "tap"
    assert 0 <= traffic.lost <= traffic.refused + beside(instance) - before and traffic.sent > 1000
    assert int(traffic.exchanged[0]) > 100


def test_a_killed_worker_is_replaced(instance):
    ping(instance.a, "10.99.0.2")
    before = instance.nic("a")
    for _ in range(2):
        kill_worker(instance.environment)
        ping(instance.a, "10.99.0.2")
    after = instance.nic("a")
    assert {key: after[key] for key in ("mac", "number", "kind", "link")} == {
        key: before[key] for key in ("mac", "number", "kind", "link")
    }


def test_statistics_count_both_ways(instance):
    ping(instance.a, "10.99.0.2")
    instance.a.run("ping", "-c", "5", "-i", "0.2", "10.99.0.2")
    [nic] = json.loads(vnic(instance.environment, "stats", "a", "--json"))["nics"]
    assert sum(queue["rx_packets"] for queue in nic["queues"]) >= 5
    assert sum(queue["tx_packets"] for queue in nic["queues"]) >= 5
    assert nic["queue_drops"] == 0


@pytest.mark.parametrize("instance", MADE, indirect=True)
def test_what_changes_in_place_and_what_is_made_again(instance):
    ping(instance.a, "10.99.0.2")
    for box in (instance.a, instance.b):
        box.run("ip", "address", "add", "10.98.0.1/24", "dev", "eth0")  # as long as this interface is there
    instance.write(a={"egress": {"rate": "50mbit", "elements": ["Counter"]}}, b={"addresses": ["10.99.0.2/24", "10.97.0.1/24"]})
    vnic(instance.environment, "apply", str(instance.file))
    assert ["10.98.0.1" in box.run("ip", "-4", "address") for box in (instance.a, instance.b)] == [True, False]
    assert "10.97.0.1" in instance.b.run("ip", "-4", "address")
    ping(instance.a, "10.99.0.2")
    vnic(instance.environment, "undo")
    ping(instance.a, "10.99.0.2")


def test_mtu_and_offloads_change_while_packets_flow(instance):
    """The same interface, and TCP goes on; what was set stays through upgrade and crash. An interface that is not vnic's keeps
    its own MTU."""

    def shown():
        features = instance.place["a"].run("ethtool", "-k", instance.interfaces["a"])
        link = json.loads(instance.place["a"].run("ip", "-j", "link", "show", instance.interfaces["a"]))[0]
        return link["ifindex"], link["mtu"], "tcp-segmentation-offload: on" in features

    none = {"checksum": False, "tso": False, "uso": False}
    mtu = {"mtu": 1400} if instance.kind in MADE else {}
    ping(instance.a, "10.99.0.2")
    before, dropped = shown(), beside(instance)
    with Traffic(instance.a, instance.b) as traffic:
        for _ in range(3):
            instance.write(a={**mtu, "offloads": none})
            out = vnic(instance.environment, "apply", str(instance.file))
            assert "made again" not in out or instance.kind not in MADE
            changed = instance.nic("a")
            assert changed["offloads"] == [] and changed["mtu"] == (1400 if mtu else 1500)
            if instance.kind in MADE:
                assert shown() == (before[0], 1400, False)
            vnic(instance.environment, "undo")
            assert instance.nic("a")["mtu"] == 1500 and set(instance.nic("a")["offloads"]) >= {"csum", "tso4"}
            assert shown() == before
    if instance.kind in MADE:
        assert 0 <= traffic.lost <= traffic.refused + beside(instance) - dropped
    assert int(traffic.exchanged[0]) > 100
    vnic(instance.environment, "apply", str(instance.file))
    now = shown()
    vnic(instance.environment, "upgrade")
    kill_worker(instance.environment)
    ping(instance.a, "10.99.0.2")
    assert shown() == now and instance.nic("a")["offloads"] == [] and instance.nic("a")["mtu"] == (1400 if mtu else 1500)
    instance.a.run("ping", "-c", "1", "-M", "do", "-s", "1372", "10.99.0.2")
    if mtu:  # what comes for it and is longer is dropped by vnic, and counted
        instance.b.run("ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1452", "10.99.0.1", check=False)
        stats = json.loads(vnic(instance.environment, "stats", "--json"))
        [tx] = [each for engine in stats["engines"] for each in engine["elements"] if each["name"] == "a.tx"]
        assert tx["dropped"]["too_long"] == 1


@pytest.mark.parametrize("instance", MADE, indirect=True)
def test_a_nic_becomes_one_of_another_kind(instance):
    other = next(kind for kind in MADE if kind != instance.kind)
    instance.write(a={"kind": other})
    out = vnic(instance.environment, "apply", str(instance.file))
    assert out.startswith(f"~ nic a  kind: {instance.kind} -> {other} (its interface is removed and made again)\n")
    assert instance.nic("a")["kind"] == other
    ping(instance.a, "10.99.0.2")
    vnic(instance.environment, "upgrade")
    ping(instance.a, "10.99.0.2")


def test_a_nic_goes_with_its_container(instance, monkeypatch):
    monkeypatch.setenv("VNIC_RUNTIME_DIR", instance.environment["VNIC_RUNTIME_DIR"])
    with Client() as client, Container() as c:
        events = client.stream("Monitor")
        words = ["attach", instance.kind, "c", "--pid", str(c.pid), "--interface", "eth0"]
        if instance.kind in MADE:
            words += ["--address", "10.99.0.3/24"]
        else:
            c.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        vnic(instance.environment, *words)
        assert next(events)["event"].items() >= {"event": "attached", "nic": "c"}.items()
        if instance.kind in MADE:
            ping(c, "10.99.0.1")
        c.close()
        event = next(events)["event"]
        assert event["event"] == "detached" and event["nic"] == "c" and event["why"]
    assert [nic["name"] for nic in status(instance.environment)["nics"]] == ["a", "b"]


def test_an_interface_that_is_deleted_inside_is_detached(instance, monkeypatch):
    monkeypatch.setenv("VNIC_RUNTIME_DIR", instance.environment["VNIC_RUNTIME_DIR"])
    with Client() as client:
        events = client.stream("Monitor")
        vnic(instance.environment, "rate", "b", "--egress", "none")  # the listener is there once it hears of this
        assert next(events)["event"]["event"] == "rate"
        instance.place["a"].run("ip", "link", "del", instance.interfaces["a"])
        event = next(events)["event"]
        assert (event["event"], event["nic"]) == ("detached", "a")
    assert [nic["name"] for nic in status(instance.environment)["nics"]] == ["b"]


def test_detach_and_attach_leave_one_interface(instance):
    for _ in range(3):
        vnic(instance.environment, "detach", "a")
        assert instance.a.interfaces() == ([] if instance.kind in MADE else ["eth0"])
        words = ["--pid", str(instance.place["a"].pid), "--interface", instance.interfaces["a"]]
        words += ["--address", "10.99.0.1/24"] if instance.kind in MADE else []
        vnic(instance.environment, "attach", instance.kind, "a", *words)
        ping(instance.a, "10.99.0.2")


@pytest.mark.parametrize("instance", MADE, indirect=True)
def test_a_taken_name_is_refused_in_one_line(instance):
    words = [*VNIC, "attach", instance.kind, "c", "--pid", str(instance.a.pid), "--interface", "eth0"]
    done = subprocess.run(words, env=instance.environment, cwd=TREE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "the name is taken in that network namespace" in done.stderr
    assert done.stderr.count("\n") == 1
    ping(instance.a, "10.99.0.2")
