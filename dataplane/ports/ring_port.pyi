"""Type stub of dataplane.ports.ring_port."""

from dataplane.engine.engine import Engine
from dataplane.graph.port import Port
from dataplane.packet.ring import Ring

class RingPort(Port):
    ring_in: Ring | None
    ring_out: Ring | None
    def __init__(
        self,
        name: str,
        number: int = 0,
        ring_in: Ring | None = None,
        ring_out: Ring | None = None,
        *,
        offloads: int = ...,
        enters: bool = False,
    ) -> None: ...
    @property
    def joined(self) -> bool: ...
    @joined.setter
    def joined(self, joined: bool) -> None: ...
    def descriptors(self) -> list[int]: ...
    def drain(self, engine: Engine) -> int: ...
