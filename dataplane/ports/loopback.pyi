"""Type stub of dataplane.ports.loopback."""

from dataplane.engine import Engine
from dataplane.port import Port
from dataplane.ring import SpscRing

class LoopbackPort(Port):
    rings: list[SpscRing]
    def __init__(self, name: str, number: int = 0, queues: int = 1, capacity: int = 1024) -> None: ...
    def descriptors(self) -> list[int]: ...
    def drain(self, engine: Engine) -> int: ...
