"""The interface of an instance for its modules."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.graph.element import Element
from dataplane.packet.pool import PacketPool
from dataplane.ports.ring_port import RingPort
from vnic.api.events import Emit
from vnic.config.schema import Config
from vnic.modules.accounts import Accounts
from vnic.modules.engine_host import EngineHost
from vnic.store.keeper import Keeper
from vnic.store.losses import Losses
from vnic.store.segments import Segments

T = TypeVar("T")
H = TypeVar("H", bound=EngineHost)


class Host(Protocol):
    """The interface of an instance for its modules; vnic.runtime.runtime.Runtime implements it.

    config   the configuration as it runs now; `remember` stores it
    role     "first"; "crash": the previous worker died; "successor": the previous worker runs until
             this one takes over
    loop     the event loop of control; None: nothing is watched
    keeping  the supervisor's store; None: there is no supervisor
    module_name  while a module is made: its name
    lock     held during each change
    """

    config: Config
    role: Literal["first", "crash", "successor"]
    loop: asyncio.AbstractEventLoop | None
    keeping: Keeper | None
    module_name: str
    lock: threading.RLock
    closed: bool
    upgrading: bool
    clock: Clock
    pool: PacketPool
    segments: Segments
    losses: Losses
    accounts: Accounts
    emit: Emit

    def add_engine(
        self,
        name: str,
        group: str | None = None,
        *,
        spin_ns: int = 0,
        cpu: int | None = None,
        make: Callable[[Engine], H],
    ) -> H: ...
    def remember(self, undo: Callable[[], object] | None = None) -> None: ...
    def module_port(self, nic: str) -> RingPort: ...
    def check_open(self) -> None: ...
    def change_group(self, name: str, settings: dict[str, Any]) -> None: ...
    def renew_policy(self) -> None: ...
    def settle_policy(self, chains: Mapping[str, Mapping[str, Element]]) -> None: ...
    def cuts_carrier(self, nic: str) -> bool: ...
    def is_client(self, name: str) -> bool: ...
    def aside(self, change: Callable[[], T]) -> Awaitable[T]: ...
    @property
    def engines(self) -> list[Engine]: ...
    @property
    def runs(self) -> bool: ...
