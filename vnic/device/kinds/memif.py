"""NICs of kind `memif`: shared-memory rings of another program, such as VPP or one that uses DPDK
or libmemif.

The socket is vnic's (`listen`: the server, memif's master), or the program's (`connect`: the
client, which makes the memory). What the peer has said is stored after each message, with the
sockets and descriptors, so that the next worker carries on without a word to it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.descriptors import close_all
from dataplane.errors import ConfigError, VnicError
from vnic.device.kinds.contract import NicKind, Origin, Settings
from vnic.device.kinds.sockets import (
    ANOTHER_VERSION,
    KeptOf,
    SocketNic,
    check_places,
    connect_advice,
    kept_of,
)

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from virt.memif.connection import Connection
    from virt.memif.session import Books, Session
    from virt.memif_port import MemifPort
    from vnic.device.memif import MemifDevice

# A message to the supervisor carries 134 descriptors: regions, sockets and two per queue pair.
QUEUES_MOST = 32


class Kept(KeptOf, frozen=True, kw_only=True):
    """The document that is stored. The descriptors are the listening socket, the connected socket,
    if there are, and one for each of `roles`. size: id, queues and ring size as configured."""

    books: msgspec.Raw
    size: tuple[int, int, int]
    listens: bool
    connected: bool
    roles: list[str]


class MemifNic(SocketNic):
    """A NIC whose frames another program sends and receives."""

    TYPE = socket.SOCK_SEQPACKET
    ADVICE = connect_advice("waiting for a memif server to listen there")

    port: MemifPort

    def __init__(
        self,
        settings: Settings,
        port: MemifPort,
        tx: Element,
        device: MemifDevice,
        origin: Origin,
    ) -> None:
        super().__init__(settings, port)
        self.tx, self.device, self._origin = tx, device, origin
        self._connection: Connection | None = None

    # -- the peer ----------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection | None:
        """That of a peer with which frames are exchanged."""
        found = self._connection
        return found if found is not None and found.session.books.connected else None

    @property
    def met(self) -> socket.socket | None:
        return None if self.connection is None else self.peer

    def inputs_of_peer(self) -> list[int]:
        return [] if self._connection is None else [self._connection.fileno()]

    def serve(self, call: Callable[[Callable[[], object]], object]) -> None:
        """From now on, the port's engine runs. call: runs a function on the engine's thread."""
        self.device.call = call

    def end(self) -> None:
        """From now on, no engine serves the port."""
        self.device.call = lambda function: function()

    def begin(self, connected: socket.socket) -> None:
        """A server greets its client; a client waits for that."""
        made = self._join(connected)
        if self.settings.listen is not None:
            self._do(made, made.begin)

    def refuse(self, accepted: socket.socket) -> None:
        """A peer that has not said yet which interface and secret it has gives way: it must not
        keep the interface from others."""
        from virt.memif import protocol

        there = self._connection
        if there is not None and not there.session.books.asked:
            self._disconnect(there, "another client has connected before this one sent INIT")
            self.begin(accepted)
            return
        with accepted, suppress(OSError):
            accepted.send(protocol.disconnect("already connected"), socket.MSG_DONTWAIT)

    def handle(self) -> None:
        """Handles the peer's messages. A peer that is wrong is disconnected; `problem` says why."""
        if self._connection is not None:
            self._do(self._connection, self._connection.read)

    def _join(
        self,
        connected: socket.socket,
        books: Books | None = None,
        descriptors: Mapping[str, int] | None = None,
    ) -> Connection:
        from virt.memif.connection import Connection
        from virt.memif.session import ClientSession, Interface, ServerSession

        settings = self.settings
        interface = Interface(
            name=settings.name,
            id=settings.id,
            secret=(settings.secret or "").encode(),
            queues=settings.queues,
            ring_size=settings.ring_size,
        )
        kind = ServerSession if settings.listen is not None else ClientSession
        session: Session = kind(interface, self.device, books, descriptors)
        self.peer = connected
        self._connection = Connection(connected, session, self._store)
        return self._connection

    def _do(self, peer: Connection, step: Callable[[], bool | None]) -> None:
        """Disconnects the peer where a step fails, or finds (False) that it is gone."""
        try:
            if step() is not False:
                if peer.session.books.connected:
                    self.problem = ""
                return
            why = "" if peer.session.books.connected else "the peer closed the connection"
        except (VnicError, OSError) as error:
            why = str(error)
        self._disconnect(peer, why)

    def _disconnect(self, peer: Connection, why: str) -> None:
        self.problem, self._connection, self.peer = why, None, None
        with suppress(VnicError):  # the supervisor does not answer, and is stored to again
            peer.close(why)

    def resume(self, kept: Kept, descriptors: Sequence[int]) -> None:
        """Carries on from what the last worker stored; takes over the descriptors. A peer that
        cannot be carried on with is disconnected. Raises VnicError, and then the descriptors are
        still the caller's."""
        from virt.memif.session import Books

        try:
            books = msgspec.json.decode(kept.books, type=Books)
        except msgspec.MsgspecError:
            raise VnicError(ANOTHER_VERSION) from None
        left = iter(descriptors)
        if kept.listens:
            self.listener = socket.socket(fileno=next(left))
        if not kept.connected:
            return
        connected = socket.socket(fileno=next(left))
        peer = self._join(connected, books, dict(zip(kept.roles, left, strict=True)))
        self._do(peer, peer.resume)

    def _store(self, books: Books | None, descriptors: Mapping[str, int]) -> None:
        sockets = [each for each in (self.listener, self.peer) if each is not None]
        kept = Kept(
            path=self.path,
            kind=MemifKind.NAME,
            books=msgspec.Raw(msgspec.json.encode(books)),
            size=_size(self.settings),
            listens=self.listener is not None,
            connected=self.peer is not None,
            roles=list(descriptors),
        )
        self._origin.keep(
            msgspec.json.encode(kept),
            [*(each.fileno() for each in sockets), *descriptors.values()],
        )

    def stored(self) -> None:
        """A listening socket has been made."""
        from virt.memif.session import Books

        self._store(Books(), {})

    # -- the NIC -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The NIC's state and settings, as a dict. guest: "connected", or "absent"; problem: why
        the last peer was disconnected, why there is none, or why no frames pass; role: "server" or
        "client"; peer: what the peer calls itself and its interface; queues_used: pairs that the
        peer has."""
        settings, queues = self.settings, self.port.queue_statistics()
        connection = self.connection
        books = None if connection is None else connection.session.books
        rings = [self.port.ring_state(ring) for ring in range(2 * self.port.queues)]
        broken = [(number, ring["broken"]) for number, ring in enumerate(rings) if ring["broken"]]
        problem = self.problem
        if books is not None:
            problem = "; ".join(f"ring {number} was stopped: {why}" for number, why in broken)
        return {
            "kind": MemifKind.NAME,
            "interface": self.path,
            "pid": None,
            "netns": None,
            "mac": self.mac,
            "mtu": settings.mtu,
            "queues": self.port.queues,
            "queues_used": 0 if books is None else max(len(books.s2m), len(books.m2s)),
            "offloads": [],
            "guest": "absent" if books is None else "connected",
            "problem": problem,
            "role": "client" if self.port.client else "server",
            "id": settings.id,
            "peer": None if books is None else {"name": books.peer, "interface": books.interface},
            "rings": rings,
            "rx_packets": sum(queue["rx_packets"] for queue in queues),
            "tx_packets": sum(queue["tx_packets"] for queue in queues),
        }

    def close(self) -> None:
        """Disconnects the peer and removes the socket of `listen`. Only when no engine serves the
        port any more."""
        if self._connection is not None:
            self._disconnect(self._connection, "the NIC was detached")
        super().close()


class MemifKind(NicKind[MemifNic]):
    """Shared-memory rings of another program."""

    NAME = "memif"
    SETTINGS = frozenset(
        {
            "listen", "connect", "socket_mode", "socket_group", "mac", "mtu", "queues", "rss",
            "id", "secret", "ring_size",
        }
    )  # fmt: skip
    WHY = "a program is behind its socket, and memif carries complete frames"

    def open(self, settings: Settings, number: int, origin: Origin) -> MemifNic:
        from dataplane.elements.nic_tx import NicTx
        from dataplane.elements.rss import Rss
        from virt.memif_port import MemifPort
        from vnic.device.memif import MemifDevice

        _check(settings)
        rss = Rss(settings.rss.key, settings.rss.table, queues=settings.queues)
        path = str(settings.listen or settings.connect)
        kept, descriptors = kept_of(Kept, self.NAME, path, origin)
        if kept is not None and kept.size != _size(settings):
            # that worker died after it had stored new settings
            close_all(descriptors)
            kept, descriptors = None, []
        port = MemifPort(
            settings.name,
            number=number,
            queues=settings.queues,
            mtu=settings.mtu,
            client=settings.connect is not None,
        )
        try:
            tx = NicTx(port, rss, name=f"{settings.name}.tx")
            nic = MemifNic(settings, port, tx, MemifDevice(port, rss), origin)
            if kept is None:
                nic.listen()
            else:
                nic.resume(kept, descriptors)
            return nic
        except BaseException:
            port.close()
            close_all(descriptors)
            raise


def _size(settings: Settings) -> tuple[int, int, int]:
    return settings.id, settings.queues, settings.ring_size


def _check(settings: Settings) -> None:
    """Raises ConfigError for settings that do not fit each other."""
    from virt.memif.session import BUFFER_BYTES, MEMORY_BYTES_MOST

    check_places(settings)
    label = f"nic {settings.name}"
    if settings.queues > QUEUES_MOST:
        raise ConfigError(
            f"{label}: queues: {settings.queues}: expected at most {QUEUES_MOST} of kind memif"
        )
    size = settings.ring_size
    if size & (size - 1):
        raise ConfigError(f"{label}: ring_size: {size}: expected a power of two")
    memory = 2 * settings.queues * size * BUFFER_BYTES
    if settings.connect is not None and memory > MEMORY_BYTES_MOST:
        raise ConfigError(
            f"{label}: ring_size: {size} of {settings.queues} queue pairs take {memory >> 20} MiB: "
            f"expected at most {MEMORY_BYTES_MOST >> 20} MiB"
        )
