"""Transparent upgrade: engines move from the old worker to the new one, one at a time, with their state and packets (Snap, section 4).

Brownout. The supervisor has started the new worker from what it stores: the same TAPs, pool, MAC table and rings. The new worker builds
everything and touches no packet; then the supervisor joins the two workers by a socket.

Blackout, engine by engine. The old worker sends the states of the engine's elements while it still runs, a few at a time. Then it halts
the engine between two batches and sends the states of those that have changed since (docs/state-format.md). The new worker loads them and
confirms that the engine is its own: that message is the engine's point of no return. Then it runs the engine, and the old one forgets it.
Packets meanwhile wait in the TAPs' queues, the rings and, as indices, in the state: none is lost.

    old                                     new
    {"config": digest}                 -->
                                       <--  {"ok"}
    {"control": {...}}                 -->        control's own counters
                                       <--  {"done"}
    {"engine": name, "part": bytes}    -->        some elements, while the engine runs; several of these
                                       <--  {"has": name}
    {"engine": name, "state": bytes}   -->        from the halted engine: the elements that have changed since
                                       <--  {"loaded": name}
    {"run": name}                      -->
                                       <--  {"mine": name}     the point of no return
                                       <--  {"running_ns": t}
    ... the next engine ...
    {"over"}                           -->
                                       <--  {"books": {...}}   for the report: drops meanwhile
    {"client": bytes}, descriptors    -->        for each client that waits; then {"clients": "all"}

The new worker may reply {"error": line} instead. {"back": name} from the old one asks for the state of an engine that was moved.

A failure before "mine" has no consequences for the engine: the old worker still has all of it, and resumes it. If no "mine" comes, the
old worker shuts the socket down first, so that a late one cannot be sent. Engines that were moved before come back by {"back"}, as long
as the new worker answers. Where it does not - it has ended, hangs, or sends invalid messages - their packets and counters are lost with
it, and both workers end, as in a crash (`Torn`).
"""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dataplane.engine.handover import (
    BYTES_MAX,
    Loading,
    Marks,
    forget_engine,
    load_engine,
    save_engine,
    save_parts,
)
from dataplane.errors import VnicError, one_line
from vnic.api.connection import Transfer
from vnic.api.interface import DESCRIPTORS_MOST
from vnic.config.convert import encode_config
from vnic.daemon.upgrade_losses import Drops, drops_of, engine_losses, queue_losses
from vnic.device.descriptors import receive_with_descriptors

if TYPE_CHECKING:
    from dataplane.engine.engine import Engine
    from dataplane.groups.group import EngineGroup
    from vnic.runtime.runtime import Runtime

STEP_TIMEOUT_S = 5.0  # for a reply of the other worker; a state of 256 MiB takes half a second
_LENGTH = struct.Struct("<I")
T = TypeVar("T")


class Torn(VnicError):
    """The other worker is lost while each of the two has engines: neither can go on alone."""


class Refused(VnicError):
    """The other worker replied with an error: it is still able to answer."""


class Silent(VnicError):
    """The other worker sends nothing: it has ended, or hangs."""


class Channel:
    """Messages between the two workers: MessagePack maps, each after its length."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(STEP_TIMEOUT_S)

    def send(self, **message: Any) -> None:
        """Raises VnicError where the other worker has ended or does not read."""
        data = msgspec.msgpack.encode(message)
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise VnicError(f"the other worker is gone: {error.strerror or error}") from None

    def receive(self) -> dict[str, Any]:
        """The next message. Raises VnicError: Refused for an error, Silent where none comes."""
        data = self._exactly(*_LENGTH.unpack(self._exactly(_LENGTH.size, begun=False)))
        try:
            message = msgspec.msgpack.decode(data)
        except msgspec.MsgspecError:
            message = None
        if not isinstance(message, dict):
            raise VnicError("the other worker sent what is no message")
        if "error" in message:
            raise Refused(str(message["error"]))
        return message

    def expect(self, key: str, kind: type[T]) -> T:
        """The value of `key` in the next message. Raises VnicError."""
        value = self.receive().get(key)
        if not isinstance(value, kind):
            raise VnicError(f"the other worker sent no answer ({key})")
        return value

    def shut(self) -> bool:
        """Shuts the socket down, so that the other worker can send nothing more. Returns whether everything that it
        had sent was received."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            return not self._socket.recv(1)
        except OSError:  # it closed its end with unread data
            return True

    def send_clients(self, clients: list[Transfer]) -> None:
        """Passes control connections; any that cannot be passed end with this process."""
        with suppress(VnicError, OSError):
            for descriptor, begun, came_with, captures in clients:
                self.send(client=begun, captures=captures)
                socket.send_fds(self._socket, [b"+"], [descriptor, *came_with])
            self.send(clients="all")

    def receive_clients(self) -> list[Transfer]:
        """The connections that `send_clients` passed, as far as they arrived; the caller closes their descriptors."""
        found: list[Transfer] = []
        with suppress(VnicError, OSError):
            while isinstance(begun := (message := self.receive()).get("client"), bytes):
                mark, descriptors, _ = receive_with_descriptors(
                    self._socket, 1, 1 + DESCRIPTORS_MOST
                )
                if mark != b"+" or not descriptors:
                    break
                found.append(
                    Transfer(
                        descriptors[0], begun, descriptors[1:], list(message.get("captures", ()))
                    )
                )
        return found

    def _exactly(self, count: int, *, begun: bool = True) -> bytes:
        if count > BYTES_MAX + 4096:
            raise VnicError("the other worker sent a message without end")
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(min(1 << 20, count - len(parts)))
            except OSError as error:
                raise self._end(begun or parts)(
                    f"the other worker does not answer: {error.strerror or error}"
                ) from None
            if not part:
                raise self._end(begun or parts)("the other worker is gone")
            parts += part
        return bytes(parts)

    @staticmethod
    def _end(begun: object) -> type[VnicError]:
        """The error for an end within a message, or between two."""
        return VnicError if begun else Silent

    def close(self) -> None:
        self._socket.close()


def _digest(document: bytes) -> str:
    """Of the configuration as the old worker stored it when the upgrade began (Runtime.begin_upgrade). Bytes are
    compared, since another version would encode the same configuration differently."""
    return hashlib.sha256(document).hexdigest()


# -- the old worker ----------------------------------------------------------------------------------------------------------


def give(runtime: Runtime, channel: Channel) -> dict[str, Any]:
    """Hands every engine over; returns the report. Raises what failed, and then everything runs here as before; or
    Torn, and then this worker must end.

    {"engines": [{"name", "blackout_ms", "state_bytes", "packets_moved", "packets_lost", "dropped": {reason: n}}...],
     "blackout_ms": the longest, "queue_drops": {nic: n}, "packets_lost": all known losses; see vnic.daemon.upgrade_losses}
    """
    channel.send(config=_digest(encode_config(runtime.config)))
    channel.receive()
    channel.send(control=runtime.save_control())
    channel.receive()
    moved: list[Engine] = []
    books, queues = drops_of(runtime.engines), runtime.nics.queue_drops()
    try:
        engines = [
            _give(runtime.group_of(engine), engine, channel, moved) for engine in runtime.engines
        ]
    except Torn:
        raise
    except BaseException:  # also a bug, here or in a user's element
        _take_back(runtime, moved, channel)
        raise
    books_there: dict[str, Drops] = {}
    # The new worker has every engine: if it fails now, that is a crash.
    with suppress(VnicError, msgspec.ValidationError):
        channel.send(over=True)
        books_there = msgspec.convert(channel.expect("books", dict), dict[str, Drops])
    for each in engines:
        each |= engine_losses(books[each["name"]], books_there.get(each["name"]))
    drops = queue_losses(queues, runtime.nics.queue_drops())
    return {
        "engines": engines,
        "blackout_ms": max(each["blackout_ms"] for each in engines),
        "queue_drops": drops,
        "packets_lost": sum(
            filter(None, [*drops.values(), *(each["packets_lost"] for each in engines)])
        ),
    }


def _give(
    group: EngineGroup, engine: Engine, channel: Channel, moved: list[Engine]
) -> dict[str, Any]:
    marks: Marks = {}
    for part in save_parts(engine, marks):
        channel.send(engine=engine.name, part=part)
        channel.expect("has", str)
    begin_ns = time.monotonic_ns()
    group.halt(engine)
    try:
        state = save_engine(engine, marks)
        channel.send(engine=engine.name, state=state)
        channel.expect("loaded", str)
        channel.send(run=engine.name)
        _await_mine(engine, channel)
    except Torn:
        raise
    except BaseException:
        group.resume(engine)
        raise
    moved.append(engine)
    held = engine.conservation()["held"]
    forget_engine(engine)
    end_ns = channel.expect("running_ns", int)
    return {
        "name": engine.name,
        "blackout_ms": round((end_ns - begin_ns) / 1e6, 3),
        "state_bytes": len(state),
        "packets_moved": held,
    }


def _await_mine(engine: Engine, channel: Channel) -> None:
    """Returns when the engine is the new worker's. Raises VnicError where it never will be; Torn where that cannot be known."""
    try:
        channel.expect("mine", str)
    except Refused:
        raise
    except Silent:
        if channel.shut():
            raise
        raise Torn(f"engine {engine.name}: the other worker took it too late") from None
    except VnicError as error:
        raise Torn(f"engine {engine.name} is here or there: {error}") from None


def _take_back(runtime: Runtime, moved: list[Engine], channel: Channel) -> None:
    """After a failure: takes back the engines that were moved."""
    for engine in moved:
        try:
            channel.send(back=engine.name)
            load_engine(engine, channel.expect("state", bytes), again=True)
            channel.send(loaded=engine.name)
            channel.expect("forgotten", str)
            runtime.group_of(engine).resume(engine)
        except BaseException as error:
            raise Torn(f"engine {engine.name} cannot come back: {error}") from error


# -- the new worker ----------------------------------------------------------------------------------------------------------


def take(runtime: Runtime, channel: Channel, document: bytes) -> None:
    """Takes every engine over, and runs it. document: the configuration as it was stored when this worker started.
    Raises VnicError on a failure; the old worker then has all engines, or has asked for those that were moved."""
    engines = {engine.name: engine for engine in runtime.engines}
    mine: set[str] = set()
    loading = {name: Loading(engine) for name, engine in engines.items()}
    failure: VnicError | None = None
    while True:
        try:
            message = channel.receive()
        except VnicError as error:
            if failure is None and mine == set(
                engines
            ):  # the old worker has ended, and nothing of it is needed
                return
            raise failure or error from None
        try:
            match message:
                case {"config": str(digest)}:
                    if digest != _digest(document):
                        raise VnicError(
                            "what is attached changed while the upgrade was prepared; try again"
                        )
                    channel.send(ok=True)
                case {"control": dict(control)}:
                    runtime.load_control(control)
                    channel.send(done=True)
                case {"engine": str(name), "state": bytes(state)}:
                    loading[name].finish(state)
                    channel.send(loaded=name)
                case {"engine": str(name), "part": bytes(part)}:
                    loading[name].part(part)
                    channel.send(has=name)
                case {"run": str(name)}:
                    channel.send(
                        mine=name
                    )  # first: fails where the old worker has shut the socket down
                    mine.add(name)
                    runtime.group_of(engines[name]).resume(engines[name])
                    channel.send(running_ns=time.monotonic_ns())
                case {"back": str(name)}:
                    _give_back(runtime.group_of(engines[name]), engines[name], channel)
                    mine.discard(name)
                case {"over": True} if failure is None and mine == set(engines):
                    with suppress(Exception):  # only a report: no reason to fail
                        channel.send(books=drops_of(runtime.engines))
                    return
                case _:
                    raise VnicError(f"unexpected message {list(message)[:3]}")
        except (
            Exception
        ) as error:  # also a bug, here or in a user's element: engines must go back first
            failure = failure or VnicError(one_line(error))
            channel.send(
                error=str(failure)
            )  # and on, until the old worker has asked for its engines and closed the socket


def _give_back(group: EngineGroup, engine: Engine, channel: Channel) -> None:
    group.halt(engine)
    channel.send(state=save_engine(engine))
    channel.receive()
    forget_engine(engine)
    channel.send(forgotten=engine.name)
