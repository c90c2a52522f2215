"""The control API's methods: parameters checked, the runtime called, errors made into replies."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import msgspec

from dataplane.errors import ConfigError, VnicError
from dataplane.units import parse_rate
from vnic.control.api import DESCRIPTION, INTERFACE, SERVICE, SERVICE_DESCRIPTION
from vnic.control.convert import convert_nic
from vnic.control.events import Bus, Subscription
from vnic.control.scalars import Rate
from vnic.control.schema import NicConfig

FRESH_S = 0.01  # statistics so old are as good as new: many who ask at once cost the engines one snapshot

log = logging.getLogger("vnic")


class Controllable(Protocol):
    """What the server needs of vnic.control.runtime.Runtime."""

    def attach(self, config: NicConfig, /) -> dict[str, Any]: ...
    def detach(self, name: str, /) -> None: ...
    def set_rate(self, name: str, /, **limits: int | None) -> dict[str, Any]: ...
    def set_link(self, name: str, up: bool, /) -> Any: ...
    def set_group(self, name: str, mode: str | None = None, cpus: list[int] | None = None, /) -> dict[str, Any]: ...
    def charges(self) -> dict[str, Any]: ...
    def start_capture(self, point: str, path: str, snaplen: int, /) -> int: ...
    def stop_capture(self, number: int, /) -> dict[str, Any]: ...
    def status(self) -> dict[str, Any]: ...
    def stats(self, name: str | None = None, /) -> dict[str, Any]: ...
    def graph(self, style: Literal["text", "dot", "json"] = "text", /) -> str: ...


class Call(msgspec.Struct):
    """A request."""

    method: str
    parameters: dict[str, Any] = {}
    oneway: bool = False
    more: bool = False


class ErrorReply(Exception):  # noqa: N818 - a Varlink error is a reply
    def __init__(self, error: str, **parameters: Any) -> None:
        super().__init__(error)
        self.reply = {"error": error, "parameters": parameters}


@dataclass
class Session:
    """A client's connection: who it is, and what ends with it."""

    uid: int
    pid: int
    captures: set[int] = field(default_factory=set)


class _Parameters(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Named(_Parameters):
    name: str


class Attach(Named):
    nic: dict[str, Any]


class Stats(_Parameters):
    name: str | None = None


class WatchStats(Stats):
    interval_ms: Annotated[int, msgspec.Meta(ge=10, le=3_600_000)] = 1000


class Graph(_Parameters):
    format: Literal["text", "dot", "json"] = "text"


class SetRate(Named):
    egress: str | None = None
    ingress: str | None = None


class SetLink(Named):
    up: bool


class SetGroup(Named):
    mode: Literal["dedicated", "spreading", "compacting"] | None = None
    cpus: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=4095)]], msgspec.Meta(min_length=1)] | None = None


class Upgrade(_Parameters):
    python: str = ""


class StartCapture(_Parameters):
    point: str
    path: str
    snaplen: Annotated[int, msgspec.Meta(ge=1, le=262144)] = 262144


class StopCapture(_Parameters):
    capture: int


class Interface(_Parameters):
    interface: str


def parse_limit(text: str) -> int | None:
    """bit/s of a rate, None of "none". Raises ConfigError."""
    return None if text == "none" else int(Rate(parse_rate(text)))


def error_reply(error: BaseException, method: str) -> dict[str, Any]:
    """What the client reads of an exception."""
    match error:
        case ErrorReply():
            return error.reply
        case msgspec.ValidationError():
            return ErrorReply(f"{SERVICE}.InvalidParameter", parameter=str(error)).reply
        case ConfigError():
            return ErrorReply(f"{INTERFACE}.InvalidConfig", message=str(error)).reply
        case VnicError():
            return ErrorReply(f"{INTERFACE}.Failed", message=str(error)).reply
    log.error("%s", method, exc_info=error)  # a bug of ours, or of a user's element, must not end the worker
    message = f"unexpected {type(error).__name__}: {error}; the daemon's log has more"
    return ErrorReply(f"{INTERFACE}.Failed", message=message).reply


class Methods:
    """Answers calls on `runtime`. `supervisor`: what Status says of it. `upgrade` replaces this process. `shut_down` is called once a
    client asked for the end and has its reply."""

    def __init__(
        self,
        runtime: Controllable,
        bus: Bus,
        version: str,
        shut_down: Callable[[], None],
        supervisor: dict[str, Any] | None = None,
        upgrade: Callable[[str], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self._runtime, self._bus, self._version = runtime, bus, version
        self._upgrade, self.shut_down, self._supervisor = upgrade, shut_down, supervisor
        self._fresh: dict[object, tuple[float, dict[str, Any]]] = {}
        self._reads: dict[str, tuple[type[_Parameters], Callable[[Any], dict[str, Any]]]] = {
            f"{INTERFACE}.Status": (
                _Parameters,
                self._cached(self._status),
            ),
            f"{INTERFACE}.Stats": (Stats, self._cached(lambda p: {"stats": runtime.stats(p.name)})),
            f"{INTERFACE}.Graph": (Graph, lambda p: {"graph": runtime.graph(p.format)}),
            f"{INTERFACE}.Accounts": (_Parameters, self._cached(lambda p: {"accounts": runtime.charges()})),
            f"{INTERFACE}.Metrics": (_Parameters, self._cached(self._metrics)),
            f"{SERVICE}.GetInfo": (_Parameters, self._info),
            f"{SERVICE}.GetInterfaceDescription": (Interface, self._description),
        }
        self._changes: dict[str, tuple[type[_Parameters], Callable[[Any, Session], dict[str, Any]]]] = {
            f"{INTERFACE}.Attach": (Attach, lambda p, _: {"nic": runtime.attach(convert_nic(p.name, p.nic, (p.name,)))}),
            f"{INTERFACE}.Detach": (Named, self._detach),
            f"{INTERFACE}.SetRate": (SetRate, self._set_rate),
            f"{INTERFACE}.SetLink": (SetLink, self._set_link),
            f"{INTERFACE}.SetGroup": (SetGroup, lambda p, _: {"group": runtime.set_group(p.name, p.mode, p.cpus)}),
            f"{INTERFACE}.StartCapture": (StartCapture, self._start_capture),
            f"{INTERFACE}.StopCapture": (StopCapture, self._stop_capture),
            f"{INTERFACE}.Shutdown": (_Parameters, lambda p, _: {}),
        }
        self._streams: dict[str, tuple[type[_Parameters], Callable[[Any], AsyncIterator[dict[str, Any]]]]] = {
            f"{INTERFACE}.Monitor": (_Parameters, self._monitor),
            f"{INTERFACE}.WatchStats": (WatchStats, self._watch_stats),
        }

    # -- a call ------------------------------------------------------------------------------------------------------------

    async def answer(self, call: Call, session: Session) -> dict[str, Any]:
        """The reply to a call that has one."""
        try:
            if call.method in self._reads:
                kind, read = self._reads[call.method]
                return {"parameters": read(msgspec.convert(call.parameters, kind))}
            if call.method in self._changes:
                return {"parameters": self._change(call, session)}
            if call.method == f"{INTERFACE}.Upgrade" and self._upgrade is not None:
                parameters = msgspec.convert(call.parameters, Upgrade)
                log.info("Upgrade, for uid %d (pid %d)", session.uid, session.pid)
                return {"parameters": {"report": await self._upgrade(parameters.python)}}
            if call.method in self._streams:
                raise ErrorReply(f"{SERVICE}.ExpectedMore")
            interface = call.method.rpartition(".")[0]
            if interface not in (INTERFACE, SERVICE):
                raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=interface)
            raise ErrorReply(f"{SERVICE}.MethodNotFound", method=call.method)
        except Exception as error:
            return error_reply(error, call.method)

    def stream(self, call: Call) -> AsyncIterator[dict[str, Any]] | None:
        """The replies to a call that has many; None for another. Raises what `error_reply` takes."""
        if not call.more or call.method not in self._streams:
            return None
        kind, method = self._streams[call.method]
        return method(msgspec.convert(call.parameters, kind))

    def end(self, session: Session) -> None:
        """The connection is gone, however it went."""
        for number in session.captures:
            self._runtime.stop_capture(number)

    def _change(self, call: Call, session: Session) -> dict[str, Any]:
        kind, method = self._changes[call.method]
        parameters = msgspec.convert(call.parameters, kind)
        what = f"{call.method.rpartition('.')[2]} {getattr(parameters, 'name', getattr(parameters, 'point', ''))}".rstrip()
        self._fresh.clear()  # who changed something sees it
        try:
            reply = method(parameters, session)
        except Exception as error:
            log.info("%s, for uid %d (pid %d): %s", what, session.uid, session.pid, " ".join(str(error).split()))
            raise
        log.info("%s, for uid %d (pid %d)", what, session.uid, session.pid)
        return reply

    def _cached(self, read: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def cached(parameters: Any) -> dict[str, Any]:
            key, now = (read, msgspec.json.encode(parameters)), time.monotonic()
            if key not in self._fresh or now - self._fresh[key][0] > FRESH_S:
                if len(self._fresh) > 64:  # names that clients make up
                    self._fresh.clear()
                self._fresh[key] = (now, read(parameters))
            return self._fresh[key][1]

        return cached

    # -- methods -----------------------------------------------------------------------------------------------------------

    def _status(self, _: _Parameters) -> dict[str, Any]:
        return {"status": {"pid": os.getpid(), "supervisor": self._supervisor, **self._runtime.status()}}

    def _metrics(self, _: _Parameters) -> dict[str, Any]:
        from vnic.control.metrics import text_of  # its library, where somebody asks

        return {"text": text_of(self._runtime).decode()}

    def _detach(self, parameters: Named, _: Session) -> dict[str, Any]:
        self._runtime.detach(parameters.name)
        return {}

    def _set_link(self, parameters: SetLink, _: Session) -> dict[str, Any]:
        self._runtime.set_link(parameters.name, parameters.up)
        return {}

    def _set_rate(self, parameters: SetRate, _: Session) -> dict[str, Any]:
        given = {"egress_bps": parameters.egress, "ingress_bps": parameters.ingress}
        limits = {direction: parse_limit(text) for direction, text in given.items() if text is not None}
        if not limits:
            raise ConfigError(f"{parameters.name}: no rate given; want egress, ingress or both")
        return {"nic": self._runtime.set_rate(parameters.name, **limits)}

    def _start_capture(self, parameters: StartCapture, session: Session) -> dict[str, Any]:
        number = self._runtime.start_capture(parameters.point, parameters.path, parameters.snaplen)
        session.captures.add(number)
        return {"capture": number}

    def _stop_capture(self, parameters: StopCapture, session: Session) -> dict[str, Any]:
        if parameters.capture not in session.captures:
            raise ConfigError(f"capture {parameters.capture}: is none of this connection's")
        session.captures.remove(parameters.capture)
        return self._runtime.stop_capture(parameters.capture)

    def _info(self, _: _Parameters) -> dict[str, Any]:
        return {"vendor": "vnic", "product": "vnic", "version": self._version, "url": "", "interfaces": [SERVICE, INTERFACE]}

    def _description(self, parameters: Interface) -> dict[str, Any]:
        texts = {INTERFACE: DESCRIPTION, SERVICE: SERVICE_DESCRIPTION}
        if parameters.interface not in texts:
            raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=parameters.interface)
        return {"description": texts[parameters.interface]}

    # -- streams -----------------------------------------------------------------------------------------------------------

    def _monitor(self, _: _Parameters) -> AsyncIterator[dict[str, Any]]:
        return self._events(self._bus.subscribe())  # from now on, not from the first time that somebody asks the iterator

    async def _events(self, listener: Subscription) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                yield {"event": await listener.next()}
        finally:
            self._bus.unsubscribe(listener)

    async def _watch_stats(self, parameters: WatchStats) -> AsyncIterator[dict[str, Any]]:
        due = time.monotonic()
        while True:
            yield {"time": round(time.time(), 6), "stats": self._runtime.stats(parameters.name)}
            due = max(due + parameters.interval_ms / 1000, time.monotonic())  # who is late does not catch up
            await asyncio.sleep(due - time.monotonic())
