from typing import Any

from dataplane.graph.port import Port
from virt.guest_memory import GuestMemory

FAULTS: dict[int, str]

class MemifPort(Port):
    client: bool
    memory: GuestMemory | None
    def __init__(
        self, name: str, *, number: int = ..., queues: int = ..., mtu: int = ..., client: bool = ...
    ) -> None: ...
    def set_memory(self, memory: GuestMemory | None) -> None: ...
    def start(
        self,
        ring: int,
        *,
        size: int,
        address: int,
        wake_fd: int | None,
        resumed: bool = ...,
        buffers: int = ...,
        buffer_bytes: int = ...,
    ) -> None: ...
    def stop(self, ring: int) -> None: ...
    def ring_state(self, ring: int) -> dict[str, Any]: ...
    def can_sleep(self) -> bool: ...
