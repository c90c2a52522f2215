"""Which process may do what, and when it gives up the rest.

| stage                  | supervisor             | agent                      | worker                           |
|------------------------|------------------------|----------------------------|----------------------------------|
| started                | what its user may      | what its user may          | what its user may                |
| before its first       |                        |                            | `drop`: no capability, none to   |
| thread or client       |                        |                            | be had; CAP_SYS_NICE while a     |
|                        |                        |                            | group has a guarantee            |
| work in a container    | never                  | a child for each piece of  | never                            |
|                        |                        | it, which ends (agent.py)  |                                  |
| running                | opens namespaces, asks | waits                      | uses the TAPs, sockets, memory   |
|                        | the agent              |                            | handed to it; files as its user  |

The worker is what packets, clients and users' elements reach, so it has nothing to give: interfaces are made by the agent,
descriptors and memory come from the supervisor. The other two speak to nobody but each other and the worker, whose messages are
checked (keeper.py). A plain user's processes have no capabilities outside the user namespaces of the containers that are his.

Sources: capabilities(7), capset(2), prctl(2) PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_SET_NO_NEW_PRIVS.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from dataplane.errors import VnicError

CAP_SYS_NICE = 23
_CAP_LAST = 63  # of 64 bits; the kernel refuses numbers that it does not have
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


def drop(keep: Iterable[int] = ()) -> None:
    """Gives up every capability but those of `keep` that this thread has, for good: nothing that is executed later gets any back. Call it
    before other threads are there, since each thread has its own. Raises VnicError."""
    kept = sum(1 << number for number in keep)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise VnicError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(_CAP_LAST + 1):
        if not kept >> number & 1:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # refused to who has no CAP_SETPCAP: he has nothing to drop either
    header = struct.pack("=Ii", _VERSION_3, 0)
    found = ctypes.create_string_buffer(24)
    if _libc.capget(header, found):
        raise VnicError(f"privileges cannot be read: {os.strerror(ctypes.get_errno())}")
    # effective, permitted, inheritable of the low 32 capabilities, then of the high ones
    low_effective, low_permitted, _, high_effective, high_permitted, _ = struct.unpack("=6I", found.raw)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    wanted = struct.pack("=6I", low_effective & low, low_permitted & low, 0, high_effective & high, high_permitted & high, 0)
    if _libc.capset(header, wanted):
        raise VnicError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
