"""The environment of a contestant: three network namespaces, a directory, and processes.

All of them end with the `with` block. Names contain the bench's pid, so that two benches do not
conflict, and a later one can remove the leftovers of a killed one.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from bench.errors import BenchError
from bench.interrupts import held
from bench.probes import probe, run

NETNS = Path("/run/netns")
PREFIX = "vnicbench-"
RUNTIME = "VNIC_RUNTIME_DIR"
ADDRESS_A, ADDRESS_B = "10.99.0.1", "10.99.0.2"
PREFIX_LENGTH = 24


def sweep() -> None:
    """Deletes the namespaces of benches that no longer run."""
    if not NETNS.is_dir():
        return
    for path in NETNS.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with contextlib.suppress(BenchError):
                run(["ip", "netns", "del", path.name])


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Polls until the condition holds. Raises BenchError with `what` on a timeout."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} within {seconds:.0f} s")
        time.sleep(0.02)


class Space:
    """Namespaces `a` and `b`, the two ends, and `middle` for a contestant's parts between them."""

    def __init__(self) -> None:
        self.a, self.b, self.middle = (f"{PREFIX}{os.getpid()}-{end}" for end in ("a", "b", "m"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.directory = Path()
        self._runtime_before = os.environ.get(RUNTIME)

    def __enter__(self) -> Self:
        try:
            with held():
                self.directory = Path(tempfile.mkdtemp(prefix=PREFIX))
            for name in (self.a, self.b, self.middle):
                run(["ip", "netns", "add", name])
                run(["ip", "-n", name, "link", "set", "lo", "up"])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, last started first, then deletes the namespaces and the directory.
        May be called twice."""
        with held():  # a second Ctrl-C must not interrupt this
            for process in reversed(self.processes):
                end(process)
            self.processes.clear()
            for name in (self.a, self.b, self.middle):
                if (NETNS / name).exists():
                    with contextlib.suppress(BenchError):
                        run(["ip", "netns", "del", name])
            if self.directory != Path():
                shutil.rmtree(self.directory, ignore_errors=True)
            os.environ.pop(RUNTIME, None)
            if self._runtime_before is not None:
                os.environ[RUNTIME] = self._runtime_before

    @staticmethod
    def use_runtime(directory: Path) -> None:
        """Until the end of the `with` block, clients in this process and commands that it starts
        find their instance in this directory."""
        os.environ[RUNTIME] = str(directory)

    @staticmethod
    def path(name: str) -> str:
        return str(NETNS / name)

    def start(self, command: Sequence[str], within: str | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a process, in namespace `within` if given; `complaint` reads its output from a
        file."""
        # Its own process group: Ctrl-C on the terminal reaches only the bench, which ends it in
        # order. setpriv: the process ends with a killed bench.
        enter = ["nsenter", f"--net={self.path(within)}"] if within else []
        log = (self.directory / f"log{len(self.processes)}").open("wb")
        with log, held():
            process = subprocess.Popen(
                [*enter, "setpriv", "--pdeathsig", "TERM", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
                env={**os.environ, **environment},
            )
            self.processes.append(process)
        return process

    def complaint(self, process: subprocess.Popen[bytes]) -> str:
        """The last line of the process' output."""
        log = self.directory / f"log{self.processes.index(process)}"
        lines = log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {process.returncode}, no output"

    def wait_interface(self, name: str, interface: str, process: subprocess.Popen[bytes] | None = None) -> None:
        """Waits until the interface exists; raises BenchError if the process ends before."""

        def there() -> bool:
            if process and process.poll() is not None:
                raise BenchError(self.complaint(process))
            return interface in run(["ip", "-n", name, "-brief", "link"]).replace("@", " ").split()

        wait_for(there, 10, f"no interface {interface} in {name}")

    def connect(self, interface_a: str, interface_b: str) -> None:
        """Sets both ends' addresses and waits until a datagram comes back."""
        ends = ((self.a, interface_a, ADDRESS_A), (self.b, interface_b, ADDRESS_B))
        for name, interface, address in ends:
            run(["ip", "-n", name, "address", "replace", f"{address}/{PREFIX_LENGTH}", "dev", interface])
            run(["ip", "-n", name, "link", "set", interface, "mtu", "1500", "up"])
        probe("pingpong", self.path(self.a), self.path(self.b), ADDRESS_B, 1, 0, timeout_seconds=20)


def end(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM, and SIGKILL after 3 s."""
    if process.stdin:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
