"""Which descriptors of a front end serve for notifications."""

from __future__ import annotations

import os
import socket
import stat

from dataplane.errors import ConfigError

EXPECTED = "expected an eventfd, a pipe or a Unix stream socket"


def check_notifier(what: str, fd: int) -> bool:
    """Makes a descriptor that a front end sent for notifications non-blocking; True if it is a
    socket.

    Other kinds are refused: by a regular file or a terminal, for example, a front end could have
    this process write where it may not. Sockets keep their mode, which other processes rely on;
    each call on them is non-blocking. Raises ConfigError.
    """
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind == stat.S_IFSOCK:
            with socket.socket(fileno=os.dup(fd)) as other:
                if (other.family, other.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                    return True
            raise ConfigError(f"{what}: a socket of another kind: {EXPECTED}")
        # an eventfd has no type in its mode; its name tells it from other anonymous files
        if kind == stat.S_IFIFO or os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]":
            os.set_blocking(fd, False)
            return False
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{what}: descriptor {fd}: {reason}") from None
    raise ConfigError(f"{what}: descriptor {fd} is no means of notification: {EXPECTED}")
