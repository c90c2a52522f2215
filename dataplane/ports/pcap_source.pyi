"""Python face of dataplane.ports.pcap_source."""

from dataplane.capture.reader import CaptureReader
from dataplane.graph.port import Port

MODES: dict[str, int]

class PcapSource(Port):
    reader: CaptureReader
    first_ns: int
    out_of_order: int
    too_long: int
    def __init__(
        self,
        name: str,
        reader: CaptureReader,
        number: int = ...,
        queues: int = ...,
        *,
        shift_ns: int = ...,
        held: bool = ...,
        mtu: int = ...,
    ) -> None: ...
    lead_ns: int
    rounds: int
    def start(
        self,
        begin_ns: int,
        mode: str = "captured",
        factor: int = 1,
        divisor: int = 1,
        *,
        loops: int = 1,
        lead_ns: int = 0,
    ) -> None: ...
    def skip_until(self, now_ns: int) -> None: ...
    @property
    def done(self) -> bool: ...
    @property
    def packets(self) -> int: ...
    @property
    def error(self) -> str | None: ...
