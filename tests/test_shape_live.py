"""`vnic shape` on a running instance: policies end when they are to, whatever is killed, and leave nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.containers import Container
from tests.test_command import TREE, VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_handlers_traffic import until
from tests.test_supervisor import kill_worker
from tests.test_watching import running

POLICY = "version: 1\nlinks:\n  a <-> b: {rtt: 60ms}\n"


class Shaped:
    """A running instance with containers a and b, and a policy file."""

    def __init__(self, environment, directory, a, b):  # noqa: F811
        self.environment, self.a, self.b = environment, a, b
        self.policy = directory / "slow.yaml"
        self.policy.write_text(POLICY)

    def shape(self, *words, status=0):
        return vnic(self.environment, "shape", *words, status=status)

    def lines(self):
        return json.loads(self.shape("show", "--over", "1ms", "--json"))["lines"]

    def promises(self):
        return json.loads(self.shape("show", "--promises", "--json"))["promises"]

    def elements(self):
        handlers = json.loads(vnic(self.environment, "handler", "--json"))
        return [name for name in json.dumps(handlers).split('"') if ".shape" in name]

    def rtt_ms(self):
        """The shortest of three round trips."""
        done = self.a.run("ping", "-c", "3", "-i", "0.05", "-q", "10.99.0.2")
        return float(done.rsplit("=", 1)[1].split("/")[0])


@pytest.fixture
def shaped(environment, tmp_path, leak_check):  # noqa: F811
    with Container() as a, Container() as b:
        nics = {
            name: {"pid": each.pid, "interface": "eth0", "addresses": [f"10.99.0.{n}/24"]}
            for n, (name, each) in enumerate((("a", a), ("b", b)), 1)
        }
        with running(environment, tmp_path, nics):
            ping(a, "10.99.0.2")
            yield Shaped(environment, tmp_path, a, b)


def test_a_policy_is_applied_shown_and_cleared(shaped):
    said = shaped.shape("check", str(shaped.policy))
    assert "round trip 60ms" in said and "can be applied" in said
    assert shaped.rtt_ms() < 30
    assert "a <-> b.rtt: 60ms" in shaped.shape("apply", str(shaped.policy))
    assert shaped.rtt_ms() >= 60
    lines = shaped.lines()
    assert [(each["line"], each["kept"]) for each in lines] == [("a -> b", "yes"), ("b -> a", "yes")]
    assert all(29.9 < each["delay_ms"] < 30.1 and each["packets"] >= 3 for each in lines)
    until(
        lambda: (
            [(each["line"], each["promise"], each["kept"]) for each in shaped.promises()]
            == [("a -> b", "delay", True), ("b -> a", "delay", True)]
        )
    )
    [plotted] = json.loads(shaped.shape("plot", "a -> b", "--json"))["curves"]
    assert plotted["asked"] == "delay 30ms (rtt 60ms)" and sum(plotted["packets"]) > 0
    assert "a -> b" in vnic(shaped.environment, "top", "--once")
    assert "~" in shaped.shape("set", "a <-> b", "rtt=20ms")
    assert 20 <= shaped.rtt_ms() < 50
    shaped.shape("set", "a -> b", "delay=40ms", "loss=0%")
    assert shaped.rtt_ms() >= 50
    vnic(shaped.environment, "undo")
    assert 20 <= shaped.rtt_ms() < 50
    assert "gone" in shaped.shape("clear")
    assert shaped.elements() == [] and shaped.rtt_ms() < 30 and shaped.lines() == []
    assert "no policy" in shaped.shape("clear")


def test_what_is_wrong_changes_nothing(shaped):
    shaped.shape("apply", str(shaped.policy))
    before = shaped.lines()
    for text, says in (
        ("version: 1\nlinks:\n  a -> c: {delay: 1ms}\n", "slow.yaml:3: "),
        ("version: 1\nlinks:\n  a -> b: {delay: 1}\n", "has no unit"),
        ("version: 1\nlinks:\n  a -> b: {loss: 1e30}\n", "slow.yaml:3: "),
        ("", "slow.yaml"),
    ):
        shaped.policy.write_text(text)
        assert says in shaped.shape("apply", str(shaped.policy), status=2)
        words = [*VNIC, "shape", "check", str(shaped.policy)]
        done = subprocess.run(words, env=shaped.environment, cwd=TREE, capture_output=True, text=True)
        assert done.returncode == 2 and says in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert "expected SETTING=VALUE" in shaped.shape("set", "a -> b", "loss", status=2)
    for value in ("[" * 1000, "\x01", "*a", "!!python/name:os.system x", "{share: 1%, burst: .nan}", "1%\nrate: 1mbit"):
        said = shaped.shape("set", "a -> b", f"loss={value}", status=2)
        assert len(said.splitlines()) == 1 and len(said) < 300 and said.rstrip("\n").isprintable()
    for words in (
        ("apply", "/dev/zero"), ("apply", "."), ("apply", "absent.yaml"), ("apply", str(shaped.policy), "--for", "0s"),
        ("apply", str(shaped.policy), "--for", "9999999h"), ("apply", str(shaped.policy), "--while"),
        ("set", "a -> a", "loss=1%"), ("set", "a -> x", "loss=1%"), ("set", "*", "loss=1%"), ("set", "a -> b", "loss=1%", "--for", "nan"),
        ("set", "a -> b", "rate=10gbit", "delay=10s"),
    ):  # fmt: skip
        assert len(shaped.shape(*words, status=2).splitlines()) == 1
    assert [each["asked"] for each in shaped.lines()] == [each["asked"] for each in before]


def test_a_policy_ends_by_itself_also_after_a_crash(shaped):
    begin, lasts_s = time.monotonic(), 10
    shaped.shape("apply", str(shaped.policy), "--for", f"{lasts_s}s")
    shaped.shape("set", "a <-> b", "rtt=70ms")  # a changed number leaves the end as it is
    kill_worker(shaped.environment)
    lines = shaped.lines()  # the new worker has the policy, and its end
    assert len(lines) == 2 or time.monotonic() - begin >= lasts_s
    until(lambda: shaped.lines() == [])
    assert time.monotonic() - begin >= lasts_s
    assert shaped.elements() == [] and shaped.rtt_ms() < 30


def while_running(shaped, *command):
    words = [*VNIC, "shape", "apply", str(shaped.policy), "--while", "--", *command]
    return subprocess.Popen(
        words, env=shaped.environment, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_policy_lasts_as_long_as_a_command(shaped):
    script = "import sys; print('begun', flush=True); sys.stdin.read(); sys.exit(7)"
    words = [*VNIC, "shape", "apply", str(shaped.policy), "--while", "--", sys.executable, "-c", script]
    with subprocess.Popen(
        words, env=shaped.environment, cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while "begun" not in process.stdout.readline():
            pass
        assert len(shaped.lines()) == 2 and shaped.rtt_ms() >= 60
        process.stdin.close()
        assert process.wait(60) == 7
    assert shaped.lines() == [] and shaped.elements() == []
    # a command that does not exist, and one that ends at once
    process = while_running(shaped, "/nonexistent")
    assert "cannot be run" in process.communicate(timeout=60)[0] and process.returncode == 2
    assert shaped.lines() == []
    process = while_running(shaped, "false")
    process.communicate(timeout=60)
    assert process.returncode == 1 and shaped.lines() == []


def test_a_killed_command_takes_its_policy_along(shaped):
    children: list[str] = []
    process = while_running(shaped, "sleep", "60")
    try:
        until(lambda: len(shaped.lines()) == 2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        until(lambda: shaped.lines() == [])
        assert shaped.elements() == []
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
