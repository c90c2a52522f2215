"""Watches on directories, by one inotify instance for the process.

A user may have 128 instances by default (fs.inotify.max_user_instances). A thread reads the events
and signals the watches that they concern, so an event's cost does not grow with the number of
watches. Sources: inotify(7), eventfd(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from contextlib import suppress

from dataplane.errors import PortError

IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = (
    0x40,
    0x80,
    0x100,
    0x200,
    0x400,
    0x800,
)
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
# Entries created, deleted or moved; the directory itself deleted or moved.
MASK = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
ALL_NAMES = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED
ANY = ""
BUFFER_BYTES = 65536
PAUSE_MS = 10
EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """A watch on the entry `name` of a directory (ANY: on all entries), and on the directory
    itself. `descriptor` is readable from a change until `take`. The owner closes it."""

    def __init__(self, directory: str, name: str, descriptor: int) -> None:
        self.directory, self.name, self.descriptor = directory, name, descriptor
        self.wd = -1

    def signal(self) -> None:
        """Makes `descriptor` readable."""
        with suppress(OSError):  # the counter is full, or the descriptor is closed
            os.eventfd_write(self.descriptor, 1)

    def take(self) -> None:
        """Resets `descriptor`."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Ends the watch. May be called twice."""
        if self.descriptor >= 0:
            _directories.remove(self)
            os.close(self.descriptor)
            self.descriptor = -1


class Directories:
    """The process' inotify instance and the thread that reads it; both exist while there are
    watches. Methods may be called from any thread."""

    def __init__(self) -> None:
        # reentrant: the garbage collector may remove an unclosed watch at any time
        self._lock = threading.RLock()
        self._watches: dict[int, set[DirectoryWatch]] = {}  # by the kernel's watch descriptor
        self._fd = self._end = -1  # the inotify instance; an eventfd that ends its thread

    def add(self, directory: str, name: str) -> DirectoryWatch:
        """Adds a watch. Raises PortError where the directory does not exist, or the kernel's limit
        is reached."""
        with self._lock:
            try:
                if self._fd < 0:
                    self._start()
                watch = DirectoryWatch(
                    directory, name, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                )
            except OSError as error:
                self._stop_if_unused()
                raise PortError(
                    f"{directory}: cannot be watched: {error.strerror}; see {_LIMITS}"
                ) from None
            watch.wd = _libc.inotify_add_watch(
                self._fd, os.fsencode(directory), ctypes.c_uint32(MASK)
            )
            if watch.wd < 0:
                reason = os.strerror(ctypes.get_errno())
                os.close(watch.descriptor)
                self._stop_if_unused()
                raise PortError(f"{directory}: cannot be watched: {reason}; see {_LIMITS}")
            # The kernel may reuse the number of a deleted directory, whose watches have been
            # signalled.
            self._watches.setdefault(watch.wd, set()).add(watch)
            return watch

    def remove(self, watch: DirectoryWatch) -> None:
        """Removes a watch."""
        with self._lock:
            watches = self._watches.get(watch.wd, set())
            watches.discard(watch)
            if not watches and self._watches.pop(watch.wd, None) is not None:
                # fails where the directory is deleted: the kernel has removed it
                _libc.inotify_rm_watch(self._fd, watch.wd)
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
            threading.Thread(
                target=self._read, args=(self._fd, self._end), name="vnic-inotify", daemon=True
            ).start()
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
            # Bounds the CPU time that frequent changes cost; where events are lost, all watches are
            # signalled.
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
                    self._watches.get(wd, set())
                    if wd >= 0
                    else {each for some in self._watches.values() for each in some}
                )
                for watch in tuple(concerned):
                    if mask & ALL_NAMES or watch.name in (ANY, name):
                        watch.signal()


_LIMITS = "fs.inotify.max_user_watches and max_user_instances"
_directories = Directories()


def watch_directory(path: str) -> DirectoryWatch:
    """A watch on the entry at `path`, through its directory: a namespace's file is a mount point,
    whose unmount is no inotify event, but the deletion of its name is. Raises PortError."""
    directory, name = os.path.split(path)
    return _directories.add(directory, name)


def watch_entries(directory: str) -> DirectoryWatch:
    """A watch on all entries of a directory. Raises PortError."""
    return _directories.add(directory, ANY)
