"""Transparent upgrade: engines go from the old worker to the new one, one at a time, with all they know and hold (Snap, section 4).

Brownout. The supervisor has started the new worker from what it keeps: the same TAPs, pool, MAC table and rings. It builds everything
and touches no packet; then the supervisor joins the two by a socket.

Blackout, engine by engine. The old worker halts the engine between two batches and sends its state (docs/state-format.md). The new one
loads it. Then comes the engine's point of no return: the old worker forgets what it held, and the new one runs the engine. Until
then any failure leaves the engine where it was; engines that went before come back the same way. Packets meanwhile wait in the TAPs'
queues, the rings and, as indices, in the state: none is lost.

    old                                     new
    {"config": digest}                 -->
                                       <--  {"ok"}
    {"engine": name, "state": bytes}   -->
                                       <--  {"loaded": name}
    {"run": name}    no way back now   -->
                                       <--  {"running_ns": t}
    ... the next engine ...
    {"control": {...}}                 -->        what control itself counted
                                       <--  {"done"}
    {"client": bytes}, descriptors    -->        for each client that waits; then {"clients": "all"}

Either side may answer {"error": line} instead. {"back": name} from the old one asks for an engine's state, to take it back.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.errors import VnicError
from dataplane.handover import BYTES_MAX, forget_engine, load_engine, save_engine
from vnic.control.api import DESCRIPTORS_MOST
from vnic.control.connection import Transfer
from vnic.control.convert import encode_config
from vnic.device.descriptors import receive_with_descriptors

if TYPE_CHECKING:
    from dataplane.engine import Engine
    from dataplane.group import EngineGroup
    from vnic.control.runtime import Runtime

STEP_TIMEOUT_S = 5.0  # of the other side; a state of 256 MiB takes half a second
_LENGTH = struct.Struct("<I")


class Torn(VnicError):
    """The other worker is gone while engines are on both sides: neither can go on alone."""


class Channel:
    """Messages between the two workers: MessagePack maps behind their length."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(STEP_TIMEOUT_S)

    def send(self, **message: Any) -> None:
        """Raises VnicError when the other side is gone or does not listen."""
        data = msgspec.msgpack.encode(message)
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise VnicError(f"the other worker is gone: {error.strerror or error}") from None

    def receive(self) -> dict[str, Any]:
        """The next message. Raises VnicError; also when the message is an error."""
        message = msgspec.msgpack.decode(self._exactly(*_LENGTH.unpack(self._exactly(_LENGTH.size))))
        if not isinstance(message, dict):
            raise VnicError("the other worker sent what is no message")
        if "error" in message:
            raise VnicError(str(message["error"]))
        return message

    def send_clients(self, clients: list[Transfer]) -> None:
        """Control connections. Those that do not get through end with us."""
        with suppress(VnicError, OSError):
            for descriptor, begun, came_with, captures in clients:
                self.send(client=begun, captures=captures)
                socket.send_fds(self._socket, [b"+"], [descriptor, *came_with])
            self.send(clients="all")

    def receive_clients(self) -> list[Transfer]:
        """What `send_clients` sent, as far as it got through; the descriptors are the caller's."""
        found: list[Transfer] = []
        with suppress(VnicError, OSError):
            while isinstance(begun := (message := self.receive()).get("client"), bytes):
                mark, descriptors, _ = receive_with_descriptors(self._socket, 1, 1 + DESCRIPTORS_MOST)
                if mark != b"+" or not descriptors:
                    break
                found.append(Transfer(descriptors[0], begun, descriptors[1:], list(message.get("captures", ()))))
        return found

    def _exactly(self, count: int) -> bytes:
        if count > BYTES_MAX + 4096:
            raise VnicError("the other worker sent a message without end")
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(min(1 << 20, count - len(parts)))
            except OSError as error:
                raise VnicError(f"the other worker does not answer: {error.strerror or error}") from None
            if not part:
                raise VnicError("the other worker is gone")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        self._socket.close()


def _digest(document: bytes) -> str:
    """Of the configuration as the old worker kept it when it was asked to upgrade (Runtime.begin_upgrade). Bytes are compared: another
    version would say the same in other words."""
    return hashlib.sha256(document).hexdigest()


# -- the old worker ----------------------------------------------------------------------------------------------------------


def give(runtime: Runtime, channel: Channel) -> dict[str, Any]:
    """Hands every engine over; returns the report. Raises VnicError, and then everything runs here as before; or Torn, and then nothing
    that is left here makes a whole.

    {"engines": [{"name", "blackout_ms", "state_bytes", "packets_moved"}...], "blackout_ms": the longest}
    """
    channel.send(config=_digest(encode_config(runtime.config)))
    channel.receive()
    moved: list[Engine] = []
    report: list[dict[str, Any]] = []
    try:
        for engine in runtime.engines:
            report.append(_give(runtime.group_of(engine), engine, channel))
            moved.append(engine)
        channel.send(control=runtime.save_control())
        channel.receive()
    except VnicError:
        _take_back(runtime, moved, channel)
        raise
    return {"engines": report, "blackout_ms": max(each["blackout_ms"] for each in report)}


def _give(group: EngineGroup, engine: Engine, channel: Channel) -> dict[str, Any]:
    begin_ns = time.monotonic_ns()
    group.halt(engine)
    try:
        state = save_engine(engine)
        held = engine.conservation()["held"]
        channel.send(engine=engine.name, state=state)
        channel.receive()
    except BaseException:
        group.resume(engine)
        raise
    forget_engine(engine)
    try:
        channel.send(run=engine.name)
        end_ns = channel.receive()["running_ns"]
    except VnicError as error:
        raise Torn(f"engine {engine.name} is neither here nor there: {error}") from None
    return {
        "name": engine.name,
        "blackout_ms": round((end_ns - begin_ns) / 1e6, 3),
        "state_bytes": len(state),
        "packets_moved": held,
    }


def _take_back(runtime: Runtime, moved: list[Engine], channel: Channel) -> None:
    """After a failure: the engines that went already come back."""
    for engine in moved:
        try:
            channel.send(back=engine.name)
            load_engine(engine, channel.receive()["state"], again=True)
            channel.send(loaded=engine.name)
            channel.receive()
        except VnicError as error:
            raise Torn(f"engine {engine.name} cannot come back: {error}") from None
        runtime.group_of(engine).resume(engine)


# -- the new worker ----------------------------------------------------------------------------------------------------------


def take(runtime: Runtime, channel: Channel, document: bytes) -> None:
    """Takes every engine over, and runs it. document: the configuration as it was kept when this worker began, in the words of the version
    that kept it. Raises VnicError where that cannot be; the old worker has them all then, or is told to."""
    engines = {engine.name: engine for engine in runtime.engines}
    given = channel.receive()["config"]
    if given != _digest(document):
        raise _refuse(channel, VnicError("what is attached changed while the upgrade was prepared; try again"))
    channel.send(ok=True)
    failure: VnicError | None = None
    while True:
        message = channel.receive()
        try:
            match message:
                case {"engine": str(name), "state": bytes(state)}:
                    load_engine(engines[name], state)
                    channel.send(loaded=name)
                case {"run": str(name)}:
                    runtime.group_of(engines[name]).resume(engines[name])
                    channel.send(running_ns=time.monotonic_ns())
                case {"back": str(name)}:
                    _give_back(runtime.group_of(engines[name]), engines[name], channel)
                case {"control": dict(control)}:
                    runtime.load_control(control)
                    channel.send(done=True)
                    return
                case _:
                    raise VnicError(f"unexpected message {list(message)[:3]}")
        except VnicError as error:
            if failure is not None:
                raise
            failure = _refuse(channel, error)
        if failure is not None and not any(engine.running for engine in runtime.engines):
            raise failure


def _refuse(channel: Channel, error: VnicError) -> VnicError:
    channel.send(error=str(error))
    return error


def _give_back(group: EngineGroup, engine: Engine, channel: Channel) -> None:
    group.halt(engine)
    channel.send(state=save_engine(engine))
    channel.receive()
    forget_engine(engine)
    channel.send(forgotten=engine.name)
