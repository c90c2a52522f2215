"""NICs of kind `dgram`: frames over a datagram socket, one in each datagram, as QEMU's
`-netdev dgram` has them.

vnic's socket is `listen`, the peer's `connect`, both in the file system or both at loopback
addresses (UDP). Nothing is connected: either may end and come back. The supervisor stores the
socket for the next worker.

Sources: net/dgram.c of QEMU; unix(7), udp(7).
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.descriptors import close_all, system_error
from dataplane.errors import PortError
from vnic.device.kinds.contract import NicKind, Origin, Settings, UncontainedNic
from vnic.device.kinds.sockets import KeptOf, bind, check_places, kept_of, place_of, unbind

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from dataplane.ports.dgram_port import DgramPort


class DgramNic(UncontainedNic):
    """A NIC whose frames pass a datagram socket."""

    port: DgramPort

    def __init__(
        self, settings: Settings, port: DgramPort, tx: Element, bound: socket.socket
    ) -> None:
        super().__init__(settings, port)
        self.tx, self._bound = tx, bound

    def status(self) -> dict[str, Any]:
        """The NIC's state and settings, as a dict."""
        [queue] = self.port.queue_statistics()
        return {
            "kind": DgramKind.NAME,
            "interface": self.settings.listen,
            "pid": None,
            "netns": None,
            "mac": self.mac,
            "mtu": self.settings.mtu,
            "queues": 1,
            "offloads": [],
            "peer": self.settings.connect,
            "rx_packets": queue["rx_packets"],
            "tx_packets": queue["tx_packets"],
        }

    def close(self) -> None:
        """Removes the socket. Only when no engine serves the port any more."""
        super().close()
        unbind(self.settings, self._bound)


class DgramKind(NicKind[DgramNic]):
    """A program at a datagram socket."""

    NAME = "dgram"
    SETTINGS = frozenset({"listen", "connect", "socket_mode", "socket_group", "mac", "mtu"})
    WHY = "its frames pass a datagram socket"

    def open(self, settings: Settings, number: int, origin: Origin) -> DgramNic:
        from dataplane.graph.port import PortTx
        from dataplane.ports.dgram_port import DgramPort

        check_places(settings, addresses=True, both=True)
        path = f"{settings.listen} {settings.connect}"
        kept, descriptors = kept_of(KeptOf, self.NAME, path, origin)
        bound = bind(settings, socket.SOCK_DGRAM) if kept is None else _first(descriptors)
        try:
            peer = b""
            place = place_of(str(settings.connect))
            if place.path is None:
                bound.connect(place.address)  # the kernel drops what others send
            else:
                peer = struct.pack("=H", socket.AF_UNIX) + os.fsencode(place.path) + b"\0"
            if kept is None:
                document = msgspec.json.encode(KeptOf(path=path, kind=self.NAME))
                origin.keep(document, [bound.fileno()])
            port = DgramPort(
                settings.name, bound.fileno(), peer=peer, number=number, mtu=settings.mtu
            )
        except BaseException as error:
            if kept is None:
                unbind(settings, bound)
            bound.close()
            if isinstance(error, OSError):
                raise PortError(
                    f"nic {settings.name}: connect: {settings.connect}: {system_error(error)}"
                ) from None
            raise
        return DgramNic(settings, port, PortTx(port, name=f"{settings.name}.tx"), bound)


def _first(descriptors: list[int]) -> socket.socket:
    """The stored socket."""
    close_all(descriptors[1:])
    return socket.socket(fileno=descriptors[0])
