"""Engine groups and accounts in a running instance: mode changes under traffic, and charges for
it."""

import json
import os
from pathlib import Path

import pytest

from dataplane.errors import ConfigError
from tests.support import plain_user
from tests.support.containers import Container
from tests.test_command import environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import kill_worker
from vnic.api.client import Client

CPUS = sorted(os.sched_getaffinity(0))


def config(path: Path, boxes: dict[str, Container], **settings: object) -> str:
    nics = {
        name: {"pid": box.pid, "interface": "eth0", "addresses": [f"10.98.0.{number}/24"], "engine": (number - 1) % 2}
        for number, (name, box) in enumerate(boxes.items(), 1)
    }
    path.write_text(json.dumps({"engines": 2, "nics": nics, **settings}))
    return str(path)


def test_modes_change_while_packets_flow(environment, tmp_path, leak_check):  # noqa: F811
    with Container() as a, Container() as b:
        file = config(tmp_path / "net.yaml", {"a": a, "b": b}, groups={"all": {"mode": "compacting", "cpus": CPUS}})
        vnic(environment, "up", "-d", file)
        try:
            flood = a.popen(["ping", "-q", "-i", "0.002", "-c", "1500", "10.98.0.2"])
            modes = ["spreading", "dedicated", "compacting", "spreading", "compacting"]
            for mode in modes:
                group = json.loads(vnic(environment, "group", "all", "--mode", mode, "--json"))
                assert group["mode"] == mode
                ping(b, "10.98.0.1")
            said = vnic(environment, "group", "all", "--mode", "dedicated", "--cpus", str(CPUS[0]))
            assert said == "all: dedicated, 1 thread\n"
            out, _ = flood.communicate(timeout=240)
            assert " 0% packet loss" in out, out
            status = json.loads(vnic(environment, "status", "--json"))
            assert status["conserved"] and {engine["thread"] for engine in status["engines"]} == {"all.0"}
            assert {engine["group"] for engine in status["engines"]} == {"all"}
            assert "dedicated" in vnic(environment, "status")
            assert "there is none" in vnic(environment, "group", "most", "--mode", "spreading", status=2)
            assert "not usable here" in vnic(environment, "group", "all", "--cpus", "4095", status=2)
            assert "nothing to change" in vnic(environment, "group", "all", status=2)
            ping(a, "10.98.0.2")
        finally:
            vnic(environment, "down")


def status(environment):  # noqa: F811
    return json.loads(vnic(environment, "status", "--json"))


def settings_of(environment):  # noqa: F811
    """The only group's settings, its engines' budgets, and the scheduling class of its threads."""
    found = status(environment)
    (group,) = found["groups"]
    words = ("mode", "cpus", "spin_ns", "slo_ns", "guarantee")
    budgets = {engine["budget_ns"] for engine in found["engines"]}
    guaranteed = {thread["scheduling"] != "none" for thread in group["threads"]}
    return [*(group[word] for word in words), budgets, guaranteed]


def test_settings_change_live_and_last(environment, tmp_path, leak_check):  # noqa: F811
    file = tmp_path / "net.yaml"
    file.write_text("engines: 2\nspin: 20us\ngroups: {all: {}}\n")
    vnic(environment, "up", "-d", str(file))
    try:
        first = settings_of(environment)
        assert first == ["spreading", None, 20_000, 50_000, None, {1_000_000}, {False}]
        vnic(
            environment, "group", "all", "--guarantee", "400us/4ms", "--spin", "5us", "--budget", "2ms", "--cpus", str(CPUS[0])
        )
        vnic(environment, "group", "all", "--slo", "80us")
        guarantee = {"runtime_ns": 400_000, "period_ns": 4_000_000}
        changed = ["spreading", CPUS[:1], 5_000, 80_000, guarantee, {2_000_000}, {True}]
        assert settings_of(environment) == changed
        kill_worker(environment)
        assert settings_of(environment) == changed
        vnic(environment, "upgrade")
        assert settings_of(environment) == changed
        for words, said in [
            (("--guarantee", "2ms/1ms"), "groups.all.guarantee: runtime 2ms is more than the period: expected at most 1ms"),
            (("--guarantee", "2ms"), "--guarantee 2ms: expected RUNTIME/PERIOD such as 200us/1ms, or none"),
            (("--guarantee", "/1ms"), "groups.all.guarantee.runtime: time '': expected a number with a unit such as 250us"),
            (("--slo", "1ns", "--spin", "1us"), "groups.all.slo: slo 1ns is out of range: expected 1us to 1s"),
            (("--spin", "5"), "groups.all.spin: time '5' has no unit: expected a number with one, such as 250us"),
            (("--budget", "2s"), "groups.all.budget: budget 2s is out of range"),
            (("--cpus", "1,x"), "--cpus 1,x: expected CPU numbers such as 0,1, or any"),
            (
                ("--cpus", "any", "--mode", "dedicated"),
                "groups.all: dedicated needs CPUs of its own, such as cpus: [1]",
            ),
            (
                ("--cgroup", "tenant"),
                "groups.all.cgroup[0]: invalid value 'tenant': expected the absolute path of a cgroup's directory",
            ),
            (("--cgroup", str(tmp_path)), f"group all: cgroup {tmp_path}: is not a cgroup"),
        ]:
            assert said in vnic(environment, "group", "all", *words, status=2)
            assert settings_of(environment) == changed
        vnic(environment, "group", "all", "--guarantee", "none", "--cpus", "any", "--budget", "0", "--mode", "compacting")
        assert settings_of(environment) == ["compacting", None, 5_000, 80_000, None, {0}, {False}]
        # the file's values, for those not set by the group
        with Client(str(tmp_path / "default.sock")) as client:
            for settings in ({"spin": None, "slo": None, "budget": None, "mode": None, "cgroup": None}, {"cpus": None}):
                client.call("SetGroup", name="all", settings=settings)
            assert settings_of(environment) == first
            with pytest.raises(ConfigError, match="group all: nothing to change: expected mode, cpus or settings"):
                client.call("SetGroup", name="all")
            with pytest.raises(ConfigError, match="groups.all.spinn: unknown key; did you mean 'spin'"):
                client.call("SetGroup", name="all", settings={"spinn": "5us"})
    finally:
        vnic(environment, "down")


def test_a_mode_that_the_next_worker_would_refuse_is_refused(environment, tmp_path, leak_check):  # noqa: F811
    file = tmp_path / "net.yaml"
    file.write_text(f"engines: [{{cpu: {CPUS[0]}}}]")
    vnic(environment, "up", "-d", str(file))
    try:
        said = vnic(environment, "group", "default", "--mode", "compacting", status=2)
        assert "engines: e0: cpu is for spreading groups: set cpus: of group default instead" in said
        assert kill_worker(environment)["groups"][0]["mode"] == "spreading"
    finally:
        vnic(environment, "down")


def test_clients_are_charged_for_what_they_send(environment, tmp_path, leak_check):  # noqa: F811
    """Three times the packets, three times the CPU time, in an engine that both share; the accounts
    add up."""
    with Container() as much, Container() as little, Container() as sink:
        boxes = {"much": much, "little": little, "sink": sink}
        nics = {
            name: {"pid": box.pid, "interface": "eth0", "addresses": [f"10.98.0.{number}/24"]}
            for number, (name, box) in enumerate(boxes.items(), 1)
        }
        (tmp_path / "net.yaml").write_text(json.dumps({"nics": nics}))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            ping(much, "10.98.0.3")
            ping(little, "10.98.0.3")
            before = accounts(environment)
            # A packet's cost depends on the burst's size and on whether the engine slept. So both
            # send the same bursts, each after the last has arrived; only their numbers differ.
            with much.udp_socket() as often, little.udp_socket() as seldom, sink.udp_socket() as receiver:
                receiver.bind(("10.98.0.3", 9))
                receiver.settimeout(60)
                for turn in range(2000):
                    sender = seldom if turn % 4 == 2 else often
                    for _ in range(30):
                        sender.sendto(bytes(64), ("10.98.0.3", 9))
                    for _ in range(30):
                        receiver.recv(64)
            after = accounts(environment)
            spent = {name: after[name] - before[name] for name in after}
            assert spent["much"] / spent["little"] == pytest.approx(3, rel=0.2)
            assert spent["much"] + spent["little"] > 0.98 * spent["all"]
            # The engine thread's CPU time by the kernel, independent of the accounts.
            charged = sum(after[name] for name in ("much", "little", "sink", "overhead"))
            assert charged == pytest.approx(after["all"], rel=0.001)
            assert charged == pytest.approx(after["thread"], rel=0.02, abs=2_000_000)
            assert "much" in (shown := vnic(environment, "accounts")) and "(overhead)" in shown
            vnic(environment, "detach", "much")
            found = json.loads(vnic(environment, "accounts", "--json"))
            assert found["detached_cpu_ns"] >= after["much"]
            # A new NIC of that name begins at zero; the accounts still add up.
            vnic(environment, "attach", "tap", "much", "--pid", str(much.pid), "--interface", "eth0")
            found = json.loads(vnic(environment, "accounts", "--json"))
            anew = {each["nic"]: each["cpu_ns"] for each in found["accounts"]}
            assert anew["much"] < after["much"] / 10
            booked = sum(anew.values()) + found["overhead_ns"] + found["detached_cpu_ns"]
            assert booked == pytest.approx(found["cpu_ns"], rel=0.001)
        finally:
            vnic(environment, "down")


def accounts(environment):  # noqa: F811
    """CPU time by NIC, in nanoseconds; `thread`: that of the engine's thread, by the kernel."""
    found = json.loads(vnic(environment, "accounts", "--json"))
    books = {each["nic"]: each["cpu_ns"] for each in found["accounts"]}
    pid = json.loads(vnic(environment, "status", "--json"))["pid"]
    threads = [
        int((task / "schedstat").read_text().split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
        if (task / "comm").read_text().startswith("vnic-e0")
    ]
    return {**books, "overhead": found["overhead_ns"], "all": found["cpu_ns"], "thread": sum(threads)}


@pytest.mark.again
@pytest.mark.root
@pytest.mark.timeout(960)
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_groups_live.py", timeout_s=880)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
