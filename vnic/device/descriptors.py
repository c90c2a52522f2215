"""Descriptors that come with a message over a Unix socket (SCM_RIGHTS, unix(7)).

`socket.send_fds` sends them. Its counterpart in the standard library, `recv_fds`, takes flags and does not pass them on, so what it
returns would be inherited by every program that a process starts meanwhile.
"""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Iterable
from contextlib import suppress


def receive_with_descriptors(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int], bool]:
    """Up to `size` bytes and `most` descriptors, close-on-exec and the caller's now, and whether the kernel left out some of either; b""
    at the end. Raises OSError."""
    found = array.array("i")
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(most * found.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return data, list(found), bool(flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC))


def readable(descriptor: int, timeout_s: float) -> bool:
    """Whether there is something to read, or an end, within `timeout_s`. Not by select(2), which knows no descriptor above 1023: one TAP
    has up to 64."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors; one that is closed already does no harm."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
