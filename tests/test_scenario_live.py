"""Scenarios on a running instance: steps by the clock from the moment of apply on, whatever is killed or upgraded."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.support.containers import Container
from tests.test_command import TREE, VNIC, environment, gone_within, vnic, write_config  # noqa: F401 - a fixture
from tests.test_handlers_traffic import until
from tests.test_shape_live import shaped  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker, status
from vnic.api.client import Client

S = 10**9
ELEMENT = "a.egress.shape"
DELAYS = {0: "0ns", 1: "5ms", 2: "40ms"}
STEPS = """version: 1
scenario:
  - {at: 1s, set: {a -> any: {delay: 5ms}}}
  - {at: 6s, set: {a -> any: {delay: 40ms}}}
"""


class Run:
    """The running scenario, read over a connection of its own."""

    def __init__(self, shaped):  # noqa: F811
        self.path = shaped.environment["VNIC_RUNTIME_DIR"] + "/default.sock"

    def __enter__(self):
        self.client = Client(self.path)
        return self

    def __exit__(self, *exception):
        self.client.close()

    def scenario(self):
        return self.client.call("ShapeStatus")["status"]["scenario"]

    def delay(self):
        return self.client.call("ReadHandler", element=ELEMENT, handler="delay")["copies"][0]["value"]

    def step(self):
        """The step that the elements show; the one before is possible where a step has just begun."""
        before = self.scenario()["step"] or 0
        delay = self.delay()
        after = self.scenario()["step"] or 0
        assert delay in {DELAYS[max(before - 1, 0)], DELAYS[before], DELAYS[after]}, (before, delay, after)
        return next(number for number, value in DELAYS.items() if value == delay)


@pytest.mark.parametrize("how", ["", "worker killed", "upgrade"])
def test_steps_are_made_from_the_moment_of_apply_on(shaped, how):  # noqa: F811
    shaped.policy.write_text(STEPS)
    said = shaped.shape("check", str(shaped.policy))
    assert "step 2 (at 6s): a -> any: delay 40ms (before: a -> any delay 5ms)" in said
    begin = time.monotonic()
    shaped.shape("apply", str(shaped.policy))
    with Run(shaped) as run:
        until(lambda: run.step() == 1)
        assert time.monotonic() - begin >= 1
        before = run.scenario()["elapsed_ns"]
    if how == "worker killed":
        kill_worker(shaped.environment)
    elif how == "upgrade":
        vnic(shaped.environment, "upgrade")
    with Run(shaped) as run:
        assert run.scenario()["elapsed_ns"] > before  # it goes on, and does not begin again
        assert run.step() >= 1  # the first value that can be read is already that of the moment
        until(lambda: run.step() == 2)
        assert time.monotonic() - begin >= 6 and run.scenario()["elapsed_ns"] >= 6 * S
    shown = json.loads(shaped.shape("show", "--over", "1ms", "--json"))
    assert shown["scenario"]["step"] == 2 and shown["scenario"]["next_in_ms"] is None
    assert "scenario: step 2 of 2: a -> any: delay 40ms; " in shaped.shape("show", "--over", "1ms")
    assert [each["asked"] for each in shown["lines"]] == ["delay 40ms"]
    assert shaped.rtt_ms() >= 40
    shaped.shape("clear")
    assert shaped.elements() == [] and json.loads(shaped.shape("show", "--json"))["left"] == []


def test_a_scenario_goes_on_while_workers_die(shaped):  # noqa: F811
    """A step that comes while there is no worker has happened when the next one comes up."""
    shaped.policy.write_text(STEPS.replace("6s", "3s"))
    shaped.shape("apply", str(shaped.policy))
    for _ in range(4):
        kill_worker(shaped.environment)
        with Run(shaped) as run:
            step = run.step()
    with Run(shaped) as run:
        assert run.step() >= step
        until(lambda: run.step() == 2)


def test_a_ramp_loses_nothing(shaped):  # noqa: F811
    """Also while the worker is upgraded in the middle of it."""
    shaped.policy.write_text(
        "version: 1\nlinks:\n  a: {rate: 20mbit, queue: {packets: 500}}\nscenario:\n"
        "  - {at: 0s, ramp: {a: {rate: 100mbit, delay: 10ms}}, over: 2s}\n"
        "  - {at: 2s, ramp: {a: {rate: 5mbit, delay: 1ms}}, over: 2s}\n"
        "  - {at: 4s, repeat: yes}\n"
    )
    shaped.shape("apply", str(shaped.policy))
    ping = shaped.a.command(["ping", "-c", "300", "-i", "0.01", "-q", "-W", "30", "10.99.0.2"])
    with subprocess.Popen(ping, stdout=subprocess.PIPE, text=True) as process:
        vnic(shaped.environment, "upgrade")
        said = process.communicate(timeout=120)[0]
    assert re.search(r"300 packets transmitted, 300 received", said), said
    with Run(shaped) as run:
        until(lambda: run.scenario()["round"] > 1)
    assert conserved(shaped.environment)


def test_a_flap(shaped):  # noqa: F811
    """Nothing passes while the link is down, in either direction; then everything does."""
    shaped.policy.write_text("version: 1\nscenario:\n  - {at: 1ms, link: a, down: 3s}\n")
    with Run(shaped) as run, Run(shaped) as other:
        events = other.client.stream("Monitor")
        shaped.shape("apply", str(shaped.policy))
        event = next(each["event"] for each in events if each["event"]["event"] == "step")
        assert (event["step"], event["what"]) == (1, "a: nothing passes for 3s")

        def lost():
            stats = run.client.call("Stats")["stats"]["engines"]
            return {each["name"]: each["dropped"].get("loss", 0) for engine in stats for each in engine["elements"]}

        shaped.a.run("ping", "-c", "1", "-W", "1", "10.99.0.2", check=False)
        shaped.b.run("ping", "-c", "1", "-W", "1", "10.99.0.1", check=False)
        assert lost()["a.egress.shape"] or lost()["a.ingress.shape"]
        until(lambda: run.scenario()["next_in_ms"] is None)
        until(lambda: run.client.call("ReadHandler", element=ELEMENT, handler="loss")["copies"][0]["value"] == "0%")
    assert shaped.rtt_ms() < 30


@pytest.mark.parametrize("how", ["clear", "undo", "command killed", "worker and command killed"])
def test_a_carrier_is_back_when_its_policy_ends(shaped, how):  # noqa: F811
    """The container sees its cable pulled out, over an upgrade and a crash of the worker, too, until the policy ends,
    however it does."""
    shaped.policy.write_text("version: 1\nscenario:\n  - {at: 0s, link: a, down: 1h, carrier: yes}\n")

    def carrier():
        return "NO-CARRIER" not in shaped.a.run("ip", "link", "show", "eth0")

    command = None
    if how.endswith("command killed"):
        words = [*VNIC, "shape", "apply", str(shaped.policy), "--until-disconnect"]
        command = subprocess.Popen(words, env=shaped.environment, stdout=subprocess.DEVNULL)
    else:
        shaped.shape("apply", str(shaped.policy))
    try:
        until(lambda: not carrier())
        assert "NO-CARRIER" not in shaped.b.run("ip", "link", "show", "eth0")
        if how == "undo":
            kill_worker(shaped.environment)
            until(lambda: json.loads(vnic(shaped.environment, "status", "--json"))["nics"][0]["link"] == "down")
            assert not carrier()
        if how == "clear":
            vnic(shaped.environment, "upgrade")
            assert not carrier()
        if command is None:
            shaped.shape(how)
        else:
            command.kill()
            if how.startswith("worker"):
                kill_worker(shaped.environment)
    finally:
        if command is not None:
            command.kill()
            command.wait()
    until(carrier)
    ping = ["ping", "-c", "1", "-W", "1", "10.99.0.2"]
    until(lambda: "1 received" in shaped.a.run(*ping, check=False))


def test_the_end_of_a_policy_is_the_end_of_its_scenario(shaped):  # noqa: F811
    shaped.policy.write_text(
        "version: 1\nscenario:\n  - {at: 0s, ramp: {a: {delay: 10ms}}, over: 1s}\n  - {at: 1s, repeat: yes}\n"
    )
    shaped.shape("apply", str(shaped.policy), "--for", "1500ms")
    kill_worker(shaped.environment)
    until(lambda: shaped.lines() == [])
    assert shaped.elements() == []
    with Run(shaped) as run:
        assert run.scenario() is None


def test_nothing_is_left_when_the_supervisor_is_killed(environment, tmp_path, leak_check):  # noqa: F811
    """Policy, scenario and processes end with it, and the next instance has none of it."""
    file = tmp_path / "steps.yaml"
    file.write_text(STEPS)
    with Container() as a, Container() as b:
        config = write_config(tmp_path / "net.yaml", a=a, b=b)
        process = subprocess.Popen([*VNIC, "up", config], env=environment, cwd=TREE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)  # fmt: skip
        assert "is up" in process.stderr.readline()
        vnic(environment, "shape", "apply", str(file), "--for", "1h")
        assert status(environment)["supervisor"]["pid"] == process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        assert gone_within(10, process.pid) and a.interfaces() == [] and b.interfaces() == []
        vnic(environment, "up", "-d", config)
        try:
            found = json.loads(vnic(environment, "shape", "show", "--json"))
            assert found == {"generation": 0, "lines": [], "left": []}
            assert json.loads(vnic(environment, "shape", "log", "--json"))["generations"] == []
        finally:
            vnic(environment, "down")
