"""NICs of kind `memory`: a test program in place of the container. Not for configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from vnic.device.kinds.contract import INTERFACE, NicKind, Origin, Settings, UncontainedNic

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from dataplane.ports.memory import MemoryPort


class MemoryNic(UncontainedNic):
    """A NIC whose frames `port.inject` brings, and `port.take` takes."""

    port: MemoryPort

    def __init__(self, settings: Settings, port: MemoryPort, tx: Element) -> None:
        super().__init__(settings, port)
        self.tx = tx

    def change(self, settings: Settings) -> Callable[[], object]:
        """Gives the port another MTU."""
        self.settings = settings
        return partial(self.port.change, offloads=self.port.offloads, mtu=settings.mtu)

    def status(self) -> dict[str, Any]:
        """The NIC's settings."""
        settings = self.settings
        return {
            "interface": settings.interface,
            "mac": settings.mac,
            "mtu": settings.mtu,
            "queues": self.port.queues,
        }


class MemoryKind(NicKind[MemoryNic]):
    """Frames from and to Python. It accepts the settings of an interface, which it replaces."""

    NAME = "memory"
    SETTINGS = INTERFACE

    def open(self, settings: Settings, number: int, origin: Origin) -> MemoryNic:
        from dataplane.elements.nic_tx import NicTx
        from dataplane.elements.rss import Rss
        from dataplane.ports.memory import MemoryPort

        rss = Rss(settings.rss.key, settings.rss.table, queues=settings.queues)
        port = MemoryPort(settings.name, number, settings.queues, 0, mtu=settings.mtu)
        return MemoryNic(settings, port, NicTx(port, rss, name=f"{settings.name}.tx"))
