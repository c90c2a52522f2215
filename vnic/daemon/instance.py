"""An instance on this machine: its lock, socket, log and signals."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dataplane.errors import ConfigError
from vnic.api.interface import BACKLOG, INTERFACE, checked_instance, runtime_directory, socket_path

LOG_BYTES = 4 << 20  # and as much again in the previous log
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def log_path(instance: str) -> str:
    """The path of a detached daemon's log."""
    return os.path.join(runtime_directory(create=True), f"{checked_instance(instance)}.log")


def bound_log(path: str, most_bytes: int = LOG_BYTES) -> bool:
    """Rotates the log: if standard error is the log at `path` and has more than `most_bytes`,
    copies it to `path`.1, replacing that, and truncates it. Returns whether it did. All writers
    append, so they continue at the beginning; a line written meanwhile may be lost."""
    with suppress(OSError):
        status = os.fstat(2)
        if status.st_size > most_bytes and os.path.samestat(status, os.stat(path)):
            shutil.copyfile(path, f"{path}.1")
            os.chmod(f"{path}.1", 0o600)
            os.ftruncate(2, 0)
            return True
    return False


def allow_open_files() -> None:
    """Raises this process' limit of open files to its maximum: a TAP has up to 64 queues, open here
    and in every worker."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _remove_own(path: str, own: os.stat_result) -> None:
    """Removes the file at `path` if it is `own`. If the user or a cleaner of old files removed
    that, another instance of the name may have begun since, and `path` is its file."""
    with suppress(FileNotFoundError):
        if os.path.samestat(own, os.lstat(path)):
            os.unlink(path)


@contextmanager
def instance_lock(instance: str) -> Iterator[None]:
    """Locks the instance for this process. Raises ConfigError where another process has it.

    It is a record lock: it ends with the process in any case, and children do not inherit it. The
    process that holds it knows that an existing socket of that name is a dead process'.
    """
    while True:
        path = os.path.join(runtime_directory(create=True), f"{checked_instance(instance)}.lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # another instance ended and removed the directory
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
            os.close(descriptor)
            message = (
                f"instance {instance} runs already (pid {pid}); "
                "stop it with 'vnic down' or choose --instance"
            )
            raise ConfigError(message) from None
        # The previous holder may have removed the file between open and lock: then the lock is on a
        # file without a name.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        _remove_own(path, os.fstat(descriptor))
        os.close(descriptor)
        if not os.environ.get("VNIC_RUNTIME_DIR"):  # a directory that the user chose stays
            with suppress(OSError):  # not empty: a log, or other instances
                os.rmdir(os.path.dirname(path))


@contextmanager
def listening(instance: str) -> Iterator[socket.socket]:
    """The instance's listening socket. The caller holds the instance's lock."""
    path = socket_path(instance, create=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        with suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        bound = os.lstat(path)
        try:
            os.chmod(path, 0o600)  # users with write permission may connect
            yield listener
        finally:
            _remove_own(path, bound)  # while it is open, so that no other file has its inode number


def refuse_clients(listener: socket.socket, why: str, why_for_others: str) -> bool:
    """Replies to each waiting client with an error: `why` for the instance's owner and root,
    `why_for_others` for other users. Reads nothing from clients. Accepts at most BACKLOG clients
    per call, so that clients that reconnect cannot block the caller. Returns False where no file
    can be opened."""
    for _ in range(BACKLOG):
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return True
        except OSError:
            return False
        with client, suppress(OSError):
            client.setblocking(False)
            _, uid, _ = struct.unpack(
                "3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            )
            message = why if uid in (0, os.geteuid()) else why_for_others
            client.send(
                json.dumps(
                    {
                        "error": f"{INTERFACE}.Failed",
                        "parameters": {"message": message, "code": "busy"},
                    }
                ).encode()
                + b"\0"
            )
    return True


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Blocks SIGNALS except in the supervisor's loop, which handles them as requests to stop, so
    that no operation is interrupted."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # discards pending signals
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for number, handler in before.items():
            signal.signal(number, handler)


def hangup_ends() -> bool:
    """Whether SIGHUP is a request to end: this process has a terminal that can hang up, and SIGHUP
    was not ignored when it started."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup(1)
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextmanager
def wakeups() -> Iterator[socket.socket]:
    """A socket that is readable once one of SIGNALS arrived."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield reader
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
