"""Network namespaces of containers: finds one by pid or path, enters it, and reports its end.

A namespace is looked up once and held by a descriptor, so a reused pid or a replaced path has no
effect. But a descriptor of a namespace, or of a TAP made in it, keeps the namespace alive after its
last process has ended. So every attachment has a `TargetWatch`, and its owner closes the attachment
when the watch reports.

Sources: namespaces(7), setns(2), ioctl_ns(2), pidfd_open(2), inotify(7).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import select
import stat
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self

from dataplane.descriptors import close_all, readable, system_error
from dataplane.errors import ConfigError, PortError
from vnic.device.directories import DirectoryWatch, watch_directory, watch_entries

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

CLONE_NEWNET = 0x4000_0000
CLONE_NEWUSER = 0x1000_0000
NS_GET_USERNS = 0xB701  # ioctl_ns(2): a descriptor of the user namespace that owns this one
NS_GET_OWNER_UID = 0xB704  # ioctl_ns(2): of a user namespace, the user id of its creator
NS_GET_NSTYPE = 0xB703  # ioctl_ns(2): its CLONE_NEW* constant

NAMED_NETNS_DIR = "/run/netns"  # the directory of `ip netns add`
MAX_PID = 1 << 22  # the kernel's limit, PID_MAX_LIMIT

NETLINK_BYTES = 4096
EVENTS_MOST = 64  # read at once
PAUSE_S = 0.1  # between two checks of a container whose interfaces change
EXIT_TIMEOUT_MS = 500
MAX_LINKS = 40  # the kernel's limit, path_resolution(7)

_PROC_NETNS = re.compile(r"/proc/(self|thread-self|[0-9]+)(?:/task/[0-9]+)?/ns/net")
_libc = ctypes.CDLL(None, use_errno=True)

Identity = tuple[int, int]


def identity_of(file: int | str) -> Identity:
    """(st_dev, st_ino) of a namespace given by descriptor or path: equal if and only if it is the
    same namespace."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def setns(fd: int, kind: int) -> None:
    """setns(2); raises OSError. (`os.setns` exists only from Python 3.12 on.)"""
    if _libc.setns(fd, kind) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unshare(kinds: int) -> None:
    """unshare(2); raises OSError. (`os.unshare` exists only from Python 3.12 on.)"""
    if _libc.unshare(kinds) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def enter(netns_fd: int, label: str) -> None:
    """Moves the calling process, which must have only one thread, into a network namespace.

    If another user namespace owns it: root does not enter that one, since root there could then
    send this process signals. Other users must enter the owning user namespace first, which they
    may if they created it from their own user namespace, or one of its ancestors
    (user_namespaces(7)); the process has all capabilities there. Raises ConfigError when the kernel
    does not permit it.
    """
    if identity_of(netns_fd) == identity_of("/proc/self/ns/net"):
        return
    with suppress(PermissionError):
        setns(netns_fd, CLONE_NEWNET)
        return
    try:
        owner = fcntl.ioctl(netns_fd, NS_GET_USERNS)
        try:
            if identity_of(owner) != identity_of("/proc/self/ns/user"):
                setns(owner, CLONE_NEWUSER)
        finally:
            os.close(owner)
        setns(netns_fd, CLONE_NEWNET)
    except PermissionError:
        raise ConfigError(
            f"{label}: not permitted to enter its network namespace; {_who_may_enter()}"
        ) from None


def _who_may_enter() -> str:
    if os.geteuid() != 0:
        return "run vnic as the user who started the container, or as root"
    return (
        "the kernel refuses it to root here (CAP_SYS_PTRACE is missing, or a security module); "
        "give netns: its path instead"
    )


class NetNamespace:
    """A network namespace, held open.

    fd: the namespace's descriptor; identity: distinguishes it from others; label: its name in
    messages; pid (with a pidfd) or path: how it was requested; neither for this process' own. Use
    as a context manager or `close()`.
    """

    def __init__(
        self,
        fd: int,
        label: str,
        *,
        pid: int | None = None,
        pidfd: int = -1,
        path: str | None = None,
    ) -> None:
        self.fd, self.label, self.pid, self.pidfd, self.path = fd, label, pid, pidfd, path
        self.identity = identity_of(fd)

    @classmethod
    def find(cls, pid: int | None = None, netns: str | None = None) -> NetNamespace:
        """The namespace of process `pid`, or at path (or `ip netns` name) `netns`; this process'
        own if both are None.

        Raises ConfigError when the process, path or namespace does not exist, or may not be opened.
        """
        if pid is not None and netns is not None:
            raise ConfigError(f"pid {pid} and netns {netns}: give one of the two")
        if pid is not None:
            return cls._of_pid(pid)
        if netns is None:
            return cls(
                os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC),
                "our own network namespace",
            )
        if not netns or "\0" in netns:
            raise ConfigError(
                f"netns {netns!r}: "
                f"give a path like /run/netns/NAME, or a NAME made by `ip netns add`"
            )
        path = _follow(os.path.abspath(netns if "/" in netns else f"{NAMED_NETNS_DIR}/{netns}"))
        in_proc = _PROC_NETNS.fullmatch(path)
        if in_proc:
            # A path below /proc disappears with its process, which inotify does not report: watch
            # the process.
            return cls._of_pid(int(in_proc[1]) if in_proc[1].isdigit() else os.getpid())
        return cls._at_path(path)

    @classmethod
    def passed(cls, fd: int, pidfd: int = -1, *extra: int) -> Self:
        """The namespace of a descriptor that was passed to this process, and, if that was passed
        too, a process in it; the object owns both. Raises ConfigError for other descriptors, and
        closes them."""
        try:
            if extra or not is_network_namespace(fd):
                raise ConfigError(
                    "the descriptor that was passed is not a network namespace; "
                    "pass one of /proc/PID/ns/net"
                )
            pid = process_of(pidfd) if pidfd >= 0 else None
            label = (
                "the network namespace that was passed"
                if pid is None
                else f"the network namespace of pid {pid}, as passed"
            )
            return cls(fd, label, pid=pid, pidfd=pidfd)
        except BaseException:
            for each in (fd, pidfd, *extra):
                if each >= 0:
                    os.close(each)
            raise

    @classmethod
    def _of_pid(cls, pid: int) -> NetNamespace:
        label = f"pid {pid}"
        absent = ConfigError(
            f"{label}: no such process; give the pid of a process that runs in the container"
        )
        if not 0 < pid <= MAX_PID:
            raise absent
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            # the last two: a thread's id, not a process'
            if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise absent from None
            raise PortError(f"{label}: cannot be watched: {system_error(error)}") from None
        try:
            try:
                fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                # ENOENT: the process is exiting, which its pidfd soon reports, or /proc hides it.
                hidden = isinstance(error, FileNotFoundError)
                if has_exited(pidfd, EXIT_TIMEOUT_MS if hidden else 0):
                    raise absent from None
                if hidden or isinstance(error, PermissionError):
                    raise ConfigError(
                        f"{label}: not permitted to open its network namespace; {_who_may_enter()}"
                    ) from None
                raise PortError(
                    f"{label}: cannot open its network namespace: {system_error(error)}"
                ) from None
            # If the process of the pidfd still runs, the pid was not reused in between.
            if has_exited(pidfd):
                os.close(fd)
                raise absent
            return cls(fd, label, pid=pid, pidfd=pidfd)
        except BaseException:
            os.close(pidfd)
            raise

    @classmethod
    def _at_path(cls, path: str) -> NetNamespace:
        label = f"netns {path}"
        wrong = ConfigError(
            f"{label}: is not a network namespace; "
            f"give /proc/PID/ns/net or a path made by `ip netns add`"
        )
        try:
            # Checked before it is opened, since opening a device or a FIFO could block or have side
            # effects.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise wrong
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f"{label}: no such file; `ip netns list` shows the names there are"
            ) from None
        except PermissionError:
            raise ConfigError(f"{label}: not permitted to open it; {_who_may_enter()}") from None
        except OSError as error:
            raise ConfigError(f"{label}: cannot open it: {system_error(error)}") from None
        try:
            if not is_network_namespace(fd):
                raise wrong
        except ConfigError:
            os.close(fd)
            raise
        return cls(fd, label, path=path)

    def watch(self, interface: Interface | None = None) -> TargetWatch:
        """A new watch on the process or path by which this namespace was requested, and on an
        interface in it."""
        return TargetWatch(self, interface)

    def close(self) -> None:
        """Closes the descriptors; the namespace ends with its last process unless other descriptors
        hold it."""
        fd, self.fd = self.fd, -1
        pidfd, self.pidfd = self.pidfd, -1
        for each in (fd, pidfd):
            if each >= 0:
                os.close(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            warnings.warn(f"unclosed {self.label}", ResourceWarning, stacklevel=2, source=self)
            self.close()


def is_network_namespace(fd: int) -> bool:
    """Whether a descriptor is of a network namespace: for other files the ioctl fails (ENOTTY) or
    returns another type."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def owner_of(fd: int) -> int | None:
    """The user id, in our user namespace, of the creator of the user namespace that owns a network
    namespace: that user has all capabilities in it. None where the owner is outside our user
    namespace, where the kernel does not report it."""
    try:
        owner = fcntl.ioctl(fd, NS_GET_USERNS)
        try:
            return int.from_bytes(fcntl.ioctl(owner, NS_GET_OWNER_UID, bytes(4)), sys.byteorder)
        finally:
            os.close(owner)
    except OSError:
        return None


def process_of(pidfd: int) -> int:
    """The pid of a pidfd's process. Raises ConfigError for another file, or where the process is
    gone or not visible here."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            pid = next((int(line.split()[1]) for line in file if line.startswith("Pid:")), 0)
    except OSError:
        pid = 0
    if pid <= 0:
        raise ConfigError(
            "the descriptor that was passed with the namespace is that of no process that runs; "
            "pass a pidfd"
        )
    return pid


def has_exited(pidfd: int, timeout_ms: int = 0) -> bool:
    """Whether the process of a pidfd has ended, or ends within `timeout_ms`; it need not be reaped
    yet."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


class Interface(Protocol):
    """What a watch needs of a Tap."""

    name: str
    link_events: int  # becomes readable when an interface of the namespace changes, or -1

    def present(self) -> bool: ...


class TargetWatch:
    """Reports that a container is gone (its process has ended, or the path of its namespace is
    deleted or replaced), or that an interface in it is gone.

    `fileno()` becomes readable after an event; then ask `gone`, which sets `why`. `on_gone` does
    both in an asyncio loop. A watch on our own namespace reports only that the interface is gone.
    The watch has duplicates of the descriptors, so it may outlive its NetNamespace. The owner
    closes it.
    """

    def __init__(self, namespace: NetNamespace, interface: Interface | None = None) -> None:
        self.label = namespace.label
        self.why = ""  # the target is gone, as text; "" while it is not
        self.deleted = False  # the interface is gone, but not its container
        self._identity = namespace.identity
        self._pid, self._path, self._interface = namespace.pid, namespace.path, interface
        self._loop: asyncio.AbstractEventLoop | None = None
        self._callback: Callable[[], object] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._process = self._links = -1
        self._directory: DirectoryWatch | None = None
        self._events = select.epoll()  # one descriptor for all events
        try:
            if self._pid is not None:
                self._process = fcntl.fcntl(namespace.pidfd, fcntl.F_DUPFD_CLOEXEC, 0)
            elif self._path is not None:
                self._directory = watch_directory(self._path)
            if interface is not None and interface.link_events >= 0:
                self._links = fcntl.fcntl(interface.link_events, fcntl.F_DUPFD_CLOEXEC, 0)
            for each in (
                self._process,
                self._links,
                -1 if self._directory is None else self._directory.descriptor,
            ):
                if each >= 0:
                    self._events.register(each, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """For select, poll or a loop's add_reader; -1 when closed."""
        return -1 if self._events.closed else self._events.fileno()

    @property
    def gone(self) -> bool:
        """Whether the target is gone. Reads pending events, so ask whenever `fileno()` is
        readable."""
        if not self.why and not self._events.closed:
            self.why = self._look()
        return bool(self.why)

    def _look(self) -> str:
        """Reads and ignores the events, and checks the process, path and interface themselves:
        during an upgrade two workers share the sockets, so either may read an event that the other
        one needs."""
        if self._directory is not None:
            self._directory.take()
        _take_events(self._links)
        if self._pid is not None:
            if has_exited(self._process):
                return f"its container ended (process {self._pid})"
        elif self._path is not None:
            with suppress(OSError):
                if identity_of(self._path) == self._identity:
                    return self._look_at_interface()
            return f"its network namespace {self._path} is gone"
        return self._look_at_interface()

    def _look_at_interface(self) -> str:
        if self._interface is None or self._interface.present():
            return ""
        self.deleted = True
        return f"its interface {self._interface.name} was deleted inside its container"

    def wait(self, timeout_s: float) -> bool:
        """Blocks until the target is gone (True) or there was no event for `timeout_s` (False)."""
        while not self.gone:
            if not readable(self.fileno(), timeout_s):
                return False
        return True

    def on_gone(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        """Calls `callback` once, from `loop`, when the target is gone or if it already is."""

        self._forget()
        self._loop, self._callback = loop, callback
        loop.add_reader(self._events, self._told)
        loop.call_soon(self._told)

    def _told(self) -> None:
        loop, callback = self._loop, self._callback
        if loop is None or callback is None:
            return
        if self.gone:
            self._forget()
            callback()
        elif self._pause is None:
            # Bounds the CPU time that a container costs which changes its interfaces all the time.
            loop.remove_reader(self._events)
            self._pause = loop.call_later(PAUSE_S, self._go_on, loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pause = None
        loop.add_reader(self._events, self._told)

    def _forget(self) -> None:
        self._callback = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._events)
        self._loop = None

    def close(self) -> None:
        """Stop watching."""
        self._forget()
        self._interface = None
        self._events.close()
        if self._directory is not None:
            self._directory.close()
        descriptors = self._process, self._links
        self._process = self._links = -1
        close_all(each for each in descriptors if each >= 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_events") and not self._events.closed:
            warnings.warn(
                f"unclosed watch of {self.label}", ResourceWarning, stacklevel=2, source=self
            )
            self.close()


class ReturnWatch:
    """Reports that a namespace may have appeared at one of some paths: a name was created there, or
    something was mounted.

    `ip netns add` creates a file and mounts the namespace on it. inotify does not report mounts;
    polling /proc/self/mountinfo does (proc_pid_mountinfo(5)). Once `fileno()` is readable, check
    the paths and create a new watch, since a missing directory may exist by now.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._descriptors: list[int] = []
        self._directories: list[DirectoryWatch] = []
        self._events = select.epoll()
        try:
            with suppress(OSError):  # without /proc: inotify alone
                self._descriptors.append(
                    os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                )
                self._events.register(self._descriptors[-1], select.EPOLLPRI)
            for directory in {_nearest_directory(path) for path in paths}:
                with suppress(PortError):  # no inotify watch left: mounts are still reported
                    self._directories.append(watch_entries(directory))
                    self._events.register(self._directories[-1].descriptor, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """For select, poll or a loop's add_reader; -1 when closed."""
        return -1 if self._events.closed else self._events.fileno()

    def close(self) -> None:
        """Stop watching."""
        self._events.close()
        close_all(self._descriptors)
        self._descriptors.clear()
        for watch in self._directories:
            watch.close()
        self._directories.clear()

    def __del__(self) -> None:
        if hasattr(self, "_events") and not self._events.closed:
            warnings.warn("unclosed watch of paths", ResourceWarning, stacklevel=2, source=self)
            self.close()


def _nearest_directory(path: str) -> str:
    """The directory of `path`, or its nearest ancestor that exists."""
    directory = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory


def _take_events(descriptor: int) -> None:
    """Reads up to EVENTS_MOST pending events (-1: no descriptor); bounded, since more may arrive
    all the time."""
    with suppress(OSError):  # EAGAIN: no more; ENOBUFS: the socket buffer overflowed
        for _ in range(EVENTS_MOST if descriptor >= 0 else 0):
            os.read(descriptor, NETLINK_BYTES)


def _follow(path: str) -> str:
    """Follows symbolic links, up to a file below /proc, where links are magic links.

    Links in /run/netns to /proc/PID/ns/net are a common way to name a container's namespace.
    """
    for _ in range(MAX_LINKS):
        if path.startswith("/proc/") or not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return path
