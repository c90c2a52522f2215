"""Type stub of dataplane.engine.state."""

from collections.abc import Callable
from typing import Any

from dataplane.engine.engine import Engine
from dataplane.graph.element import Element
from dataplane.graph.work import Work

class StateWork(Work):
    return_cache: bool
    def __init__(self, function: Callable[[StateWork], Any]) -> None: ...

def charged_ns(element: Element) -> int: ...
def overhead_ns(engine: Engine) -> int: ...
def counts(element: Element) -> tuple[bytes, int]: ...
def set_charges(
    engine: Engine, elements: list[tuple[Element, int]], overhead_ns: int, cpu_ns: int
) -> None: ...
