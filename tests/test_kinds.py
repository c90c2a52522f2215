"""The same tests over every kind of NIC, on a running instance: link, MTU, queues, statistics, changes, upgrade, kill -9, its
container's end."""

import json
import subprocess
from contextlib import suppress

import pytest

from tests.support.containers import Container
from tests.test_command import TREE, VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker, status
from tests.test_upgrade import Traffic
from vnic.api.client import Client

KINDS = ("tap", "veth")


class Instance:
    """An instance with containers a and b, whose NICs are of one kind."""

    def __init__(self, environment, directory, kind, a, b):  # noqa: F811
        self.environment, self.kind, self.a, self.b = environment, kind, a, b
        self.file = directory / "net.yaml"
        self.nics = {
            name: {"pid": box.pid, "kind": kind, "interface": "eth0", "addresses": [f"10.99.0.{number}/24"], "queues": 2}
            for number, (name, box) in enumerate((("a", a), ("b", b)), 1)
        }
        self.write()

    def write(self, **changes):
        nics = {name: {**nic, **changes.get(name, {})} for name, nic in self.nics.items()}
        self.file.write_text(json.dumps({"engines": 2, "nics": nics}))

    def nic(self, name):
        return next(nic for nic in status(self.environment)["nics"] if nic["name"] == name)


@pytest.fixture(params=KINDS)
def instance(request, environment, tmp_path, leak_check):  # noqa: F811
    with Container() as a, Container() as b:
        made = Instance(environment, tmp_path, request.param, a, b)
        vnic(environment, "up", "-d", str(made.file))
        try:
            yield made
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")
        assert a.interfaces() == b.interfaces() == []


def test_status_says_the_kind(instance):
    nic = instance.nic("a")
    assert (nic["kind"], nic["interface"], nic["queues"], nic["mtu"]) == (instance.kind, "eth0", 2, 1500)
    assert set(nic["offloads"]) >= {"csum", "tso4", "tso6"}
    ping(instance.a, "10.99.0.2")


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


def test_traffic_goes_on_through_upgrades(instance):
    ping(instance.a, "10.99.0.2")
    with Traffic(instance.a, instance.b) as traffic:
        for _ in range(3):
            report = json.loads(vnic(instance.environment, "upgrade", "--json"))
            assert report["packets_lost"] == 0
    assert 0 <= traffic.lost <= traffic.refused and traffic.sent > 1000
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


def test_what_changes_in_place_and_what_is_made_again(instance):
    ping(instance.a, "10.99.0.2")
    for box in (instance.a, instance.b):
        box.run("ip", "address", "add", "10.98.0.1/24", "dev", "eth0")  # as long as this interface is there
    instance.write(a={"egress": {"rate": "50mbit", "elements": ["Counter"]}}, b={"mtu": 9000})
    vnic(instance.environment, "apply", str(instance.file))
    assert ["10.98.0.1" in box.run("ip", "-4", "address") for box in (instance.a, instance.b)] == [True, False]
    assert "mtu 9000" in instance.b.run("ip", "link", "show", "eth0")
    ping(instance.a, "10.99.0.2")
    vnic(instance.environment, "undo")
    ping(instance.a, "10.99.0.2")


def test_a_nic_becomes_one_of_another_kind(instance):
    other = next(kind for kind in KINDS if kind != instance.kind)
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
        words = ["attach", instance.kind, "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24"]
        vnic(instance.environment, *words)
        assert next(events)["event"].items() >= {"event": "attached", "nic": "c"}.items()
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
        instance.a.run("ip", "link", "del", "eth0")
        event = next(events)["event"]
        assert (event["event"], event["nic"]) == ("detached", "a")
    assert [nic["name"] for nic in status(instance.environment)["nics"]] == ["b"]


def test_detach_and_attach_leave_one_interface(instance):
    for _ in range(3):
        vnic(instance.environment, "detach", "a")
        assert instance.a.interfaces() == []
        words = ["--pid", str(instance.a.pid), "--interface", "eth0", "--address", "10.99.0.1/24"]
        vnic(instance.environment, "attach", instance.kind, "a", *words)
        ping(instance.a, "10.99.0.2")


def test_a_taken_name_is_refused_in_one_line(instance):
    words = [*VNIC, "attach", instance.kind, "c", "--pid", str(instance.a.pid), "--interface", "eth0"]
    done = subprocess.run(words, env=instance.environment, cwd=TREE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "the name is taken in that network namespace" in done.stderr
    assert done.stderr.count("\n") == 1
    ping(instance.a, "10.99.0.2")
