"""Type stub of dataplane.ports.loopback."""

from dataplane.engine.engine import Engine
from dataplane.graph.port import Port
from dataplane.packet.ring import SpscRing

class LoopbackPort(Port):
    rings: list[SpscRing]
    def __init__(
        self, name: str, number: int = 0, queues: int = 1, capacity: int = 1024
    ) -> None: ...
    def descriptors(self) -> list[int]: ...
    def drain(self, engine: Engine) -> int: ...
