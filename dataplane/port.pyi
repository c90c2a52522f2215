from dataplane.element import Element, Source

TX_REASONS: tuple[str, ...]

class Port:
    name: str
    number: int
    queues: int
    offloads: int
    needs_arm: bool
    wakes_only: bool
    scheduled: bool
    lead_ns: int
    def __init__(self, name: str, number: int = ..., queues: int = ..., offloads: int = ...) -> None: ...
    def descriptors(self) -> list[int]: ...
    def close(self) -> None: ...
    def queue_statistics(self) -> list[dict[str, int]]: ...

class PortRx(Source):
    port: Port
    def __init__(self, port: Port, *, name: str | None = ...) -> None: ...

class PortTx(Element):
    port: Port
    def __init__(self, port: Port, *, name: str | None = ...) -> None: ...
