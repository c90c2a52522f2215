"""podman containers that start with their NIC, by the OCI hook: rootful as root, rootless as a
plain user."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from dataplane.descriptors import readable
from dataplane.errors import ConfigError
from tests.tools import PATH, need
from vnic.api.client import Client
from vnic.cli.hook import read_state, settings
from vnic.cli.main import cli

TREE = Path(__file__).parents[1]
VNIC = TREE / ".venv/bin/vnic"
HOOK = TREE / "contrib/oci-hook/vnic.json"
PROGRAMS = ("ip", "ping", "sleep", "true")
# Without CAP_SYS_RESOURCE, podman's default limits of a container cannot be set.
LIMIT_MOST = 1000
# crun needs this option on machines with both versions of cgroups; runc does not have it.
RUNTIMES = (("crun", "--cgroups=disabled"), ("runc",))


# -- what the hook reads ---------------------------------------------------------------------------


def test_annotations_become_a_nic():
    asked = {
        "vnic.nic": "web", "vnic.instance": "lab", "vnic.interface": "eth0", "vnic.mac": "02:00:00:00:00:01", "vnic.mtu": "9000",
        "vnic.queues": "4", "vnic.addresses": "10.0.0.1/24, fd00::1/64", "vnic.engine": "1", "vnic.vlan": "10",
        "vnic.egress": "10mbit", "vnic.ingress": "1gbit", "vnic.owner": "alice", "io.podman.other": "x",
    }  # fmt: skip
    assert settings(asked) == (
        "lab",
        "web",
        {
            "interface": "eth0", "mac": "02:00:00:00:00:01", "owner": "alice", "queues": 4, "mtu": 9000,
            "addresses": ["10.0.0.1/24", "fd00::1/64"], "engine": 1, "vlan": {"access": 10},
            "egress": {"rate": "10mbit"}, "ingress": {"rate": "1gbit"},
        },
    )  # fmt: skip
    assert settings({"vnic.nic": "web"}) == ("default", "web", {})
    assert settings({"io.podman.other": "x"}) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"vnic.rate": "1mbit", "vnic.nic": "web"}, "annotation vnic.rate: unknown: expected one of vnic.addresses, "),
        ({"vnic.mtu": "1500"}, "annotation vnic.nic is missing"),
        ({"vnic.nic": "web", "vnic.mtu": "big"}, "annotation vnic.mtu: 'big': expected a number"),
        ({"vnic.nic": "web", "vnic.vlan": "9" * 30}, "annotation vnic.vlan: '9{30}': expected a number"),
    ],
)
def test_wrong_annotations_are_named(asked, message):
    with pytest.raises(ConfigError, match=message):
        settings(asked)


def test_a_state_without_annotations_has_them_in_its_bundle(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"annotations": {"vnic.nic": "web"}}))
    assert read_state(json.dumps({"pid": 5, "bundle": str(tmp_path)})) == (5, {"vnic.nic": "web"})
    assert read_state(json.dumps({"pid": 5, "annotations": {"a": "b"}})) == (5, {"a": "b"})


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "7", '{"pid": "5", "annotations": {}}', '{"pid": 5, "annotations": {"a": 1}}', '{"pid": 5}',
             '{"pid": 5, "annotations": []}', '{"pid": 5, "bundle": "/nowhere"}'],
)  # fmt: skip
def test_what_is_no_state_is_one_line(text):
    result = CliRunner().invoke(cli, ["hook"], input=text)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "standard input is no container's state" in result.stderr


def test_the_shipped_hook_is_the_one_that_is_printed():
    shipped, printed = json.loads(HOOK.read_text()), json.loads(CliRunner().invoke(cli, ["hook", "--print"]).stdout)
    assert Path(printed["hook"]["path"]).name == "vnic"
    printed["hook"]["path"] = shipped["hook"]["path"]
    assert printed == shipped


# -- podman ----------------------------------------------------------------------------------------


class Podman:
    """podman with its own directory for all of its data, and a vnic for its containers."""

    def __init__(self, place):
        self.place = place
        self.environment = {**os.environ, "PATH": PATH, "XDG_RUNTIME_DIR": str(place / "session"), "HOME": str(place)}
        self.environment["VNIC_RUNTIME_DIR"] = str(place / "vnic")
        for each in ("session", "vnic"):
            (place / each).mkdir(mode=0o700)
        (place / "hooks").mkdir()
        hook = json.loads(HOOK.read_text())
        hook["hook"]["path"] = str(VNIC)
        (place / "hooks/vnic.json").write_text(json.dumps(hook))
        self.socket = str(place / "vnic/default.sock")
        self.runtime, self.options = "", []

    def find_runtime(self):
        """Chooses the first runtime that runs a container on this machine."""
        failures = []
        for name, *options in RUNTIMES:
            if shutil.which(name, path=PATH):
                self.runtime, self.options = name, options
                done = self.start(f"trial-{name}", "true", detach=False)
                if done.returncode == 0:
                    return
                failures.append(f"{name}: {done.stderr.strip()[-300:]}")
        pytest.skip(f"missing tool: a container runtime that works here; {'; '.join(failures) or 'neither crun nor runc'}")

    def podman(self, *arguments, check=True):
        places = [f"--{name}={self.place / name}" for name in ("root", "runroot", "tmpdir")]
        command = ["podman", *places, "--storage-driver=vfs", "--events-backend=none", f"--runtime={self.runtime}"]
        command += [f"--hooks-dir={self.place / 'hooks'}", *arguments]
        # Files, not pipes: conmon, which keeps running, would hold a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(command, env=self.environment, cwd=self.place, stdout=out, stderr=errors, timeout=200)
            out.seek(0)
            errors.seek(0)
            done.stdout, done.stderr = out.read(), errors.read()
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self, name, *command, detach=True, **annotations):
        """`podman run`, with limits that this process may set."""
        root = self.place / f"{name}-root"
        (root / "bin").mkdir(parents=True)
        for each in ("dev", "etc", "proc", "run", "sys", "tmp"):
            (root / each).mkdir()
        shutil.copy(need("busybox"), root / "bin/busybox")
        for each in PROGRAMS:
            (root / "bin" / each).symlink_to("busybox")
        options = [*self.options, "--network=none", "--cap-add=NET_RAW", f"--name={name}", *(["--detach"] if detach else [])]
        for limit, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            hard = resource.getrlimit(number)[1]
            most = LIMIT_MOST if hard == resource.RLIM_INFINITY else min(hard, LIMIT_MOST)
            options.append(f"--ulimit={limit}={most}:{most}")
        asked = [f"--annotation=vnic.{key}={value}" for key, value in annotations.items()]
        asked += [f"--annotation=vnic.instance={self.socket}"] if annotations else []
        return self.podman("run", *options, *asked, "--rootfs", str(root), *command, check=False)

    def vnic(self, *arguments):
        done = subprocess.run([VNIC, *arguments], env=self.environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def nics(self):
        with Client(self.socket) as client:
            return {nic["name"]: nic for nic in client.call("Status")["status"]["nics"]}

    def close(self):
        if self.runtime:
            self.podman("rm", "--force", "--all", "--time=0", check=False)
        # The process that holds a rootless user's namespaces.
        for file in self.place.rglob("pause.pid"):
            pidfd = os.pidfd_open(int(file.read_text()))
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert readable(pidfd, 10_000)
            os.close(pidfd)


@pytest.fixture
def podman(leak_check):
    need("podman")
    busybox = need("busybox")
    if "not a dynamic executable" not in subprocess.run(["ldd", busybox], capture_output=True, text=True).stderr:
        pytest.skip("missing tool: busybox-static")
    # a short path, for sockets
    made = Podman(Path(tempfile.mkdtemp(prefix="vnic-podman-", dir="/tmp")))
    try:
        made.find_runtime()
        yield made
    finally:
        made.close()
        for left in range(200, -1, -1):  # podman's monitors, which are no children, write there until they end
            try:
                shutil.rmtree(made.place)
                break
            except OSError:
                if not left:
                    raise
                time.sleep(0.05)


@pytest.fixture
def network(podman):
    file = podman.place / "none.yaml"
    file.write_text("nics: {}\n")
    podman.vnic("up", "-d", str(file))
    yield podman
    podman.vnic("down")


def pings(podman, name, address):
    done = podman.podman("exec", name, "ping", "-c", "2", "-W", "10", address)
    assert re.search(r"2 packets transmitted, 2 packets received", done.stdout)


@pytest.mark.commands
@pytest.mark.timeout(720)
def test_containers_start_with_their_nic_restart_with_it_and_end_with_it(network):
    podman = network
    with Client(podman.socket) as listener:
        events = listener.stream("Monitor")
        web = {"nic": "web", "interface": "eth0", "addresses": "10.0.0.1/24", "egress": "50mbit"}
        for name, annotations in (("a", web), ("b", {"nic": "db", "addresses": "10.0.0.2/24"})):
            done = podman.start(name, "sleep", "1000", **annotations)
            assert done.returncode == 0, done.stderr
        before = podman.nics()
        assert before["web"]["interface"] == "eth0" and before["web"]["egress_bps"] == 50_000_000
        pings(podman, "a", "10.0.0.2")

        # The name is free once the container has ended, and the container restarts with its NIC.
        podman.podman("restart", "--time=0", "a")
        after = podman.nics()
        assert after["web"]["pid"] != before["web"]["pid"]
        assert after["db"]["pid"] == before["db"]["pid"]
        pings(podman, "a", "10.0.0.2")

        # A running container's name is rejected, and the container does not start.
        done = podman.start("c", "sleep", "1000", nic="web")
        assert done.returncode != 0 and "hook" in done.stderr
        assert podman.nics()["web"]["pid"] == after["web"]["pid"]

        # Without annotations the hook does not run; attach by hand.
        assert podman.start("d", "sleep", "1000").returncode == 0
        pid = podman.podman("inspect", "--format={{.State.Pid}}", "d").stdout.strip()
        podman.vnic("attach", "tap", "late", "--pid", pid, "--address", "10.0.0.3/24")
        pings(podman, "d", "10.0.0.1")

        podman.podman("stop", "--time=0", "b")
        while (event := next(events)["event"]) and (event["event"], event.get("nic")) != ("detached", "db"):
            pass
        assert set(podman.nics()) == {"late", "web"}
        events.close()


@pytest.mark.again
@pytest.mark.root
@pytest.mark.timeout(1200)
def test_the_same_rootless(run_as_plain_user):
    run_as_plain_user(__file__)
