"""The control API's server: connections, one request after the other, every client bounded.

A client is whoever can open the socket, and only our own user and root may. Even so nothing it sends may hurt others: requests
are bounded in size, connections in number and idle time; what cannot be parsed costs its sender the connection, nobody else.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec

from vnic.control.api import BACKLOG, INTERFACE, REQUEST_MOST, SERVICE
from vnic.control.methods import Call, ErrorReply, Methods, Session, error_reply
from vnic.control.schema import encode_scalar

CLIENTS_MOST = 256
IDLE_S = 120.0  # a client that sends nothing, or does not read its reply, for so long is cut off
PIECE = 1 << 16


class Connection:
    """A client that is being served."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session, begun: bytes) -> None:
        self.reader, self.writer, self.session = reader, writer, session
        self.buffer = bytearray(begun)  # what came and is not answered: part of a request, and those that were sent ahead
        self.streaming = b""  # the request whose replies go on
        self.task: asyncio.Task[None] | None = None

    async def request(self) -> bytes | None:
        """The next request without its NUL, None at the end. Raises ErrorReply, TimeoutError, OSError."""
        looked = 0
        while (end := self.buffer.find(b"\0", looked)) < 0:
            looked = len(self.buffer)
            if looked > REQUEST_MOST:
                # Where the next request would begin is anybody's guess.
                raise ErrorReply(f"{SERVICE}.InvalidParameter", parameter="message")
            # Whoever captures has nothing to say for hours.
            data = await asyncio.wait_for(self.reader.read(PIECE), None if self.session.captures else IDLE_S)
            if not data:
                return None
            self.buffer += data
        request = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return request

    async def reply(self, message: dict[str, Any]) -> None:
        """Raises TimeoutError where the client does not read, OSError where it is gone."""
        self.writer.write(msgspec.json.encode(message, enc_hook=encode_scalar) + b"\0")
        await asyncio.wait_for(self.writer.drain(), IDLE_S)


class Server:
    """Serves `methods` on a listening socket."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accepts clients; the listener is the server's now."""
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, backlog=BACKLOG)

    def stop_accepting(self) -> None:
        """New clients wait in the listening socket's queue, for whoever accepts them next; `start` with another of it goes on."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Hangs up on everybody."""
        self.stop_accepting()
        connections = list(self._connections)
        for connection in connections:
            connection.writer.close()
        for connection in connections:
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(connection.writer.wait_closed(), 1.0)

    # -- connections of an upgrade -----------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Nothing is read from any client until `resume`; what came is in the connections' buffers."""
        for connection in self._connections:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(3):  # what the loop has read already reaches its reader: two turns, and one to spare
            await asyncio.sleep(0)

    def resume(self) -> None:
        """Goes on after `pause`."""
        for connection in self._connections:
            with suppress(RuntimeError):  # closed meanwhile
                connection.writer.transport.resume_reading()  # type: ignore[attr-defined]

    def idle(self) -> list[tuple[int, bytes, tuple[int, int]]]:
        """After `pause`: of each client that waits for nothing, or for the next reply of a stream, its descriptor (still ours), what the
        next server is to read first, and its uid and pid. Not of those that capture: captures end with this worker."""
        found = []
        for connection in self._connections:
            busy = connection.task is asyncio.current_task() or connection.session.captures
            sock = connection.writer.get_extra_info("socket")
            if not busy and sock is not None and sock.fileno() >= 0:
                begun = connection.streaming + bytes(connection.buffer)
                found.append((sock.fileno(), begun, (connection.session.uid, connection.session.pid)))
        return found

    async def adopt(self, sock: socket.socket, begun: bytes) -> None:
        """Serves a client of the worker before; `begun` is what that one read and did not answer."""
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        task = asyncio.get_running_loop().create_task(self._connected(reader, writer, begun))
        task.add_done_callback(lambda done: done.exception())

    # -- a connection ------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begun: bytes = b"") -> None:
        credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        connection = Connection(reader, writer, Session(uid, pid), begun)
        connection.task = asyncio.current_task()
        try:
            if uid not in (0, os.geteuid()):
                await connection.reply(ErrorReply(f"{SERVICE}.PermissionDenied").reply)
            elif len(self._connections) >= CLIENTS_MOST:
                message = f"{CLIENTS_MOST} clients are connected already; try again"
                await connection.reply(ErrorReply(f"{INTERFACE}.Failed", message=message).reply)
            else:
                self._connections.add(connection)
                await self._converse(connection)
        except ErrorReply as error:
            with suppress(OSError, TimeoutError):
                await connection.reply(error.reply)
        except (TimeoutError, OSError):
            pass  # it hung up, or fell asleep
        finally:
            self._connections.discard(connection)
            self._methods.end(connection.session)
            writer.close()

    async def _converse(self, connection: Connection) -> None:
        while (request := await connection.request()) is not None:
            try:
                call = msgspec.json.decode(request, type=Call)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise ErrorReply(f"{SERVICE}.InvalidParameter", parameter="message") from None
            try:
                stream = self._methods.stream(call)
            except msgspec.MsgspecError as error:
                await connection.reply(error_reply(error, call.method))
                continue
            if stream is not None:
                await self._pour(connection, stream, call.method, request)
                return
            reply = await self._methods.answer(call, connection.session)
            if not call.oneway:
                await connection.reply(reply)
            if call.method == f"{INTERFACE}.Shutdown" and "error" not in reply:
                self._methods.shut_down()

    async def _pour(self, connection: Connection, stream: AsyncIterator[dict[str, Any]], method: str, request: bytes) -> None:
        """Replies without end, until the client hangs up (or sends anything: it has no more to ask on this connection)."""
        connection.streaming = request + b"\0"
        loop = asyncio.get_running_loop()
        end = loop.create_task(connection.reader.read(1))
        try:
            while True:
                item: asyncio.Task[dict[str, Any]] = loop.create_task(anext(stream))  # type: ignore[arg-type]
                done, _ = await asyncio.wait((item, end), return_when=asyncio.FIRST_COMPLETED)
                if end in done:
                    item.cancel()
                    return
                if (error := item.exception()) is not None:
                    await connection.reply(error_reply(error, method))
                    return
                await connection.reply({"parameters": item.result(), "continues": True})
        finally:
            end.cancel()
            connection.streaming = b""
            with suppress(RuntimeError, asyncio.CancelledError):
                await stream.aclose()  # type: ignore[attr-defined]
