"""Capabilities of the processes of an instance of root's, and when they are dropped. Processes of a
plain user have none.

| stage               | supervisor             | agent                  | worker, its successors  |
|---------------------|------------------------|------------------------|-------------------------|
| `vnic up`           | root's                 |                        |                         |
| instance locked     | `SUPERVISOR`           |                        |                         |
| before exec         |                        | `AGENT`                | none, for good;         |
|                     |                        |                        | CAP_SYS_NICE if a group |
|                     |                        |                        | has a guarantee then    |
| work in a container | never                  | a child for each piece | never                   |
|                     |                        | of work (agent.py)     |                         |
| running             | opens namespaces, uses | waits                  | uses TAPs, sockets,     |
|                     | the agent, starts      |                        | memory passed to it;    |
|                     | workers                |                        | opens files as its user |

All have NO_NEW_PRIVS, and a bounding set equal to their capabilities, so programs that they execute
get no more. Capabilities are dropped in the child before exec: the program, which may be any Python
that an upgrade names, never has more than a worker's.

Use of the capabilities: CAP_SYS_PTRACE opens /proc/PID/ns of other users' processes, CAP_SYS_ADMIN
enters these namespaces, CAP_NET_ADMIN creates interfaces there, CAP_NET_RAW opens the packet
sockets of NICs of kind veth and packet, CAP_SETPCAP lowers a child's bounding set, CAP_SYS_NICE
lets the kernel enforce a guarantee of CPU time and, in the supervisor, gives the running worker
priority over one that loads (WorkerProcess.prefer). Without CAP_DAC_OVERRIDE and
CAP_DAC_READ_SEARCH, file permissions hold for root, too: it must be permitted to read the program
and the files that the configuration names.

Packets, clients and users' elements reach only the worker. So the agent creates interfaces, the
supervisor provides descriptors and memory, and these two communicate only with each other and with
the worker, whose messages are checked (keeper.py).

Requests of a worker to the supervisor. An attacker who controls the worker can make the requests of
an attach: a TAP in the network namespace of any process or path on the machine, with any addresses
and routes, or packet sockets at an interface there; so it can change the networks of containers
that have no NIC here, and read and send their frames. It cannot change or read the network of the
host: the supervisor rejects an interface in its own network namespace, unless the configuration at
the instance's start allows that (`host_interfaces: true`, or a NIC of the file in that namespace;
the worker cannot change this). The supervisor rejects all requests of a successor that has not
taken over yet.

Remaining risk. Root's worker has no capabilities, but its user id is 0, and root owns most of a
machine's files and settings: an attacker who controls the worker can read and write those, and so
regain all of root's rights. It cannot directly mount, load modules, create or change interfaces, or
trace the other two processes, which have more capabilities. A plain user's worker has all rights of
its user, including to trace the supervisor (ptrace(2), unless Yama forbids it). To be safe from the
worker, run vnic as a user who owns nothing else.

Root's worker has no separate user id, since it needs its user's rights: it writes captures to the
paths that the owner names, reads users' modules, creates the metrics' socket, joins cgroups, and
recognises its owner by the same user id (Session.is_owner). All of that would first have to move to
the supervisor.

Sources: capabilities(7), capset(2), ptrace(2), prctl(2) PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from dataplane.errors import VnicError

CAP_SETPCAP, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_NICE = (
    8,
    12,
    13,
    19,
    21,
    23,
)
AGENT = (CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN)
# a child has no more than its parent
SUPERVISOR = (*AGENT, CAP_SYS_PTRACE, CAP_SETPCAP, CAP_SYS_NICE)

_CAP_LAST = 63  # of 64 bits; the kernel rejects unknown numbers
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38

_libc = ctypes.CDLL(None, use_errno=True)


def worker(*, guaranteed: bool) -> tuple[int, ...]:
    """A worker's capabilities. guaranteed: a group has a guarantee of CPU time, by real-time
    scheduling."""
    return (CAP_SYS_NICE,) if guaranteed else ()


def drop(keep: Iterable[int] = (), *, inherit: bool = False) -> None:
    """Drops every capability of this thread but those of `keep`, for good: no program executed
    later gets any back. Call it before other threads exist, since each thread has its own. inherit:
    programs executed later still inherit those of `keep` that are inheritable (ambient ones, as
    from systemd). Raises VnicError."""
    kept = sum(1 << number for number in keep)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise VnicError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
    for number in range(_CAP_LAST + 1):
        if not kept >> number & 1:
            # fails without CAP_SETPCAP, where there is nothing to drop
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header = struct.pack("=Ii", _VERSION_3, 0)
    found = ctypes.create_string_buffer(24)
    if _libc.capget(header, found):
        raise VnicError(f"privileges cannot be read: {os.strerror(ctypes.get_errno())}")
    # Effective, permitted, inheritable of the low 32 capabilities, then of the high ones. Ambient
    # ones are always permitted and inheritable.
    low, high, passed = kept & 0xFFFFFFFF, kept >> 32, kept if inherit else 0
    masks = (low, low, passed & 0xFFFFFFFF, high, high, passed >> 32)
    wanted = struct.pack(
        "=6I",
        *(have & mask for have, mask in zip(struct.unpack("=6I", found.raw), masks, strict=True)),
    )
    if _libc.capset(header, wanted):
        raise VnicError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
