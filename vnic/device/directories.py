"""Watches over directories: one inotify instance for a process, since a user has 128 by default (fs.inotify.max_user_instances).

A thread reads its events and signals the watches that they concern, so the cost of an event does not
grow with the number of watches. Sources: inotify(7), eventfd(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from contextlib import suppress

from dataplane.errors import PortError

IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
# Entries that come and go, and the directory itself.
MASK = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
ALL_NAMES = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED
ANY = ""
BUFFER_BYTES = 65536
PAUSE_MS = 10
EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """A watch over the entry `name` of a directory (ANY: over all entries), and over the directory itself. `descriptor` is readable
    after a change, until `take`. Close it."""

    def __init__(self, directory: str, name: str, descriptor: int) -> None:
        self.directory, self.name, self.descriptor = directory, name, descriptor
        self.wd = -1

    def signal(self) -> None:
        """Makes `descriptor` readable."""
        with suppress(OSError):  # it is signalled already, more often than a counter can hold; or closed
            os.eventfd_write(self.descriptor, 1)

    def take(self) -> None:
        """Takes what was signalled."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Ends the watch. May be called twice."""
        if self.descriptor >= 0:
            _directories.remove(self)
            os.close(self.descriptor)
            self.descriptor = -1


class Directories:
    """The inotify instance of a process, while there are watches, and the thread that reads it. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a watch that is not closed is removed by the garbage collector, at any time
        self._watches: dict[int, set[DirectoryWatch]] = {}  # by the kernel's number of the directory
        self._fd = self._end = -1  # the instance; an eventfd that ends its thread

    def add(self, directory: str, name: str) -> DirectoryWatch:
        """Watches. Raises PortError where the directory is not there, or the kernel has no watch left."""
        with self._lock:
            try:
                if self._fd < 0:
                    self._start()
                watch = DirectoryWatch(directory, name, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            except OSError as error:
                self._stop_if_unused()
                raise PortError(f"{directory}: cannot be watched: {error.strerror}; see {_LIMITS}") from None
            watch.wd = _libc.inotify_add_watch(self._fd, os.fsencode(directory), ctypes.c_uint32(MASK))
            if watch.wd < 0:
                reason = os.strerror(ctypes.get_errno())
                os.close(watch.descriptor)
                self._stop_if_unused()
                raise PortError(f"{directory}: cannot be watched: {reason}; see {_LIMITS}")
            # The number of a directory that went may be given again: its watches have been signalled.
            self._watches.setdefault(watch.wd, set()).add(watch)
            return watch

    def remove(self, watch: DirectoryWatch) -> None:
        """Watches no more."""
        with self._lock:
            watches = self._watches.get(watch.wd, set())
            watches.discard(watch)
            if not watches and self._watches.pop(watch.wd, None) is not None:
                _libc.inotify_rm_watch(self._fd, watch.wd)  # fails where the directory went: the kernel removed it
            self._stop_if_unused()

    def _start(self) -> None:
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            code = ctypes.get_errno()
            os.close(self._end)
            self._end = -1
            raise OSError(code, os.strerror(code))
        try:
            threading.Thread(target=self._read, args=(self._fd, self._end), name="vnic-inotify", daemon=True).start()
        except RuntimeError:
            os.close(self._fd)
            os.close(self._end)
            self._fd = self._end = -1
            raise OSError(errno.EAGAIN, "no thread can be started") from None

    def _stop_if_unused(self) -> None:
        if not self._watches and self._fd >= 0:
            os.eventfd_write(self._end, 1)  # the thread closes both
            self._fd = self._end = -1

    def _read(self, fd: int, end: int) -> None:
        import select

        poll, ended = select.poll(), select.poll()
        poll.register(fd, select.POLLIN)
        for each in (poll, ended):
            each.register(end, select.POLLIN)
        while all(descriptor != end for descriptor, _ in poll.poll()):
            with suppress(BlockingIOError):
                self._tell(os.read(fd, BUFFER_BYTES))
            # Whoever may write to a directory must not keep this thread busy; where events are lost, all watches are signalled.
            if ended.poll(PAUSE_MS):
                break
        os.close(fd)
        os.close(end)

    def _tell(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            wd, mask, _, length = EVENT.unpack_from(events, at)
            name = os.fsdecode(events[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0"))
            at += EVENT.size + length
            with self._lock:
                concerned = (
                    self._watches.get(wd, set()) if wd >= 0 else {each for some in self._watches.values() for each in some}
                )
                for watch in tuple(concerned):
                    if mask & ALL_NAMES or watch.name in (ANY, name):
                        watch.signal()


_LIMITS = "fs.inotify.max_user_watches and max_user_instances"
_directories = Directories()


def watch_directory(path: str) -> DirectoryWatch:
    """A watch over the entry at `path`: its directory is watched, since a namespace's file is a mount, whose removal is no event, and
    deleting its name is. Raises PortError."""
    directory, name = os.path.split(path)
    return _directories.add(directory, name)


def watch_entries(directory: str) -> DirectoryWatch:
    """A watch over all entries of a directory. Raises PortError."""
    return _directories.add(directory, ANY)
