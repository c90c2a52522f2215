from collections.abc import Iterable

from dataplane.element import Element
from dataplane.elements.mac_table import MacTable

class L2Switch(Element):
    table: MacTable
    def __init__(self, table: MacTable, ports: int = 0, *, name: str | None = None) -> None: ...
    def activate(
        self, port: int, *, access: int | None = None, trunk: Iterable[int] | None = None, native: int | None = None
    ) -> None: ...
    def deactivate(self, port: int) -> None: ...
