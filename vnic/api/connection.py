"""A control client's connection: requests and replies with descriptors, bounded in size and time.

asyncio's streams read with recv(2), which loses descriptors (SCM_RIGHTS); so this module reads the
socket itself, when the loop reports it readable.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from dataplane.descriptors import close_all, receive_with_descriptors
from vnic.api.interface import DESCRIPTORS_MOST, REQUEST_MOST, SERVICE
from vnic.api.method import Session
from vnic.api.methods import ErrorReply
from vnic.config.schema import encode_scalar

# a client that sends nothing, or does not read its reply, for so long is disconnected
IDLE_S = 120.0
REQUEST_S = 10.0  # from a request's first byte to its last
# of a client that is not the owner: twice a call's number; they count against the worker's limit
OTHERS_DESCRIPTORS_MOST = 4
PIECE = 1 << 16


class Transfer(NamedTuple):
    """A client's connection to pass to the next worker."""

    descriptor: int
    begun: bytes  # bytes read but not answered
    came_with: list[int]  # descriptors received with those
    captures: list[int]  # numbers of the captures that end with the connection
    policy: int | None = None  # the generation of the policy of shaping that it holds


class Connection:
    """A client's connection; owns the socket. begun, descriptors: those that a previous worker read
    but did not answer."""

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        begun: bytes = b"",
        descriptors: Sequence[int] = (),
    ) -> None:
        sock.setblocking(False)
        self.socket, self.session = sock, session
        # received, not answered: a partial request, or pipelined ones
        self.buffer = bytearray(begun)
        self.streaming = b""  # the request of a running stream
        # request that waits for the end of an upgrade, and its descriptors
        self.waiting: tuple[bytes, list[int]] | None = None
        self.admitted = False  # it counts towards the limit of clients
        self.answering = False  # a request's reply is not sent yet
        self.task: asyncio.Task[None] | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._most = DESCRIPTORS_MOST if session.is_owner else OTHERS_DESCRIPTORS_MOST
        self._taken = 0  # bytes of earlier requests
        # Descriptors, each with the end of the bytes that came with it, as position in the stream.
        self._descriptors = [(len(begun), each) for each in descriptors]

    # -- reading -----------------------------------------------------------------------------------

    async def request(self) -> tuple[bytes, list[int]] | None:
        """The next request without its NUL, and its descriptors; None at the end. Raises
        ErrorReply, TimeoutError, OSError."""
        looked, loop = 0, asyncio.get_running_loop()
        deadline: float | None = None
        while (end := self.buffer.find(b"\0", looked)) < 0:
            looked = len(self.buffer)
            if looked > REQUEST_MOST:
                # The beginning of the next request is unknown.
                raise ErrorReply(f"{SERVICE}.InvalidParameter", parameter="message")
            if looked and deadline is None:
                deadline = loop.time() + REQUEST_S  # also for a client that sends single bytes
            # A client that captures or holds a policy may send nothing for hours.
            holds = self.session.captures or self.session.policy is not None
            patience = None if holds else IDLE_S
            left = patience if deadline is None else max(deadline - loop.time(), 0.0)
            # Not wait_for: Python 3.11's loses a cancellation that comes together with bytes.
            async with asyncio.timeout(left):
                if not await self.fill():
                    return None
        request = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        self._taken += end + 1
        # A read never goes beyond a message with descriptors, so those belong to its last bytes.
        mine = [descriptor for place, descriptor in self._descriptors if place <= self._taken]
        self._descriptors = self._descriptors[len(mine) :]
        return request, mine

    async def fill(self) -> bool:
        """Waits for bytes and reads them; False at the end. Raises ErrorReply for too many or lost
        descriptors, OSError."""
        while True:
            await self._open.wait()
            try:
                data, found, lost = receive_with_descriptors(self.socket, PIECE, DESCRIPTORS_MOST)
            except BlockingIOError:
                await self._ready(
                    asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader
                )
                continue
            self.buffer += data
            self._descriptors += [(self._taken + len(self.buffer), each) for each in found]
            if lost or len(self._descriptors) > self._most:
                raise ErrorReply(
                    f"{SERVICE}.InvalidParameter", parameter=f"more than {self._most} descriptors"
                )
            return bool(data)

    def pause(self) -> None:
        """Stops reading until `resume`."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def unanswered(self) -> tuple[bytes, list[int]]:
        """The bytes and descriptors read but not answered; this object keeps the descriptors."""
        waiting, came_with = self.waiting or (b"", [])
        begun = self.streaming + (waiting + b"\0" if self.waiting else b"") + bytes(self.buffer)
        return begun, came_with + [descriptor for _, descriptor in self._descriptors]

    # -- writing -----------------------------------------------------------------------------------

    async def reply(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a reply. Raises TimeoutError if the client does not read, OSError if it is gone."""
        view = memoryview(msgspec.json.encode(message, enc_hook=encode_scalar) + b"\0")
        loop = asyncio.get_running_loop()
        while view:
            try:
                view = view[socket.send_fds(self.socket, [view], list(descriptors)) :]
                descriptors = ()  # sent with the first byte
            except BlockingIOError:
                async with asyncio.timeout(IDLE_S):
                    await self._ready(loop.add_writer, loop.remove_writer)

    async def _ready(self, add: Any, remove: Any) -> None:
        """Waits until the loop reports the socket readable, or writable."""
        ready = asyncio.Event()
        add(self.socket, ready.set)
        try:
            await ready.wait()
        finally:
            remove(self.socket)

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()
        close_all(descriptor for _, descriptor in self._descriptors)
        self._descriptors.clear()
