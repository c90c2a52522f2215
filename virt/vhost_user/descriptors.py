"""The descriptors of a front end by role, and what kinds of files they may be."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from dataplane.descriptors import close_all
from dataplane.errors import ConfigError
from virt.vhost_user.notifications import check_notifier
from virt.vhost_user.protocol import Refused


class Descriptors:
    """Open descriptors by role. Each is closed when another takes its role."""

    def __init__(self, descriptors: Mapping[str, int] | None = None) -> None:
        self._open = dict(descriptors or {})

    def __getitem__(self, role: str) -> int:
        return self._open[role]

    def get(self, role: str) -> int | None:
        """The descriptor, or None for a role without one, and for ""."""
        return self._open.get(role)

    def put(self, role: str, descriptor: int) -> str:
        """Takes over a descriptor. Returns its role."""
        self.close(role)
        self._open[role] = descriptor
        return role

    def close(self, *roles: str) -> None:
        """Closes the descriptors that have these roles."""
        close_all(self._open.pop(role) for role in roles if role in self._open)

    def close_all(self) -> None:
        """Closes all descriptors."""
        self.close(*list(self._open))

    def by_role(self) -> dict[str, int]:
        """A copy of the mapping."""
        return dict(self._open)


def check_event(name: str, descriptor: int) -> None:
    """Raises Refused unless the descriptor can carry notifications (notifications.py)."""
    try:
        check_notifier(name, descriptor)
    except ConfigError as error:
        raise Refused(str(error)) from None


def check_socket(name: str, descriptor: int) -> None:
    """Raises Refused unless the descriptor is a socket."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISSOCK(mode):
        raise Refused(f"{name}: {_kind(mode)}: expected a socket")


def check_file(name: str, descriptor: int, end: int) -> None:
    """Raises Refused unless the descriptor is a file, such as a memfd, of at least `end`
    bytes: reading memory past a file's end is a SIGBUS."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(
            f"{name}: {_kind(found.st_mode)}: expected a file that can be mapped; start the "
            "virtual machine with shared memory (QEMU: share=on)"
        )
    if found.st_size < end:
        raise Refused(f"{name}: the file has {found.st_size:#x} bytes: expected {end:#x} at least")


def _kind(mode: int) -> str:
    for holds, kind in (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISBLK, "a block device"),
    ):
        if holds(mode):
            return kind
    return "another kind of file"
