"""`vnic demo --guest`: two virtual machines of User-mode Linux over one vnic: TCP between them, a
queue pair more by ethtool in a guest, a rate limit set live, an upgrade of vnic under them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dataplane.errors import VnicError
from dataplane.units import format_rate
from vnic.api.client import Client
from vnic.cli.demo import (
    ADDRESSES,
    ECHO_PORT,
    TCP_PORT,
    Machine,
    Progress,
    books_of,
    goodput,
    round_trips,
    tcp,
)
from vnic.device.new_container import end_with_parent

KERNEL, MODULES = "linux.uml", Path("/usr/lib/uml/modules")
ROUND_TRIPS = 300
QUEUES = 2
INIT = """#!{python} -B
import sys
sys.path[:0] = {path!r}
from vnic.cli.demo_guest_init import main
main()
"""


def _kernel() -> str:
    """The path of User-mode Linux. Raises VnicError where it is not installed."""
    found = shutil.which(KERNEL, path=f"{os.environ.get('PATH', '')}:/usr/bin")
    if found is None or not MODULES.is_dir():
        raise VnicError(
            f"the demo's guests need User-mode Linux ({KERNEL} and {MODULES}), which is not "
            "installed: apt install user-mode-linux; without --guest it connects containers"
        )
    if platform.machine() != "x86_64":
        raise VnicError("User-mode Linux exists for x86-64 only; without --guest the demo runs")
    return found


class DemoGuest(Machine):
    """A guest, which boots from the host's files; `wait` waits until it has."""

    WHAT = "guest"

    def __init__(self, name: str, directory: Path, kernel: str, path: Path) -> None:
        init, home = directory / f"{name}-init", directory / f"{name}-uml"
        root = str(Path(__file__).resolve().parents[2])
        init.write_text(INIT.format(python=sys.executable, path=[root]))
        init.chmod(0o755)
        home.mkdir()
        self._process = subprocess.Popen(
            [
                kernel, "mem=192M", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}",
                f"uml_dir={home}", "con=null", "con0=fd:0,fd:1", "ssl=null", "panic=1", "quiet",
                f"virtio_uml.device={path}:1",
            ],
            env={"HOME": str(home), "TMPDIR": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            process_group=0,
            # SIGTERM: after SIGKILL, the processes that it traces would be left
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        super().__init__(name, self._process.stdin, self._process.stdout)

    def wait(self) -> str:
        """Waits until it has booted, and gives it an address; returns its kernel's version."""
        self.answer()  # ready
        self.ask("set_up", address=ADDRESSES[self.name])
        return str(self.answer()["kernel"])

    def ethtool(self, *arguments: str) -> str | None:
        """The output of ethtool in the guest; None where it is not installed. Raises VnicError if
        it fails."""
        self.ask("ethtool", arguments=arguments)
        reply = self.answer()
        if reply["output"] is not None and reply["status"]:
            words = " ".join(arguments)
            raise VnicError(f"guest {self.name}: ethtool {words}: {reply['output'].strip()}")
        return None if reply["output"] is None else str(reply["output"])

    def close(self) -> None:
        """Ends it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


@contextmanager
def _instance(directory: Path, config: dict[str, Any]) -> Iterator[Client]:
    """Runs an instance as `vnic up` does: only one with a supervisor can be upgraded."""
    file, log = directory / "net.json", directory / "log"
    file.write_text(json.dumps(config))
    environment = {**os.environ, "VNIC_RUNTIME_DIR": str(directory)}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    read_end, write_end = os.pipe()
    with open(read_end) as answers, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vnic.cli.main", "up", "--ready-descriptor",
             str(write_end), str(file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write_end],
            process_group=0,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )  # fmt: skip
        os.close(write_end)
        try:
            answer = json.loads(answers.readline() or "{}")
            if not answer.get("ready"):
                raise VnicError(answer.get("error") or log.read_text().strip())
            os.environ["VNIC_RUNTIME_DIR"] = str(directory)
            with Client() as client:
                yield client
        finally:
            process.terminate()
            process.wait()


def _upgrade_under(sender: Machine, receiver: Machine, seconds: float) -> tuple[float, Any]:
    """Goodput of a TCP stream under which vnic is upgraded, and the upgrade's report."""
    reports: list[Any] = []
    failed: list[Exception] = []

    def upgrade() -> None:
        try:
            with Client() as client:  # the old worker ends, and its connections with it
                reports.append(client.call("Upgrade", python=None)["report"])
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=upgrade)
    bps, _ = tcp(sender, receiver, seconds, settle=0.2, meanwhile=thread.start)
    thread.join()
    if failed:
        raise failed[0]
    return bps, reports[0]


def _nic(client: Client, name: str) -> dict[str, Any]:
    nics: list[dict[str, Any]] = client.call("Status")["status"]["nics"]
    return next(nic for nic in nics if nic["name"] == name)


def run_guest_demo(*, rate_bps: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """Runs the demo and returns its figures. Removes everything that it created, also on an
    exception or KeyboardInterrupt."""
    kernel = _kernel()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnic-demo-")))
        sockets = {name: directory / f"{name}.sock" for name in ADDRESSES}
        config = {
            "nics": {
                name: {"kind": "vhost-user", "listen": str(path), "queues": QUEUES}
                for name, path in sockets.items()
            }
        }
        progress("starting vnic with two NICs of kind vhost-user")
        client = stack.enter_context(_instance(directory, config))
        progress("booting two guests of User-mode Linux")
        left, right = (
            stack.enter_context(closing(DemoGuest(name, directory, kernel, sockets[name])))
            for name in ADDRESSES
        )
        version = {each.wait() for each in (left, right)}.pop()
        for each in (left, right):
            each.ask("listen", address=ADDRESSES[each.name], tcp_port=TCP_PORT, udp_port=ECHO_PORT)
            each.answer()
        progress("ethtool -L eth0 combined 2 in guest left")
        has_ethtool = left.ethtool("-L", "eth0", "combined", str(QUEUES)) is not None
        queues_used = int(_nic(client, "left")["queues_used"])
        progress(f"round trips: {ROUND_TRIPS} UDP datagrams there and back")
        rtt_us = round_trips(left, right, ROUND_TRIPS)
        progress(f"TCP left -> right, unshaped, {seconds:g} s")
        unshaped_bps, _ = tcp(left, right, seconds, settle=0.3)
        client.call("SetRate", name="left", egress=format_rate(rate_bps), ingress=None)
        progress(f"TCP left -> right, {format_rate(rate_bps)} applied live, {seconds:g} s")
        shaped_bps, mss = tcp(left, right, seconds, settle=0.5)
        progress(f"TCP right -> left, and vnic upgraded meanwhile, {seconds:g} s")
        upgraded_bps, report = _upgrade_under(right, left, seconds)
        with Client() as now:
            status = now.call("Status")["status"]
    expected_bps = goodput(rate_bps, mss)
    return {
        "kind": "vhost-user",
        "guests": f"User-mode Linux {version}",
        "unshaped_gbps": round(unshaped_bps / 1e9, 3),
        "rate": format_rate(rate_bps),
        "shaped_mbps": round(shaped_bps / 1e6, 3),
        "expected_mbps": round(expected_bps / 1e6, 3),
        "error_percent": round((shaped_bps / expected_bps - 1) * 100, 3),
        "rtt_us": rtt_us,
        "ethtool": has_ethtool,
        "queues_used": queues_used,
        "upgrade": {
            "blackout_ms": round(
                statistics.fmean(engine["blackout_ms"] for engine in report["engines"]), 3
            ),
            "packets_lost": report.get("packets_lost"),
            "gbps": round(upgraded_bps / 1e9, 3),
        },
        **books_of(status),
        "unprivileged": os.geteuid() != 0,
    }
