from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from dataplane.graph.element import Element
from dataplane.graph.port import Port

class Tally:
    columns: int
    def __init__(self, columns: int) -> None: ...
    def add(
        self, column: int, element: Element, counter: str, *, but: Collection[str] = ...
    ) -> None: ...
    def add_port(self, column: int, port: Port, counter: str) -> None: ...
    def read(self) -> list[int]: ...

def take_changes(
    tallies: list[Tally],
    sums: NDArray[np.uint64],
    rows: NDArray[np.uint32],
    changes: NDArray[np.uint64],
    levels: int = ...,
) -> int: ...
