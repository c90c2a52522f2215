"""NICs are detached with their containers, with a reason, and attached again when a named namespace
returns."""

import json
import os
import subprocess
from contextlib import contextmanager, suppress

import pytest

from tests.support import plain_user
from tests.support.containers import Container
from tests.test_command import TREE, VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_handlers_traffic import until
from tests.test_supervisor import conserved, kill_worker, status
from vnic.api.client import Client

pytestmark = pytest.mark.commands


class Linked:
    """A container whose network namespace has a name: a symbolic link, as container runtimes create
    it."""

    def __init__(self, directory):
        self.path = directory / "names" / "web"

    def begin(self):
        self.box = Container()
        self.path.parent.mkdir(exist_ok=True)
        self.path.symlink_to(self.box.netns_path)
        self.command = self.box.command

    def end(self):
        self.box.close()
        self.path.unlink(missing_ok=True)


class Named:
    """A namespace created by `ip netns add`."""

    def __init__(self, directory):
        self.name = f"vnic-watching-{os.getpid()}"
        self.path = f"/run/netns/{self.name}"

    def begin(self):
        subprocess.run(["ip", "netns", "add", self.name], check=True)

    def end(self):
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def command(self, argv):
        return ["ip", "netns", "exec", self.name, *argv]


@contextmanager
def running(env, directory, nics, *options, **other):
    file = directory / "net.yaml"
    file.write_text(json.dumps({"nics": nics, **other}))
    said = vnic(env, "up", "-d", *options, str(file))
    try:
        yield said
        assert conserved(env)
    finally:
        with suppress(AssertionError):
            vnic(env, "down")


def names(env):
    return [nic["name"] for nic in status(env)["nics"]]


def web_and_b(web, b):
    """NICs of a namespace that may return, and of a container."""
    return {
        "web": {"netns": str(web.path), "interface": "eth0", "addresses": ["10.99.0.1/24"]},
        "b": {"pid": b.pid, "interface": "eth0", "addresses": ["10.99.0.2/24"]},
    }


def waiting(env):
    return {each["name"]: each["why"] for each in status(env)["waiting"]}


def log_of(directory):
    return (directory / "default.log").read_text()


@pytest.mark.parametrize("kind", [Linked, pytest.param(Named, marks=pytest.mark.root)])
def test_a_nic_comes_back_with_its_namespace(environment, tmp_path, leak_check, monkeypatch, kind):  # noqa: F811
    monkeypatch.setenv("VNIC_RUNTIME_DIR", environment["VNIC_RUNTIME_DIR"])
    web = kind(tmp_path)
    web.begin()
    try:
        with Container() as b:
            nics = web_and_b(web, b)
            with running(environment, tmp_path, nics), Client() as client:
                events = client.stream("Monitor")
                vnic(environment, "rate", "web", "--egress", "30mbit")
                before = next(nic for nic in status(environment)["nics"] if nic["name"] == "web")
                for change in ("nothing", "crash", "upgrade"):
                    web.end()
                    if change == "nothing":
                        while (event := next(events)["event"])["event"] != "detached":
                            pass
                        assert event["nic"] == "web" and event["waits"] is True
                        assert event["why"].startswith(("its container ended", "its network namespace")), event
                        assert f'detached nic=web why="{event["why"]}"' in log_of(tmp_path)
                    until(lambda: names(environment) == ["b"])
                    assert list(waiting(environment)) == ["web"]
                    assert "WAITING: nic web: its " in vnic(environment, "status")
                    assert "waits for a network namespace at" in vnic(environment, "rate", "web", "--egress", "1mbit", status=2)
                    if change == "crash":
                        kill_worker(environment)
                    if change == "upgrade":
                        vnic(environment, "upgrade")
                    assert list(waiting(environment)) == ["web"] and names(environment) == ["b"]
                    web.begin()
                    until(lambda: "web" in names(environment))
                    assert waiting(environment) == {}
                    after = next(nic for nic in status(environment)["nics"] if nic["name"] == "web")
                    kept = ("number", "engine", "interface", "mac", "mtu", "queues", "link", "egress_bps")
                    assert [after[key] for key in kept] == [before[key] for key in kept]
                    ping(b, "10.99.0.1")
                web.end()
                until(lambda: list(waiting(environment)) == ["web"])
                vnic(environment, "detach", "web")
                assert waiting(environment) == {} and names(environment) == ["b"]
                web.begin()
                vnic(environment, "upgrade")
                assert names(environment) == ["b"]
    finally:
        web.end()


def test_a_nic_that_waits_can_be_attached_elsewhere(environment, tmp_path, leak_check):  # noqa: F811
    web = Linked(tmp_path)
    web.begin()
    try:
        with Container() as b, running(environment, tmp_path, {"web": {"netns": str(web.path), "interface": "eth0"}}):
            number = status(environment)["nics"][0]["number"]
            web.end()
            until(lambda: list(waiting(environment)) == ["web"])
            assert "no such process" in vnic(environment, "attach", "tap", "web", "--pid", str(web.box.pid), status=2)
            assert list(waiting(environment)) == ["web"]
            vnic(environment, "attach", "tap", "web", "--pid", str(b.pid), "--interface", "eth0")
            assert waiting(environment) == {} and status(environment)["nics"][0]["number"] == number
            assert b.interfaces() == ["eth0"]
    finally:
        web.end()


def test_a_process_s_nic_leaves_its_name_free(environment, tmp_path, leak_check):  # noqa: F811
    """So that the restarted container can be attached again."""
    with Container() as b:
        a = Container()
        nics = {"a": {"pid": a.pid, "interface": "eth0"}, "b": {"pid": b.pid, "interface": "eth0"}}
        with running(environment, tmp_path, nics):
            a.close()
            until(lambda: names(environment) == ["b"])
            assert f'INFO detached nic=a why="its container ended (process {a.pid})"' in log_of(tmp_path)
            assert waiting(environment) == {}
            with Container() as again:
                vnic(environment, "attach", "tap", "a", "--pid", str(again.pid), "--interface", "eth0")
                assert again.interfaces() == ["eth0"]
                vnic(environment, "detach", "a")
                assert 'INFO detached nic=a why="detached by user ' in log_of(tmp_path)


def test_an_interface_that_its_container_deletes(environment, tmp_path, leak_check):  # noqa: F811
    """The NIC is detached, as if its namespace were gone, but not attached again, since the
    namespace still has its name. Other changes have no effect."""
    web = Linked(tmp_path)
    web.begin()
    try:
        with Container() as b:
            nics = web_and_b(web, b)
            with running(environment, tmp_path, nics):
                for box, name in ((web.box, "web"), (b, "b")):
                    for _ in range(20):
                        box.run("ip", "link", "set", "eth0", "down")
                        box.run("ip", "link", "set", "eth0", "up")
                    ping(web.box, "10.99.0.2")
                    box.run("ip", "link", "del", "eth0")
                    until(lambda name=name: name not in names(environment))
                    says = f'INFO detached nic={name} why="its interface eth0 was deleted inside its container"'
                    assert says in log_of(tmp_path)
                    assert waiting(environment) == {}
                    vnic(environment, "attach", "tap", name, "--pid", str(box.pid), "--interface", "eth0",
                         "--address", f"10.99.0.{1 + (box is b)}/24")  # fmt: skip
                    ping(web.box, "10.99.0.2")
                # Without a worker: the next one detects it.
                web.box.run("ip", "link", "del", "eth0")
                kill_worker(environment)
                until(lambda: names(environment) == ["b"])
    finally:
        web.end()


def test_what_cannot_be_attached_is_named(environment, tmp_path, leak_check):  # noqa: F811
    """By NIC, file and line; nothing comes up, unless with --partial."""
    web = Linked(tmp_path)
    web.path.parent.mkdir()
    with Container() as b:
        file = tmp_path / "net.yaml"
        file.write_text(
            f"nics:\n  b: {{pid: {b.pid}, interface: eth0}}\n  web:\n    netns: {web.path}\n    interface: eth0\n"
            "  gone: {pid: 4194303, interface: eth0}\n"
        )
        says = vnic(environment, "up", "-d", str(file), status=2)
        assert f"nic web ({file}:3): netns {web.path}: no such file" in says
        assert b.interfaces() == []
        up = subprocess.run(
            [*VNIC, "up", "-d", "--partial", str(file)], env=environment, cwd=TREE, capture_output=True, text=True
        )
        try:
            assert up.returncode == 0
            assert up.stderr.splitlines() == [
                f"vnic: nic web waits: netns {web.path}: no such file; `ip netns list` shows the names there are",
                "vnic: nic gone is not attached: pid 4194303: no such process; give the pid of a process that runs in the container",
            ]
            assert names(environment) == ["b"] and b.interfaces() == ["eth0"]
            assert list(waiting(environment)) == ["web"]
            assert [each["what"] for each in status(environment)["lost"]] == ["nic gone"]
            web.begin()
            until(lambda: sorted(names(environment)) == ["b", "web"])
            assert conserved(environment)
        finally:
            vnic(environment, "down")
            web.end()


def test_a_nic_takes_its_descriptors_along(environment, tmp_path, leak_check, monkeypatch):  # noqa: F811
    """At once, not by Python's cycle collector, since the limit of open files may be low."""
    monkeypatch.setenv("VNIC_RUNTIME_DIR", environment["VNIC_RUNTIME_DIR"])
    with Container() as a, running(environment, tmp_path, {}, engines=2), Client() as client:
        counts = []
        for _ in range(4):
            nic = {"pid": a.pid, "interface": "eth0", "queues": 2}
            client.call("Attach", name="a", nic=nic)
            client.call("Detach", name="a")
            counts.append(len(os.listdir(f"/proc/{client.call('Status')['status']['pid']}/fd")))
        assert len(set(counts)) == 1, counts


@pytest.mark.again
@pytest.mark.root
@pytest.mark.timeout(960)
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_watching.py", timeout_s=880)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
