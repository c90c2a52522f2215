"""Upgrades to a new worker that fails at every step, in every way."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.errors import VnicError
from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container
from tests.test_command import VNIC, environment, ping, vnic  # noqa: F401 - a fixture
from tests.test_handlers_traffic import until
from tests.test_supervisor import inside, kill_worker, status
from tests.test_upgrade import OVERTAKEN_MOST, RECEIVE, Traffic, counters, link_counts, two  # noqa: F401 - a fixture
from vnic.api.client import Client
from vnic.daemon.upgrade import Channel, Silent

pytestmark = pytest.mark.commands

TREE = Path(__file__).parents[1]
FAULTS = TREE / "tests" / "faulty_site"

# Steps in order. "word": the new worker reports that it owns an engine, the engine's point of no
# return.
SAYS = {
    "raises": "failed on purpose: {step}",
    "dies": ("worker is gone", "exit status 9"),
    "hangs": ("does not answer", "not ready within"),
    "garbles": ("no message", "no answer"),
}


@pytest.fixture
def faulty(tmp_path):
    """A Python whose vnic fails at a step."""

    def make(step, how, gate=""):
        script = tmp_path / "python"
        variables = f"PYTHONPATH={FAULTS}:{TREE} VNIC_TEST_FAULT='{step} {how}' VNIC_TEST_GATE={gate}"
        script.write_text(f'#!/bin/sh\n{variables} exec {sys.executable} "$@"\n')
        script.chmod(0o755)
        return str(script)

    return make


@pytest.fixture
def impatient(request, environment):  # noqa: F811
    """The old worker waits one second instead of five, and instead of 120 for a new worker's
    brownout."""
    if patience := request.param:
        environment |= {"PYTHONPATH": f"{FAULTS}:{TREE}", "VNIC_TEST_PATIENCE": patience}


STEP_S, BROWNOUT_S = "vnic.daemon.upgrade:STEP_TIMEOUT_S=1", "vnic.daemon.worker:BROWNOUT_S=1"
ENGINES = [f"{which}-{what}" for which in ("first", "second") for what in ("load", "word", "run")]


@pytest.mark.parametrize(
    ("impatient", "how", "steps"),
    [
        ("", "raises", ["brownout", "control", *ENGINES]),
        ("", "dies", ["start", "brownout", "control", "first-load", "first-word"]),
        (BROWNOUT_S, "hangs", ["start", "brownout"]),
        (STEP_S, "hangs", ["control", "first-load", "first-word"]),
        ("", "garbles", ["control", "first-load", "first-run", "second-load", "second-run"]),
    ],
    indirect=["impatient"],
    ids=["raises", "dies", "hangs-early", "hangs", "garbles"],
)
@pytest.mark.timeout(720)
def test_a_new_worker_that_fails_does_no_harm(environment, impatient, two, faulty, how, steps):  # noqa: F811
    """At all steps before the first engine's point of no return. A new worker that still answers
    returns its engines, also later."""
    a, b = two
    ping(a, "10.99.0.2")
    before = status(environment)
    with Traffic(a, b) as traffic:
        for step in steps:
            counted = counters(environment)
            said = vnic(environment, "upgrade", "--python", faulty(step, how), status=1)
            says = SAYS[how]
            assert any(each in said for each in ([says.format(step=step)] if isinstance(says, str) else says)), (step, said)
            after, counted_then = status(environment), counters(environment)
            assert (after["pid"], after["supervisor"]["restarts"]) == (before["pid"], 0), step
            assert not {
                key: (value, counted_then.get(key)) for key, value in counted.items() if counted_then.get(key, -1) < value
            }, step
            ping(a, "10.99.0.2")
    assert int(traffic.exchanged[0]) > 20  # the connection still works
    if how != "hangs":  # meanwhile a TAP's queue may overflow
        assert 0 <= traffic.lost <= traffic.refused and traffic.wrong <= OVERTAKEN_MOST * len(steps)
    assert status(environment)["conserved"]
    if BROWNOUT_S not in environment.get("VNIC_TEST_PATIENCE", ""):
        vnic(environment, "upgrade")
        assert status(environment)["pid"] != before["pid"]
        ping(a, "10.99.0.2")


@pytest.mark.parametrize(
    ("impatient", "how", "steps"),
    [
        ("", "dies", ["first-run", "second-load", "second-word", "second-run"]),
        (STEP_S, "hangs", ["first-run", "second-load", "second-word", "second-run"]),
        (
            "",
            "garbles",
            ["first-word"],
            # at the last engine's step it has everything, and may become the worker before its end
        ),
    ],
    indirect=["impatient"],
    ids=["dies", "hangs", "garbles"],
)
@pytest.mark.timeout(720)
def test_a_new_worker_that_is_lost_with_an_engine_is_a_crash(environment, impatient, two, faulty, how, steps):  # noqa: F811
    """That engine's packets and counters are lost; interfaces, connections, addresses and settings
    are not."""
    a, b = two
    ping(a, "10.99.0.2")
    addresses = {(entry["mac"], entry["nic"]) for entry in status(environment)["switch"]["entries"]}
    vnic(environment, "rate", "a", "--egress", "40mbit")
    with Traffic(a, b) as traffic:
        for number, step in enumerate(steps, 1):
            before = status(environment)["pid"]
            vnic(environment, "upgrade", "--python", faulty(step, how), status=1)
            while (after := status(environment))["pid"] == before:
                pass
            assert after["supervisor"]["restarts"] == number, step
            assert "here or there" in after["supervisor"]["last"] or "cannot come back" in after["supervisor"]["last"], step
            assert {(entry["mac"], entry["nic"]) for entry in after["switch"]["entries"]} == addresses, step
            assert [nic["egress_bps"] for nic in after["nics"]] == [40_000_000, 0], step
            ping(a, "10.99.0.2")
    assert int(traffic.exchanged[0]) > 20  # the connection still works
    assert status(environment)["conserved"]
    vnic(environment, "upgrade")
    ping(a, "10.99.0.2")


FLOOD = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in %s: sender.sendto(b"%%d" %% number, ("10.99.0.2", 7001))
"""


@pytest.mark.parametrize("impatient", ["vnic.daemon.upgrade:STEP_TIMEOUT_S=60"], indirect=True)
@pytest.mark.parametrize(("step", "count"), [("first-load", 3000), ("second-load", 6000)], ids=["queue", "ring"])
def test_what_is_lost_is_reported(environment, impatient, two, faulty, tmp_path, step, count):  # noqa: F811
    """While an engine is halted, more packets arrive than fit into the queue of its TAP or into the
    ring before it."""
    a, b = two
    for box in two:  # without other packets than the test's
        box.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    ping(a, "10.99.0.2")
    vnic(environment, "rate", "a", "--egress", "none")
    receiver = inside(b, RECEIVE)
    assert receiver.stdout.readline() == "ready\n"
    os.mkfifo(gate := tmp_path / "gate")
    upgrade = subprocess.Popen(
        [*VNIC, "upgrade", "--json", "--python", faulty(step, "waits", gate)],
        env=environment, cwd=TREE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with open(gate, "w"):  # the new worker has opened it, too: the engine is halted
        taken, dropped = link_counts(a)
        # fits the queue, so that only the ring overflows
        portion = count if step == "first-load" else count // 10
        for sent in range(0, count, portion):
            a.python(FLOOD % range(sent, sent + portion))
            while step == "second-load" and sum(link_counts(a)) < taken + dropped + sent + portion:
                pass
        dropped = link_counts(a)[1] - dropped
    report = json.loads(upgrade.communicate(timeout=240)[0])
    a.python(FLOOD % [-1])
    seen, _, unread = map(int, receiver.communicate(timeout=160)[0].split())
    first, second = report["engines"]
    assert report["queue_drops"] == {"a": dropped, "b": 0}
    assert report["packets_lost"] == count - seen - unread > 500
    assert second["packets_lost"] == 0
    if step == "first-load":
        assert first["packets_lost"] == 0 and first["dropped"] == {} and dropped == report["packets_lost"]
    else:
        assert first["packets_lost"] == first["dropped"]["queue_full"] > 500
    assert status(environment)["conserved"]
    assert "packets lost: 0\n" in vnic(environment, "upgrade", "--python", faulty("none", "none"))


@pytest.fixture
def lying(tmp_path):
    """A Python that sends false messages, see tests/lying_successor.py."""

    def make(mode):
        script = tmp_path / "liar"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {TREE}/tests/lying_successor.py {mode} "$@"\n')
        script.chmod(0o755)
        return str(script)

    return make


@pytest.mark.parametrize("impatient", [STEP_S], indirect=True)
def test_a_successor_is_not_believed(environment, impatient, two, lying):  # noqa: F811
    """Its messages before it has taken over have no effect, also not on later workers."""
    a, b = two
    before = status(environment)
    for mode, says in {
        "took-over": "it said that it took over, and was not joined to the worker yet",
        "ready-took-over": "does not answer",
        "handed-over": "exit status 1",
        "changes": "exit status 3",
        "flood": "it does not take its answer",
    }.items():
        assert says in vnic(environment, "upgrade", "--python", lying(mode), status=1), mode
        after = status(environment)
        assert (after["pid"], after["supervisor"]) == (before["pid"], before["supervisor"]), mode
        ping(a, "10.99.0.2")
    assert kill_worker(environment)["lost"] == []
    assert b.interfaces() == ["eth0"]
    ping(a, "10.99.0.2")
    vnic(environment, "upgrade")


def test_a_python_that_comes_up_in_an_upgrade_only(environment, two, tmp_path):  # noqa: F811
    """The next workers are of the previous version: a Python that cannot start must not make stored
    state unusable."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\ncase "$*" in *" crash") exit 9;; esac\nPYTHONPATH={TREE} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    vnic(environment, "upgrade", "--python", str(script))
    pid = status(environment)["pid"]
    os.kill(pid, signal.SIGKILL)
    while (found := status(environment))["pid"] == pid:
        pass
    assert found["supervisor"]["restarts"] == 2
    assert "ERROR next worker is of another Python" in (tmp_path / "default.log").read_text()
    ping(two[0], "10.99.0.2")


def test_a_container_that_ends_in_the_brownout(environment, two, faulty, tmp_path):  # noqa: F811
    """Neither worker may change anything then; the one that runs afterwards detaches the NIC."""
    c, address = Container(), "10.99.0.3"
    vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", f"{address}/24")
    os.mkfifo(gate := tmp_path / "gate")
    upgrade = subprocess.Popen(
        [*VNIC, "upgrade", "--python", faulty("brownout", "waits", gate)], env=environment, cwd=TREE, stdout=subprocess.PIPE
    )
    with open(gate, "w"):  # the new worker has opened it, too, and has attached nothing yet
        c.close()
    upgrade.communicate(timeout=240)
    assert upgrade.returncode == 0
    until(lambda: [nic["name"] for nic in status(environment)["nics"]] == ["a", "b"])
    ping(two[0], "10.99.0.2")


def test_engines_are_preferred_while_a_worker_loads(environment, two, faulty, tmp_path):  # noqa: F811
    """If permitted, the supervisor gives the threads of the running worker niceness -10, and its
    own niceness again after the upgrade, failed or not."""

    def nices(pid):  # the 17th field after the name, which may have spaces: proc_pid_stat(5)
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        return {int(stat.rpartition(")")[2].split()[16]) for stat in stats}

    own, pid = os.getpriority(os.PRIO_PROCESS, 0), status(environment)["pid"]
    os.mkfifo(gate := tmp_path / "gate")
    upgrade = subprocess.Popen(
        [*VNIC, "upgrade", "--python", faulty("brownout", "waits", gate)], env=environment, cwd=TREE, stdout=subprocess.PIPE
    )
    with open(gate, "w"):
        assert nices(pid) == {min(-10, own) if IS_ROOT else own}
    upgrade.communicate(timeout=240)
    assert upgrade.returncode == 0
    until(lambda: nices(status(environment)["pid"]) == {own})
    vnic(environment, "upgrade", "--python", faulty("control", "raises"), status=1)
    until(lambda: nices(status(environment)["pid"]) == {own})


def test_a_python_that_has_no_vnic(environment, two):  # noqa: F811
    """An error of one line names it; clients still see the supervisor as their peer (`vnic down`
    waits for that process to end)."""
    a, _ = two
    said = vnic(environment, "upgrade", "--python", "/bin/false", status=1)
    assert "/bin/false: ended before it was a worker (exit status 1): is vnic installed there?" in said
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{environment['VNIC_RUNTIME_DIR']}/default.sock")
        peer, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    assert peer == status(environment)["supervisor"]["pid"]
    ping(a, "10.99.0.2")


@pytest.mark.parametrize("python", ["/bin/py\0thon", "/" + "x" * 70_000])
def test_a_python_that_is_no_path(environment, two, python, monkeypatch):  # noqa: F811
    monkeypatch.setenv("VNIC_RUNTIME_DIR", environment["VNIC_RUNTIME_DIR"])
    before = status(environment)
    with Client() as client, pytest.raises(VnicError, match="python"):
        client.call("Upgrade", python=python)
    after = status(environment)
    assert (after["pid"], after["supervisor"]) == (before["pid"], before["supervisor"])


@pytest.mark.parametrize("late", [True, False])
def test_the_word_is_said_in_time_or_not_at_all(late, monkeypatch):
    """Else both workers would run the engine."""
    monkeypatch.setattr("vnic.daemon.upgrade.STEP_TIMEOUT_S", 0.0)
    ours, theirs = map(Channel, socket.socketpair())
    with pytest.raises(Silent, match="does not answer"):
        ours.receive()
    if late:
        assert ours.shut()
        with pytest.raises(VnicError, match="is gone"):
            theirs.send(mine="e0")
    else:
        theirs.send(mine="e0")
        assert not ours.shut()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "does not answer"),  # between two messages
        (b"\x10", "does not answer"),  # within a length
        (b"\x10\0\0\0half", "does not answer"),  # within a message
        (b"\xff\xff\xff\xff", "without end"),
    ],
)
def test_after_a_missing_message_nothing_is_waited_for(sent, why, monkeypatch):
    """What follows could be the rest of the missing message, so that engines are not asked back
    over such a channel, which would take another timeout."""
    monkeypatch.setattr("vnic.daemon.upgrade.STEP_TIMEOUT_S", 0.01)
    near, far = socket.socketpair()
    ours = Channel(near)
    near.setblocking(False)
    far.sendall(sent)
    with pytest.raises(VnicError, match=why):
        ours.receive()
    far.sendall(b"\x80" * 5000)  # the rest, if it was a message
    with pytest.raises(VnicError, match=why):
        ours.receive()
    with pytest.raises(VnicError, match=why):
        ours.send(back="e0")
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    ours.close()
    far.close()


@pytest.mark.again
@pytest.mark.root
@pytest.mark.timeout(1920)
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_upgrade_faults.py", "-k", "raises or dies or reported", timeout_s=1840)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
