"""Programs that tests command by their consoles, and the shell of a guest there."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

BOOT_S, RUN_S = 120.0, 120.0
READY, END = "GUEST-READY", "GUEST-END"

# The end of a guest's first process. Each line of its console is a command; its output follows,
# then END and the status.
LOOP = f"""
echo {READY}
while read -r line; do eval "$line" 2>&1; echo "{END} $?"; done
"""


def without_sanitizer(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for programs that are not vnic: without the sanitizer's library, which the checked build has every program
    load."""
    return {name: value for name, value in environment.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}


class Console:
    """The input and output of a program that takes commands. It ends with its helper processes, at
    once. options: of subprocess.Popen."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None, **options: Any) -> None:
        clean = without_sanitizer(os.environ if environment is None else environment)
        self.process = subprocess.Popen(
            command,
            env=clean,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            **options,
        )
        self._said = b""

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def _read_to(self, mark: str, timeout_s: float) -> str:
        assert self.process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while mark.encode() not in self._said:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self.process.stdout], [], [], left_s)[0]:
                raise AssertionError(f"no {mark!r} within {timeout_s:.0f} s: {self._said[-2000:]!r}")
            got = os.read(self.process.stdout.fileno(), 65536)
            if not got:
                raise AssertionError(f"it has ended: {self._said[-2000:]!r}")
            self._said += got
        before, _, self._said = self._said.partition(mark.encode())
        return before.decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        """Ends it, also helpers that have outlived it: User-mode Linux ignores SIGTERM."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Shell(Console):
    """A guest's console, with the shell of LOOP."""

    def wait_ready(self) -> None:
        """Waits until the guest has booted. Ends it if it does not."""
        try:
            self._read_to(READY, BOOT_S)
        except BaseException:
            self.close()
            raise

    def run(self, command: str, *, check: bool = True, timeout_s: float = RUN_S) -> str:
        """Runs a command line in the guest's shell; returns its output."""
        self.begin(command)
        return self.finish(check=check, timeout_s=timeout_s)

    def begin(self, command: str) -> None:
        """Begins a command; `finish` waits for it."""
        self._write(command)

    def finish(self, *, check: bool = True, timeout_s: float = RUN_S) -> str:
        """The output of the command that was begun."""
        output = self._read_to(END, timeout_s)
        status = int(self._read_to("\n", timeout_s))
        if check and status:
            raise AssertionError(f"status {status} in the guest: {output}")
        return output
