from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from dataplane.clock import Clock
from dataplane.element import Element, Source
from dataplane.errors import VnicError
from dataplane.packet import PacketPool

_T = TypeVar("_T")

class MailboxFull(VnicError): ...

class Work:
    error: BaseException | None
    result: Any

class Call(Work):
    def __init__(self, function: Callable[[], object]) -> None: ...

class Snapshot(Work):
    def __init__(self, count: int) -> None: ...

class Engine:
    name: str
    pool: PacketPool
    clock: Clock
    sources: list[Source]
    elements: list[Element]
    spin_ns: int
    cpu: int | None
    def __init__(
        self,
        name: str,
        pool: PacketPool,
        *,
        clock: Clock | None = ...,
        spin_ns: int = ...,
        cpu: int | None = ...,
        seed: int = ...,
    ) -> None: ...
    def load(self, sources: Iterable[Source]) -> list[tuple[str, dict[str, Any]]]: ...
    def post(self, work: Work, *, wait: bool = ...) -> Any: ...
    def call(self, function: Callable[[], _T]) -> _T: ...
    def snapshot(self) -> list[tuple[str, dict[str, Any]]]: ...
    def conservation(self) -> dict[str, int | bool]: ...
    @property
    def cpu_ns(self) -> int: ...
    @property
    def running(self) -> bool: ...
    def status(self) -> dict[str, Any]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def advance(self, until_ns: int) -> int: ...
