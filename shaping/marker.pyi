"""Type stub of shaping.marker."""

from typing import ClassVar, final

from dataplane.graph.element import Element

DSCP: dict[str, int]
ECN: dict[str, int]

@final
class Marker(Element):
    COUNTERS: ClassVar[tuple[str, ...]]
    def __init__(
        self,
        dscp: str | int | None = None,
        ecn: str | None = None,
        pcp: int | None = None,
        mark: int | None = None,
        *,
        name: str | None = None,
    ) -> None: ...
