"""Why a guest that is connected exchanges no frames, as far as one can see: chiefly that its memory
is not shared, which a front end does not say."""

from __future__ import annotations

import os
from contextlib import suppress

from virt.vhost_user.books import Region
from virt.vhost_user.features import OF_VHOST
from virt.vhost_user.session import Session

ADVICE = (
    "start QEMU with -object memory-backend-memfd,id=mem,size=...,share=on -numa node,memdev=mem"
)
# Of each region. Firmware, a kernel and a driver's rings leave something there. The bound is for
# `vnic status`, which waits for it: some 3 ms.
LOOKED_AT_BYTES = 16 << 20
_ZEROS = bytes(1 << 20)


def hindrance(session: Session) -> str:
    """The reason for a session whose rings have had no frame yet; "" where none is seen."""
    if session.refusal:
        return session.refusal
    books = session.books
    if not books.features & ~OF_VHOST:
        return ""  # no driver has begun
    if not books.memory:
        return f"the front end has not passed its guest's memory: {ADVICE}"
    if session.rings.running and all(
        _is_untouched(session.descriptors[region.descriptor], region) for region in books.memory
    ):
        return (
            "the guest's memory is all zeros, though its driver runs: it is not shared, so vnic "
            f"sees no change in it: {ADVICE}"
        )
    return ""


def _is_untouched(descriptor: int, region: Region) -> bool:
    """Whether there are only zeros. Read, not mapped: the front end may truncate the file."""
    at, end = region.offset, region.offset + min(region.size, LOOKED_AT_BYTES)
    with suppress(OSError):
        while at < end:
            found = os.pread(descriptor, min(len(_ZEROS), end - at), at)
            if found != _ZEROS[: len(found)]:
                return False
            if not found:  # the file's end
                break
            at += len(found)
    return True
