"""A control client's connection: requests and replies with descriptors, each bounded in size and time.

asyncio's streams read with recv(2), which loses descriptors (SCM_RIGHTS); so the socket is read here, when the loop says that it can be.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from vnic.control.api import DESCRIPTORS_MOST, REQUEST_MOST, SERVICE
from vnic.control.methods import ErrorReply
from vnic.control.module import Session
from vnic.control.schema import encode_scalar
from vnic.device.descriptors import close_all, receive_with_descriptors

IDLE_S = 120.0  # a client that sends nothing, or does not read its reply, for so long is cut off
REQUEST_S = 10.0  # from a request's first byte to its last
OTHERS_DESCRIPTORS_MOST = 4  # of a client who is not the owner: twice what a call takes; they count against the worker's limit
PIECE = 1 << 16


class Transfer(NamedTuple):
    """A client on its way to the next worker."""

    descriptor: int
    begun: bytes  # what was read of it and not answered
    came_with: list[int]  # descriptors that came with that
    captures: list[int]  # numbers of those that end with it


class Connection:
    """A client that is being served, on a socket that is this object's. begun, descriptors: what a worker before us read from it and did
    not answer."""

    def __init__(self, sock: socket.socket, session: Session, begun: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        sock.setblocking(False)
        self.socket, self.session = sock, session
        self.buffer = bytearray(begun)  # what came and is not answered: part of a request, and those that were sent ahead
        self.streaming = b""  # the request whose replies go on
        self.waiting: tuple[bytes, list[int]] | None = None  # one that waits for the end of an upgrade, and what came with it
        self.admitted = False  # it counts among the clients that there may be
        self.answering = False  # a request was taken, and its reply has not gone out
        self.task: asyncio.Task[None] | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._most = DESCRIPTORS_MOST if session.is_owner else OTHERS_DESCRIPTORS_MOST
        self._taken = 0  # bytes of earlier requests
        # Descriptors, each with the place in the stream up to which the bytes reach that it came with.
        self._descriptors = [(len(begun), each) for each in descriptors]

    # -- reading -----------------------------------------------------------------------------------------------------------

    async def request(self) -> tuple[bytes, list[int]] | None:
        """The next request without its NUL, and its descriptors; None at the end. Raises ErrorReply, TimeoutError, OSError."""
        looked, loop = 0, asyncio.get_running_loop()
        deadline: float | None = None
        while (end := self.buffer.find(b"\0", looked)) < 0:
            looked = len(self.buffer)
            if looked > REQUEST_MOST:
                # Where the next request would begin is anybody's guess.
                raise ErrorReply(f"{SERVICE}.InvalidParameter", parameter="message")
            if looked and deadline is None:
                deadline = loop.time() + REQUEST_S  # a byte now and then does not keep a place here
            # Whoever captures has nothing to say for hours.
            patience = None if self.session.captures else IDLE_S
            left = patience if deadline is None else max(deadline - loop.time(), 0.0)
            # Not wait_for: where bytes and cancellation come at once, Python 3.11's forgets that it was cancelled.
            async with asyncio.timeout(left):
                if not await self.fill():
                    return None
        request = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        self._taken += end + 1
        # Of bytes that came together, the last belong to the message that the descriptors came with: a read never goes beyond it.
        mine = [descriptor for place, descriptor in self._descriptors if place <= self._taken]
        self._descriptors = self._descriptors[len(mine) :]
        return request, mine

    async def fill(self) -> bool:
        """Waits for bytes and takes them; False at the end. Raises ErrorReply where descriptors are too many or got lost, OSError."""
        while True:
            await self._open.wait()
            try:
                data, found, lost = receive_with_descriptors(self.socket, PIECE, DESCRIPTORS_MOST)
            except BlockingIOError:
                await self._ready(asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader)
                continue
            self.buffer += data
            self._descriptors += [(self._taken + len(self.buffer), each) for each in found]
            if lost or len(self._descriptors) > self._most:
                raise ErrorReply(f"{SERVICE}.InvalidParameter", parameter=f"more than {self._most} descriptors")
            return bool(data)

    def pause(self) -> None:
        """Nothing more is read until `resume`."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def unanswered(self) -> tuple[bytes, list[int]]:
        """What was read and not answered: bytes, and descriptors, which stay this object's."""
        waiting, came_with = self.waiting or (b"", [])
        begun = self.streaming + (waiting + b"\0" if self.waiting else b"") + bytes(self.buffer)
        return begun, came_with + [descriptor for _, descriptor in self._descriptors]

    # -- writing -----------------------------------------------------------------------------------------------------------

    async def reply(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Raises TimeoutError where the client does not read, OSError where it is gone."""
        view = memoryview(msgspec.json.encode(message, enc_hook=encode_scalar) + b"\0")
        loop = asyncio.get_running_loop()
        while view:
            try:
                view = view[socket.send_fds(self.socket, [view], list(descriptors)) :]
                descriptors = ()  # they went with the first byte
            except BlockingIOError:
                async with asyncio.timeout(IDLE_S):
                    await self._ready(loop.add_writer, loop.remove_writer)

    async def _ready(self, add: Any, remove: Any) -> None:
        """Waits until the loop says that the socket is readable, or writable."""
        ready = asyncio.Event()
        add(self.socket, ready.set)
        try:
            await ready.wait()
        finally:
            remove(self.socket)

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()
        close_all(descriptor for _, descriptor in self._descriptors)
        self._descriptors.clear()
