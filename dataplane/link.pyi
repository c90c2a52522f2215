"""Type stub of dataplane.link."""

from dataplane.element import Source

class Link(Source):
    port: int
    def __init__(self, port: int, *, name: str | None = ...) -> None: ...
