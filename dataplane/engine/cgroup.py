"""Cgroups of engine threads: the kernel charges a thread's CPU time to its cgroup and bounds it.

| version | a thread joins by writing  | CPU time                              | bounds            |
|---------|----------------------------|---------------------------------------|-------------------|
| 2       | its id to `cgroup.threads` | `cpu.stat`: usage_usec, microseconds  | cpu.max,          |
|         |                            |                                       | cpu.weight        |
| 1       | its id to `tasks`          | `cpuacct.usage`, nanoseconds (if that | cpu.cfs_quota_us, |
|         |                            | is mounted)                           | cpu.shares        |

A v2 cgroup must be threaded, and in the domain (a cgroup that whole processes are in) of vnic.
A thread is in one cgroup of each hierarchy, so a thread in a v1 cpu and a v1 cpuacct cgroup has
two paths. cpu.max, cpu.weight and their v1 equivalents bound the fair class only: a thread of
SCHED_DEADLINE or SCHED_RR (guarantee.py) is charged, but not bounded by them.

Sources: cgroups(7), Linux' Documentation/admin-guide/cgroup-v2.rst ("Threads", "Delegation") and
cgroup-v1/.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from dataplane.errors import ConfigError

# by version: the file that lists the threads, and that a joining thread's id is written to
MEMBERS = {1: "tasks", 2: "cgroup.threads"}
_VERSIONS = {0x27E0EB: 1, 0x63677270: 2}  # CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC of linux/magic.h
_STATFS_BYTES = 256  # more than any struct statfs; f_type is its first word
_CPU_LISTS = ("cpuset.cpus.effective", "cpuset.effective_cpus")  # v2's and v1's

_libc = ctypes.CDLL(None, use_errno=True)


def _file_system(path: str) -> int:
    """f_type of statfs(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    # a little-endian long or 32 bits: the low word is the same
    return int(ctypes.c_uint32.from_buffer(buffer).value)


class Cgroup:
    """An existing cgroup, given by its directory. Its methods may be called from any thread."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r})"

    @property
    def version(self) -> int:
        """1 or 2. Raises ConfigError for a path that is not a cgroup's directory."""
        try:
            version = _VERSIONS.get(_file_system(self.path))
        except OSError as error:
            raise self._refusal(error, 0) from None
        if version is None or not os.path.exists(self._file(MEMBERS[version])):
            raise ConfigError(
                f"cgroup {self.path}: is not a cgroup: "
                "expected a directory with cgroup.threads or tasks in it"
            )
        return version

    @property
    def hierarchy(self) -> int:
        """The device number of its hierarchy. Raises ConfigError."""
        try:
            return os.stat(self.path).st_dev
        except OSError as error:
            raise self._refusal(error, 0) from None

    def check(self) -> None:
        """Raises ConfigError, one line, if threads of this process cannot join.

        Whether the kernel permits it depends on cgroup types and on permissions in several places,
        so this tries it with a probe thread that ends at once.
        """
        refused: list[ConfigError] = []

        def probe() -> None:
            try:
                self.join(threading.get_native_id())
            except ConfigError as error:
                refused.append(error)

        thread = threading.Thread(target=probe)
        thread.start()
        thread.join()
        if refused:
            raise refused[0]

    def join(self, thread_id: int) -> None:
        """Moves a thread of this process, by its native id, into this cgroup, out of the one that
        it was in in this hierarchy. Raises ConfigError."""
        version = self.version
        try:
            descriptor = os.open(self._file(MEMBERS[version]), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, str(thread_id).encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._refusal(error, version) from None

    def threads(self) -> frozenset[int]:
        """Native ids of the threads in it now; none where the list cannot be read."""
        try:
            with open(self._file(MEMBERS[self.version])) as file:
                return frozenset(map(int, file.read().split()))
        except (OSError, ConfigError):
            return frozenset()

    def cpu_ns(self) -> int | None:
        """CPU time in nanoseconds of all present and past members, also of the cgroups below; None
        where the hierarchy does not account CPU time, or the cgroup is gone."""
        if (usage := self._read("cpuacct.usage")).isdecimal():
            return int(usage)
        found = re.search(r"^usage_usec (\d+)$", self._read("cpu.stat"), re.MULTILINE | re.ASCII)
        return int(found[1]) * 1000 if found else None

    def cpus(self) -> list[int] | None:
        """The CPUs that its threads may run on; None without a cpuset controller."""
        text = next((text for name in _CPU_LISTS if (text := self._read(name))), "")
        if not text:
            return None
        found: list[int] = []
        for word in text.split(","):
            first, _, last = word.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
        return found

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _read(self, name: str) -> str:
        try:
            with open(self._file(name)) as file:
                return file.read().strip()
        except OSError:
            return ""

    def _refusal(self, error: OSError, version: int) -> ConfigError:
        """The error for a failed system call: the errno's meaning for a cgroup, with advice."""
        uid = os.geteuid()
        match error.errno:
            case errno.ENOENT | errno.ENODEV:  # ENODEV: removed between open and write
                text = f"does not exist; mkdir {self.path}"
            case errno.EROFS:
                text = "is mounted read-only; mount its file system read-write"
            case errno.EACCES | errno.EPERM if version and os.access(
                self._file(MEMBERS[version]), os.W_OK
            ):
                # v2 requires write access to cgroup.procs of the common ancestor, v1 that the
                # thread belongs to the writer.
                text = (
                    f"uid {uid} may not move threads from {_own_cgroup(self, version)} to it; "
                    f"delegate both to {uid}"
                )
            case errno.EACCES | errno.EPERM:
                text = f"uid {uid} may not write to it; delegate it: chown -R {uid} {self.path}"
            case errno.EOPNOTSUPP if (kind := self._read("cgroup.type")).startswith("domain"):
                text = (
                    f"is of type {kind!r}, which takes no single threads; "
                    f"echo threaded > {self._file('cgroup.type')}"
                )
            case errno.EOPNOTSUPP:
                text = (
                    f"is in another domain than vnic, which is in {_own_cgroup(self, version)}; "
                    "choose a cgroup below that one"
                )
            case errno.ENOSPC:
                text = "has a cpuset without CPUs or memory; set its cpuset.cpus and cpuset.mems"
            case _:
                text = (
                    f"cannot be joined: {error.strerror}; "
                    "choose one that takes threads, see cgroups(7)"
                )
        return ConfigError(f"cgroup {self.path}: {text}")


def join_all(cgroups: Iterable[Cgroup], thread_id: int) -> dict[str, str]:
    """Moves a thread into all the cgroups; returns {path: reason} for those that failed. The thread
    runs all the same: forwarding packets matters more than accounting."""
    refused: dict[str, str] = {}
    for cgroup in cgroups:
        try:
            cgroup.join(thread_id)
        except ConfigError as error:
            refused[cgroup.path] = str(error)
    return refused


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy, and the cgroup of this process in it."""

    version: int
    controllers: tuple[str, ...]  # v1: of the hierarchy; v2: those that its cgroup may use
    own: str  # the directory of the cgroup that this process is in
    device: tuple[int, int]


def _own_cgroup(of: Cgroup, version: int) -> str:
    """The directory of this process's cgroup in the hierarchy of `of`."""
    device = (os.major(of.hierarchy), os.minor(of.hierarchy))
    return next(
        (each.own for each in hierarchies() if each.device == device),
        f"its own of version {version}",
    )


def _plain(text: str) -> str:
    """Decodes a path of /proc/self/mountinfo, which has space, tab, newline and backslash in
    octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def hierarchies() -> list[Hierarchy]:
    """The mounted hierarchies, from /proc/self/cgroup and /proc/self/mountinfo, see proc(5)."""
    paths: dict[frozenset[str], str] = {}
    found: list[Hierarchy] = []
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                paths[frozenset(controllers.split(",")) - {""}] = path
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return []
    for fields in mounts:
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        wanted = frozenset() if kind == "cgroup2" else frozenset(options.split(","))
        key = next(
            (
                each
                for each in paths
                if (not each if kind == "cgroup2" else each and each <= wanted)
            ),
            None,
        )
        if kind not in ("cgroup", "cgroup2") or key is None:
            continue
        root, point = _plain(fields[3]), _plain(fields[4])
        # In a cgroup namespace, or where only a subtree is mounted, the path may be outside the
        # mount: then the mount's root is the nearest cgroup.
        below = os.path.relpath(paths[key], root)
        own = point if below.startswith("..") else os.path.normpath(os.path.join(point, below))
        names = (
            Cgroup(own)._read("cgroup.controllers").split() if kind == "cgroup2" else sorted(key)
        )
        major, _, minor = fields[2].partition(":")
        found.append(
            Hierarchy(2 if kind == "cgroup2" else 1, tuple(names), own, (int(major), int(minor)))
        )
    return found
