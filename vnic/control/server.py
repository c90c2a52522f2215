"""The control API's server: asyncio, one request after the other, every client bounded.

A client is whoever can open the socket, and only our own user and root may. Even so nothing it sends may hurt others: requests
are bounded in size, connections in number and idle time; what cannot be parsed costs its sender the connection, nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any, Literal, Protocol

import msgspec

from dataplane.errors import ConfigError, VnicError
from dataplane.units import parse_rate
from vnic.control.api import DESCRIPTION, INTERFACE, REQUEST_MOST, SERVICE, SERVICE_DESCRIPTION
from vnic.control.convert import convert_nic
from vnic.control.scalars import Rate
from vnic.control.schema import NicConfig, encode_scalar

CLIENTS_MOST = 64
IDLE_S = 120.0  # a client that sends nothing, or does not read its reply, for so long is cut off

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
    """A request. Further members (more, upgrade) are for features that no method here has."""

    method: str
    parameters: dict[str, Any] = {}
    oneway: bool = False


class ErrorReply(Exception):  # noqa: N818 - a Varlink error is a reply
    def __init__(self, error: str, **parameters: Any) -> None:
        super().__init__(error)
        self.reply = {"error": error, "parameters": parameters}


class _Parameters(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Named(_Parameters):
    name: str


class Attach(Named):
    nic: dict[str, Any]


class Stats(_Parameters):
    name: str | None = None


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


class Server:
    """Serves `runtime`; `on_shutdown` is called once a client asked for the end and has its reply. `supervisor`: what Status
    says of it. `upgrade` replaces this process."""

    def __init__(
        self,
        runtime: Controllable,
        on_shutdown: Callable[[], None],
        version: str,
        supervisor: dict[str, Any] | None = None,
        upgrade: Callable[[str], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self._runtime = runtime
        self._on_shutdown = on_shutdown
        self._version = version
        self._upgrade = upgrade
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._methods: dict[str, tuple[type[_Parameters], Callable[[Any], dict[str, Any]]]] = {
            f"{INTERFACE}.Attach": (Attach, lambda p: {"nic": runtime.attach(convert_nic(p.name, p.nic, (p.name,)))}),
            f"{INTERFACE}.Detach": (Named, self._detach),
            f"{INTERFACE}.Status": (
                _Parameters,
                lambda p: {"status": {"pid": os.getpid(), "supervisor": supervisor, **runtime.status()}},
            ),
            f"{INTERFACE}.Stats": (Stats, lambda p: {"stats": runtime.stats(p.name)}),
            f"{INTERFACE}.Graph": (Graph, lambda p: {"graph": runtime.graph(p.format)}),
            f"{INTERFACE}.SetRate": (SetRate, self._set_rate),
            f"{INTERFACE}.SetLink": (SetLink, self._set_link),
            f"{INTERFACE}.SetGroup": (SetGroup, lambda p: {"group": runtime.set_group(p.name, p.mode, p.cpus)}),
            f"{INTERFACE}.Accounts": (_Parameters, lambda p: {"accounts": runtime.charges()}),
            f"{INTERFACE}.Shutdown": (_Parameters, lambda p: {}),
            f"{SERVICE}.GetInfo": (_Parameters, self._info),
            f"{SERVICE}.GetInterfaceDescription": (Interface, self._description),
        }

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=REQUEST_MOST)

    def stop_accepting(self) -> None:
        """New clients wait in the listening socket's queue, for whoever accepts them next; `start` with another of it goes on."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Hangs up on everybody."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        for writer in list(self._writers):
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)

    # -- connections ---------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", credentials)[1] not in (0, os.geteuid()):
                writer.write(msgspec.json.encode(ErrorReply(f"{SERVICE}.PermissionDenied").reply) + b"\0")
            elif len(self._writers) >= CLIENTS_MOST:
                message = f"{CLIENTS_MOST} clients are connected already; try again"
                writer.write(msgspec.json.encode(ErrorReply(f"{INTERFACE}.Failed", message=message).reply) + b"\0")
            else:
                self._writers.add(writer)
                await self._converse(reader, writer)
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass  # it hung up, or fell asleep
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        captures: set[int] = set()
        try:
            await self._converse_with(reader, writer, captures)
        finally:
            for number in captures:  # also when the client was killed
                self._runtime.stop_capture(number)

    async def _converse_with(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, captures: set[int]) -> None:
        while True:
            try:
                # Whoever captures has nothing to say for hours.
                message = await asyncio.wait_for(reader.readuntil(b"\0"), None if captures else IDLE_S)
                call = msgspec.json.decode(message[:-1], type=Call)
            except (asyncio.LimitOverrunError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                # Where the next message would begin is anybody's guess: say so and hang up.
                writer.write(msgspec.json.encode(ErrorReply(f"{SERVICE}.InvalidParameter", parameter="message").reply) + b"\0")
                return
            if call.method == f"{INTERFACE}.Upgrade" and self._upgrade is not None:
                reply = await self._answer_upgrade(call)
            else:
                reply = self._answer(call, captures)
            if not call.oneway:
                writer.write(msgspec.json.encode(reply, enc_hook=encode_scalar) + b"\0")
                await asyncio.wait_for(writer.drain(), IDLE_S)
            if call.method == f"{INTERFACE}.Shutdown" and "error" not in reply:
                self._on_shutdown()

    async def _answer_upgrade(self, call: Call) -> dict[str, Any]:
        assert self._upgrade is not None
        try:
            parameters = msgspec.convert(call.parameters, Upgrade)
            return {"parameters": {"report": await self._upgrade(parameters.python)}}
        except msgspec.ValidationError as error:
            return ErrorReply(f"{SERVICE}.InvalidParameter", parameter=str(error)).reply
        except VnicError as error:
            return ErrorReply(f"{INTERFACE}.Failed", message=str(error)).reply

    # -- methods -------------------------------------------------------------------------------------------------------

    def _answer(self, call: Call, captures: set[int]) -> dict[str, Any]:
        try:
            if call.method == f"{INTERFACE}.StartCapture":
                return {"parameters": self._start_capture(msgspec.convert(call.parameters, StartCapture), captures)}
            if call.method == f"{INTERFACE}.StopCapture":
                return {"parameters": self._stop_capture(msgspec.convert(call.parameters, StopCapture), captures)}
            if call.method not in self._methods:
                interface = call.method.rpartition(".")[0]
                if interface not in (INTERFACE, SERVICE):
                    raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=interface)
                raise ErrorReply(f"{SERVICE}.MethodNotFound", method=call.method)
            kind, method = self._methods[call.method]
            return {"parameters": method(msgspec.convert(call.parameters, kind))}
        except ErrorReply as error:
            return error.reply
        except msgspec.ValidationError as error:
            return ErrorReply(f"{SERVICE}.InvalidParameter", parameter=str(error)).reply
        except ConfigError as error:
            return ErrorReply(f"{INTERFACE}.InvalidConfig", message=str(error)).reply
        except VnicError as error:
            return ErrorReply(f"{INTERFACE}.Failed", message=str(error)).reply
        except Exception as error:  # a bug of ours, or of a user's element, must not end the daemon
            log.exception("%s", call.method)
            message = f"unexpected {type(error).__name__}: {error}; the daemon's log has more"
            return ErrorReply(f"{INTERFACE}.Failed", message=message).reply

    def _detach(self, parameters: Named) -> dict[str, Any]:
        self._runtime.detach(parameters.name)
        return {}

    def _set_link(self, parameters: SetLink) -> dict[str, Any]:
        self._runtime.set_link(parameters.name, parameters.up)
        return {}

    def _set_rate(self, parameters: SetRate) -> dict[str, Any]:
        given = {"egress_bps": parameters.egress, "ingress_bps": parameters.ingress}
        limits = {direction: parse_limit(text) for direction, text in given.items() if text is not None}
        if not limits:
            raise ConfigError(f"{parameters.name}: no rate given; want egress, ingress or both")
        return {"nic": self._runtime.set_rate(parameters.name, **limits)}

    def _start_capture(self, parameters: StartCapture, captures: set[int]) -> dict[str, Any]:
        number = self._runtime.start_capture(parameters.point, parameters.path, parameters.snaplen)
        captures.add(number)
        return {"capture": number}

    def _stop_capture(self, parameters: StopCapture, captures: set[int]) -> dict[str, Any]:
        if parameters.capture not in captures:
            raise ConfigError(f"capture {parameters.capture}: is none of this connection's")
        captures.remove(parameters.capture)
        return self._runtime.stop_capture(parameters.capture)

    def _info(self, _: _Parameters) -> dict[str, Any]:
        return {"vendor": "vnic", "product": "vnic", "version": self._version, "url": "", "interfaces": [SERVICE, INTERFACE]}

    def _description(self, parameters: Interface) -> dict[str, Any]:
        texts = {INTERFACE: DESCRIPTION, SERVICE: SERVICE_DESCRIPTION}
        if parameters.interface not in texts:
            raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=parameters.interface)
        return {"description": texts[parameters.interface]}
