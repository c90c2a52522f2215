"""The emulated NIC: a multi-queue TAP in the container, its port, and receive-side scaling."""

from __future__ import annotations

from typing import Any

from dataplane.elements.nic_tx import NicTx
from dataplane.elements.rss import Rss
from dataplane.graph.port import Port
from dataplane.ports.tap_port import TapPort
from vnic.device.agent import NamespaceAgent
from vnic.device.namespaces import TargetWatch
from vnic.device.tap import Offload, Tap, TapRequest


class Nic:
    """A NIC: a TAP in a container on one side; on the other the elements: a PortRx over `port`, and
    `tx`."""

    def __init__(self, name: str, number: int, tap: Tap, rss: Rss) -> None:
        self.name, self.tap, self.rss = name, tap, rss
        self.port = self._make_port(number)
        self.tx = NicTx(self.port, rss, name=f"{name}.tx")

    def _make_port(self, number: int) -> Port:
        """The port over the interface; of each kind its own."""
        return TapPort(self.name, self.tap.fds, number=number, offloads=self.tap.offloads, mtu=self.tap.mtu)

    @classmethod
    def open(
        cls,
        agent: NamespaceAgent,
        name: str,
        number: int,
        request: TapRequest,
        *,
        rss_key: bytes | None = None,
        rss_table: list[int] | None = None,
    ) -> Nic:
        """Creates the interface in its container, and the NIC. On failure it removes the interface and raises
        ConfigError or PortError."""
        rss = Rss(rss_key, rss_table, queues=request.queues)
        tap = agent.open_nic(request)
        try:
            return cls(name, number, tap, rss)
        except BaseException:
            tap.close()
            raise

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
            "offloads": [str(flag.name).lower() for flag in Offload if flag & self.tap.offloads and flag is not Offload.ALL],
            "rx_packets": sum(queue["rx_packets"] for queue in self.port.queue_statistics()),
            "tx_packets": sum(queue["tx_packets"] for queue in self.port.queue_statistics()),
        }

    def queue_statistics(self) -> list[dict[str, int]]:
        """One dict per queue pair."""
        return self.port.queue_statistics()

    def watch(self) -> TargetWatch:
        """A watch that reports when the container is gone."""
        return self.tap.watch()

    def set_carrier(self, up: bool) -> None:
        """Sets the carrier that the container sees."""
        self.tap.set_carrier(up)

    def close(self) -> None:
        """Closes the TAP, which removes the interface. Only when no engine serves the port any
        more."""
        self.port.close()
        self.tap.close()
