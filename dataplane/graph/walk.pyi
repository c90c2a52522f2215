from collections.abc import Iterable

from dataplane.graph.element import Element

def walk(sources: Iterable[Element]) -> list[Element]: ...
def walk_new(
    sources: Iterable[Element], elements: Iterable[Element], known: dict[str, Element]
) -> list[Element]: ...
