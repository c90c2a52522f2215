from collections.abc import Iterable

from dataplane.element import Element

def walk(sources: Iterable[Element]) -> list[Element]: ...
