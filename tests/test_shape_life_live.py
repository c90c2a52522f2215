"""Policies of a running instance: generations, confirmation, and commands that hold one, whatever is killed."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.test_command import TREE, VNIC, environment, vnic  # noqa: F401 - a fixture
from tests.test_handlers_traffic import until
from tests.test_shape_live import POLICY, shaped  # noqa: F401 - a fixture
from tests.test_supervisor import conserved, kill_worker
from vnic.api.client import Client
from vnic.store.policies import GENERATIONS_MOST


def shown(shaped):  # noqa: F811
    return json.loads(shaped.shape("show", "--over", "1ms", "--json"))


def delays(shaped):  # noqa: F811
    """What the running policy's lines were asked for."""
    return [each["asked"] for each in shown(shaped)["lines"]]


SLOW, SLOWER = ["delay 30ms (rtt 60ms)"] * 2, ["delay 40ms (rtt 80ms)"] * 2


def write(shaped, rtt):  # noqa: F811
    shaped.policy.write_text(POLICY.replace("60ms", rtt))
    return str(shaped.policy)


def test_generations_survive_a_crash_and_an_upgrade(shaped, tmp_path):  # noqa: F811
    file = str(shaped.policy)
    assert "generation 1; `vnic shape undo` goes back" in shaped.shape("apply", file)
    assert "generation 2" in shaped.shape("set", "a <-> b", "rtt=80ms", "--for", "1h")
    kill_worker(shaped.environment)
    vnic(shaped.environment, "upgrade")
    found = json.loads(shaped.shape("log", "--json"))
    first, second = found["generations"]
    assert found["generation"] == 2 and first["what"] == f"apply {file}" and second["what"] == "set a <-> b rtt=80ms"
    assert first["uid"] == second["uid"] == os.geteuid() and first["until"] is None
    assert abs(second["until"] - second["at"] - 3600) < 60
    table = shaped.shape("log")
    assert "*2" in table and "~ a <-> b.rtt: 60ms -> 80ms" in table
    status = shown(shaped)
    assert status["generation"] == 2 and 3_000_000 < status["ends_in_ms"] <= 3_600_000
    assert "generation 2; ends in" in shaped.shape("show", "--over", "1ms")
    assert shaped.shape("diff", "1", "2") == "~ a <-> b.rtt: 60ms -> 80ms\n"
    assert shaped.shape("diff", file) == "~ a <-> b.rtt: 80ms -> 60ms\n"
    assert shaped.shape("diff", file, "1") == "no difference\n"
    assert json.loads(shaped.shape("diff", "0", "1", "--json"))["differences"][-1]["after"] == "60ms"
    assert "generation 9: is not kept" in shaped.shape("diff", "9", status=2)
    assert "~ a <-> b.rtt: 80ms -> 60ms" in shaped.shape("undo", "--dry-run")
    shaped.shape("undo")
    assert delays(shaped) == SLOW and shown(shaped)["ends_in_ms"] is None
    assert shaped.rtt_ms() >= 60
    shaped.shape("undo")
    assert shaped.lines() == [] and shaped.elements() == []
    assert "nothing to undo" in shaped.shape("undo", status=2)
    shaped.shape("undo", "2")
    assert delays(shaped) == SLOWER
    shaped.shape("clear")


@pytest.mark.parametrize("killed", [False, True], ids=["", "worker killed"])
def test_a_policy_that_is_not_confirmed_is_withdrawn(shaped, killed):  # noqa: F811
    shaped.shape("apply", str(shaped.policy))
    begin, lasts_s = time.monotonic(), 8
    shaped.shape("apply", write(shaped, "80ms"), "--confirm", f"{lasts_s}s")
    if killed:
        kill_worker(shaped.environment)
    found = shown(shaped)
    assert time.monotonic() - begin >= lasts_s or found["withdrawn_in_ms"] > 0
    until(lambda: delays(shaped) == SLOW)
    assert time.monotonic() - begin >= lasts_s
    assert shown(shaped)["withdrawn_in_ms"] is None
    last = json.loads(shaped.shape("log", "--json"))["generations"][-1]
    assert (last["of"], last["uid"], last["what"]) == (1, None, "withdrawn: not confirmed in time")
    assert shaped.rtt_ms() >= 60


def test_a_policy_that_is_confirmed_stays(shaped):  # noqa: F811
    assert "no policy waits" in shaped.shape("confirm", status=1)
    shaped.shape("apply", str(shaped.policy), "--confirm", "1h")
    assert "withdrawn in" in shaped.shape("show", "--over", "1ms")
    kill_worker(shaped.environment)
    assert "generation 1 stays" in shaped.shape("confirm")
    assert shown(shaped)["withdrawn_in_ms"] is None and delays(shaped) == SLOW
    assert "--confirm excludes" in shaped.shape("apply", str(shaped.policy), "--confirm", "1s", "--until-disconnect", status=2)


class Holding:
    """`vnic shape apply --until-disconnect`, once it has the policy."""

    def __init__(self, shaped):  # noqa: F811
        self.process = subprocess.Popen(
            [*VNIC, "shape", "apply", str(shaped.policy), "--until-disconnect"],
            env={**shaped.environment, "PYTHONUNBUFFERED": "1"}, cwd=TREE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        while "generation" not in self.process.stdout.readline():
            assert self.process.poll() is None

    def __enter__(self):
        return self.process

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_policy_ends_with_the_command_that_holds_it(shaped, how):  # noqa: F811
    with Holding(shaped) as process:
        assert delays(shaped) == SLOW and shown(shaped)["held"]
        process.send_signal(how)
        assert process.wait(60) == (0 if how is signal.SIGINT else -how)
        if how is not signal.SIGINT:  # which returns when the policy has ended
            until(lambda: shaped.lines() == [])
        assert shaped.lines() == [] and shaped.elements() == []
    last = json.loads(shaped.shape("log", "--json"))["generations"][-1]
    assert last["what"] == "ended: the command that held it has ended"


def test_a_held_policy_survives_a_crash_and_an_upgrade(shaped):  # noqa: F811
    with Holding(shaped) as process:
        kill_worker(shaped.environment)
        until(lambda: shown(shaped)["held"])
        vnic(shaped.environment, "upgrade")
        # longer than a command has to come back
        with Client(shaped.environment["VNIC_RUNTIME_DIR"] + "/default.sock") as client:
            begin = time.monotonic()
            while time.monotonic() - begin < 7:
                assert client.call("ShapeStatus", whole=True)["status"]["policy"] is not None
        assert process.poll() is None
        process.kill()
        until(lambda: shaped.lines() == [])


def test_a_command_whose_policy_is_replaced_ends(shaped):  # noqa: F811
    with Holding(shaped) as process:
        other = shaped.policy.with_name("other.yaml")
        other.write_text(POLICY.replace("60ms", "80ms"))
        shaped.shape("apply", str(other))
        assert process.wait(60) == 1
    assert delays(shaped) == SLOWER


def test_a_command_killed_together_with_the_worker(shaped):  # noqa: F811
    with Holding(shaped) as process:
        process.kill()
        kill_worker(shaped.environment)
        until(lambda: shaped.lines() == [])
        assert shaped.elements() == []


def test_nothing_is_left_after_a_hundred_rounds(shaped):  # noqa: F811
    """Applied, changed, and ended in another way each time; three of the workers are killed meanwhile."""
    path = shaped.environment["VNIC_RUNTIME_DIR"] + "/default.sock"

    def policy(number):
        delay, loss = f"{number % 5 + 1}ms", f"{number % 3}%"
        return {"version": 1, "links": {"a <-> b": {"delay": delay}, "a": {"loss": loss, "rate": "100mbit"}}}

    for number in range(100):
        with Client(path) as client:
            wish = ({"hold": True}, {"for_ms": 1}, {"confirm_ms": 1}, {})[number % 4]
            client.call("Shape", policy=policy(number), about=f"round {number}", **wish)
            if number in (20, 50, 83):  # of a held, an unconfirmed and a plain one
                kill_worker(shaped.environment)
                continue
            if number % 4 == 3:
                client.call("Shape", policy=policy(number + 1), keeps_end=True)
                client.call("Shape", policy=None)
        with Client(path) as client:
            until(lambda: client.call("ShapeStatus", whole=True)["status"]["policy"] is None)  # noqa: B023
    until(lambda: shaped.lines() == [])
    assert shown(shaped)["left"] == [] and shaped.elements() == []
    assert len(json.loads(shaped.shape("log", "--json"))["generations"]) == GENERATIONS_MOST
    assert shaped.rtt_ms() < 30 and conserved(shaped.environment)
