"""Type stub of dataplane.elements.mirror."""

import os
from typing import Any, ClassVar

from dataplane.graph.element import Element
from dataplane.ports.pcap_writer import SNAPLEN_MAX as SNAPLEN_MAX
from dataplane.ports.pcap_writer import CaptureFile

class Mirror(Element):
    COUNTERS: ClassVar[tuple[str, ...]]
    file: str | os.PathLike[str] | int | CaptureFile
    snaplen: int
    buffer: int
    capture: CaptureFile | None
    def __init__(
        self,
        file: str | os.PathLike[str] | int | CaptureFile,
        snaplen: int = ...,
        buffer: str | int = "8mb",
        *,
        name: str | None = None,
    ) -> None: ...
    @property
    def error(self) -> str | None: ...
    def initialize(self) -> None: ...
    def cleanup(self) -> None: ...
    def memory_bytes(self) -> int: ...
    def save_state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...
    def forget_state(self) -> None: ...
    def describe(self) -> dict[str, Any]: ...
