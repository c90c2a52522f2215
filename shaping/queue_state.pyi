"""Type stub of shaping.queue_state."""

from typing import final

@final
class Packed:
    @property
    def packets(self) -> bytes: ...
    @property
    def at(self) -> int: ...
    def __init__(self, packets: bytes) -> None: ...
