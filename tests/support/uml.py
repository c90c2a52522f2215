"""A virtual machine for tests: User-mode Linux, whose virtio-net driver is Linux's own, over
vhost-user. It needs no privilege and no image: it boots from the machine's own files."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.tools import PATH, need

BOOT_S, RUN_S = 120.0, 120.0
READY, END = "GUEST-READY", "GUEST-END"

# The guest's first process. Each line of its console is a command; its output follows, then END and
# the status.
INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
stty -echo -onlcr
modules=/usr/lib/uml/modules/$(uname -r)/kernel
for each in core/failover ../drivers/net/net_failover ../drivers/net/virtio_net; do
    busybox insmod $modules/net/$each.ko
done
ip link set lo up
nic=0; while [ $nic -lt $nics ]; do
    tries=0; while [ ! -e /sys/class/net/eth$nic ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries+1)); done
    nic=$((nic+1))
done
echo {READY}
while read -r line; do eval "$line" 2>&1; echo "{END} $?"; done
echo o > /proc/sysrq-trigger
"""


def without_sanitizer() -> dict[str, str]:
    """This process's environment for programs that are not vnic: without the sanitizer's library, which the checked build has
    every program load."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}


class Uml:
    """A running guest. `sockets`: its NICs eth0 and so on, in this order."""

    def __init__(self, directory: Path, *sockets: Path, options: str = "") -> None:
        init = directory / "uml-init.sh"
        init.write_text(INIT)
        init.chmod(0o755)
        home = directory / "uml"
        home.mkdir(exist_ok=True)
        devices = [f"virtio_uml.device={path}:1" for path in sockets]
        self.process = subprocess.Popen(
            [need("linux.uml"), "mem=128M", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", f"uml_dir={home}",
             "con=null", "con0=fd:0,fd:1", "ssl=null", "panic=1", "quiet", f"nics={len(sockets)}", *devices, *options.split()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
            env={**without_sanitizer(), "PATH": PATH, "HOME": str(home), "TMPDIR": str(home)},
        )  # fmt: skip
        self._said = b""
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
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def finish(self, *, check: bool = True, timeout_s: float = RUN_S) -> str:
        """The output of the command that was begun."""
        output = self._read_to(END, timeout_s)
        status = int(self._read_to("\n", timeout_s))
        if check and status:
            raise AssertionError(f"status {status} in the guest: {output}")
        return output

    def _read_to(self, mark: str, timeout_s: float) -> str:
        assert self.process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while mark.encode() not in self._said:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self.process.stdout], [], [], left_s)[0]:
                raise AssertionError(f"no {mark!r} from the guest within {timeout_s:.0f} s: {self._said[-2000:]!r}")
            got = os.read(self.process.stdout.fileno(), 65536)
            if not got:
                raise AssertionError(f"the guest has ended: {self._said[-2000:]!r}")
            self._said += got
        before, _, self._said = self._said.partition(mark.encode())
        return before.decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        """Ends the guest: it ignores SIGTERM. Its helper processes end with it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
