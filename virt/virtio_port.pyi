from collections.abc import Collection
from typing import Any, final

from dataplane.graph.port import Port
from virt.guest_memory import DirtyLog, GuestMemory

@final
class VirtioPort(Port):
    features: int
    memory: GuestMemory | None
    log: DirtyLog | None
    def __init__(
        self, name: str, *, number: int = ..., queues: int = ..., mtu: int = ...
    ) -> None: ...
    def set_memory(self, memory: GuestMemory | None) -> None: ...
    def set_features(self, features: int) -> None: ...
    def set_guest_offloads(self, offloads: int) -> None: ...
    def set_receive_filter(
        self,
        *,
        own: bytes | None = None,
        unicast: Collection[bytes] | None = ...,
        multicast: Collection[bytes] | None = ...,
        no_unicast: bool = ...,
        broadcast: bool = ...,
        vlans: bytes | None = None,
    ) -> None: ...
    def set_log(self, log: DirtyLog | None) -> None: ...
    def log_ring(self, ring: int, address: int | None) -> None: ...
    def set_positions(self, positions: Any) -> None: ...
    def start(
        self,
        ring: int,
        *,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        base: int,
        resumed: bool = ...,
        generation: int = ...,
        kick_fd: int | None = None,
        call_fd: int | None = None,
        error_fd: int | None = None,
    ) -> None: ...
    def stop(self, ring: int) -> int: ...
    def enable(self, ring: int, enabled: bool) -> None: ...
    def set_notifier(self, ring: int, kind: str, fd: int | None) -> None: ...
    def ring_state(self, ring: int) -> dict[str, Any]: ...
    def can_sleep(self) -> bool: ...
