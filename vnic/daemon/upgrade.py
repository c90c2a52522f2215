"""Transparent upgrade: engines move from the old worker to the new one, one at a time, with their
state and packets (Snap, section 4).

Brownout. The supervisor starts the new worker with the stored TAPs, pool, MAC table and rings. The
new worker builds its graph without touching a packet; then the supervisor connects the two workers
by a socket.

Blackout, engine by engine. The old worker sends the states of the engine's elements while it still
runs, a few at a time. Then it halts the engine between two batches and sends the states that have
changed since (docs/state-format.md). The new worker loads them and confirms that it owns the
engine: that message is the engine's point of no return. Then it runs the engine, and the old worker
forgets it. Meanwhile packets wait in the TAPs' queues, in the rings and, as indices, in the state.

    old                                     new
    {"config": digest}                 -->
                                       <--  {"ok"}
    {"control": {...}}                 -->        control's own counters
                                       <--  {"done"}
    {"engine": name, "part": bytes}    -->        some elements, while the engine runs; repeated
                                       <--  {"has": name}
    {"engine": name, "state": bytes}   -->        the changed elements of the halted engine
                                       <--  {"loaded": name}
    {"run": name}                      -->
                                       <--  {"mine": name}     the point of no return
                                       <--  {"running_ns": t}
    ... the next engine ...
    {"over"}                           -->
                                       <--  {"books": {...}}   for the report: drops meanwhile
    {"client": bytes}, descriptors    -->        for each waiting client; then {"clients": "all"}

The new worker may reply {"error": line} instead. By {"back": name} the old worker requests the
state of a moved engine.

A failure before "mine" has no consequences for the engine: the old worker still owns it, and
resumes it. If no "mine" arrives, the old worker first shuts down the socket, so that a late one
cannot be sent. Engines that were moved before are moved back by {"back"}, if the new worker
answers. If it has ended, hangs, or sends invalid messages, their packets and counters are lost, and
both workers end, as in a crash (`Torn`).
"""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dataplane.descriptors import receive_with_descriptors
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

if TYPE_CHECKING:
    from dataplane.engine.engine import Engine
    from dataplane.groups.group import EngineGroup
    from vnic.runtime.runtime import Runtime

STEP_TIMEOUT_S = 5.0  # for a reply of the other worker; a state of 256 MiB takes half a second
_LENGTH = struct.Struct("<I")
T = TypeVar("T")


class Torn(VnicError):
    """The other worker is lost while both have engines, so that neither can continue alone."""


class Refused(VnicError):
    """The other worker replied with an error: it is still able to answer."""


class Silent(VnicError):
    """The other worker sends nothing: it has ended or hangs."""


class Channel:
    """Messages between the two workers: MessagePack maps, each preceded by its length.

    An end, a timeout or an impossible length breaks the channel: a later message could not be told
    from the rest of the missing one. Then every call fails at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._broken: str | None = None  # why
        sock.settimeout(STEP_TIMEOUT_S)

    def send(self, **message: Any) -> None:
        """Sends a message. Raises VnicError if the other worker has ended or does not read."""
        self._check()
        data = msgspec.msgpack.encode(message)
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise self._end(True, f"the other worker is gone: {error.strerror or error}") from None

    def receive(self) -> dict[str, Any]:
        """Returns the next message. Raises VnicError: Refused for an error message, Silent if no
        message arrives."""
        self._check()
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
        """Shuts down the socket, so that the other worker can send nothing more. Returns whether
        everything that it had sent was received."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            return not self._socket.recv(1)
        except OSError:  # it closed its end with unread data
            return True

    def send_clients(self, clients: list[Transfer]) -> None:
        """Passes control connections; those that cannot be passed end with this process."""
        with suppress(VnicError, OSError):
            for descriptor, begun, came_with, captures, policy in clients:
                self.send(client=begun, captures=captures, policy=policy)
                socket.send_fds(self._socket, [b"+"], [descriptor, *came_with])
            self.send(clients="all")

    def receive_clients(self) -> list[Transfer]:
        """Receives the connections from `send_clients`, as far as they arrive; the caller closes
        their descriptors."""
        found: list[Transfer] = []
        with suppress(VnicError, OSError):
            while isinstance(begun := (message := self.receive()).get("client"), bytes):
                mark, descriptors, _ = receive_with_descriptors(
                    self._socket, 1, 1 + DESCRIPTORS_MOST
                )
                if mark != b"+" or not descriptors:
                    break
                captures, policy = list(message.get("captures", ())), message.get("policy")
                found.append(Transfer(descriptors[0], begun, descriptors[1:], captures, policy))
        return found

    def _exactly(self, count: int, *, begun: bool = True) -> bytes:
        if count > BYTES_MAX + 4096:
            raise self._end(True, "the other worker sent a message without end")
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(min(1 << 20, count - len(parts)))
            except OSError as error:
                why = f"the other worker does not answer: {error.strerror or error}"
                raise self._end(begun or parts, why) from None
            if not part:
                raise self._end(begun or parts, "the other worker is gone")
            parts += part
        return bytes(parts)

    def _check(self) -> None:
        if self._broken is not None:
            raise VnicError(self._broken)

    def _end(self, begun: object, why: str) -> VnicError:
        """Breaks the channel; returns the error for an end within a message (begun) or between
        two."""
        self._broken = why
        return VnicError(why) if begun else Silent(why)

    def close(self) -> None:
        self._socket.close()


def _digest(document: bytes) -> str:
    """Digest of the configuration that the old worker stored when the upgrade began
    (Runtime.begin_upgrade). The stored bytes are compared, since another version may encode the
    same configuration differently."""
    return hashlib.sha256(document).hexdigest()


# -- the old worker --------------------------------------------------------------------------------


def give(runtime: Runtime, channel: Channel) -> dict[str, Any]:
    """Hands over every engine; returns the report. After an error, all engines run here as before;
    after Torn, this worker must end.

    {"engines": [{"name", "blackout_ms", "state_bytes", "packets_moved", "packets_lost",
                  "dropped": {reason: n}}...],
     "blackout_ms": the longest, "queue_drops": {nic: n},
     "packets_lost": all known losses; see vnic.daemon.upgrade_losses}
    """
    channel.send(config=_digest(encode_config(runtime.config)))
    channel.receive()
    channel.send(control=runtime.save_control())
    channel.receive()
    moved: list[Engine] = []
    drops_before, queues = drops_of(runtime.engines), runtime.nics.queue_drops()
    try:
        engines = [
            _give(runtime.group_of(engine), engine, channel, moved) for engine in runtime.engines
        ]
    except Torn:
        raise
    except BaseException:  # also a bug, here or in a user's element
        _take_back(runtime, moved, channel)
        raise
    drops_after: dict[str, Drops] = {}
    # The new worker has all engines: if it fails now, that is a crash.
    with suppress(VnicError, msgspec.ValidationError):
        channel.send(over=True)
        drops_after = msgspec.convert(channel.expect("books", dict), dict[str, Drops])
    for each in engines:
        each |= engine_losses(drops_before[each["name"]], drops_after.get(each["name"]))
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
    """Waits until the new worker owns the engine. Raises VnicError if it never will, Torn if that
    cannot be known."""
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
    """Moves engines back after a failure."""
    for engine in moved:
        try:
            channel.send(back=engine.name)
            load_engine(engine, channel.expect("state", bytes), again=True)
            channel.send(loaded=engine.name)
            channel.expect("forgotten", str)
            runtime.group_of(engine).resume(engine)
        except BaseException as error:
            raise Torn(f"engine {engine.name} cannot come back: {error}") from error


# -- the new worker --------------------------------------------------------------------------------


def take(runtime: Runtime, channel: Channel, document: bytes) -> None:
    """Takes over every engine and runs it. document: the configuration that was stored when this
    worker started. Raises VnicError on a failure, when the old worker has all engines or has
    requested those that were moved."""
    engines = {engine.name: engine for engine in runtime.engines}
    mine: set[str] = set()
    loading = {name: Loading(engine) for name, engine in engines.items()}
    failure: VnicError | None = None
    while True:
        try:
            message = channel.receive()
        except VnicError as error:
            if failure is None and mine == set(engines):
                return  # the old worker has ended; nothing more is needed from it
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
                    # first, since it fails if the old worker has shut down the socket
                    channel.send(mine=name)
                    mine.add(name)
                    runtime.group_of(engines[name]).resume(engines[name])
                    channel.send(running_ns=time.monotonic_ns())
                case {"back": str(name)}:
                    _give_back(runtime.group_of(engines[name]), engines[name], channel)
                    mine.discard(name)
                case {"over": True} if failure is None and mine == set(engines):
                    with suppress(Exception):  # only for the report
                        channel.send(books=drops_of(runtime.engines))
                    return
                case _:
                    raise VnicError(f"unexpected message {list(message)[:3]}")
        # also a bug, here or in a user's element: the engines must be moved back first
        except Exception as error:
            failure = failure or VnicError(one_line(error))
            # continue, until the old worker has requested its engines and closed the socket
            channel.send(error=str(failure))


def _give_back(group: EngineGroup, engine: Engine, channel: Channel) -> None:
    group.halt(engine)
    channel.send(state=save_engine(engine))
    channel.receive()
    forget_engine(engine)
    channel.send(forgotten=engine.name)
