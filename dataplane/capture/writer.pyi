"""Python face of dataplane.capture.writer."""

import os
from collections.abc import Sequence

ETHERNET: int
PCAP_MAGIC_NS: int
SNAPLEN: int

class CaptureWriter:
    path: str
    format: str
    packets: int
    bytes: int
    interfaces: int
    def __init__(self, file: str | os.PathLike[str] | int, names: Sequence[str], *, format: str | None = ...) -> None: ...
    @property
    def error(self) -> str | None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
