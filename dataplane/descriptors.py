"""Descriptors received with a message on a Unix socket (SCM_RIGHTS, unix(7)).

`socket.send_fds` sends them. `socket.recv_fds` ignores its flags argument, so the descriptors that
it returns are not close-on-exec: programs started meanwhile would inherit them.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Iterable
from contextlib import suppress


def receive_with_descriptors(
    sock: socket.socket, size: int, most: int, flags: int = 0
) -> tuple[bytes, list[int], bool]:
    """Receives up to `size` bytes and `most` descriptors; `flags` as of recvmsg(2). Returns the
    bytes (b"" at the end), the descriptors (close-on-exec; the caller closes them), and whether the
    kernel dropped some of either. Raises OSError."""
    found = array.array("i")
    data, ancillary, got, _ = sock.recvmsg(
        size, socket.CMSG_SPACE(most * found.itemsize), socket.MSG_CMSG_CLOEXEC | flags
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return data, list(found), bool(got & (socket.MSG_CTRUNC | socket.MSG_TRUNC))


def with_descriptors(descriptors: Iterable[int]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary data of socket.sendmsg that passes these descriptors."""
    sent = array.array("i", descriptors)
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)] if sent else []


def awaits_reply(connected: socket.socket) -> bool:
    """Whether the peer of a Unix socket still waits for the reply to its last message, as far as
    one can see: it has read all, and sent nothing since."""
    unread = fcntl.ioctl(connected, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ, unix(7)
    if struct.unpack("=i", unread)[0]:
        return False
    try:
        connected.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except ConnectionError:
        pass  # the next read raises it, too
    return False


def readable(descriptor: int, timeout_s: float) -> bool:
    """True if there is data or an end within `timeout_s`. Uses poll(2), since select(2) cannot take
    descriptors above 1023, and one TAP alone has up to 64."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def system_error(error: OSError) -> str:
    """An error's text for users; for a lack of descriptors, with advice."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{str(error.strerror).lower()}; raise the limit (ulimit -n)"
    # more descriptors of this user are in flight in sockets than RLIMIT_NOFILE (unix(7))
    if error.errno == errno.ETOOMANYREFS:
        return "too many open files are on their way between processes; raise the limit (ulimit -n)"
    return error.strerror or str(error)


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors; ignores those that are closed already."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
