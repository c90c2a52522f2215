from collections.abc import Iterable

from dataplane.graph.element import Element

def walk(sources: Iterable[Element]) -> list[Element]: ...
