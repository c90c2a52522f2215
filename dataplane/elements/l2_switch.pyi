from collections.abc import Iterable
from typing import final

from dataplane.element import Element
from dataplane.elements.mac_table import MacTable

@final
class L2Switch(Element):
    table: MacTable
    def __init__(self, table: MacTable, ports: int = 0, *, name: str | None = None) -> None: ...
    @property
    def active_ports(self) -> list[int]: ...
    def activate(
        self, port: int, *, access: int | None = None, trunk: Iterable[int] | None = None, native: int | None = None
    ) -> None: ...
    def deactivate(self, port: int) -> None: ...
