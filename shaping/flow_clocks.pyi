"""Type stub of shaping.flow_clocks."""

from typing import final

@final
class FlowClocks:
    def __init__(self, count: int) -> None: ...
    @property
    def count(self) -> int: ...
