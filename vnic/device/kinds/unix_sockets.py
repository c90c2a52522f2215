"""The Unix sockets of NICs whose other end is a program: `listen`, which vnic makes, and
`connect`."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat

from dataplane.descriptors import system_error
from dataplane.errors import ConfigError, PortError, VnicError
from vnic.device.kinds.contract import Settings

PATH_MOST = 107  # bytes of sun_path without its end (unix(7))
BACKLOG = 4


def check_paths(settings: Settings) -> None:
    """Raises ConfigError for sockets that cannot be those of a NIC."""
    label = f"nic {settings.name}"
    if (settings.listen is None) == (settings.connect is None):
        raise ConfigError(
            f"{label}: expected the path of a Unix socket in one of listen and connect"
        )
    for word, path in (("listen", settings.listen), ("connect", settings.connect)):
        if path is None:
            continue
        if not os.path.isabs(path):
            raise ConfigError(
                f"{label}: {word}: {path} is a relative path: expected one that begins with /"
            )
        if len(os.fsencode(path)) > PATH_MOST:
            raise ConfigError(
                f"{label}: {word}: the path of a socket has at most {PATH_MOST} bytes, this one "
                f"{len(os.fsencode(path))}: expected a shorter one"
            )


def listen_at(settings: Settings, kind: socket.SocketKind) -> socket.socket:
    """The listening socket of `listen`, of that type, with its permissions. Raises ConfigError,
    PortError."""
    label, path = f"nic {settings.name}", str(settings.listen)
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(label, path, kind)
        # nobody can connect before the mode is set: the socket does not listen yet
        made.bind(path)
        try:
            os.chmod(path, int(settings.socket_mode, 8))
            if settings.socket_group is not None:
                os.chown(path, -1, _group(label, settings.socket_group))
            made.listen(BACKLOG)
        except BaseException:
            os.unlink(path)
            raise
    except OSError as error:
        made.close()
        raise _cannot(label, path, error) from None
    except BaseException:
        made.close()
        raise
    return made


def _remove_stale(label: str, path: str, kind: socket.SocketKind) -> None:
    """Removes a socket that nothing listens at: a killed instance has left it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{label}: listen: {path} is there and no socket: expected a free path")
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:  # its backlog is full, or it is of another type
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
    raise ConfigError(f"{label}: listen: {path} is in use by another program: expected a free path")


def _group(label: str, name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            f"{label}: socket_group: there is no group {name}: expected one of this machine's"
        ) from None


def _cannot(label: str, path: str, error: OSError) -> VnicError:
    what = f"{label}: listen: {path}: {system_error(error)}"
    advice = {
        errno.ENOENT: "make its directory first",
        errno.EACCES: f"vnic runs as user {os.geteuid()}, who needs the right to write there",
        errno.EPERM: "vnic's user must be a member of socket_group",
    }.get(error.errno or 0)
    return PortError(what) if advice is None else ConfigError(f"{what}: {advice}")
