"""Segments of shared memory: memfds of a fixed size that another process maps from a descriptor.

Every segment begins with a magic (8 bytes) and a version (32 bits, little endian); the rest of its header is its owner's business.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from dataplane.errors import VnicError

PREFIX = struct.Struct("<QI")
# The size is settled for good. A segment that shrinks under a mapping ends its readers with SIGBUS, and no seal may be added that
# would keep a later worker from writing.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(name: str, size: int) -> tuple[int, mmap.mmap]:
    """A new segment of `size` bytes, all 0: its descriptor (the caller's to close) and its mapping. Raises OSError."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def attach(descriptor: int, what: str, magic: int, version: int, header_bytes: int) -> tuple[int, mmap.mmap]:
    """Maps the segment `descriptor` whole: a duplicate of the descriptor (the caller's to close) and the mapping.

    `what` names it in errors. Raises VnicError unless it is a sealed memfd of at least `header_bytes` with this magic and version.
    """
    try:
        own = os.dup(descriptor)
    except (OSError, OverflowError) as error:
        raise VnicError(f"{what}: descriptor {descriptor} cannot be used: {_reason(error)}") from None
    try:
        # First the seal, then the size: from here on nobody can take away what is mapped.
        if not fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise VnicError(f"{what}: descriptor {descriptor} is not sealed against shrinking; hand over one that vnic made")
        size = os.fstat(own).st_size
        if size < header_bytes:
            raise VnicError(f"{what}: descriptor {descriptor} has {size} bytes; the header alone has {header_bytes}")
        mapping = mmap.mmap(own, size)
        found_magic, found_version = PREFIX.unpack_from(mapping)
        if found_magic != magic:
            raise VnicError(f"{what}: descriptor {descriptor} holds something else; check which segment it is")
        if found_version != version:
            raise VnicError(
                f"{what}: has version {found_version}, this vnic knows {version}; start anew instead of taking it over"
            )
        return own, mapping
    except BaseException as error:
        os.close(own)
        if isinstance(error, OSError):
            raise VnicError(f"{what}: descriptor {descriptor} is no shared segment: {_reason(error)}") from None
        raise


def attach_doorbell(descriptor: int, what: str) -> int:
    """A duplicate of an eventfd (the caller's to close). Raises VnicError for another file, or one that would block an engine."""
    try:
        own = os.dup(descriptor)
    except (OSError, OverflowError) as error:
        raise VnicError(f"{what}: doorbell {descriptor} cannot be used: {_reason(error)}") from None
    try:
        if os.readlink(f"/proc/self/fd/{own}") != "anon_inode:[eventfd]" or os.get_blocking(own):
            raise VnicError(
                f"{what}: doorbell {descriptor} is not a non-blocking eventfd; hand over the one made with the ring"
            )
        return own
    except BaseException as error:
        os.close(own)
        if isinstance(error, OSError):
            raise VnicError(f"{what}: doorbell {descriptor} cannot be examined: {_reason(error)}") from None
        raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
