"""Type stub of shaping.trace_link."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from dataplane.graph.handlers import Handler
from shaping.link import Link
from shaping.schedule import Schedule
from shaping.trace import Trace

NOMINAL_BPS: int
QUEUE: Mapping[str, int]

class TraceLink(Link):
    HANDLERS: ClassVar[Mapping[str, Handler]]
    schedule: Schedule
    def __init__(
        self,
        trace: Trace | Sequence[Mapping[str, Any]] | Mapping[str, Any],
        queue: str | Mapping[str, int] | None = None,
        overhead: str | Mapping[str, Any] | None = None,
        delay: str | int = 0,
        *,
        name: str | None = None,
    ) -> None: ...
    @property
    def rate_bps(self) -> int: ...
    def initialize(self) -> None: ...
    def save_state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...
    def prepare_trace(
        self, trace: Trace | Sequence[Mapping[str, Any]] | Mapping[str, Any]
    ) -> Callable[[], None]: ...
    def use(self, schedule: Schedule, label: str, loop: bool) -> None: ...
    def get_trace(self) -> dict[str, Any]: ...
    def prepare_rate(self, rate: str | int | None) -> NoReturn: ...
    def get_rate(self) -> str: ...
    def describe(self) -> dict[str, Any]: ...
