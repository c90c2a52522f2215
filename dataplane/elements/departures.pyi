"""Type stub of dataplane.elements.departures."""

from typing import final

from dataplane.engine.meter import Meter
from dataplane.graph.element import Element

@final
class Departures(Element):
    meter: Meter
    def __init__(self, *, name: str | None = None) -> None: ...
