"""Type stub of shaping.schedule."""

from typing import Any, final

class Schedule:
    digest: str
    mean_bps: int
    period_ns: int
    count: int

@final
class Opportunities(Schedule):
    def __init__(self, digest: str, at_ms: Any) -> None: ...

@final
class RateSteps(Schedule):
    def __init__(self, digest: str, until_ns: Any, rate_bps: Any) -> None: ...
