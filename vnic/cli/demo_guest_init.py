"""The first process of a guest of the demo: User-mode Linux runs it from the host's files, which it
can only read.

Sets up the virtio-net interface, then answers the requests of a container of the demo
(vnic.cli.demo_container), and two more, over its console. Uses the standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
import subprocess
import sys
import termios
import time
import tty
from contextlib import suppress
from typing import Any

from vnic.cli.demo_container import Container, answer_requests

MODULES = ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SYS_INIT_MODULE = 175  # x86-64, the only 64-bit architecture of User-mode Linux
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, IFF_UP = 0x8914, 0x8916, 0x891C, 1
INTERFACE = b"eth0"
APPEARS_S = 20  # until the interface is there


class Guest(Container):
    """The guest's requests; each method is one."""

    def set_up(self, address: str) -> dict[str, Any]:
        """Waits for the interface, gives it an address of a /24, and sets it up."""
        end_s = time.monotonic() + APPEARS_S
        while not os.path.exists(f"/sys/class/net/{INTERFACE.decode()}"):
            if time.monotonic() > end_s:
                raise OSError("its virtio-net interface has not appeared")
            time.sleep(0.02)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            for request, host in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.0")):
                place = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(host))
                fcntl.ioctl(any_socket, request, struct.pack("16s16s8x", INTERFACE, place))
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", INTERFACE, IFF_UP))
        return {"kernel": platform.release()}

    def ethtool(self, arguments: list[str]) -> dict[str, Any]:
        """Runs ethtool, as a user of the guest does. output: None where there is none."""
        try:
            done = subprocess.run(
                ["ethtool", *arguments], capture_output=True, text=True, check=False, timeout=30
            )
        except FileNotFoundError:
            return {"output": None, "status": 127}
        return {"output": done.stdout + done.stderr, "status": done.returncode}


def main() -> None:
    """Boots, and answers until the console closes."""
    os.environ["PATH"] = PATH
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, place in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"tmpfs", b"/tmp")):
        libc.mount(kind, place, kind, 0, None)
    tty.setraw(sys.stdin.fileno(), termios.TCSANOW)  # requests are longer than a terminal's line
    for module in MODULES:
        path = f"/usr/lib/uml/modules/{platform.release()}/kernel/{module}.ko"
        with suppress(FileNotFoundError), open(path, "rb") as file:  # it may be built in
            data = file.read()
            libc.syscall(SYS_INIT_MODULE, data, ctypes.c_ulong(len(data)), b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))
    answer_requests(Guest(), sys.stdin, sys.stdout)
