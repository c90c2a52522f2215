"""Python face of dataplane.ports.side_source."""

from collections.abc import Mapping, Sequence

from dataplane.capture.reader import CaptureReader
from dataplane.ports.pcap_source import PcapSource
from dataplane.wire.rewrite import Rewrite

class Split:
    other: int
    def __init__(
        self,
        macs: Mapping[bytes, int] = ...,
        prefixes: Sequence[tuple[bytes, int, int]] = (),
        ports: Mapping[int, int] = ...,
        *,
        server: int = -1,
        client: int = -1,
        other: int = -1,
    ) -> None: ...
    def side_of(self, frame: bytes, destination: bool = False) -> int: ...

class SharedCapture:
    reader: CaptureReader
    split: Split
    out_of_order: int
    unassigned: int
    def __init__(self, reader: CaptureReader, split: Split) -> None: ...

class SideSource(PcapSource):
    shared: SharedCapture | None
    side: int
    taken: int
    cut: int
    def __init__(
        self,
        name: str,
        reader: CaptureReader,
        number: int = 0,
        queues: int = 1,
        *,
        held: bool = False,
        mtu: int = 0,
        shared: SharedCapture | None = None,
        side: int = 0,
        rewrite: Rewrite | None = None,
        macs: bytes = b"",
    ) -> None: ...
    def shift(self, by_ns: int) -> None: ...
