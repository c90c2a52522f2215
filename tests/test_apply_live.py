"""`vnic apply` on a running instance: traffic goes on, a failure leaves the old network, a crash the old or the new one."""

import json
import os
import signal
import subprocess
from contextlib import suppress

import pytest

from tests.support.containers import Container
from tests.test_command import TREE, VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker, status
from tests.test_upgrade import Traffic, an_engine_each, entries

# Ends its worker, or the supervisor, the first time that an engine takes it.
DEADLY = """
import os, signal
from dataplane.elements.counter import Counter

class Dies(Counter):
    def __init__(self, once, whom="worker", *, name=None):
        super().__init__(name=name)
        self.once, self.whom = once, whom
    def cleanup(self):
        if self.whom == "leaving" and os.path.exists(self.once):
            os.unlink(self.once)
            os.kill(os.getpid(), signal.SIGKILL)
    def initialize(self):
        if self.whom != "leaving" and os.path.exists(self.once):
            os.unlink(self.once)
            os.kill(os.getpid() if self.whom == "worker" else os.getppid(), signal.SIGKILL)
            if self.whom != "worker":
                signal.pause()
"""


class Network:
    """A running instance, the file that describes it, and its containers a and b."""

    def __init__(self, environment, directory, a, b):  # noqa: F811
        self.environment, self.a, self.b = environment, a, b
        self.file = directory / "net.yaml"
        self.first = {"engines": 2, "nics": an_engine_each(a=a, b=b)}
        self.write(self.first)

    def write(self, config):
        self.file.write_text(json.dumps(config))

    def changed(self, **nics):
        """The first network with other settings of NICs."""
        old = self.first["nics"]
        return {**self.first, "nics": {**old, **{name: {**old.get(name, {}), **settings} for name, settings in nics.items()}}}

    def apply(self, config, *, code=0):
        self.write(config)
        return vnic(self.environment, "apply", str(self.file), status=code)

    def shown(self):
        return json.loads(vnic(self.environment, "config", "show", "--json"))


@pytest.fixture
def network(environment, tmp_path, leak_check):  # noqa: F811
    with Container() as a, Container() as b:
        made = Network(environment, tmp_path, a, b)
        vnic(environment, "up", "-d", str(made.file))
        try:
            yield made
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


def two_switches(network, **link):
    nics = {name: {**nic, "on": on} for (name, nic), on in zip(network.first["nics"].items(), ("lan", "dmz"), strict=True)}
    return {
        **network.first,
        "nodes": {"lan": "switch", "dmz": "switch"},
        "links": [{"link": "lan -- dmz", **link}],
        "nics": nics,
    }


def test_traffic_goes_on(network):
    a, b = network.a, network.b
    ping(a, "10.99.0.2")
    counter = {"element": "Counter", "name": "seen"}
    with Container() as c:
        changes = [
            network.changed(a={"egress": {"rate": "1gbit"}}),
            network.changed(a={"egress": {"elements": [counter]}}, b={"ingress": {"elements": [counter, "Counter"]}}),
            network.changed(a={"vlan": {"access": 10}}, b={"vlan": {"access": 10}}),
            network.changed(c={"pid": c.pid, "interface": "eth0", "addresses": ["10.99.0.3/24"]}),
            {**network.changed(b={"malformed": "drop"}), "groups": {"default": {"mode": "compacting"}}},
            two_switches(network),
            two_switches(network, vlan={"untagged": True}, rate="1gbit", elements=[counter]),
            two_switches(network, to={"lan": {"rate": "10gbit"}}, engine=1),
        ]
        with Traffic(a, b) as traffic:
            before = network.shown()
            for change in changes:
                assert "changes in" in (said := network.apply(change)) or "1 change in" in said
                assert network.shown() != before
                vnic(network.environment, "undo")
                assert network.shown() == before
            for change in changes:  # and from each to the next
                network.apply(change)
            network.apply(network.first)
    # Frames on a link that is taken out go with it, and are counted.
    dropped = sum(engine["dropped"] for engine in status(network.environment)["engines"])
    assert 0 <= traffic.lost <= traffic.refused + dropped and dropped < 50 and traffic.sent > 1000
    assert int(traffic.exchanged[0]) > 100
    ping(a, "10.99.0.2")


def test_only_the_interface_that_must_be_is_made_again(network):
    for box in (network.a, network.b):
        box.run("ip", "address", "add", "10.98.0.1/24", "dev", "eth0")  # as long as this interface is there
    out = network.apply(network.changed(a={"egress": {"rate": "5mbit"}}, b={"addresses": ["10.99.0.2/24", "10.97.0.1/24"]}))
    assert "~ nic a  egress.rate: none -> 5mbit\n" in out
    assert "~ nic b  addresses: " in out and " (its interface is removed and made again)\n" in out
    assert ["10.98.0.1" in box.run("ip", "-4", "address") for box in (network.a, network.b)] == [True, False]
    ping(network.a, "10.99.0.2")
    diff = vnic(network.environment, "config", "diff", str(network.file))
    assert diff == ""
    network.write(network.first)
    words = [*VNIC, "config", "diff", str(network.file)]
    diff = subprocess.run(words, env=network.environment, cwd=TREE, capture_output=True, text=True, timeout=120)
    assert (diff.returncode, diff.stderr) == (1, "")
    first, second = diff.stdout.splitlines()
    assert first == "~ nic a  egress.rate: 5mbit -> none"
    assert second.startswith("~ nic b  addresses: ") and second.endswith(" (its interface is removed and made again)")


def test_a_nic_may_take_the_place_of_another(network):
    nics = dict(network.first["nics"])
    nics["renamed"] = nics.pop("b")
    out = network.apply({**network.first, "nics": nics})
    assert out.splitlines()[:2] == ["- nic b", "+ nic renamed"]
    ping(network.a, "10.99.0.2")


def test_a_failure_half_way_leaves_the_old_network(network):
    before, graph = network.shown(), sorted(vnic(network.environment, "graph", "--elements").splitlines())
    bad = network.changed(
        a={"egress": {"rate": "5mbit", "elements": ["Counter"]}},
        b={"mtu": 9000, "addresses": ["10.99.0.2/24"]},
        c={"netns": str(network.file.parent / "nowhere"), "addresses": ["10.99.0.9/24"]},
    )
    assert "nowhere" in network.apply(bad, code=2)
    bad["nics"]["c"] = {"pid": network.a.pid, "interface": "eth0"}  # it has an eth0
    network.apply(bad, code=2)
    assert network.shown() == before
    assert sorted(vnic(network.environment, "graph", "--elements").splitlines()) == graph
    assert network.a.interfaces() == network.b.interfaces() == ["eth0"]
    ping(network.a, "10.99.0.2")


@pytest.mark.parametrize(("nic", "then"), [("c", "old"), ("a", "new")])
def test_a_worker_that_dies_in_the_middle_leaves_the_old_or_the_new_network(network, nic, then):
    """Until the new network is stored, the next worker begins with the old one, and with the new one from then on."""
    (network.file.parent / "deadly.py").write_text(DEADLY)
    once = network.file.parent / "once"
    ping(network.a, "10.99.0.2")
    learned, old = entries(network.environment), network.shown()
    with Container() as c:
        element = {"egress": {"elements": [{"element": "deadly:Dies", "once": str(once)}]}}
        nics = {"c": {"pid": c.pid, "interface": "eth0", "addresses": ["10.99.0.3/24"]}, "b": {"egress": {"rate": "5mbit"}}}
        wanted = network.changed(**{**nics, nic: {**nics.get(nic, {}), **element}})
        once.touch()
        network.apply(wanted, code=1)
        while status(network.environment)["supervisor"]["restarts"] == 0:
            pass
        names = [each["name"] for each in status(network.environment)["nics"]]
        shown = network.shown()
        assert not once.exists()
        if then == "old":
            assert shown == old and names == ["a", "b"] and c.interfaces() == []
        else:
            assert shown["nics"]["b"]["egress"]["rate"] == "5mbit" and names == ["a", "b", "c"] and c.interfaces() == ["eth0"]
            ping(c, "10.99.0.1")
        ping(network.a, "10.99.0.2")
        assert learned <= entries(network.environment)
        assert "restarts" not in network.apply(network.first)
        assert network.shown()["nics"] == old["nics"]


def test_a_worker_that_dies_before_an_interface_is_made_again(network):
    """The new network is stored, the old interface still there: the next worker makes it again."""
    (network.file.parent / "deadly.py").write_text(DEADLY)
    once = network.file.parent / "once"
    element = {"element": "deadly:Dies", "once": str(once), "whom": "leaving"}
    network.apply(network.changed(a={"egress": {"elements": [element]}}))
    network.a.run("ip", "address", "add", "10.98.0.1/24", "dev", "eth0")  # as long as this interface is there
    once.touch()
    network.apply(network.changed(a={"addresses": ["10.99.0.1/24", "10.97.0.1/24"]}), code=1)
    while status(network.environment)["supervisor"]["restarts"] == 0:
        pass
    assert not once.exists()
    assert "10.97.0.1" in network.a.run("ip", "-4", "address")
    assert "10.98.0.1" not in network.a.run("ip", "-4", "address")
    assert network.shown()["nics"]["a"]["addresses"] == ["10.99.0.1/24", "10.97.0.1/24"]
    ping(network.a, "10.99.0.2")


def test_a_supervisor_that_dies_in_the_middle_leaves_nothing(network):
    (network.file.parent / "deadly.py").write_text(DEADLY)
    once = network.file.parent / "once"
    once.touch()
    element = {"element": "deadly:Dies", "once": str(once), "whom": "supervisor"}
    worker = status(network.environment)["pid"]
    network.apply(network.changed(a={"egress": {"elements": [element]}}), code=1)
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(worker)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
    while network.a.interfaces() or network.b.interfaces():
        pass
    network.write(network.first)
    vnic(network.environment, "up", "-d", str(network.file))
    ping(network.a, "10.99.0.2")


def test_links_survive_a_crash_and_an_upgrade(network):
    network.apply(two_switches(network, rate="50mbit", elements=[{"element": "Counter", "name": "seen"}]))
    vnic(network.environment, "handler", "lan--dmz.dmz.rate", "rate", "20mbit")
    ping(network.a, "10.99.0.2")
    shown, learned = network.shown(), entries(network.environment)
    [link] = shown["links"]
    assert link["to"]["dmz"]["rate"] == "20mbit" and link["to"]["lan"]["rate"] == "50mbit"
    with Traffic(network.a, network.b) as traffic:
        report = json.loads(vnic(network.environment, "upgrade", "--json"))
        assert report["packets_lost"] == 0
    assert 0 <= traffic.lost <= traffic.refused
    assert network.shown() == shown and learned <= entries(network.environment)
    kill_worker(network.environment)
    assert network.shown() == shown and learned <= entries(network.environment)
    ping(network.a, "10.99.0.2")
    vnic(network.environment, "undo")  # the supervisor has kept the network before
    assert "links" not in network.shown()
    ping(network.a, "10.99.0.2")
    assert "nothing to undo" in vnic(network.environment, "undo", status=2)


def test_upgrades_follow_changes(network):
    """Whatever has come and gone: a new worker builds the same graph."""
    for config in (
        two_switches(network, rate="1gbit"),
        two_switches(network),
        network.first,
        network.changed(a={"egress": {"elements": ["Counter", "Counter"]}}),
        two_switches(network, to={"dmz": {"elements": ["Counter"]}}, engine=1),
        network.first,
    ):
        network.apply(config)
        vnic(network.environment, "upgrade")
        ping(network.a, "10.99.0.2")
        assert conserved(network.environment)
