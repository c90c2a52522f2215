from collections.abc import Iterable

from dataplane.graph.element import Element

class WarmUp:
    count: int
    def __init__(self, elements: Iterable[Element]) -> None: ...
