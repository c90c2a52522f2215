"""Type stub of dataplane.elements.departures."""

from typing import final

from dataplane.element import Element
from dataplane.meter import Meter

@final
class Departures(Element):
    meter: Meter
    def __init__(self, *, name: str | None = None) -> None: ...
