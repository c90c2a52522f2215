"""Compressed captures: recognised by their first bytes, and decompressed while they are read."""

from __future__ import annotations

import gzip
import importlib
import io
import os
from typing import Any, Protocol, cast

from dataplane.errors import CaptureError

GZIP, ZSTD, LZ4 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"
ZSTD_WINDOW_MOST = 1 << 27  # maximum window size in bytes: that of `zstd -d` without --memory


class Stream(Protocol):
    """The content of a compressed file. `read1` returns at most `size` bytes, none at the end."""

    def read1(self, size: int, /) -> bytes: ...


class _Rest(io.RawIOBase):
    """A stream of `head`, bytes read from a descriptor before, and the rest of the descriptor,
    which may be a pipe."""

    def __init__(self, head: bytes, descriptor: int) -> None:
        self._head, self._descriptor = head, descriptor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._head:
            return os.readv(self._descriptor, [buffer])
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


def _library(name: str, what: str, path: str, command: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise CaptureError(
            f"{path}: is compressed by {what}: pip install {package}, "
            f"or pipe it: {command} -dc FILE | vnic replay - ..."
        ) from None


def decompress(head: bytes, descriptor: int, path: str) -> Stream | None:
    """The content of the file at `descriptor`, whose first bytes `head` were read before; None if
    it is not compressed.

    Memory is bounded, since content is decompressed only as it is read. Raises CaptureError where
    the library that it needs is not installed.
    """
    if head.startswith(GZIP):
        return gzip.GzipFile(fileobj=io.BufferedReader(_Rest(head, descriptor)))
    if head.startswith(ZSTD):
        zstandard = _library("zstandard", "zstd", path, "zstd")
        reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MOST).stream_reader(
            io.BufferedReader(_Rest(head, descriptor)), read_across_frames=True
        )
        return cast("Stream", reader)
    if head.startswith(LZ4):
        lz4_frame = _library("lz4.frame", "lz4", path, "lz4")
        return cast("Stream", lz4_frame.LZ4FrameFile(io.BufferedReader(_Rest(head, descriptor))))
    return None
