"""The supervisor: a worker that ends is replaced, and containers keep their interfaces and
connections."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dataplane.descriptors import readable
from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container
from tests.test_command import VNIC, environment, gone_within, ping, processes_of, vnic, write_config  # noqa: F401 - a fixture
from vnic.api.interface import BACKLOG
from vnic.daemon.instance import refuse_clients
from vnic.daemon.supervisor import STOP_TIMEOUT_S, Supervisor
from vnic.daemon.worker_process import WorkerProcess

TREE = Path(__file__).parents[1]

ECHO = """
import socket
listener = socket.create_server(("10.99.0.2", 7000))
print("ready", flush=True)
peer, _ = listener.accept()
while data := peer.recv(1 << 16):
    peer.sendall(data)
"""

# Sends numbered lines and expects each back, until stdin closes; prints the number of replies and
# the longest wait.
TALK = """
import select, socket, sys, time
peer = socket.create_connection(("10.99.0.2", 7000))
file, number, longest = peer.makefile("rw"), 0, 0.0
print("connected", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    begin = time.monotonic()
    print(number, file=file, flush=True)
    assert file.readline() == f"{number}\\n"
    longest = max(longest, time.monotonic() - begin)
    number += 1
print(number, longest, flush=True)
"""


def status(env):
    return json.loads(vnic(env, "status", "--json"))


def conserved(env):
    """Whether every packet is accounted for, at the end of a test; True if the instance has
    ended."""
    done = subprocess.run([*VNIC, "status", "--json"], env=env, cwd=TREE, capture_output=True, text=True, timeout=240)
    return json.loads(done.stdout)["conserved"] if done.returncode == 0 else "does not run" in done.stderr


def kill_worker(env):
    """Kills the worker; returns the next one's status."""
    before = status(env)
    os.kill(before["pid"], signal.SIGKILL)
    while (after := status(env))["pid"] == before["pid"]:
        pass
    assert after["supervisor"]["pid"] == before["supervisor"]["pid"]
    assert after["supervisor"]["restarts"] == before["supervisor"]["restarts"] + 1
    assert after["supervisor"]["last"] == "killed by SIGKILL"
    return after


@pytest.fixture
def two(environment, tmp_path, leak_check):  # noqa: F811
    with Container() as a, Container() as b:
        vnic(environment, "up", "-d", write_config(tmp_path / "net.yaml", a=a, b=b))
        try:
            yield a, b
            assert conserved(environment)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


def inside(box, code):
    return subprocess.Popen(box.command([sys.executable, "-c", code]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_connection_survives_the_worker(environment, two):  # noqa: F811
    a, b = two
    link = a.run("ip", "-o", "link", "show", "eth0").split(":")[0]
    server = inside(b, ECHO)
    assert server.stdout.readline() == "ready\n"
    client = inside(a, TALK)
    assert client.stdout.readline() == "connected\n"
    for _ in range(3):
        kill_worker(environment)
        ping(b, "10.99.0.1")
    out, _ = client.communicate(input="\n", timeout=120)
    server.communicate(timeout=120)
    assert client.returncode == 0
    exchanged, longest_s = out.split()
    assert int(exchanged) > 100 and float(longest_s) < 10
    # the same interface, not a new one
    assert a.run("ip", "-o", "link", "show", "eth0").split(":")[0] == link
    found = status(environment)
    assert found["conserved"] and found["supervisor"]["restarts"] == 3


def test_what_was_changed_live_is_there_afterwards(environment, two):  # noqa: F811
    with Container() as c:
        vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24",
             "--queues", "2")  # fmt: skip
        vnic(environment, "rate", "a", "--egress", "30mbit")
        vnic(environment, "rate", "c", "--ingress", "40mbit")
        vnic(environment, "link", "b", "down")
        vnic(environment, "group", "default", "--mode", "compacting")
        ping(c, "10.99.0.1")
        before = {nic["name"]: nic for nic in status(environment)["nics"]}
        found = kill_worker(environment)
        after = {nic["name"]: nic for nic in found["nics"]}
        kept = ("number", "engine", "interface", "mac", "mtu", "queues", "link", "egress_bps", "ingress_bps", "offloads")
        assert {name: [nic[key] for key in kept] for name, nic in after.items()} == {
            name: [nic[key] for key in kept] for name, nic in before.items()
        }
        assert after["b"]["link"] == "down" and after["c"]["ingress_bps"] == 40_000_000
        assert found["groups"][0]["mode"] == "compacting"
        ping(c, "10.99.0.1")
        vnic(environment, "detach", "c")
        assert c.interfaces() == []
        assert [nic["name"] for nic in kill_worker(environment)["nics"]] == ["a", "b"]


def test_a_container_that_ends_meanwhile_is_let_go(environment, two):  # noqa: F811
    c = Container()
    vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24")
    pid = status(environment)["pid"]
    os.kill(pid, signal.SIGKILL)
    c.close()
    while len(status(environment)["nics"]) > 2:
        pass
    ping(two[0], "10.99.0.2")


def test_a_worker_that_goes_on_dying_is_started_ever_later(environment, two, tmp_path):  # noqa: F811
    for _ in range(5):
        begin = time.monotonic()
        kill_worker(environment)
    assert time.monotonic() - begin > 0.8  # the last pause
    ping(two[0], "10.99.0.2")
    log = (tmp_path / "default.log").read_text()
    ended = [line for line in log.splitlines() if "ERROR worker ended" in line]
    assert len(ended) == 5 and all('why="killed by SIGKILL"' in line for line in ended)
    assert [line.partition(" restarts=")[2] for line in ended] == [
        f"{number} next_in_s={pause_s}" for number, pause_s in enumerate((0.0, 0.1, 0.2, 0.4, 0.8), 1)
    ]
    assert "killed by SIGKILL" in vnic(environment, "status")


DIES = """
import os, signal
from dataplane.elements.counter import Counter

if os.path.exists(__file__ + ".dies"):
    os.kill(os.getpid(), signal.SIGKILL)

class Element(Counter):
    pass
"""


def test_a_crash_loop_is_told_and_can_be_stopped(environment, tmp_path, leak_check):  # noqa: F811
    """A worker that always ends at its start: clients get the reason instead of waiting, and `vnic
    down` needs no worker."""
    (tmp_path / "fatal.py").write_text(DIES)
    with Container() as a:
        config = json.loads(Path(write_config(tmp_path / "net.yaml", a=a)).read_text())
        config["nics"]["a"]["egress"] = {"elements": [{"element": "fatal:Element"}]}
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            supervisor = os.pidfd_open(status(environment)["supervisor"]["pid"])
            (tmp_path / "fatal.py.dies").touch()
            os.kill(status(environment)["pid"], signal.SIGKILL)
            for command in ("status", "stats"):
                error = vnic(environment, command, status=1, timeout=160)
                assert re.fullmatch(
                    r"vnic: error: instance default: its worker died \d+ times, last \d+ s ago \(killed by SIGKILL\); "
                    r"next try in \d+ s\n",
                    error,
                )
            assert a.interfaces() == ["eth0"]
            vnic(environment, "down")
            assert readable(supervisor, 0) and a.interfaces() == []
            os.close(supervisor)
            assert "does not run" in vnic(environment, "status", status=1)
        finally:
            with suppress(AssertionError):
                vnic(environment, "down")


@pytest.mark.root
def test_other_users_are_not_told_why():
    """Only that it failed, since the reason may name others' NICs."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0vnic-test-{os.getpid()}")
        listener.listen()
        listener.setblocking(False)
        # A program of its own: a fork of this process, which has threads, may find a lock taken.
        code = (
            "import socket, sys\n"
            "with socket.socket(socket.AF_UNIX) as client:\n"
            "    client.connect(sys.argv[1].replace('@', chr(0)))\n"
            "    sys.stdout.buffer.write(client.recv(4096))\n"
        )
        name = listener.getsockname().decode().replace("\0", "@")
        command = plain_user.command_line([sys.executable, "-c", code, name])
        other = subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE)
        assert readable(listener.fileno(), 60)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())
            assert refuse_clients(listener, "the reason", "another time")
            assert b'"message": "the reason"' in client.recv(4096)
        assert other.communicate(timeout=60)[0] == (
            b'{"error": "org.vnic.Control.Failed", "parameters": {"message": "another time", "code": "busy"}}\0'
        )


def test_those_who_come_without_end_do_not_keep_it_from_its_work():
    class Crowd:
        count = 0

        def accept(self):
            self.count += 1
            ours, theirs = socket.socketpair()
            theirs.close()
            return ours, ""

    crowd = Crowd()
    assert refuse_clients(crowd, "the reason", "another time")
    assert crowd.count == BACKLOG


def test_a_successor_that_dies_as_soon_as_it_took_over_is_a_crash(tmp_path, monkeypatch):
    """Its last messages are read at its end: it then counts as the worker, and is replaced."""
    (tmp_path / "ends.py").write_text("def main(): pass\n")
    (tmp_path / "takes_over.py").write_text(
        "import socket, sys\nfrom vnic.store import keeper\n"
        "def main(): keeper.send(socket.socket(fileno=int(sys.argv[2])), keeper.TookOver())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as listener:
        supervisor = Supervisor("test", listener, None, "ends")
        supervisor._announce = False  # it was up
        supervisor.worker, supervisor.successor = (
            WorkerProcess("", module, listener, "successor", ()) for module in ("ends", "takes_over")
        )
        successor = supervisor.successor
        successor.joined = True
        for each in (supervisor.worker, successor):
            assert readable(each.pidfd, 30)
        assert not supervisor._finished(lambda pid: None)
        assert supervisor.worker is successor and supervisor.successor is None and supervisor.restarts == 0
        assert not supervisor._finished(lambda pid: None)
        assert supervisor.worker is None
        assert supervisor.restarts == 1 and supervisor.last == "exit status 0"


def test_a_worker_that_reads_nothing_is_not_waited_for(tmp_path, monkeypatch):
    """Neither for stored items nor for answers; unread answers end it."""
    (tmp_path / "sleeps.py").write_text("import signal\nsignal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as listener:
        supervisor = Supervisor("test", listener, None, "sleeps")
        for number in range(2000):  # more than fits into the socket
            supervisor.store.put(f"key/{number}", [])
        began = time.monotonic()
        worker = supervisor.worker = supervisor.start_worker("first")
        try:
            assert worker.unsent
            while not worker.failure:
                for _ in range(10):
                    supervisor._answer(worker, b'{"type": "Drop", "key": "key/0", "number": 1}', [], None)
        except BlockingIOError:
            pass  # `_hear` then ends it
        finally:
            worker.close()
        assert time.monotonic() - began < 5  # less than one socket timeout


def test_down_needs_no_worker_that_answers(environment, two):  # noqa: F811
    """A worker that is stopped (SIGSTOP) when the supervisor is asked to stop, and continues
    later."""
    a, _ = two
    found = status(environment)
    os.kill(found["pid"], signal.SIGSTOP)
    supervisor = os.pidfd_open(found["supervisor"]["pid"])
    code = "from vnic.api import client; client.ASKED_S = 0.1\nwith client.Client() as found: found.shutdown()"
    down = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=TREE)
    log = Path(environment["VNIC_RUNTIME_DIR"]) / "default.log"
    while "INFO stopping" not in log.read_text():
        pass
    os.kill(found["pid"], signal.SIGCONT)
    assert down.wait(30) == 0
    assert readable(supervisor, 0)
    os.close(supervisor)
    assert a.interfaces() == []


def test_a_worker_that_stands_still_is_told_of(environment, two, tmp_path):  # noqa: F811
    """Clients get an error instead of waiting, and the log has one line; the worker may continue,
    and if not, `vnic down` works."""
    log = tmp_path / "default.log"
    found = status(environment)
    for _ in range(2):
        os.kill(found["pid"], signal.SIGSTOP)
        error = vnic(environment, "status", status=1, timeout=160)
        assert re.fullmatch(
            rf"vnic: error: instance default: its worker \(pid {found['pid']}\) stands still, and has not answered for \d+ s; .*\n",
            error,
        )
        os.kill(found["pid"], signal.SIGCONT)
        while "worker answers again" not in log.read_text():
            pass
        assert log.read_text().count("ERROR worker does not answer") == 1
        log.write_text("")
        after = status(environment)
        assert (after["pid"], after["supervisor"]) == (found["pid"], found["supervisor"])
        ping(two[0], "10.99.0.2")
    os.kill(found["pid"], signal.SIGSTOP)
    while "ERROR worker does not answer" not in log.read_text():
        pass
    began_s = time.monotonic()
    vnic(environment, "down")
    assert time.monotonic() - began_s < STOP_TIMEOUT_S
    assert two[0].interfaces() == [] and "worker killed" in log.read_text()


@contextmanager
def open_files(pid, most):
    """Limits the number of open files of a process."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_supervisor_that_has_no_room_for_files_goes_on(environment, two, tmp_path):  # noqa: F811
    """Requests that need one fail, and a worker that cannot be started is tried again; the
    interfaces stay."""
    found = status(environment)
    supervisor = found["supervisor"]["pid"]
    taken = {int(name) for name in os.listdir(f"/proc/{supervisor}/fd")}
    with Container() as c, open_files(supervisor, next(number for number in range(1000) if number not in taken)):
        attach = ("attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0")
        for change in (
            ("rate", "a", "--egress", "10mbit"),
            ("link", "a", "down"),
            ("group", "default", "--mode", "compacting"),
            ("detach", "a"),
        ):
            assert "too many open files; raise the limit" in vnic(environment, *change, status=1)
        settings = [(nic["name"], nic["link"], nic["egress_bps"]) for nic in status(environment)["nics"]]
        assert settings == [(nic["name"], nic["link"], nic["egress_bps"]) for nic in found["nics"]]
        assert status(environment)["groups"][0]["mode"] == found["groups"][0]["mode"] == "spreading"
        assert "too many open files; raise the limit" in vnic(environment, *attach, status=1)
        assert c.interfaces() == []
        assert "too many open files" in vnic(environment, "upgrade", status=1).lower()
        assert status(environment)["pid"] == found["pid"]
        ping(two[0], "10.99.0.2")
        os.kill(found["pid"], signal.SIGKILL)
        while (tmp_path / "default.log").read_text().count("it cannot be started: too many open files") < 2:
            pass
    after = status(environment)
    assert after["supervisor"]["pid"] == supervisor and after["supervisor"]["restarts"] >= 3
    ping(two[0], "10.99.0.2")


def test_a_worker_that_has_no_room_for_a_tap_leaves_none(environment, two):  # noqa: F811
    pid = status(environment)["pid"]
    with Container() as c:
        attach = ("attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--queues", "64")
        taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        free = [number for number in range(200) if number not in taken]
        # besides the client's connection: each number fails at another step
        for room in (2, 3, 8, 66, 71):
            with open_files(pid, free[room]):
                assert "too many open files; raise the limit" in vnic(environment, *attach, status=1), room
                assert c.interfaces() == []
        vnic(environment, *attach)
        assert c.interfaces() == ["eth0"]


def test_too_few_files_to_come_up_with(environment, tmp_path, leak_check):  # noqa: F811
    """An error of one line, no matter which process reaches the limit first."""
    with Container() as a:
        (tmp_path / "net.yaml").write_text(json.dumps({"nics": {"a": {"pid": a.pid, "interface": "eth0", "queues": 20}}}))
        for most in (*range(6, 26), 32, 44):  # each fails at another step
            command = ["prlimit", f"--nofile={most}:{most}", *VNIC, "up", "-d", str(tmp_path / "net.yaml")]
            done = subprocess.run(command, env=environment, cwd=TREE, capture_output=True, text=True)
            assert done.returncode == 1, (most, done.stdout, done.stderr)
            assert re.fullmatch(r"vnic: error: .*[Tt]oo many open files.*; raise the limit.*\n", done.stderr), (
                most,
                done.stderr,
            )
            assert a.interfaces() == []


NEAR = """
from vnic.modules.module import Module
from vnic.device.tap import Route, TapRequest

class Near(Module):
    def start(self):
        routes = (Route(to="198.51.100.0/24", via="192.0.2.9"),)
        try:
            self.runtime.keeping.open_nic("near", TapRequest(name="near", addresses=("192.0.2.1/24",), routes=routes))
        except Exception as error:
            print("REFUSED:", error, flush=True)
"""


@pytest.mark.root
@pytest.mark.parametrize("allowed", ["", "key", "nic"])
def test_the_network_namespace_that_it_runs_in(environment, tmp_path, leak_check, allowed):  # noqa: F811
    """A worker gets no interface there that the configuration does not permit. (Here it is a
    container's namespace.)"""

    def run(*words, status=0):
        done = subprocess.run(
            host.command([*VNIC, *words]), env=environment, cwd=TREE, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr

    (tmp_path / "near.py").write_text(NEAR)
    with Container() as host, Container() as a:
        nics = {"a": {"pid": a.pid, "interface": "eth0", "addresses": ["10.99.0.1/24"]}}
        if allowed == "nic":
            nics["first"] = {"netns": host.netns_path}
        config = {"nics": nics, "modules": [] if allowed else ["near:Near"], "host_interfaces": allowed == "key"}
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        run("up", "-d", str(tmp_path / "net.yaml"))
        try:
            attach = ("attach", "tap", "uplink", "--netns", "/proc/self/ns/net", "--address", "10.99.0.2/24")
            if allowed:
                run(*attach)
                ping(a, "10.99.0.2")
                run("detach", "uplink")
            else:
                log = (tmp_path / "default.log").read_text()
                assert (
                    "REFUSED: nic near: our own network namespace: this is the network namespace that vnic itself runs in"
                    in log
                )
                says = run(*attach, status=2)
                assert re.fullmatch(
                    r"vnic: error: nic uplink: .*put 'host_interfaces: true' into the configuration file.*\n", says
                )
            assert host.interfaces() == (["first"] if allowed == "nic" else [])
        finally:
            run("down")


def test_an_instance_may_have_more_files_open_than_the_soft_limit(environment, tmp_path, leak_check):  # noqa: F811
    """Also more than select(2) supports: the second worker has its NICs' queues from the start,
    with lower numbers than the files that it opens."""
    count = 17
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * 64 * count:
        pytest.skip("missing tool: the hard limit of open files is too low (ulimit -Hn)")
    with Container() as a:
        nics = {f"n{i}": {"pid": a.pid, "interface": f"eth{i}", "queues": 64} for i in range(count)}
        (tmp_path / "net.yaml").write_text(json.dumps({"nics": nics}))
        command = ["sh", "-c", 'ulimit -Sn 100 && exec "$@"', "sh", *VNIC, "up", "-d", str(tmp_path / "net.yaml")]
        subprocess.run(command, env=environment, cwd=TREE, check=True, capture_output=True)
        try:
            assert len(kill_worker(environment)["nics"]) == count
            vnic(environment, "upgrade")
            assert status(environment)["conserved"]
        finally:
            vnic(environment, "down")
        assert a.interfaces() == []


def test_a_log_is_bounded(tmp_path):
    code = """
import os, sys
from vnic.daemon.instance import bound_log
path = sys.argv[1]
os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
os.write(2, b"old\\n" * 100)
assert not bound_log(path, 400) and bound_log(path, 399) and not bound_log(path, 399)
os.write(2, b"new\\n")
os.dup2(1, 2)
assert not bound_log(path, 0), "standard error is something else"
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "new\n" and (tmp_path / "log.1").read_text() == "old\n" * 100


def rights(text):
    """From a process' or thread's status in /proc: (CapPrm, CapEff, CapBnd or 0 for a plain user,
    NoNewPrivs)."""
    fields = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    # without CAP_SETPCAP it cannot be lowered, and has no effect
    bounding = int(fields["CapBnd"], 16) if IS_ROOT else 0
    return int(fields["CapPrm"], 16), int(fields["CapEff"], 16), bounding, int(fields["NoNewPrivs"])


def capabilities(pid):
    """`rights` of every thread."""
    return {rights((task / "status").read_text()) for task in Path(f"/proc/{pid}/task").iterdir()}


# ADMIN: also CAP_NET_RAW, for the packet sockets of veth pairs
NICE, PTRACE, SETPCAP, ADMIN = 1 << 23, 1 << 19, 1 << 8, 1 << 21 | 1 << 13 | 1 << 12


@pytest.mark.parametrize("guaranteed", [False, True])
def test_every_process_has_given_up_what_it_does_not_need(environment, tmp_path, leak_check, guaranteed):  # noqa: F811
    file = tmp_path / "net.yaml"
    file.write_text("groups: {all: {guarantee: {runtime: 900us, period: 1ms}}}" if guaranteed else "engines: 2")
    vnic(environment, "up", "-d", str(file))
    try:
        nice = NICE if guaranteed and IS_ROOT else 0
        found = status(environment)
        worker, supervisor = found["pid"], found["supervisor"]["pid"]
        (agent,) = {int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()} - {worker}
        expected = {
            worker: nice,
            supervisor: PTRACE | SETPCAP | ADMIN | NICE if IS_ROOT else 0,
            agent: ADMIN if IS_ROOT else 0,
        }
        assert {pid: capabilities(pid) for pid in expected} == {
            pid: {(mask, mask, mask if IS_ROOT else 0, 1)} for pid, mask in expected.items()
        }
        kill_worker(environment)
        assert capabilities(status(environment)["pid"]) == {(nice, nice, nice, 1)}
        if guaranteed:
            (thread,) = status(environment)["groups"][0]["threads"]
            assert thread["scheduling"] in ("deadline", "rr") or not IS_ROOT
        # A program that an upgrade names as its Python has only a worker's rights, from its first
        # instruction on.
        python = tmp_path / "python"
        python.write_text(
            f'#!/bin/sh\ncat /proc/self/status > {tmp_path}/rights\nPYTHONPATH={TREE} exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        vnic(environment, "upgrade", "--python", str(python))
        assert rights((tmp_path / "rights").read_text()) == (nice, nice, nice, 1)
        assert capabilities(status(environment)["pid"]) == {(nice, nice, nice, 1)}
        # The kernel enforces a new guarantee from the next worker on; without a guarantee, the next
        # worker loses the capability.
        (group,) = (each["name"] for each in status(environment)["groups"])
        vnic(environment, "group", group, "--guarantee", "none" if guaranteed else "500us/1ms")
        vnic(environment, "upgrade")
        nice ^= NICE if IS_ROOT else 0
        found = status(environment)
        assert capabilities(found["pid"]) == {(nice, nice, nice, 1)}
        scheduling = {thread["scheduling"] for each in found["groups"] for thread in each["threads"]}
        assert scheduling == {"none"} if guaranteed else scheduling <= {"deadline", "rr"} or not IS_ROOT
    finally:
        vnic(environment, "down")


@pytest.mark.root
def test_root_attaches_containers_of_others(environment, tmp_path, leak_check):  # noqa: F811
    """The capabilities of supervisor and agent suffice for a plain user's container in the user's
    namespaces, one that is not dumpable, a name in /run/netns, and a namespace of root's."""
    hides = "import ctypes, sys; ctypes.CDLL(None).prctl(4, 0); print('ready', flush=True); sys.stdin.read()"
    name = f"vnic-others-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    theirs = subprocess.Popen(
        ["setpriv", f"--reuid={plain_user.UID}", "--clear-groups", "unshare", "--user", "--map-root-user", "--net",
         "sh", "-c", "echo ready && exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    hiding = subprocess.Popen(["unshare", "--net", sys.executable, "-c", hides], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert theirs.stdout.readline() == hiding.stdout.readline() == b"ready\n"
        (tmp_path / "net.yaml").write_text(
            json.dumps({"nics": {"a": {"netns": f"/run/netns/{name}"}, "b": {"pid": theirs.pid}}})
        )
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            with Container() as c:
                vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--address", "10.99.0.3/24")
                vnic(environment, "attach", "tap", "d", "--pid", str(hiding.pid), "--address", "10.99.0.4/24")
                assert [nic["name"] for nic in status(environment)["nics"]] == ["a", "b", "c", "d"]
                kill_worker(environment)
                assert [nic["name"] for nic in status(environment)["nics"]] == ["a", "b", "c", "d"]
                assert len(c.interfaces()) == 1
        finally:
            vnic(environment, "down")
    finally:
        for process in (theirs, hiding):
            process.communicate()
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
@pytest.mark.parametrize("hung", [False, True], ids=["worker runs", "worker hangs"])
def test_the_supervisor_s_end_is_everybody_s(environment, tmp_path, how, hung, leak_check):  # noqa: F811
    with Container() as a, Container() as b:
        process = subprocess.Popen(
            [*VNIC, "up", write_config(tmp_path / "net.yaml", a=a, b=b)],
            env=environment, cwd=TREE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert "is up" in process.stderr.readline()
        worker = status(environment)["pid"]
        if hung and how is signal.SIGKILL:
            os.kill(worker, signal.SIGSTOP)
        process.send_signal(how)
        process.communicate(timeout=120)
        assert gone_within(10, process.pid), processes_of(process.pid)
        assert a.interfaces() == [] and b.interfaces() == []
        left = {path.name for path in tmp_path.iterdir()} - {"net.yaml"}
        assert left == (set() if how is not signal.SIGKILL else {"default.lock", "default.sock"})


@pytest.mark.again
@pytest.mark.root
@pytest.mark.timeout(960)
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_supervisor.py", timeout_s=880)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
