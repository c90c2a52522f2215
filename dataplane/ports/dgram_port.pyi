from dataplane.graph.port import Port

class DgramPort(Port):
    def __init__(
        self, name: str, fd: int, *, peer: bytes = b"", number: int = 0, mtu: int = 1500
    ) -> None: ...
