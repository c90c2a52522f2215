"""vnic as a service: messages to the service manager, SIGHUP, and the unit in contrib/."""

import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.test_api import runtime_directory, start_fake, stop  # noqa: F401 - a fixture
from tests.tools import need
from vnic.api.client import Client
from vnic.daemon.notify import ServiceManager

TREE = Path(__file__).parents[1]
UNIT = TREE / "contrib/systemd/vnic@.service"
WAIT_S = 30


class Manager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(WAIT_S)

    def next(self):
        """The next message, by variable."""
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))

    def until(self, variable):
        while variable not in (message := self.next()):
            pass
        return message


@pytest.fixture
def manager(tmp_path):
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def hears_nothing(manager):
    return not select.select([manager.socket], [], [], 0)[0]


@pytest.fixture
def service(tmp_path, manager, runtime_directory):  # noqa: F811
    """`vnic up` without NICs, as a service manager starts it."""
    file = tmp_path / "none.yaml"
    file.write_text("nics: {}\n")
    command = [sys.executable, "-m", "vnic.cli.main", "up", "-i", "lab", str(file)]
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": str(TREE)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    yield process
    if process.poll() is None:
        process.terminate()
    process.communicate(timeout=WAIT_S)


@pytest.mark.commands
def test_a_service_s_life_as_its_manager_hears_it(service, manager):
    ready = manager.next()
    assert ready["READY"] == "1"
    first = int(re.fullmatch(r"up, worker (\d+)", ready["STATUS"])[1])
    with Client("lab") as vnic:
        assert vnic.call("Status")["status"]["pid"] == first
        vnic.call("Upgrade")
    reloading = manager.next()
    assert reloading["RELOADING"] == "1" and int(reloading["MONOTONIC_USEC"]) > 0
    ready = manager.next()
    assert ready["READY"] == "1"
    second = int(re.fullmatch(r"up, worker (\d+), upgraded", ready["STATUS"])[1])
    assert second != first
    os.kill(second, signal.SIGKILL)
    assert manager.next()["STATUS"] == "worker ended: killed by SIGKILL; the next one starts in 0 s"
    assert re.fullmatch(r"up, worker \d+, after 1 restarts", manager.next()["STATUS"])
    service.terminate()
    assert manager.next()["STOPPING"] == "1"
    assert service.wait(WAIT_S) == 0
    assert hears_nothing(manager)


@pytest.mark.commands
def test_an_upgrade_that_fails_ends_the_reload(service, manager):
    manager.next()
    with Client("lab") as vnic, pytest.raises(Exception, match="ended before it was a worker"):
        vnic.call("Upgrade", python="/bin/false")
    assert manager.next()["RELOADING"] == "1"
    ready = manager.next()
    assert ready["READY"] == "1" and ready["STATUS"].startswith("upgrade failed")


@pytest.mark.commands
def test_a_service_that_does_not_come_up_is_never_ready(tmp_path, manager, runtime_directory):  # noqa: F811
    file = tmp_path / "wrong.yaml"
    file.write_text("nics: {web: {netns: /nowhere}}\n")
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": str(TREE)}
    command = [sys.executable, "-m", "vnic.cli.main", "up", "-i", "lab", str(file)]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=240).returncode == 2
    said = []
    while not hears_nothing(manager):
        said.append(manager.next())
    assert not any("READY" in message for message in said)


def test_abstract_sockets_and_silence(monkeypatch):
    name = f"vnic-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    service = ServiceManager()
    assert "NOTIFY_SOCKET" not in os.environ  # children must not notify
    service.status("two\nlines")
    assert manager.next() == {"STATUS": "two lines"}
    manager.socket.close()
    service.status("nobody reads this, and that is no error")
    ServiceManager().ready("no manager")


# -- SIGHUP ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("runtime_directory")
def test_sighup_does_not_end_a_daemon():
    process = start_fake(start_new_session=True, stderr=subprocess.PIPE)
    try:
        assert process.up
        process.send_signal(signal.SIGHUP)
        assert "SIGHUP ignored" in process.stderr.readline()
        with Client() as vnic:
            os.kill(vnic.call("Status")["status"]["pid"], signal.SIGHUP)  # the worker, too
            vnic.call("Status")
    finally:
        stop(process)
        process.stderr.close()
    assert process.returncode == 0


@pytest.mark.parametrize(("ignored", "ends"), [(False, True), (True, False)])
@pytest.mark.usefixtures("runtime_directory")
def test_a_terminal_that_hangs_up_ends_what_runs_on_it_but_for_nohup(ignored, ends):
    controller, terminal = os.openpty()

    def enter_terminal():
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        # Also where the tests run under nohup themselves.
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = start_fake(start_new_session=True, preexec_fn=enter_terminal, pass_fds=[terminal], stderr=subprocess.PIPE)
    try:
        assert process.up
        os.close(terminal)
        os.close(controller)  # the kernel sends SIGHUP to the session's leader
        if ends:
            assert process.wait(WAIT_S) == 0
        else:
            assert "SIGHUP ignored" in process.stderr.readline()
            with Client() as vnic:
                vnic.call("Status")
    finally:
        stop(process)
        process.stderr.close()


# -- the unit --------------------------------------------------------------------------------------


def test_the_unit_is_right(tmp_path):
    verify = need("systemd-analyze")
    vnic = tmp_path / "vnic"
    vnic.write_text("#!/bin/sh\n")
    vnic.chmod(0o755)
    unit = tmp_path / "vnic@.service"
    text = UNIT.read_text()
    assert text.count("/usr/local/bin/vnic") >= 2
    unit.write_text(text.replace("=/usr/local/bin/vnic", f"={vnic}"))
    command = [verify, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / "vnic@lab.service")]
    (tmp_path / "vnic@lab.service").symlink_to(unit)
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_leaves_the_capabilities_that_vnic_keeps():
    from vnic.daemon import privileges

    [line] = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    numbers = {name: value for name, value in vars(privileges).items() if name.startswith("CAP_")}
    assert {numbers[name] for name in line.split()} == set(privileges.SUPERVISOR)
