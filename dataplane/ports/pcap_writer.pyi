"""Python face of dataplane.ports.pcap_writer."""

import os
import struct
from typing import final

from dataplane.engine.clock import Clock
from dataplane.graph.port import Port

BUFFER_MAX_BYTES: int
BUFFER_MIN_BYTES: int
LINKTYPE_ETHERNET: int
PCAP_MAGIC_NS: int
PCAPNG_HEADER: struct.Struct
SECTION_BLOCK: int
BYTE_ORDER_MAGIC: int
INTERFACE_BLOCK: int
IF_TSRESOL: int
SNAPLEN_MAX: int

def whole_records(path: str | os.PathLike[str], header: bytes) -> int: ...

@final
class CaptureFile:
    path: str
    snaplen: int
    capacity: int
    pcapng: bool
    begun: bool
    def __init__(
        self,
        name: str,
        file: str | os.PathLike[str] | int,
        *,
        snaplen: int = ...,
        buffer: str | int = "8mb",
        clock: Clock | None = None,
        pcapng: bool = ...,
        resume: bool = ...,
    ) -> None: ...
    @property
    def error(self) -> str | None: ...
    def take_over(self, begun: bool = ...) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...

class PcapWriter(Port):
    capture: CaptureFile
    def __init__(
        self,
        name: str,
        file: str | os.PathLike[str] | int,
        number: int = 0,
        *,
        snaplen: int = ...,
        buffer: str | int = "8mb",
        clock: Clock | None = None,
        offloads: int = ...,
        pcapng: bool = ...,
        resume: bool = ...,
    ) -> None: ...
    def close(self) -> None: ...
