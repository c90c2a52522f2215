"""Segments of shared memory: memfds of a fixed size, which another process maps from a descriptor.

Every segment begins with a magic (8 bytes) and a version (32 bits, little endian); its owner
defines the rest of the header.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from dataplane.errors import VnicError

PREFIX = struct.Struct("<QI")
# The size is fixed: a segment that shrinks under a mapping kills its readers with SIGBUS.
# F_SEAL_SEAL: no later seal can prevent the next worker from writing.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(name: str, size: int) -> tuple[int, mmap.mmap]:
    """Creates a zeroed segment of `size` bytes; returns its descriptor (the caller closes it) and
    its mapping. Raises OSError."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def attach(
    descriptor: int, what: str, magic: int, version: int, header_bytes: int
) -> tuple[int, mmap.mmap]:
    """Maps the segment `descriptor`; returns a duplicate of the descriptor (the caller closes it)
    and the mapping.

    what: name of the segment in errors. Raises VnicError unless it is a sealed memfd of at least
    `header_bytes` with this magic and version.
    """
    try:
        own = os.dup(descriptor)
    except (OSError, OverflowError) as error:
        raise VnicError(
            f"{what}: descriptor {descriptor} cannot be used: {_reason(error)}"
        ) from None
    try:
        # The seal first, then the size: from here on no process can truncate what is mapped.
        if not fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise VnicError(
                f"{what}: descriptor {descriptor} is not sealed against shrinking; "
                f"hand over one that vnic made"
            )
        size = os.fstat(own).st_size
        if size < header_bytes:
            raise VnicError(
                f"{what}: descriptor {descriptor} has {size} bytes; "
                f"the header alone has {header_bytes}"
            )
        mapping = mmap.mmap(own, size)
        found_magic, found_version = PREFIX.unpack_from(mapping)
        if found_magic != magic:
            raise VnicError(
                f"{what}: descriptor {descriptor} holds something else; check which segment it is"
            )
        if found_version != version:
            raise VnicError(
                f"{what}: has version {found_version}, this vnic knows {version}; "
                f"start anew instead of taking it over"
            )
        return own, mapping
    except BaseException as error:
        os.close(own)
        if isinstance(error, OSError):
            raise VnicError(
                f"{what}: descriptor {descriptor} is no shared segment: {_reason(error)}"
            ) from None
        raise


def attach_doorbell(descriptor: int, what: str) -> int:
    """Duplicates an eventfd (the caller closes it). Raises VnicError for another kind of file, or
    an eventfd that would block an engine."""
    try:
        own = os.dup(descriptor)
    except (OSError, OverflowError) as error:
        raise VnicError(f"{what}: doorbell {descriptor} cannot be used: {_reason(error)}") from None
    try:
        if os.readlink(f"/proc/self/fd/{own}") != "anon_inode:[eventfd]" or os.get_blocking(own):
            raise VnicError(
                f"{what}: doorbell {descriptor} is not a non-blocking eventfd; "
                f"hand over the one made with the ring"
            )
        return own
    except BaseException as error:
        os.close(own)
        if isinstance(error, OSError):
            raise VnicError(
                f"{what}: doorbell {descriptor} cannot be examined: {_reason(error)}"
            ) from None
        raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
