"""Python face of dataplane.capture.writer."""

import os
from collections.abc import Sequence
from typing import final

ETHERNET: int
PCAP_MAGIC_NS: int
SNAPLEN: int

def format_of(path: str) -> str: ...

@final
class CaptureWriter:
    path: str
    format: str
    packets: int
    frame_bytes: int
    interfaces: int
    def __init__(
        self, file: str | os.PathLike[str] | int, names: Sequence[str], *, format: str | None = ...
    ) -> None: ...
    @property
    def error(self) -> str | None: ...
    def write(
        self,
        interface: int,
        time_ns: int,
        data: bytes,
        *,
        original: int | None = ...,
        comment: str = ...,
    ) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
