from collections.abc import Iterable

from dataplane.graph.port import Port

class PacketPort(Port):
    def __init__(
        self,
        name: str,
        fds: Iterable[int],
        sending: Iterable[int],
        *,
        slot_bytes: int,
        block_bytes: int,
        blocks: int,
        sending_blocks: int,
        number: int = 0,
        offloads: int = 0x1F,
        mtu: int = 1500,
    ) -> None: ...
    def ring_drops(self) -> int: ...
