"""Ends the processes in containers that a test made."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Set
from contextlib import suppress

from vnic.device.namespaces import Identity, has_exited, identity_of

ROUNDS_MOST = 50  # over all processes, which may start others meanwhile
EXIT_TIMEOUT_MS = 1000


def end_processes(descriptors: Iterable[int], but: Set[int] = frozenset()) -> None:
    """Ends the processes that are in any of these network namespaces, except those in `but`.
    Returns when they have ended. The namespaces are given by descriptors, since the kernel may
    reuse the inode number of a removed one."""
    namespaces = {identity_of(each) for each in descriptors}
    for _ in range(ROUNDS_MOST):
        found = [pid for pid in _processes() if pid not in but and _namespace(pid) in namespaces]
        if not found:
            return
        for pid in found:
            with suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    if _namespace(pid) in namespaces:  # the number is not another process' by now
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        has_exited(pidfd, EXIT_TIMEOUT_MS)
                finally:
                    os.close(pidfd)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _namespace(pid: int) -> Identity | None:
    try:
        return identity_of(f"/proc/{pid}/ns/net")
    except OSError:  # it has ended, or is another user's
        return None
