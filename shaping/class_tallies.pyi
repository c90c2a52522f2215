from collections.abc import Sequence

from dataplane.graph.element import Element
from dataplane.graph.tally import Tally

def has_classes(element: Element) -> bool: ...
def tree_of(scheduler: Element) -> object: ...
def class_tallies(
    tree: object, counts: Sequence[str | Sequence[str]]
) -> list[tuple[str, Tally]]: ...
