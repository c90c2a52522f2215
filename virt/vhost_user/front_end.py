"""A front end for tests, in plain Python: the other side of every message.

It sends what it is told, right or wrong, and checks what it receives. handshakes.py has the orders
in which QEMU, User-mode Linux and DPDK do it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from dataplane.descriptors import close_all, receive_with_descriptors
from virt.vhost_user import messages
from virt.vhost_user.guest_memory import GuestMemory
from virt.vhost_user.messages import HEADER, STATE, U64, Area
from virt.vhost_user.protocol import (
    MOST_DESCRIPTORS,
    NEED_REPLY,
    NO_DESCRIPTOR,
    REPLY,
    RING_LOG,
    VERSION,
    BackendRequest,
    ProtocolFeature,
    Request,
)

TIMEOUT_S = 60.0  # only ends a hang


class FrontEndError(Exception):
    """The back end has closed the connection, or its reply is not that of the request."""


class Notifiers(NamedTuple):
    """eventfds of a ring."""

    kick: int
    call: int
    error: int


class FrontEnd:
    """A front end with the memory of one guest, and eventfds for its rings. Close it, or use it as
    a context manager.

    sock   a connected Unix stream socket, which the front end closes
    memory likewise
    rings  how many rings have eventfds
    turn   called after each message: lets a back end in the same thread handle it
    ring_size  entries of each ring
    """

    def __init__(
        self,
        sock: socket.socket,
        memory: GuestMemory,
        *,
        rings: int = 2,
        ring_size: int = 256,
        turn: Callable[[], object] = lambda: None,
    ) -> None:
        self.sock, self.memory, self.turn, self.ring_size = sock, memory, turn, ring_size
        sock.settimeout(TIMEOUT_S)
        self.notifiers = [
            Notifiers(*(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)))
            for _ in range(rings)
        ]
        self.sent: list[str] = []  # names of messages
        self.features = self.protocol_features = 0  # as acknowledged
        self.received: list[int] = []  # descriptors that came with replies
        self.requests: socket.socket | None = None  # our end of SET_BACKEND_REQ_FD

    @classmethod
    def connect(cls, path: str, memory: GuestMemory, *, rings: int = 2) -> Self:
        """Connects to a listening back end."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return cls(sock, memory, rings=rings)

    @classmethod
    def listen(cls, path: str, memory: GuestMemory, *, rings: int = 2) -> Self:
        """Waits for a back end to connect, as QEMU does with server=on."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(1)
            server.settimeout(TIMEOUT_S)
            return cls(server.accept()[0], memory, rings=rings)

    def close(self) -> None:
        """Disconnects, and frees everything."""
        self.sock.close()
        if self.requests is not None:
            self.requests.close()
        for notifiers in self.notifiers:
            close_all(notifiers)
        close_all(self.received)
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- bytes -----------------------------------------------------------------------------------

    def send(
        self,
        request: int,
        payload: bytes = b"",
        descriptors: Iterable[int] = (),
        *,
        flags: int = VERSION,
    ) -> None:
        """Sends a message, and lets the back end handle it."""
        self.sent.append(Request(request).name)
        data = HEADER.pack(request, flags, len(payload)) + payload
        try:
            socket.send_fds(self.sock, [data], list(descriptors))
        except ConnectionError as error:
            raise FrontEndError(f"{self.sent[-1]}: {error}") from None
        self.turn()

    def reply(self, request: int) -> bytes:
        """Receives the reply to a request. Descriptors that come with it are in `received`."""
        head = self._receive(HEADER.size)
        number, flags, size = HEADER.unpack(head)
        if number != request or flags != VERSION | REPLY:
            raise FrontEndError(f"reply {number} with flags {flags:#x} to {Request(request).name}")
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            try:
                data, descriptors, _ = receive_with_descriptors(
                    self.sock, size - len(found), MOST_DESCRIPTORS
                )
            except ConnectionError:
                data, descriptors = b"", []
            self.received += descriptors
            if not data:
                raise FrontEndError("the back end has closed the connection")
            found += data
        return found

    def ask(self, request: int, payload: bytes = b"", descriptors: Iterable[int] = ()) -> bytes:
        """Sends a message that has a reply of its own. Returns the reply's payload."""
        self.send(request, payload, descriptors)
        return self.reply(request)

    def tell(self, request: int, payload: bytes = b"", descriptors: Iterable[int] = ()) -> bool:
        """Sends a message, and asks for an acknowledgement if that is agreed on. Returns False if
        the back end refuses."""
        if not self.protocol_features & ProtocolFeature.REPLY_ACK:
            self.send(request, payload, descriptors)
            return True
        self.send(request, payload, descriptors, flags=VERSION | NEED_REPLY)
        return self.reply(request) == U64.pack(0)

    # -- messages --------------------------------------------------------------------------------

    def ask_number(self, request: Request) -> int:
        """The u64 that a request without payload asks for."""
        return int(U64.unpack(self.ask(request))[0])

    def set_number(self, request: Request, value: int, *, tell: bool = False) -> None:
        """A message whose payload is a u64. tell: waits for an acknowledgement."""
        if tell:
            self.tell(request, U64.pack(value))
        else:
            self.send(request, U64.pack(value))

    def set_features(self, features: int, *, tell: bool = False) -> None:
        """SET_FEATURES."""
        self.features = features
        self.set_number(Request.SET_FEATURES, features, tell=tell)

    def agree(self, wanted: ProtocolFeature) -> None:
        """GET_PROTOCOL_FEATURES, and SET_PROTOCOL_FEATURES with what of it is wanted."""
        offered = self.ask_number(Request.GET_PROTOCOL_FEATURES)
        self.set_number(Request.SET_PROTOCOL_FEATURES, offered & wanted)
        self.protocol_features = offered & wanted

    def set_ring(self, request: Request, ring: int, number: int, *, tell: bool = False) -> None:
        """A message of a ring and a number."""
        (self.tell if tell else self.send)(request, STATE.pack(ring, number))

    def set_notifier(self, request: Request, ring: int, *, tell: bool = False) -> None:
        """SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR with the ring's eventfd."""
        which = {
            Request.SET_VRING_KICK: self.notifiers[ring].kick,
            Request.SET_VRING_CALL: self.notifiers[ring].call,
            Request.SET_VRING_ERR: self.notifiers[ring].error,
        }
        (self.tell if tell else self.send)(request, U64.pack(ring), [which[request]])

    def set_polled(self, request: Request, ring: int) -> None:
        """The same without a descriptor."""
        self.send(request, U64.pack(ring | NO_DESCRIPTOR))

    def set_addresses(
        self, ring: int, *, logged: bool = False, log: int = 0, tell: bool = False
    ) -> None:
        """SET_VRING_ADDR with the ring's place in guest memory."""
        place = self.memory.ring(ring)
        payload = messages.ADDRESSES.pack(
            ring,
            RING_LOG if logged else 0,
            self.memory.user_address(place.descriptors),
            self.memory.user_address(place.used),
            self.memory.user_address(place.available),
            log,
        )
        (self.tell if tell else self.send)(Request.SET_VRING_ADDR, payload)

    def set_memory(self, *, tell: bool = False, padding: int = 0) -> None:
        """SET_MEM_TABLE with all regions; `padding` bytes behind them."""
        areas = self.memory.areas
        payload = messages.TABLE.pack(len(areas), 0)
        payload += b"".join(messages.REGION.pack(*area) for area in areas) + bytes(padding)
        descriptors = [self.memory.descriptor] * len(areas)
        (self.tell if tell else self.send)(Request.SET_MEM_TABLE, payload, descriptors)

    def change_memory(self, request: Request, area: Area, *, tell: bool = True) -> None:
        """ADD_MEM_REG or REM_MEM_REG."""
        payload = messages.PADDING.pack(0) + messages.REGION.pack(*area)
        descriptors = [self.memory.descriptor] if request is Request.ADD_MEM_REG else []
        (self.tell if tell else self.send)(request, payload, descriptors)

    def get_config(self, offset: int, size: int) -> bytes:
        """GET_CONFIG: `size` bytes of the configuration space."""
        payload = messages.CONFIG.pack(offset, size, 0) + bytes(size)
        return self.ask(Request.GET_CONFIG, payload)[messages.CONFIG.size :]

    def get_base(self, ring: int) -> int:
        """GET_VRING_BASE: stops the ring, and returns where it is."""
        _, base = STATE.unpack(self.ask(Request.GET_VRING_BASE, STATE.pack(ring, 0)))
        return int(base)

    def open_requests(self, *, tell: bool = False) -> None:
        """SET_BACKEND_REQ_FD with one end of a new pair of sockets."""
        if self.requests is not None:
            self.requests.close()
        self.requests, theirs = socket.socketpair()
        self.requests.settimeout(TIMEOUT_S)
        with theirs:
            send = self.tell if tell else self.send
            send(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])

    def next_request(self) -> BackendRequest:
        """Waits for a message of the back end."""
        assert self.requests is not None
        number, _, size = HEADER.unpack(self.requests.recv(HEADER.size))
        self.requests.recv(size)
        return BackendRequest(number)
