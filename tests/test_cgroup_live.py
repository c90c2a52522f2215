"""Cgroups of engine groups in a running instance, whose worker has no capabilities."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.support import plain_user
from tests.support.containers import Container
from tests.test_cgroup import CPUS, make_cgroup  # noqa: F401 - a fixture
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_group import until

SEND = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(100_000):
    sender.sendto(bytes(64), ("10.97.0.2", 9))
"""


def status(environment):  # noqa: F811
    return json.loads(vnic(environment, "status", "--json"))


def config(path, boxes, **settings):
    nics = {
        name: {"pid": box.pid, "interface": "eth0", "addresses": [f"10.97.0.{number}/24"], "engine": number - 1}
        for number, (name, box) in enumerate(boxes.items(), 1)
    }
    path.write_text(json.dumps({"engines": [{"group": "paying"}, {"group": "free"}], "nics": nics, **settings}))
    return str(path)


def kill_worker(environment):  # noqa: F811
    """Kills the worker; returns the status of the next one."""
    pid = status(environment)["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: status(environment)["pid"] != pid)
    return status(environment)


def check(box, found):
    """The threads of the group, and no others, are in the cgroup, and status reports it."""
    paying, free = found["groups"]
    assert [each["in_force"] for each in paying["cgroups"]] == [True] * len(paying["cgroups"]) and free["cgroups"] == []
    names = {thread["name"] for thread in paying["threads"]}
    for task in Path(f"/proc/{found['pid']}/task").iterdir():
        name = (task / "comm").read_text().strip().removeprefix("vnic-")
        assert box.holds(int(task.name), found["pid"]) == (name in names), name


@pytest.mark.root
@pytest.mark.parametrize("kind", ["v2", "cpuacct"])
def test_an_instance_and_its_cgroup(environment, tmp_path, make_cgroup, leak_check, kind):  # noqa: F811
    box = make_cgroup(kind)
    with Container() as a, Container() as b:
        groups = {"paying": {"cgroup": str(box.path)}, "free": {}}
        file = config(tmp_path / "net.yaml", {"a": a, "b": b}, groups=groups)
        vnic(environment, "up", "-d", file)
        try:
            ping(a, "10.97.0.2")
            check(box, before := status(environment))
            a.python(SEND)
            vnic(environment, "accounts")  # brings the accounts up to date
            after = status(environment)
            ours = after["engines"][0]["cpu_ns"] - before["engines"][0]["cpu_ns"]
            theirs = after["groups"][0]["cgroups"][0]["cpu_ns"] - before["groups"][0]["cgroups"][0]["cpu_ns"]
            assert theirs == pytest.approx(
                ours, rel=0.05, abs=10_000_000
            )  # a running thread is charged at each of the kernel's ticks
            assert re.search(f"paying +{box.path} +[0-9.]+ +yes", vnic(environment, "status"))
            assert vnic(environment, "group", "paying", "--mode", "compacting") == f"paying: compacting, {len(CPUS)} threads\n"
            check(box, status(environment))
            vnic(environment, "upgrade")
            ping(a, "10.97.0.2")
            check(box, status(environment))
            check(box, kill_worker(environment))
            # The operator removes the cgroup: the next worker continues without it.
            members = "cgroup.threads" if kind == "v2" else "tasks"
            for thread in (box.path / members).read_text().split():
                (box.parent / members).write_text(thread)
            assert "was moved elsewhere" in vnic(environment, "status")
            box.remove()
            (said,) = kill_worker(environment)["groups"][0]["cgroups"]
            assert not said["in_force"] and said["why"] == f"cgroup {box.path}: does not exist; mkdir {box.path}"
            ping(a, "10.97.0.2")
            said = vnic(environment, "group", "paying", "--mode", "spreading")
            assert f"\nnot charged to its cgroup: cgroup {box.path}: does not exist" in said
            assert status(environment)["conserved"]
        finally:
            vnic(environment, "down")
        # the first worker fails
        assert "does not exist; mkdir" in vnic(environment, "up", "-d", file, status=2)


@pytest.mark.root
def test_a_group_joins_a_cgroup_and_leaves_it(environment, tmp_path, make_cgroup, leak_check):  # noqa: F811
    box = make_cgroup("cpuacct")
    with Container() as a, Container() as b:
        vnic(environment, "up", "-d", config(tmp_path / "net.yaml", {"a": a, "b": b}, groups={"paying": {}, "free": {}}))
        try:
            vnic(environment, "group", "paying", "--cgroup", str(box.path))
            check(box, status(environment))
            check(box, kill_worker(environment))
            assert vnic(environment, "group", "paying", "--cgroup", "none") == "paying: spreading, 1 thread\n"
            assert status(environment)["groups"][0]["cgroups"] == []
            until(lambda: not box.cgroup.threads())
            ping(a, "10.97.0.2")
        finally:
            vnic(environment, "down")


@pytest.mark.again
@pytest.mark.root
def test_what_a_plain_user_can_have():
    done = plain_user.run_pytest("tests/test_cgroup.py", timeout_s=240)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
