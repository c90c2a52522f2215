from collections.abc import Iterable

from dataplane.elements.nic_tx import NicTx
from dataplane.elements.rss import Rss
from virt.flow_memory import FlowMemory
from virt.virtio_port import VirtioPort

class GuestTx(NicTx):
    guest: VirtioPort
    flows: FlowMemory | None
    driver: Rss | None
    def __init__(
        self,
        port: VirtioPort,
        rss: Rss,
        flows: FlowMemory | None = None,
        *,
        name: str | None = None,
    ) -> None: ...
    def steer(
        self,
        table: Iterable[int],
        *,
        pairs: int,
        by_flow: bool = ...,
        driver: Rss | None = None,
        types: int = ...,
        unclassified: int | None = None,
    ) -> None: ...
