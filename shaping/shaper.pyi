"""Python face of shaping.shaper."""

from typing import Any, ClassVar

from dataplane.element import Element
from dataplane.work import Work

QUANTUM_NS: int
QUEUE_FLOOR_BYTES: int
RATE_MAX_BPS: int
RATE_MIN_BPS: int

class Shaper(Element):
    DROP_REASONS: ClassVar[tuple[str, ...]]
    COUNTERS: ClassVar[tuple[str, ...]]
    HANDLERS: ClassVar[dict[str, str]]
    burst_ns: int
    def __init__(
        self, rate: str | int | None = None, queue: str | int = "100ms", burst: str | int = "250us", *, name: str | None = None
    ) -> None: ...
    @property
    def rate_bps(self) -> int: ...
    @property
    def queue_limit_bytes(self) -> int: ...
    def initialize(self) -> None: ...
    def release(self) -> None: ...
    def set_rate(self, rate: str | int | None) -> None: ...
    def describe(self) -> dict[str, Any]: ...

class SetRate(Work):
    def __init__(self, shaper: Shaper) -> None: ...
