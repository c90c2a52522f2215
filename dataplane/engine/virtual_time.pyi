"""Type stub of dataplane.engine.virtual_time."""

from collections.abc import Iterable
from typing import final

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine

@final
class VirtualTime:
    engines: list[Engine]
    clock: Clock
    def __init__(self, engines: Iterable[Engine]) -> None: ...
    def advance(self, until_ns: int) -> int: ...
    def run(self, most: int, until_ns: int = ...) -> int: ...
    def due_ns(self) -> int | None: ...
