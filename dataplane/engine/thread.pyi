from collections.abc import Iterable, Sequence
from typing import Any

from dataplane.engine.balancer import Balancer
from dataplane.engine.cgroup import Cgroup
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine, Runner
from dataplane.groups.guarantee import Guarantee

ALWAYS: int
ENGINES_MOST: int

class EngineThread:
    name: str
    clock: Clock
    cpus: Sequence[int] | None
    spin_ns: int
    guarantee: Guarantee | None
    cgroups: tuple[Cgroup, ...]
    refused: dict[str, str]
    thread_id: int
    scheduling: str
    look_ns: int
    throttled: int
    def __init__(
        self,
        name: str,
        cpus: Sequence[int] | None = ...,
        *,
        spin_ns: int = ...,
        guarantee: Guarantee | None = ...,
        cgroups: Iterable[Cgroup] = ...,
        balancer: Balancer | None = ...,
    ) -> None: ...
    def start(self, engines: Iterable[Engine] = ...) -> None: ...
    def take(self, engine: Engine, runner: Runner | None = ...) -> None: ...
    def stop(self) -> None: ...
    def reserve(self) -> None: ...
    @property
    def alive(self) -> bool: ...
    @property
    def engine_names(self) -> list[str]: ...
    @property
    def cpu_ns(self) -> int: ...
    def status(self) -> dict[str, Any]: ...
