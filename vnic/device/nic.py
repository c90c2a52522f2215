"""A NIC over an interface of a network namespace: the interface, its port, and receive-side
scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dataplane.elements.nic_tx import NicTx
from dataplane.elements.rss import Rss
from dataplane.graph.element import Element
from dataplane.graph.port import Port
from vnic.device.namespaces import TargetWatch
from vnic.device.tap import Tap, offload_names


class Nic:
    """A NIC: an interface in a container, and the elements at its other side: a PortRx over `port`,
    and `tx`. alter: changes the interface to other settings
    (vnic.device.kinds.contract.Settings)."""

    def __init__(
        self,
        name: str,
        interface: Tap,
        port: Port,
        rss: Rss,
        alter: Callable[[Any], object],
    ) -> None:
        self.name, self.tap, self.port, self.rss = name, interface, port, rss
        self._alter = alter
        self.tx = NicTx(port, rss, name=f"{name}.tx")

    @property
    def after_parse(self) -> Sequence[Element]:
        """None."""
        return ()

    @property
    def mac(self) -> str:
        """The interface's address."""
        return self.tap.mac

    def status(self) -> dict[str, Any]:
        """The NIC's state and settings, as a dict."""
        namespace = self.tap.namespace
        return {
            "kind": self.tap.KIND,
            "interface": self.tap.name,
            "pid": namespace.pid,
            "netns": namespace.path,
            "mac": self.tap.mac,
            "mtu": self.tap.mtu,
            "queues": self.port.queues,
            "offloads": offload_names(self.tap.offloads),
            "rx_packets": sum(queue["rx_packets"] for queue in self.port.queue_statistics()),
            "tx_packets": sum(queue["tx_packets"] for queue in self.port.queue_statistics()),
        }

    def queue_statistics(self) -> list[dict[str, int]]:
        """One dict per queue pair."""
        return self.port.queue_statistics()

    def queue_drops(self) -> int | None:
        """Packets of the container that the full queues dropped; None where the kernel does not
        report them."""
        return self.tap.queue_drops()

    def watch(self) -> TargetWatch:
        """A watch that reports when the container is gone."""
        return self.tap.watch()

    def set_carrier(self, up: bool) -> None:
        """Sets the carrier that the container sees."""
        self.tap.set_carrier(up)

    def change(self, settings: Any) -> Callable[[], object]:
        """Gives the interface another MTU and other offloads; returns what is left to do for the
        port."""
        self._alter(settings)
        return partial(self.port.change, offloads=int(self.tap.offloads), mtu=self.tap.mtu)

    def close(self) -> None:
        """Closes port and interface, which removes an interface that vnic made. Only when no engine
        serves the port any more."""
        self.port.close()
        self.tap.close()
