"""Which process may do what, and when it gives up the rest: what a process of root's has; a plain user's has none of it anywhere.

| stage                 | supervisor              | agent                      | worker, its successors           |
|-----------------------|-------------------------|----------------------------|----------------------------------|
| `vnic up`             | what root may           |                            |                                  |
| it is the instance    | `SUPERVISOR`            |                            |                                  |
| before exec           |                         | `AGENT`                    | none, and none to be had;        |
|                       |                         |                            | CAP_SYS_NICE where a group has a |
|                       |                         |                            | guarantee at that time           |
| work in a container   | never                   | a child for each piece of  | never                            |
|                       |                         | it, which ends (agent.py)  |                                  |
| running               | opens namespaces, asks  | waits                      | uses the TAPs, sockets, memory   |
|                       | the agent, starts       |                            | handed to it; files as its user  |
|                       | workers                 |                            |                                  |

All of them have NO_NEW_PRIVS, and a bounding set that is the same as what they have: nothing that they execute gets more. They give up
before exec, in the child: whatever runs there then - an upgrade names any Python - has a worker's rights and never had others.

What the capabilities are for: CAP_SYS_PTRACE opens /proc/PID/ns of others' processes, CAP_SYS_ADMIN enters these namespaces, CAP_NET_ADMIN
makes interfaces there, CAP_SETPCAP lowers a child's bounding set, CAP_SYS_NICE makes a guarantee of CPU time the kernel's and, in the
supervisor, gives the running worker priority over one that loads (WorkerProcess.prefer). Files are opened
as their owner, group or others may, without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: the program, and what the configuration names, must
be root's to read in that way.

The worker is what packets, clients and users' elements reach, so interfaces are made by the agent, descriptors and memory come from the
supervisor, and these two speak to nobody but each other and the worker, whose messages are checked (keeper.py).

What a worker may ask the supervisor for. An attacker who controls the worker can ask for what any attach needs: a TAP in the network
namespace of any process or path on the machine, with any addresses and routes; in this way it can change the networks of containers that
have no NIC here. It cannot change the network of the host: the supervisor refuses an interface in the network namespace that the supervisor
itself runs in, unless the configuration that the instance was started with allows that (`host_interfaces: true`, or a NIC of the file that
is there; the worker cannot change what it was). A successor that has not taken over yet can ask for nothing at all.

What remains. Root's worker has no capabilities, but its user id is still 0, and root owns most of a machine's files and settings: an
attacker who controls it can read and write those, and get all of root's rights back that way. What it cannot do itself is mount, load
modules, make or change interfaces, or trace the other two, which have more capabilities than it. A plain user's worker can do what its user
can, and that includes tracing the supervisor (ptrace(2), unless Yama forbids it). To be safe from the worker, run vnic as a user who owns
nothing else.

Another user id for root's worker alone is not done, since much of what it does is done as its user: it writes captures to the paths that
the owner names, reads the users' modules, makes the metrics' socket, joins cgroups, and takes for its owner who has its own user id
(Session.is_owner). All of that would have to come from the supervisor, as descriptors or in words, first.

Sources: capabilities(7), capset(2), ptrace(2), prctl(2) PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from dataplane.errors import VnicError

CAP_SETPCAP, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_NICE = 8, 12, 19, 21, 23
AGENT = (CAP_NET_ADMIN, CAP_SYS_ADMIN)
SUPERVISOR = (*AGENT, CAP_SYS_PTRACE, CAP_SETPCAP, CAP_SYS_NICE)  # a child has no more than its parent

_CAP_LAST = 63  # of 64 bits; the kernel refuses numbers that it does not have
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38

_libc = ctypes.CDLL(None, use_errno=True)


def worker(*, guaranteed: bool) -> tuple[int, ...]:
    """What a worker keeps. guaranteed: a group has a guarantee of CPU time, which real-time scheduling gives."""
    return (CAP_SYS_NICE,) if guaranteed else ()


def drop(keep: Iterable[int] = (), *, inherit: bool = False) -> None:
    """Gives up every capability but those of `keep` that this thread has, for good: nothing that is executed later gets any back. Call it
    before other threads are there, since each thread has its own. inherit: of those that are kept, what a plain user's programs would
    inherit (ambient ones, as systemd gives) they still do. Raises VnicError."""
    kept = sum(1 << number for number in keep)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise VnicError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
    for number in range(_CAP_LAST + 1):
        if not kept >> number & 1:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # refused to who has no CAP_SETPCAP: he has nothing to drop either
    header = struct.pack("=Ii", _VERSION_3, 0)
    found = ctypes.create_string_buffer(24)
    if _libc.capget(header, found):
        raise VnicError(f"privileges cannot be read: {os.strerror(ctypes.get_errno())}")
    # Effective, permitted, inheritable of the low 32 capabilities, then of the high ones. Ambient are only those permitted and inheritable.
    low, high, passed = kept & 0xFFFFFFFF, kept >> 32, kept if inherit else 0
    masks = (low, low, passed & 0xFFFFFFFF, high, high, passed >> 32)
    wanted = struct.pack("=6I", *(have & mask for have, mask in zip(struct.unpack("=6I", found.raw), masks, strict=True)))
    if _libc.capset(header, wanted):
        raise VnicError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
