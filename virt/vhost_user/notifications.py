"""Which descriptors of a front end serve for notifications."""

from __future__ import annotations

import os
import socket
import stat
from enum import IntEnum

from dataplane.errors import ConfigError

EXPECTED = "expected an eventfd, a pipe or a Unix stream socket"


class Kind(IntEnum):
    """Kinds of descriptors, as notifier.h numbers them."""

    EVENTFD = 0
    SOCKET = 1
    PIPE = 2


def check_notifier(what: str, fd: int) -> Kind:
    """Makes a descriptor that a front end sent for notifications non-blocking; returns its kind.

    Other kinds are refused: by a regular file or a terminal, for example, a front end could have
    this process write where it may not. Sockets keep their mode, which other processes rely on;
    each call on them is non-blocking. The front end may make an eventfd or a pipe block again,
    which notifier.h is prepared for. Raises ConfigError.
    """
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind == stat.S_IFSOCK:
            with socket.socket(fileno=os.dup(fd)) as other:
                if (other.family, other.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                    return Kind.SOCKET
            raise ConfigError(f"{what}: a socket of another kind: {EXPECTED}")
        # an eventfd has no type in its mode; its name tells it from other anonymous files
        found = Kind.PIPE if kind == stat.S_IFIFO else Kind.EVENTFD
        if found is Kind.PIPE or os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]":
            os.set_blocking(fd, False)
            return found
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{what}: descriptor {fd}: {reason}") from None
    raise ConfigError(f"{what}: descriptor {fd} is no means of notification: {EXPECTED}")
