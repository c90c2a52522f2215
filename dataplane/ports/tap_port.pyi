from collections.abc import Iterable

from dataplane.graph.port import Port

class TapPort(Port):
    def __init__(
        self,
        name: str,
        fds: Iterable[int],
        *,
        number: int = 0,
        offloads: int = 0x1F,
        mtu: int = 1500,
    ) -> None: ...
