"""A worker that comes up after a crash or for an upgrade and finds an error: existing NICs stay,
and the error is reported."""

import json
import os
import select
import signal
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from dataplane.errors import VnicError
from tests.support.containers import Container
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_handlers_runtime import Running
from tests.test_metrics import get, port  # noqa: F401 - a fixture
from tests.test_supervisor import ECHO, TALK, conserved, inside, kill_worker, status
from tests.test_upgrade import an_engine_each, entries
from tests.test_upgrade_faults import faulty  # noqa: F401 - a fixture
from vnic.api.client import Client
from vnic.config.load import parse_config
from vnic.modules.engine_host import EngineHost

pytestmark = pytest.mark.commands

# Fails at the step named in a file in the configuration's directory.
FRAGILE = """
import os
from dataplane.graph.element import PyElement
from vnic.api.method import Method
from vnic.modules.module import Module
from vnic.modules.engine_host import EngineHost

class Fragile(Module):
    interface = "org.example.Fragile"

    def __init__(self, runtime):
        super().__init__(runtime)
        runtime.add_engine("fragile", make=EngineHost)
        self.step("construct")

    def methods(self):
        self.step("methods")
        return [Method("Nothing", lambda parameters, caller: {})]

    def start(self):
        self.step("start")

    def status(self):
        return {"fragile": True}

    def step(self, name):
        if os.path.exists(os.path.join(self.runtime.config.directory, name)):
            raise RuntimeError(f"broken at {name}")

class Part(PyElement):
    def __init__(self, *, name=None):
        if os.path.exists(os.path.join(os.path.dirname(__file__), "part")):
            raise RuntimeError("broken at part")

    def process(self, batch):
        pass

class Deadly(Part):
    def __init__(self, *, name=None):
        os._exit(9)
"""


@pytest.fixture
def running(environment, tmp_path, leak_check, port):  # noqa: F811
    """Containers a and b on two engines, a module that may fail, and metrics."""
    with Container() as a, Container() as b:
        nics = an_engine_each(a=a, b=b)
        nics["b"]["egress"] = {"elements": ["fragile:Part"]}
        (tmp_path / "fragile.py").write_text(FRAGILE)
        config = {"engines": 2, "nics": nics, "modules": ["fragile:Fragile"], "metrics": {"listen": f"127.0.0.1:{port}"}}
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            yield a, b
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


@contextmanager
def conversation(a, b, address="10.99.0.2"):
    """A TCP connection from a to b; it and the interfaces must stay."""
    links = [box.run("ip", "-o", "link", "show", "eth0").split(":")[0] for box in (a, b)]
    with inside(b, ECHO.replace("10.99.0.2", address)) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            with inside(a, TALK.replace("10.99.0.2", address)) as client:
                try:
                    assert client.stdout.readline() == "connected\n"
                    yield
                    out, _ = client.communicate(input="\n", timeout=120)
                finally:
                    client.kill()
        finally:
            server.kill()
    # The number of replies depends on TCP: each retransmission without a worker doubles the
    # timeout.
    assert client.returncode == 0 and int(out.split()[0]) > 0
    assert [box.run("ip", "-o", "link", "show", "eth0").split(":")[0] for box in (a, b)] == links


def killed_meanwhile(env, work):
    """Kills the worker, calls `work` before the supervisor starts the next one, returns that one's
    status."""
    before = status(env)
    supervisor = before["supervisor"]["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        ended = os.pidfd_open(before["pid"])
        os.kill(before["pid"], signal.SIGKILL)
        select.select([ended], [], [])
        os.close(ended)
        result = work()
    finally:
        os.kill(supervisor, signal.SIGCONT)
    while (after := status(env))["pid"] == before["pid"]:
        pass
    assert after["supervisor"]["restarts"] == before["supervisor"]["restarts"] + 1
    return after, result


def test_a_port_that_somebody_took_meanwhile_costs_the_metrics_alone(environment, running, tmp_path, port):  # noqa: F811
    a, b = running
    assert "vnic_conserved 1.0" in get(port)
    with conversation(a, b):
        found, squatter = killed_meanwhile(environment, lambda: socket.create_server(("127.0.0.1", port)))
        with squatter:
            (lost,) = found["lost"]
            assert lost["what"] == "metrics" and f"127.0.0.1:{port}" in lost["why"] and "already in use" in lost["why"]
            assert f"LOST: metrics: 127.0.0.1:{port}" in vnic(environment, "status")
            ping(b, "10.99.0.1")
        vnic(environment, "upgrade")
        assert status(environment)["lost"] == [] and "vnic_conserved 1.0" in get(port)
    assert 'ERROR lost what=metrics why="' in (tmp_path / "default.log").read_text()
    assert status(environment)["conserved"]


@pytest.mark.parametrize("step", ["construct", "start", "methods"])
def test_after_a_crash_the_network_goes_on_without_a_module_that_fails(environment, running, tmp_path, step):  # noqa: F811
    a, b = running
    assert status(environment)["fragile"]
    with conversation(a, b):
        (tmp_path / step).touch()
        for work in (lambda: kill_worker(environment), lambda: vnic(environment, "upgrade"), lambda: kill_worker(environment)):
            work()  # the first worker detects it, later ones have it stored
            found = status(environment)
            (lost,) = found["lost"]
            assert lost["what"] == "module fragile:Fragile" and f"broken at {step}" in lost["why"]
            assert "fragile" not in found and [each["name"] for each in found["engines"]] == ["e0", "e1"]
            ping(b, "10.99.0.1")
    assert status(environment)["conserved"]


def test_after_a_crash_the_others_go_on_without_a_nic_that_cannot_be_attached(environment, running, tmp_path):  # noqa: F811
    a, b = running
    with Container() as c:
        vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24")
        ping(a, "10.99.0.2")
        assert "b" in {nic for _, nic in entries(environment)}
        with conversation(a, c, "10.99.0.3"):
            (tmp_path / "part").touch()
            (lost,) = kill_worker(environment)["lost"]
            assert lost["what"] == "nic b" and "broken at part" in lost["why"]
            assert b.interfaces() == []  # no worker would serve it
            learned = json.loads(vnic(environment, "status", "--json"))["switch"]["entries"]
            assert {entry["nic"] for entry in learned} <= {"a", "c"}
            (tmp_path / "part").unlink()
            vnic(environment, "attach", "tap", "b", "--pid", str(b.pid), "--interface", "eth0", "--address", "10.99.0.2/24")
            assert status(environment)["lost"] == []
            ping(a, "10.99.0.2")
            assert kill_worker(environment)["lost"] == []


def test_a_nic_that_a_worker_died_attaching_is_not_there(environment, running, tmp_path, monkeypatch):  # noqa: F811
    """The supervisor has its TAP, but the configuration does not have the NIC."""
    monkeypatch.setenv("VNIC_RUNTIME_DIR", environment["VNIC_RUNTIME_DIR"])
    before = status(environment)["pid"]
    with Container() as c:
        nic = {"pid": c.pid, "interface": "eth0", "egress": {"elements": ["fragile:Deadly"]}}
        with Client() as client, pytest.raises(VnicError):
            client.call("Attach", name="c", nic=nic)
        while (found := status(environment))["pid"] == before:
            pass
        assert [nic["name"] for nic in found["nics"]] == ["a", "b"] and found["lost"] == []
        assert c.interfaces() == []
        vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24")
        ping(c, "10.99.0.2")


@pytest.mark.parametrize("step", ["construct", "part", "start", "methods"])
def test_a_new_worker_whose_part_fails_leaves_everything_as_it_was(environment, running, tmp_path, step):  # noqa: F811
    a, b = running
    ping(a, "10.99.0.2")
    with conversation(a, b):
        before, learned = status(environment), entries(environment)
        assert len(learned) == 2
        (tmp_path / step).touch()
        assert f"broken at {step}" in vnic(environment, "upgrade", status=1)
        (tmp_path / step).unlink()
        after = status(environment)
        assert after["pid"] == before["pid"] and after["supervisor"]["restarts"] == 0 and after["lost"] == []
        assert entries(environment) == learned
        ping(a, "10.99.0.2")
        vnic(environment, "upgrade")
        assert entries(environment) == learned and status(environment)["fragile"]
    after = status(environment)
    assert after["conserved"] and after["pool"]["in_use"] == sum(engine["held"] for engine in after["engines"])


def test_a_new_worker_that_fails_once_it_has_everything_is_a_crash(environment, running, faulty):  # noqa: F811
    a, b = running
    with conversation(a, b):
        vnic(environment, "upgrade", "--python", faulty("serve", "raises"))
        while (found := status(environment))["supervisor"]["restarts"] < 1:
            pass
        assert found["lost"] == [] and found["fragile"]
        ping(b, "10.99.0.1")
    assert status(environment)["conserved"]


@pytest.mark.parametrize("taken", [False, True])
def test_the_first_worker_comes_up_with_everything_or_not_at_all(environment, tmp_path, leak_check, port, taken):  # noqa: F811
    with Container() as a:
        nics = {"a": {"pid": a.pid, "interface": "eth0"}}
        (tmp_path / "fragile.py").write_text(FRAGILE)
        config = {"nics": nics, "modules": ["fragile:Fragile"], "metrics": {"listen": f"127.0.0.1:{port}"}}
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        if taken:
            with socket.create_server(("127.0.0.1", port)):
                assert "in use; choose another place" in vnic(environment, "up", "-d", str(tmp_path / "net.yaml"), status=1)
        else:
            (tmp_path / "start").touch()
            said = vnic(environment, "up", "-d", str(tmp_path / "net.yaml"), status=1)
            assert "module fragile:Fragile: does not start: unexpected RuntimeError: broken at start" in said
        assert a.interfaces() == []


def test_engines_load_once_however_many_nics(monkeypatch):
    """Once at the start and at most twice at the end, since a load visits every element of its
    engine."""
    loads = []
    load = EngineHost.load

    def counted(self, *arguments, **named):
        if self._pending is None:
            loads.append(self.engine.name)
        load(self, *arguments, **named)

    monkeypatch.setattr(EngineHost, "load", counted)
    network = {"engines": 2, "nics": {f"n{number}": {} for number in range(50)}}
    running = Running(parse_config(json.dumps(network), contained=False))
    assert sorted(loads) == ["e0", "e1"]
    assert {element.name for element in running.runtime.engines[0].elements} >= {"n0.rx", "n1.ring.tx", "n49.ring.tx"}
    loads.clear()
    running.close()
    assert len(loads) <= 4


BROKEN = {"ingress": {"elements": [{"element": "Mirror", "file": "/nowhere/at/all"}]}}


@pytest.mark.parametrize("how", ["partial", "crash"])
def test_a_nic_whose_elements_fail_costs_no_other(how):
    """Although each engine loads once for all NICs."""
    network = {
        "engines": 2,
        "nics": {"a": {"engine": 0}, "b": {"engine": 0, **BROKEN}, "c": {"engine": 1}},
    }
    given = parse_config(json.dumps(network), contained=False)
    given.partial = how == "partial"
    running = Running(given, role="crash" if how == "crash" else "first")
    assert running.runtime.nics.names() == ["a", "c"]
    assert [lost["what"] for lost in running.runtime.status()["lost"]] == ["nic b"]
    names = {element.name for engine in running.runtime.engines for element in engine.elements}
    assert {"a.rx", "c.rx", "a.ring.tx"} <= names and not any(name.startswith("b.") for name in names)
    running.close()


def test_the_first_worker_says_which_nic_fails_and_leaves_nothing():
    network = {"engines": 2, "nics": {"a": {"engine": 1}, "b": {"engine": 0, **BROKEN}, "c": {}}}
    given = parse_config(json.dumps(network), contained=False)
    with pytest.raises(VnicError, match="^nic b.*/nowhere/at/all"):
        Running(given)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("vnic-")] == []


def test_names_of_elements_that_clash_are_one_nic_s_fault():
    """Also where graphs are loaded together: element rx in b's chain has the name of b.egress'
    source."""
    counter = {"egress": {"elements": [{"element": "Counter", "name": "rx"}]}}
    given = parse_config(json.dumps({"nics": {"b": counter, "b.egress": {}, "c": {}}}), contained=False)
    given.partial = True
    running = Running(given)
    assert running.runtime.nics.names() == ["b", "c"]
    [lost] = running.runtime.status()["lost"]
    assert lost["what"] == "nic b.egress" and "two elements of engine e0 have this name" in lost["why"]
    running.close()
