"""Type stub of shaping.pacer."""

from collections.abc import Mapping
from typing import Any, final

from dataplane.graph.element import Element
from dataplane.graph.work import Work
from shaping.pacer_settings import EXCEED as EXCEED
from shaping.pacer_settings import PER as PER
from shaping.pool_share import PoolShare

@final
class Pacer(Element):
    def __init__(
        self,
        rate: str | int | None = None,
        per: str = "all",
        rates: Mapping[Any, str | int | None] | None = None,
        horizon: str | int = "2s",
        exceed: str = "drop",
        flows: int = 65536,
        *,
        name: str | None = None,
    ) -> None: ...
    @property
    def rate_bps(self) -> int: ...
    def get_flows(self) -> dict[str, int]: ...
    def get_rate(self) -> str: ...
    def get_rates(self) -> dict[str, str]: ...
    def join(self, share: PoolShare) -> None: ...
    def prepare_rate(self, rate: str | int | None) -> Work: ...
    def prepare_rates(self, rates: Mapping[Any, str | int | None] | None = None) -> Work: ...

class SetPacerRate(Work):
    def __init__(self, pacer: Pacer) -> None: ...

class SetMarkRates(Work):
    def __init__(self, pacer: Pacer, rates: dict[int, int]) -> None: ...
