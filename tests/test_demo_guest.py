"""`vnic demo --guest`: two virtual machines of User-mode Linux; nothing is left when it is interrupted or killed."""

import json
import os
import signal
import subprocess

import pytest

from dataplane.errors import VnicError
from tests.support import plain_user
from tests.test_command import TREE, VNIC, environment, gone_within, vnic  # noqa: F401 - a fixture
from tests.tools import need
from vnic.cli import demo_guest

pytestmark = pytest.mark.commands

SHORT = ["demo", "--guest", "--rate", "50mbit", "--seconds", "0.5"]


def check(result):
    assert result["conserved"] and result["guests"].startswith("User-mode Linux ")
    assert result["unshaped_gbps"] > 0.05
    assert abs(result["error_percent"]) < 10  # only whether it works
    assert 0 < result["rtt_us"]["p50"] <= result["rtt_us"]["p99"]
    assert result["ethtool"] and result["queues_used"] == 2
    assert result["upgrade"]["packets_lost"] == 0 and result["upgrade"]["gbps"] > 0.01


def test_it_prints_one_object(environment, leak_check):  # noqa: F811
    need("linux.uml"), need("ethtool")
    check(json.loads(vnic(environment, *SHORT, "--json")))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("at", ["booting", "applied live"])
def test_ended_it_leaves_nothing(environment, how, at, leak_check, tmp_path):  # noqa: F811
    need("linux.uml")
    process = subprocess.Popen([*VNIC, *SHORT], env={**environment, "TMPDIR": str(tmp_path)}, cwd=TREE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    assert process.stderr is not None
    while at not in (line := process.stderr.readline()):
        assert line, "the demo ended by itself"
    if how is signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.kill()
    process.communicate(timeout=60)
    assert gone_within(60, process.pid)
    if how is signal.SIGINT:
        assert not any(path.name.startswith("vnic-demo-") for path in tmp_path.iterdir())


@pytest.mark.root
def test_a_plain_user_runs_it():
    need("linux.uml"), need("ethtool")
    # the helper's own directory is in /dev, which is another one in a guest
    done = plain_user.run(["env", "TMPDIR=/var/tmp", *VNIC, *SHORT, "--json"])
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    check(result)
    assert result["unprivileged"]


def test_without_user_mode_linux_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo_guest, "KERNEL", "linux.none")
    with pytest.raises(VnicError, match="apt install user-mode-linux"):
        demo_guest.run_guest_demo(rate_bps=10**8, seconds=1, progress=print)
