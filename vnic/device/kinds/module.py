"""NICs of kind `module`: a module's engine in place of a container (Snap, section 2.2: engines that
are connected by ring pairs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vnic.device.kinds.contract import (
    NicKind,
    Origin,
    Settings,
    UncontainedNic,
    offloads_of,
)
from vnic.device.tap import offload_names

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from dataplane.packet.ring import MpscRing
    from dataplane.ports.ring_port import RingPort


@runtime_checkable
class ModuleOrigin(Protocol):
    """What has the rings between NICs and modules. `opened`: the NIC's side is there. `closed`: it
    is gone."""

    def rings(self, nic: str) -> tuple[MpscRing, MpscRing]:
        """The ring that the NIC receives from, and the one that it transmits to."""
        ...

    def opened(self, nic: str, port: RingPort) -> None: ...
    def closed(self, nic: str) -> None: ...


class ModuleNic(UncontainedNic):
    """A NIC whose frames a module's engine sends and receives, over a pair of rings."""

    port: RingPort

    def __init__(
        self, settings: Settings, port: RingPort, tx: Element, origin: ModuleOrigin
    ) -> None:
        super().__init__(settings, port)
        self.tx, self._origin = tx, origin

    def status(self) -> dict[str, Any]:
        """The NIC's settings, and whether a module has the other side of its rings."""
        queues = self.port.queue_statistics()
        return {
            "kind": ModuleKind.NAME,
            "interface": None,
            "pid": None,
            "netns": None,
            "mac": self.mac,
            "mtu": None,
            "queues": self.port.queues,
            "offloads": offload_names(self.port.offloads),
            "module": self.port.joined,
            "rx_packets": sum(queue["rx_packets"] for queue in queues),
            "tx_packets": sum(queue["tx_packets"] for queue in queues),
        }

    def close(self) -> None:
        """Frees what the module has sent since. Only when no engine serves the port any more."""
        super().close()
        self._origin.closed(self.settings.name)


class ModuleKind(NicKind[ModuleNic]):
    """A module's engine: the module calls `runtime.module_port(NAME)` for its side.
    docs/modules.md."""

    NAME = "module"
    SETTINGS = frozenset({"mac", "offloads"})
    WHY = "a module's engine is behind them"

    def open(self, settings: Settings, number: int, origin: Origin | ModuleOrigin) -> ModuleNic:
        from dataplane.graph.port import PortTx
        from dataplane.ports.ring_port import RingPort

        assert isinstance(origin, ModuleOrigin)
        ring_in, ring_out = origin.rings(settings.name)
        port = RingPort(
            settings.name,
            number,
            ring_in,
            ring_out,
            offloads=int(offloads_of(settings.offloads)),
            enters=True,
        )
        origin.opened(settings.name, port)
        return ModuleNic(settings, port, PortTx(port, name=f"{settings.name}.tx"), origin)
