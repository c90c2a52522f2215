from typing import Any

from dataplane.elements.rss import Rss
from dataplane.graph.port import Port, PortTx

class NicTx(PortTx):
    rss: Rss
    def __init__(self, port: Port, rss: Rss, *, name: str | None = None) -> None: ...
    def save_state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...
