from collections.abc import Iterable, Mapping
from typing import Any, final

from dataplane.elements.classifier_rules import Rule
from dataplane.graph.element import Element
from dataplane.graph.work import Work

@final
class RuleTable:
    settings: list[dict[str, Any]]
    rules: list[Rule]
    gates: int
    def __init__(
        self, rules: Iterable[Mapping[str, str | int]], default: int | None = None
    ) -> None: ...
    def hits(self) -> list[int]: ...

@final
class Classifier(Element):
    default: int | None
    def __init__(
        self,
        rules: Iterable[Mapping[str, str | int]],
        default: int | None = None,
        *,
        name: str | None = None,
    ) -> None: ...
    @property
    def rules(self) -> list[Rule]: ...
    def get_rules(self) -> list[dict[str, Any]]: ...
    def prepare_rules(self, rules: Iterable[Mapping[str, str | int]]) -> Work: ...
    def hits(self) -> list[int]: ...
    def save_state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...
    def forget_state(self) -> None: ...

class SetRules(Work):
    def __init__(self, classifier: Classifier, table: RuleTable) -> None: ...
