from dataplane.elements.rss import Rss
from dataplane.graph.element import Element

class FlowMemory(Element):
    rss: Rss
    learns: bool
    def __init__(self, rss: Rss, *, name: str | None = None) -> None: ...
    def learn(self, learns: bool) -> None: ...
