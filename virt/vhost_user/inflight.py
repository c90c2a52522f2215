"""Memory for buffers in flight (the specification's section on inflight I/O tracking): how large it
is, and a new one."""

from __future__ import annotations

import fcntl
import os

from virt.vhost_user.books import Inflight
from virt.vhost_user.messages import InflightArea
from virt.vhost_user.protocol import MOST_RING_SIZE, Refused

_ALIGNMENT = 64  # of a queue's region: a cache line
_SPLIT_HEADER, _SPLIT_ENTRY = 16, 16  # bytes
_PACKED_HEADER, _PACKED_ENTRY = 32, 32


def check(request: str, area: InflightArea, rings: int) -> None:
    """Raises Refused for more queues than there are, or a size that no ring has."""
    if not 1 <= area.queues <= rings:
        raise Refused(f"{request}: {area.queues} queues: expected 1 to {rings}")
    if not 1 <= area.queue_size <= MOST_RING_SIZE:
        raise Refused(f"{request}: queue size {area.queue_size}: expected 1 to {MOST_RING_SIZE}")


def region_bytes(queue_size: int, *, packed: bool) -> int:
    """The bytes of one queue's region."""
    size = (
        _PACKED_HEADER + _PACKED_ENTRY * queue_size
        if packed
        else _SPLIT_HEADER + _SPLIT_ENTRY * queue_size
    )
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def make(area: InflightArea, *, packed: bool) -> tuple[Inflight, int]:
    """A memfd of zeros, which means that nothing has been written there yet, and its entry in the
    books. It can neither shrink nor grow: the front end holds it, too."""
    size = region_bytes(area.queue_size, packed=packed) * area.queues
    descriptor = os.memfd_create("vnic-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
    except OSError:
        os.close(descriptor)
        raise
    return Inflight(size, 0, area.queues, area.queue_size), descriptor
