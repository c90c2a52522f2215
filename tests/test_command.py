"""The command with the real runtime: demo, up, down, attach; nothing is left when it is interrupted
or killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import plain_user
from tests.support.containers import IS_ROOT, Container

TREE = Path(__file__).parents[1]
VNIC = [sys.executable, "-m", "vnic.cli.main"]


@pytest.fixture
def environment(tmp_path):
    """The test's own runtime directory."""
    tmp_path.chmod(0o700)
    return {**os.environ, "VNIC_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(TREE)}


def vnic(environment, *words, status=0, timeout=240):
    done = subprocess.run([*VNIC, *words], env=environment, cwd=TREE, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == status, done.stdout + done.stderr
    if status:
        assert done.stderr.startswith("vnic: error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stdout if not status else done.stderr


def processes_of(session: int) -> list[str]:
    """Command lines of the processes that run in a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            # If the first thread has ended (Z), other threads of the process may still run.
            if int(fields[3]) == session and (fields[0] != "Z" or len(os.listdir(entry / "task")) > 1):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def gone_within(seconds: float, session: int) -> bool:
    end = time.monotonic() + seconds
    while processes_of(session):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)  # no event for the end of a process that is no child
    return True


def test_demo_prints_one_object(environment):
    result = json.loads(vnic(environment, "demo", "--json", "--rate", "50mbit", "--queues", "2", "--seconds", "1"))
    assert result["conserved"] is True
    assert result["unprivileged"] is (not IS_ROOT)
    assert result["unshaped_gbps"] > 0.5
    # only whether it works; the benchmark measures accuracy
    assert abs(result["error_percent"]) < 10
    assert 0 < result["rtt_us"]["p50"] <= result["rtt_us"]["p99"]
    assert {name: len(queues) for name, queues in result["queues"].items()} == {"left": 2, "right": 2}
    assert sum(queue["tx_packets"] for queue in result["queues"]["right"]) > 1000


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("at", ["two containers", "attaching", "unshaped", "applied live"])
def test_demo_that_is_ended_leaves_nothing(environment, how, at, leak_check):
    process = subprocess.Popen(
        [*VNIC, "demo", "--seconds", "1"], env=environment, cwd=TREE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    while at not in (line := process.stderr.readline()):
        assert line, "the demo ended by itself"
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)
    text = process.communicate(timeout=120)[1]
    assert gone_within(10, process.pid), processes_of(process.pid)
    assert "Traceback" not in text


def write_config(path, **containers):
    nics = {
        name: {"pid": box.pid, "interface": "eth0", "addresses": [f"10.99.0.{number}/24"]}
        for number, (name, box) in enumerate(containers.items(), 1)
    }
    path.write_text(json.dumps({"nics": nics}))  # JSON is YAML
    return str(path)


def ping(box, address, count=2, check=True):
    return box.run("ping", "-c", str(count), "-i", "0.01", "-W", "1", address, check=check)


def test_up_attach_rate_link_detach_down(environment, tmp_path, leak_check):
    with Container() as a, Container() as b, Container() as c:
        said = vnic(environment, "up", "-d", write_config(tmp_path / "net.yaml", a=a, b=b))
        assert "instance default is up" in said
        try:
            ping(a, "10.99.0.2")
            assert "runs already" in vnic(environment, "up", str(tmp_path / "net.yaml"), status=2)
            vnic(environment, "attach", "tap", "c", "--pid", str(c.pid), "--interface", "eth0", "--address", "10.99.0.3/24",
                 "--queues", "2")  # fmt: skip
            ping(c, "10.99.0.1")
            vnic(environment, "rate", "c", "--egress", "10mbit", "--ingress", "20mbit")
            status = json.loads(vnic(environment, "status", "--json"))
            assert status["conserved"] is True
            assert {nic["name"]: (nic["egress_bps"], nic["ingress_bps"]) for nic in status["nics"]}["c"] == (10**7, 2 * 10**7)
            ping(c, "10.99.0.1")
            vnic(environment, "rate", "c", "--egress", "none", "--ingress", "none")
            vnic(environment, "link", "c", "down")
            assert "100% packet loss" in ping(a, "10.99.0.3", count=1, check=False)
            vnic(environment, "link", "c", "up")
            stats = json.loads(vnic(environment, "stats", "--json"))
            assert {nic["name"] for nic in stats["nics"]} == {"a", "b", "c"}
            assert "a.parse" in vnic(environment, "graph", "--elements")
            assert vnic(environment, "graph", "--dot", "--elements").startswith("digraph")
            assert "name" in json.loads(vnic(environment, "graph", "--json", "--elements"))["e0"][0]
            vnic(environment, "detach", "c")
            assert c.interfaces() == []
            assert "is not attached" in vnic(environment, "detach", "c", status=2)
            ping(a, "10.99.0.2")
        finally:
            vnic(environment, "down")
        assert a.interfaces() == [] and b.interfaces() == []
        assert "does not run" in vnic(environment, "status", status=1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_up_that_is_ended_leaves_nothing(environment, tmp_path, how, leak_check):
    with Container() as a, Container() as b:
        config = write_config(tmp_path / "net.yaml", a=a, b=b)
        for _ in range(2):  # the second run: the first has left nothing
            process = subprocess.Popen(
                [*VNIC, "up", config], env=environment, cwd=TREE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            assert process.stderr is not None and "is up" in process.stderr.readline()
            ping(a, "10.99.0.2")
            process.send_signal(how)
            text = process.communicate(timeout=120)[1]
            assert "Traceback" not in text
            assert gone_within(10, process.pid), processes_of(process.pid)
            assert a.interfaces() == [] and b.interfaces() == []


ELEMENT = """
from dataplane.graph.element import PyElement

class Stamp(PyElement):
    def __init__(self, tos, name=None):
        self.tos = tos

    def process(self, batch):
        for i in (batch.ethertype == 0x0800).nonzero()[0]:
            batch.frame(i)[15] = self.tos
"""


def test_an_element_in_python_from_the_file_changes_real_traffic(environment, tmp_path):
    (tmp_path / "stamp.py").write_text(ELEMENT)
    with Container() as a, Container() as b:
        config = json.loads(Path(write_config(tmp_path / "net.yaml", a=a, b=b)).read_text())
        # The element does not update the header checksum, so b's kernel counts changed packets as
        # header errors.
        config["nics"]["a"]["egress"] = {"elements": [{"element": "stamp:Stamp", "tos": 4}, {"element": "Counter"}]}
        (tmp_path / "net.yaml").write_text(json.dumps(config))
        vnic(environment, "up", "-d", str(tmp_path / "net.yaml"))
        try:
            ping(a, "10.99.0.2", check=False)
            errors = [line for line in b.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Ip:")]
            names, values = (line.split() for line in errors)
            assert int(values[names.index("InHdrErrors")]) >= 2  # b received the changed bytes
            elements = json.loads(vnic(environment, "stats", "a", "--json"))["engines"][0]["elements"]
            assert next(e for e in elements if e["type"] == "Stamp")["packets"] >= 2
        finally:
            vnic(environment, "down")


def bad(tmp_path, **nic):
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps({"nics": {"a": nic}}))
    return str(path)


@pytest.mark.parametrize(
    ("nic", "says"),
    [
        ({"pid": 4194303}, "pid 4194303: no such process"),
        ({"netns": "/nowhere/at/all"}, "no such file"),
        ({"netns": "/etc/passwd"}, "is not a network namespace"),
        ({"pid": 1, "queues": 0}, "queues"),
        ({"pid": 1, "queues": 65}, "queues"),
        ({"pid": 1, "mtu": 65522}, "mtu"),
        ({"pid": 1, "mac": "02:00:00:00:00"}, "mac"),
        ({"pid": 1, "mac": "03:00:00:00:00:01"}, "group address"),
        ({"pid": 1, "colour": "red"}, "colour"),
        ({"pid": 1, "interface": "much-too-long-a-name"}, "interface"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_gets_one_line_and_status_2(environment, tmp_path, nic, says):
    assert says in vnic(environment, "up", bad(tmp_path, **nic), status=2)


def test_a_name_that_is_taken_inside(environment, tmp_path):
    with Container() as a:
        error = vnic(environment, "up", bad(tmp_path, pid=a.pid, interface="lo"), status=2)
        assert "lo" in error and a.interfaces() == []


@pytest.mark.root
@pytest.mark.parametrize("tun", ["missing", "closed"])
def test_without_the_tun_device(tun):
    """A plain user's demo runs over veth pairs, and says so; a TAP is refused in one line that says what to do."""
    done = plain_user.run([*VNIC, "demo", "--seconds", "0.3", "--json"], tun=tun)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/dev/net/tun cannot be used: over veth pairs instead" in done.stderr
    result = json.loads(done.stdout)
    assert result["kind"] == "veth" and result["conserved"] and result["unprivileged"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:  # tmp_path is root's alone
        file.write("nics: {a: {netns: /proc/self/ns/net}}\nhost_interfaces: true\n")
        file.flush()
        os.chmod(file.name, 0o644)
        done = plain_user.run([*VNIC, "up", file.name], tun=tun)
    assert done.returncode == 2, done.stdout + done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.startswith("vnic: error: ")]
    assert "/dev/net/tun" in error and "veth" in error and "Traceback" not in done.stderr


@pytest.mark.root
@pytest.mark.timeout(1200)
@pytest.mark.again
def test_all_of_this_as_a_plain_user():
    done = plain_user.run_pytest("tests/test_command.py", timeout_s=1120)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
