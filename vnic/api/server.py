"""The control API's server: answers each connection's requests in order, with limits per client.

Clients are this process' user, root, and the users under `clients:` in the configuration. No client
may harm others: requests are bounded in size and time, connections in number; a request that cannot
be parsed closes its sender's connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import closing, nullcontext, suppress
from typing import Any

import msgspec

from dataplane.errors import VnicError
from vnic.api.bounds import Turns
from vnic.api.connection import Connection, Transfer
from vnic.api.interface import INTERFACE, SERVICE
from vnic.api.method import Caller, Reply, Session
from vnic.api.methods import Call, ErrorReply, Methods, error_reply

CLIENTS_MOST = 256
CLIENTS_OF_A_USER_MOST = 32  # of a user that is not the instance's owner, so that all find room
ACCEPT_PAUSE_S = 0.1  # while no descriptor is available


class Server:
    """Serves `methods` on a listening socket."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None  # a pause in accepting
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes = asyncio.Event()
        self._changes.set()
        self._turns = Turns()

    async def start(self, listener: socket.socket) -> None:
        """Accepts clients on `listener`, which the server owns from now on. The supervisor has
        called listen(2), since clients see the caller's credentials (SO_PEERCRED, unix(7))."""
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def _accept(self) -> None:
        """Accepts a waiting client. Not in a task: an upgrade may begin in any turn of the loop,
        and must hand over every accepted client."""
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            self._pause = loop.call_later(
                ACCEPT_PAUSE_S, loop.add_reader, self._listener, self._accept
            )
            return
        try:
            self._serve(sock)
        except OSError:  # the client is gone already
            sock.close()

    def _serve(
        self,
        sock: socket.socket,
        begun: bytes = b"",
        descriptors: Sequence[int] = (),
        captures: Sequence[int] = (),
        policy: int | None = None,
    ) -> None:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        connection = Connection(sock, Session(uid, pid, set(captures), policy), begun, descriptors)
        self._connections.add(connection)
        connection.task = asyncio.get_running_loop().create_task(self._connected(connection))
        self._tasks.add(connection.task)
        connection.task.add_done_callback(self._tasks.discard)

    def stop_accepting(self) -> None:
        """New clients then wait in the listening socket's backlog, for another worker, or until
        `start` with another descriptor of the socket."""
        if self._listener is None:
            return
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listener = None

    async def close(self) -> None:
        """Closes all connections."""
        self.stop_accepting()
        await asyncio.gather(*self.let_go(), return_exceptions=True)

    # -- connections of an upgrade -----------------------------------------------------------------

    async def hold(self, uid: int) -> None:
        """Begins an upgrade: waits for the present change; later requests for changes wait for the
        upgrade's end (Snap's brownout, section 4), and the worker that runs then answers them. uid:
        of the user who requested it."""
        async with self._turns.turn(uid):
            self._changes.clear()

    def release(self) -> None:
        """The upgrade failed: this worker answers the waiting requests."""
        self._changes.set()

    def pause(self) -> None:
        """Stops reading from clients until `resume`; received bytes are in `Connection.buffer`."""
        for connection in self._connections:
            connection.pause()

    def resume(self) -> None:
        """Continues after `pause`."""
        for connection in self._connections:
            connection.resume()

    def idle(self) -> list[Transfer]:
        """After `pause`: the clients to pass to the next server, with descriptors that stay ours.
        Leaves out clients whose reply is being sent, since another process cannot continue a
        partial message."""
        return [
            Transfer(
                connection.socket.fileno(),
                *connection.unanswered(),
                sorted(connection.session.captures),
                connection.session.policy,
            )
            for connection in self._connections
            if not connection.answering and connection.task is not asyncio.current_task()
        ]

    def let_go(self) -> list[asyncio.Task[None]]:
        """Cancels the tasks that serve clients, except the calling one, and returns them. In an
        upgrade, called once the next server has the clients: this worker writes no more to them."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        return tasks

    def adopt(self, client: Transfer) -> None:
        """Serves a client of the previous worker."""
        self._serve(
            socket.socket(fileno=client.descriptor),
            client.begun,
            client.came_with,
            client.captures,
            client.policy,
        )

    # -- a connection ------------------------------------------------------------------------------

    async def _connected(self, connection: Connection) -> None:
        try:
            self._admit(connection.session)
            connection.admitted = True
            await self._converse(connection)
        except (ErrorReply, VnicError) as error:
            connection.answering = True  # the last reply
            with suppress(OSError, TimeoutError):
                await connection.reply(error_reply(error, ""))
        except (TimeoutError, OSError):
            pass  # it disconnected, or was idle for too long
        finally:
            self._connections.discard(connection)
            connection.close()
            self._methods.ended(connection.session)

    def _admit(self, session: Session) -> None:
        """Raises an error if a client may not connect."""
        self._methods.admit(session)
        # The owner's clients are counted separately, so that others cannot use up their number.
        admitted = [each.session for each in self._connections if each.admitted]
        if sum(each.is_owner == session.is_owner for each in admitted) >= CLIENTS_MOST:
            raise VnicError(
                f"{CLIENTS_MOST} clients are connected already; try again", code="limit"
            )
        theirs = sum(each.uid == session.uid for each in admitted)
        if not session.is_owner and theirs >= CLIENTS_OF_A_USER_MOST:
            message = f"{session.who} has {CLIENTS_OF_A_USER_MOST} connections already; close some"
            raise VnicError(message, code="limit")

    async def _converse(self, connection: Connection) -> None:
        while (received := await connection.request()) is not None:
            request, descriptors = received
            with closing(Caller(connection.session, descriptors)) as caller:
                try:
                    call = msgspec.json.decode(request, type=Call)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    raise ErrorReply(f"{SERVICE}.InvalidParameter", parameter="message") from None
                try:
                    if (stream := self._methods.stream(call, caller)) is None:
                        answer = await self._answer(connection, call, caller, received)
                except Exception as error:
                    caller.close()  # before the reply: passed descriptors are closed by then
                    if not call.oneway:
                        await connection.reply(error_reply(error, call.method))
                    connection.answering = False
                    continue
                if stream is not None:
                    connection.answering = True
                    await self._pour(connection, stream, call.method, request)
                    return
                caller.close()
                await self._reply(connection, call, answer)
                connection.answering = False

    async def _answer(
        self, connection: Connection, call: Call, caller: Caller, received: tuple[bytes, list[int]]
    ) -> dict[str, Any]:
        """The reply to a call. A change waits for an upgrade's end and for its user's turn."""
        uid, connection.waiting = (
            connection.session.uid,
            received if self._methods.waits(call) else None,
        )
        async with self._turns.turn(uid) if self._methods.takes_turns(call) else nullcontext():
            if connection.waiting is not None:
                await self._changes.wait()
                connection.waiting = None
            connection.answering = True
            return await self._methods.answer(call, caller)

    async def _reply(self, connection: Connection, call: Call, answer: dict[str, Any]) -> None:
        descriptors = answer.descriptors if isinstance(answer, Reply) else []
        try:
            if not call.oneway:
                await connection.reply({"parameters": answer}, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if call.method == f"{INTERFACE}.Shutdown":
            self._methods.shut_down()

    async def _pour(
        self,
        connection: Connection,
        stream: AsyncIterator[dict[str, Any]],
        method: str,
        request: bytes,
    ) -> None:
        """Sends a stream's replies until the client disconnects or sends anything, which the
        protocol does not permit here."""
        connection.streaming = request + b"\0"
        loop = asyncio.get_running_loop()
        end = loop.create_task(connection.fill())
        try:
            while True:
                connection.answering = False
                item: asyncio.Task[dict[str, Any]] = loop.create_task(
                    anext(stream)  # type: ignore[arg-type]
                )
                try:
                    done, _ = await asyncio.wait((item, end), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not item.done():
                        item.cancel()
                        await asyncio.wait((item,))  # else the iterator could not be closed
                if end in done:
                    return
                if (error := item.exception()) is not None:
                    await connection.reply(error_reply(error, method))
                    return
                connection.answering = True
                await connection.reply({"parameters": item.result(), "continues": True})
        finally:
            end.cancel()
            await asyncio.wait((end,))
            connection.streaming = b""
            with suppress(RuntimeError, asyncio.CancelledError):
                await stream.aclose()  # type: ignore[attr-defined]
