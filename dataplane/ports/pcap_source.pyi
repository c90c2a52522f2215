"""Python face of dataplane.ports.pcap_source."""

from dataplane.capture.reader import CaptureReader
from dataplane.port import Port

class PcapSource(Port):
    reader: CaptureReader
    first_ns: int
    out_of_order: int
    too_long: int
    def __init__(
        self, name: str, reader: CaptureReader, number: int = ..., queues: int = ..., *, shift_ns: int = ...
    ) -> None: ...
    @property
    def error(self) -> str | None: ...
