from collections.abc import Iterable, Mapping
from typing import final

from dataplane.element import Element
from dataplane.elements.classifier_rules import Rule

@final
class Classifier(Element):
    rules: list[Rule]
    def __init__(
        self, rules: Iterable[Mapping[str, str | int]], default: int | None = None, *, name: str | None = None
    ) -> None: ...
    def hits(self) -> list[int]: ...
