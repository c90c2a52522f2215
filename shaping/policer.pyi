"""Type stub of shaping.policer."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

from dataplane.graph.element import Element
from dataplane.graph.handlers import Handler
from dataplane.graph.work import Work

BURST_MOST_BYTES: int

@final
class Policer(Element):
    DROP_REASONS: ClassVar[tuple[str, ...]]
    COUNTERS: ClassVar[tuple[str, ...]]
    HANDLERS: ClassVar[Mapping[str, Handler]]
    def __init__(
        self,
        rate: str | int | None,
        burst: str | int = "100ms",
        exceed: Literal["drop", "output"] = "drop",
        *,
        name: str | None = None,
    ) -> None: ...
    @property
    def rate_bps(self) -> int: ...
    def prepare_rate(self, rate: str | int | None) -> SetPolicerRate: ...
    def get_rate(self) -> str: ...
    def get_burst(self) -> int | None: ...
    def save_state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...

class SetPolicerRate(Work):
    def __init__(self, policer: Policer) -> None: ...
