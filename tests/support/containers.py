"""Containers for tests: a process in a network namespace of its own; and a check of what tests
leave behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

IS_ROOT = os.geteuid() == 0

OPEN_SOCKET = """
import socket, sys
opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"."], [opened.fileno()])
"""


class Container:
    """A process in a new network namespace with `lo` up; also in a new user namespace, which a
    plain user needs.

    nested: in a user namespace within another, as containers of rootless runtimes. The process ends
    when its standard input closes: with `close()`, and when the test process dies.
    """

    def __init__(self, *, user_namespace: bool = not IS_ROOT, nested: bool = False) -> None:
        self.user_namespace = user_namespace or nested
        user = ["unshare", "--user", "--map-root-user"]
        command = [*(user if nested else []), *(user if self.user_namespace else ["unshare"]), "--net"]
        self.process = subprocess.Popen(
            [*command, "sh", "-c", "ip link set lo up && echo ready && exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            self.close()
            raise RuntimeError(f"no container: {' '.join(command)} failed with status {self.process.returncode}")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def netns_path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def command(self, argv: list[str]) -> list[str]:
        """The command that runs `argv` inside."""
        user = ["-U", "--preserve-credentials"] if self.user_namespace else []
        return ["nsenter", "-t", str(self.pid), *user, "-n", *argv]

    def popen(self, argv: list[str]) -> subprocess.Popen[str]:
        """Starts a program inside; its output is a pipe."""
        return subprocess.Popen(self.command(argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *argv: str, check: bool = True, timeout_s: float = 120) -> str:
        """Runs a program inside to its end; returns its output."""
        done = subprocess.run(self.command(list(argv)), capture_output=True, text=True, timeout=timeout_s, check=False)
        if check and done.returncode:
            raise AssertionError(f"{argv}: status {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def python(self, code: str, *arguments: str) -> str:
        """Runs Python code inside; returns its output."""
        return self.run(sys.executable, "-c", code, *arguments)

    def udp_socket(self) -> socket.socket:
        """A UDP socket opened inside the container and passed out: a test with two of them controls
        the order of sends."""
        here, there = socket.socketpair()
        with here, there:
            command = self.command([sys.executable, "-c", OPEN_SOCKET, str(there.fileno())])
            subprocess.run(command, pass_fds=[there.fileno()], check=True, timeout=120)
            _, (descriptor,), _, _ = socket.recv_fds(here, 1, 1)
        return socket.socket(fileno=descriptor)

    def interfaces(self) -> list[str]:
        """Names of its interfaces, without `lo`."""
        lines = self.run("ip", "-o", "link").splitlines()
        return [name for name in (line.split(":")[1].strip().split("@")[0] for line in lines) if name != "lo"]

    def close(self) -> None:
        """Ends the process. May be called twice."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def what_is_ours() -> dict[str, set[str]]:
    """What tests can leave behind: interfaces here, named namespaces and segments (named
    `...-PID`), children, and descriptors.

    Memory segments and namespaces without a name exist while a process or descriptor holds them,
    and other processes create and remove some all the time; so only the possible holders in this
    process are listed.
    """
    descriptors = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:  # the listing's own descriptor
            continue
        if target.startswith(("net:", "user:", "/memfd:", "/dev/net/tun", "anon_inode:", "socket:")):
            descriptors.add(f"{entry.name} {target}")
    children = set()
    for thread in Path("/proc/self/task").iterdir():
        children |= set((thread / "children").read_text().split())
    mine = f"*-{os.getpid()}*"  # other test runs may be active on this machine
    return {
        "interfaces": {name for _, name in socket.if_nameindex()},
        "network namespaces": {each.name for each in Path("/run/netns").glob(mine)},
        "shared memory": {each.name for each in Path("/dev/shm").glob(mine)},
        "children": children,
        "descriptors": descriptors,
    }
