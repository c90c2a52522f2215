"""Type stub of dataplane.virtual_time."""

from collections.abc import Iterable

from dataplane.clock import Clock
from dataplane.engine import Engine

class VirtualTime:
    engines: list[Engine]
    clock: Clock
    def __init__(self, engines: Iterable[Engine]) -> None: ...
    def advance(self, until_ns: int) -> int: ...
    def run(self, most: int) -> int: ...
