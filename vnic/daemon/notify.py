"""Reports the state of an instance to systemd (Type=notify): sd_notify(3), without its library."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """The service manager that started this process. Without one, nothing is sent."""

    def __init__(self) -> None:
        """Removes the variable from the environment, so that children do not notify."""
        self._path = os.environ.pop(VARIABLE, "")

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        self._send(
            "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={status}"
        )

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def _send(self, *words: str) -> None:
        if not self._path:
            return
        # "@" stands for the NUL byte of an abstract address, unix(7).
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        text = "\n".join(" ".join(word.split("\n")) for word in words)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
            suppress(OSError),
        ):
            sock.setblocking(False)  # a manager that does not read must not block the supervisor
            sock.sendto(text.encode(), address)
