"""`vnic exec-with`: a program gets a NIC, and vnic has it back when the program ends, also by SIGKILL."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support.shell import without_sanitizer
from tests.test_command import TREE, VNIC, environment, vnic  # noqa: F401 - a fixture
from tests.test_supervisor import kill_worker, status
from tests.tools import need

pytestmark = pytest.mark.commands

# Connects to the NIC, says so, and waits.
PEER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print("here", flush=True)
sys.stdin.read()
sys.exit(7)
"""


@pytest.fixture
def instance(environment, tmp_path):  # noqa: F811
    """An instance with a NIC that is not concerned."""
    file = tmp_path / "net.yaml"
    file.write_text(json.dumps({"nics": {"other": {"kind": "stream", "listen": str(tmp_path / "other.sock")}}}))
    vnic(environment, "up", "-d", str(file))
    yield environment
    vnic(environment, "down")


def names(env):
    return [nic["name"] for nic in status(env)["nics"]]


def wait_until_alone(env):
    while names(env) != ["other"]:
        pass  # the test's own timeout ends this
    while any(path.startswith("exec-") for path in os.listdir(env["VNIC_RUNTIME_DIR"])):
        pass


def run(env, *words, **options):
    return subprocess.Popen([*VNIC, "exec-with", "vm", *words], env=env, cwd=TREE, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip


def test_the_nic_lives_as_long_as_the_program(instance):
    program = run(instance, "--kind", "stream", "--egress", "10mbit", "--", sys.executable, "-c", PEER, "{socket}")
    assert program.stdout.readline() == "here\n"
    nic = next(nic for nic in status(instance)["nics"] if nic["name"] == "vm")
    assert (nic["kind"], nic["egress_bps"]) == ("stream", 10**7)
    said, errors = program.communicate("", timeout=120)
    assert (program.returncode, said, errors) == (7, "", "")  # its own status
    wait_until_alone(instance)


def test_killed_it_leaves_nothing(instance):
    program = run(instance, "--kind", "stream", "--", sys.executable, "-c", PEER, "{socket}", start_new_session=True)
    assert program.stdout.readline() == "here\n"
    kill_worker(instance)
    assert sorted(names(instance)) == ["other", "vm"]
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    wait_until_alone(instance)


def test_qemu_takes_the_options(instance):
    """QEMU without a guest: it connects, before a driver exists."""
    need("qemu-system-x86_64")
    for options, kind in ((("--queues", "2"), "vhost-user"), (("--kind", "stream"), "stream")):
        words = [
            "qemu-system-x86_64",
            "-M",
            "pc",
            "-accel",
            "tcg",
            "-m",
            "64",
            "-nodefaults",
            "-display",
            "none",
            "-S",
            "{qemu}",
        ]
        program = run(without_sanitizer(instance), *options, "--", *words)
        while not any(nic["name"] == "vm" and nic.get("guest") == "connected" for nic in status(instance)["nics"]):
            assert program.poll() is None, program.communicate()
        assert next(nic["kind"] for nic in status(instance)["nics"] if nic["name"] == "vm") == kind
        program.terminate()
        program.communicate(timeout=120)
        wait_until_alone(instance)


def test_what_cannot_be_is_one_line(instance):
    for words, says, code in (
        (["--", "qemu", "{qemu}"], "-m SIZE", 2),
        (["--", "qemu"], "expected {qemu}", 2),
        (["--egress", "fast", "--", "x", "{socket}"], "fast", 2),
        (["--kind", "stream", "--queues", "2", "--", "x", "{socket}"], "one queue pair", 2),
        (["--", "/no/such/program", "{socket}"], "/no/such/program: No such file", 1),
    ):
        program = run(instance, *words)
        said, errors = program.communicate(timeout=120)
        assert (program.returncode, said) == (code, "") and says in errors
        assert errors.startswith("vnic: error: ") and errors.count("\n") == 1, errors
        wait_until_alone(instance)
    error = vnic(instance, "exec-with", "other", "--", "true", "{socket}", status=2)
    assert "other" in error and names(instance) == ["other"]


def test_dry_runs_print_the_command():
    def printed(*words):
        done = subprocess.run([*VNIC, "exec-with", "vm", "-n", *words], cwd=TREE, capture_output=True, text=True, check=True)
        return done.stdout

    assert "size=256M,share=on" in printed("--", "qemu", "-m", "256", "{qemu}")
    assert "size=1G,share=on" in printed("--", "qemu", "-m", "size=1G,slots=2", "{qemu}")
    found = json.loads(printed("--json", "--kind", "stream", "--mac", "02:00:00:00:00:01", "--", "qemu", "{qemu}"))
    assert found["command"][-1] == "virtio-net-pci,netdev=vnic,mac=02:00:00:00:00:01"
    assert found["nic"] == {"name": "vm", "kind": "stream", "mac": "02:00:00:00:00:01"}
