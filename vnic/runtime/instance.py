"""The instance as a whole: methods for what belongs to no NIC or client in particular.

Clients that are not the instance's owner see only what is theirs: their NICs, and these NICs'
counters, accounts and events.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from dataplane.errors import ConfigError
from vnic.api.events import Bus, Event, Subscription
from vnic.api.interface import DESCRIPTION, INTERFACE
from vnic.api.method import FRESH_TURNS, Caller, Fresh, Method, Parameters, Session
from vnic.config.convert import convert_config, decode_config
from vnic.config.written import written_config
from vnic.runtime.apply import Change
from vnic.runtime.documents import read_document
from vnic.runtime.history_method import history_method
from vnic.runtime.policy_life import Author
from vnic.runtime.policy_methods import PolicyMethods

# PATH_MAX, limits.h: a longer one would not fit into a message to the supervisor either
PATH_MOST = 4096


class Stats(Parameters):
    name: str | None = None


class WatchStats(Stats):
    interval_ms: Annotated[int, msgspec.Meta(ge=10, le=3_600_000)] = 1000


class Graph(Parameters):
    format: Literal["text", "dot", "json"] = "text"
    elements: bool = True


class Metrics(Parameters):
    format: Literal["text", "json"] = "text"


class SetGroup(Parameters):
    name: str
    mode: Literal["dedicated", "spreading", "compacting"] | None = None
    cpus: (
        Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=4095)]], msgspec.Meta(min_length=1)]
        | None
    ) = None
    settings: dict[str, Any] | None = None


class Apply(Parameters):
    config: dict[str, Any] | None = None
    document: int | None = None
    dry: bool = False


class Undo(Parameters):
    dry: bool = False


class Handlers(Parameters):
    element: str | None = None


class ReadHandler(Parameters):
    element: str
    handler: str


class WriteHandler(ReadHandler):
    value: Any = None


class Upgrade(Parameters):
    python: Annotated[str, msgspec.Meta(max_length=PATH_MOST, pattern=r"^[^\x00]*\Z")] = ""


def _changes(changes: list[Change]) -> dict[str, Any]:
    return {"changes": [change.as_dict() for change in changes]}


class Instance:
    """Methods over a runtime (vnic.runtime.runtime.Runtime). version: of vnic in this process;
    supervisor: what Status shows of it; upgrade: replaces this process."""

    interface = INTERFACE
    description = DESCRIPTION

    def __init__(
        self,
        runtime: Any,
        bus: Bus,
        version: str = "",
        supervisor: dict[str, Any] | None = None,
        upgrade: Callable[[str], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self._runtime, self._bus, self._upgrade = runtime, bus, upgrade
        self._process = {"pid": os.getpid(), "version": version, "supervisor": supervisor}
        self._policy = PolicyMethods(runtime)
        self._fresh = Fresh(FRESH_TURNS)

    def methods(self) -> list[Method]:
        found = [
            Method("Status", self._status, cached=True, clients=True),
            Method("Stats", self._stats, Stats, cached=True, clients=True),
            Method(
                "Graph",
                lambda p, _: {"graph": self._runtime.graph(p.format, elements=p.elements)},
                Graph,
            ),
            Method("Accounts", self._accounts, cached=True, clients=True),
            Method("Metrics", self._metrics, Metrics, cached=True),
            history_method(self._runtime),
            Method(
                "Handlers", lambda p, _: {"elements": self._runtime.handlers(p.element)}, Handlers
            ),
            Method(
                "ReadHandler",
                lambda p, _: {"copies": self._runtime.read_handler(p.element, p.handler)},
                ReadHandler,
            ),
            Method("WriteHandler", self._write_handler, WriteHandler, "change"),
            Method("SetGroup", self._set_group, SetGroup, "change"),
            Method("Apply", self._apply, Apply, "change"),
            Method("Undo", self._undo, Undo, "change"),
            *self._policy.methods(),
            Method("GetConfig", lambda p, _: {"config": written_config(self._runtime.config)}),
            Method("Shutdown", lambda p, _: {}, kind="change"),
            Method("Monitor", self._monitor, kind="stream", clients=True),
            Method("WatchStats", self._watch_stats, WatchStats, "stream", clients=True),
        ]
        return found + (
            [Method("Upgrade", self._do_upgrade, Upgrade, "task")]
            if self._upgrade is not None
            else []
        )

    def ended(self, session: Session) -> None:
        self._policy.ended(session)

    def _visible(self, session: Session) -> set[str] | None:
        """The names of the NICs that a client may see; None: all."""
        return None if session.is_owner else set(self._runtime.nics.names(session.uid))

    # -- methods that read -------------------------------------------------------------------------

    def _status(self, _: Parameters, caller: Caller) -> dict[str, Any]:
        status = {**self._process, **self._runtime.status()}
        if (mine := self._visible(caller.session)) is not None:
            entries = [each for each in status["switch"]["entries"] if each["nic"] in mine]
            uid = caller.session.uid
            status = {
                "conserved": status["conserved"],
                "engines": [],
                "groups": [],
                "nics": [each for each in status["nics"] if each["name"] in mine],
                "waiting": [each for each in status.get("waiting", ()) if each["owner"] == uid],
                "switch": {"entries": entries},
            }
        return {"status": status}

    def _stats(self, parameters: Stats, caller: Caller) -> dict[str, Any]:
        self._check(parameters.name, caller.session)
        return {"stats": self._theirs(self._runtime.stats(parameters.name), caller.session)}

    def _check(self, name: str | None, session: Session) -> None:
        if name is not None and not session.is_owner:
            self._runtime.nics.get(name, session)

    def _recent(self, name: str | None) -> dict[str, Any]:
        """Recent counters: the engines are read at a bounded rate, whatever the number of
        streams."""
        found: dict[str, Any] = self._fresh.get(name, lambda: self._runtime.stats(name))
        return found

    def _theirs(self, stats: dict[str, Any], session: Session) -> dict[str, Any]:
        """The part of the counters that a client may see."""
        if (mine := self._visible(session)) is None:
            return stats
        return {
            "nics": [each for each in stats["nics"] if each["name"] in mine],
            "engines": [
                {**engine, "elements": [each for each in engine["elements"] if each["nic"] in mine]}
                for engine in stats["engines"]
            ],
        }

    def _accounts(self, _: Parameters, caller: Caller) -> dict[str, Any]:
        accounts = self._runtime.charges()
        if (mine := self._visible(caller.session)) is not None:
            theirs = [each for each in accounts["accounts"] if each["nic"] in mine]
            total = sum(each["cpu_ns"] for each in theirs)
            accounts = {"accounts": theirs, "detached_cpu_ns": 0, "overhead_ns": 0, "cpu_ns": total}
        return {"accounts": accounts}

    def _metrics(self, parameters: Metrics, caller: Caller) -> dict[str, Any]:
        # imported on first use: it loads a library
        from vnic.api.metrics import families_of, text_of

        if parameters.format == "json":
            return {"families": families_of(self._runtime, self._process)}
        return {"text": text_of(self._runtime, self._process).decode()}

    # -- methods that change -----------------------------------------------------------------------

    def _set_group(self, parameters: SetGroup, caller: Caller) -> dict[str, Any]:
        given = {"mode": parameters.mode, "cpus": parameters.cpus}
        settings = {
            **(parameters.settings or {}),
            **{word: value for word, value in given.items() if value is not None},
        }
        if not settings:
            raise ConfigError(
                f"group {parameters.name}: nothing to change: expected mode, cpus or settings"
            )
        return {"group": self._runtime.set_group(parameters.name, settings)}

    async def _apply(self, parameters: Apply, caller: Caller) -> dict[str, Any]:
        if (parameters.config is None) == (parameters.document is None):
            raise ConfigError("expected either config or document")
        if parameters.document is None:
            wanted = convert_config(parameters.config)
        else:
            wanted = decode_config(read_document(caller.take(parameters.document)))
        runtime, author = self._runtime, Author(caller.session.uid, "vnic apply")
        work = (
            partial(runtime.compare, wanted)
            if parameters.dry
            else partial(runtime.apply, wanted, author)
        )
        return _changes(await runtime.aside(work))

    async def _undo(self, parameters: Undo, caller: Caller) -> dict[str, Any]:
        author = Author(caller.session.uid, "vnic undo")
        undo = partial(self._runtime.undo, author, dry=parameters.dry)
        return _changes(await self._runtime.aside(undo))

    def _write_handler(self, parameters: WriteHandler, caller: Caller) -> dict[str, Any]:
        return {
            "result": self._runtime.write_handler(
                parameters.element, parameters.handler, parameters.value
            )
        }

    async def _do_upgrade(self, parameters: Upgrade, caller: Caller) -> dict[str, Any]:
        assert self._upgrade is not None
        return {"report": await self._upgrade(parameters.python)}

    # -- streams -----------------------------------------------------------------------------------

    def _monitor(self, _: Parameters, caller: Caller) -> AsyncIterator[dict[str, Any]]:
        session = caller.session

        def seen(event: Event) -> bool:
            mine = self._visible(session)
            nic = event.get("nic") or self._runtime.nics.nic_of(str(event.get("element", "")))
            # A NIC may be gone when its event is delivered: `detached` has its owner with it.
            return mine is None or nic in mine or event.get("owner") == session.uid

        # Subscribes now, not when the iterator is first read.
        return self._events(self._bus.subscribe(None if session.is_owner else seen))

    async def _events(self, listener: Subscription) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                yield {"event": await listener.next()}
        finally:
            self._bus.unsubscribe(listener)

    async def _watch_stats(
        self, parameters: WatchStats, caller: Caller
    ) -> AsyncIterator[dict[str, Any]]:
        due = time.monotonic()
        while True:
            self._check(parameters.name, caller.session)  # it may belong to another client by now
            yield {
                "time": round(time.time(), 6),
                "stats": self._theirs(self._recent(parameters.name), caller.session),
            }
            # missed intervals are skipped
            due = max(due + parameters.interval_ms / 1000, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
