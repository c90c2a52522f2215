"""Type stub of dataplane.graph.link."""

from dataplane.graph.element import Source

class Link(Source):
    port: int
    def __init__(self, port: int, *, name: str | None = ...) -> None: ...
