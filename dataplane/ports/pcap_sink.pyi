"""Python face of dataplane.ports.pcap_sink."""

from collections.abc import Iterable

from dataplane.capture.writer import CaptureWriter
from dataplane.engine.engine import Engine
from dataplane.engine.meter import Meter
from dataplane.graph.port import Port

class PcapSink(Port):
    writer: CaptureWriter | None
    interface: int
    def __init__(
        self,
        name: str,
        writer: CaptureWriter | None,
        interface: int = ...,
        *,
        number: int = ...,
        queues: int = ...,
        offloads: int = ...,
        mtu: int = ...,
    ) -> None: ...
    @property
    def meters(self) -> dict[int, Meter]: ...

class DropRecorder:
    writer: CaptureWriter | None
    interface: int
    meters: dict[str, Meter]
    def __init__(
        self, writer: CaptureWriter | None, interface: int, engines: Iterable[Engine]
    ) -> None: ...
    def close(self) -> None: ...
