"""NICs of kind `memif`: shared-memory rings of another program, such as VPP or one that uses DPDK
or libmemif.

The socket is vnic's (`listen`: the server, memif's master), or the program's (`connect`: the
client, which makes the memory). What the peer has said is stored after each message, with the
sockets and descriptors, so that the next worker carries on without a word to it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.descriptors import close_all, system_error
from dataplane.errors import ConfigError, VnicError
from vnic.device.kinds.contract import NicKind, Origin, Settings, UncontainedNic
from vnic.device.kinds.unix_sockets import check_paths, listen_at

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from virt.memif.connection import Connection
    from virt.memif.session import Books, Session
    from virt.memif_port import MemifPort
    from vnic.device.memif import MemifDevice

# A message to the supervisor carries 134 descriptors: regions, sockets and two per queue pair.
QUEUES_MOST = 32
ANOTHER_VERSION = "a memif was stored by another version of vnic; use `vnic down` and `vnic up`"


class KeptMemif(msgspec.Struct, frozen=True):
    """The document that is stored. The descriptors are the listening socket, the connected socket,
    if there are, and one for each of `roles`. place: path, id, queues and ring size as
    configured."""

    books: msgspec.Raw
    place: tuple[str, int, int, int]
    listens: bool
    connected: bool
    roles: list[str]


class MemifNic(UncontainedNic):
    """A NIC whose frames another program sends and receives.

    `serve` gives it the thread of its engine; afterwards `ready` is to be called when one of
    `inputs` is readable, and now and then while it `seeks` a server to connect to.
    """

    port: MemifPort
    again_s: float | None = None  # see GuestNic: a memif has no commands to come back to

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
        self.listener: socket.socket | None = None
        self.problem = ""  # why the last peer was disconnected
        self._peer: Connection | None = None
        self._socket: socket.socket | None = None

    # -- the peer ----------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection | None:
        """That of a peer with which frames are exchanged."""
        peer = self._peer
        return peer if peer is not None and peer.session.books.connected else None

    @property
    def inputs(self) -> list[int]:
        """Descriptors to wait for."""
        return [each.fileno() for each in (self.listener, self._peer) if each is not None]

    @property
    def seeks(self) -> bool:
        """Whether it has yet to find the server's socket."""
        return self.settings.connect is not None and self._peer is None

    @property
    def path(self) -> str:
        """The socket's path."""
        return str(self.settings.listen or self.settings.connect)

    def serve(self, call: Callable[[Callable[[], object]], object]) -> None:
        """From now on, the port's engine runs. call: runs a function on the engine's thread."""
        self.device.call = call

    def end(self) -> None:
        """From now on, no engine serves the port."""
        self.device.call = lambda function: function()

    def ready(self) -> None:
        """Handles what has arrived, or tries to connect. A peer that is wrong is disconnected;
        `problem` says why."""
        if self.listener is not None:
            self._accept(self.listener)
        if self.seeks:
            self._connect()
        if self._peer is not None:
            self._do(self._peer, self._peer.read)

    def _accept(self, listener: socket.socket) -> None:
        """Takes a peer. One that has not said yet which interface and secret it has is dropped for
        it: it must not keep the interface from others."""
        from virt.memif import protocol

        try:
            accepted, _ = listener.accept()
        except OSError:  # none is there any more, or no descriptor is left
            return
        peer = self._peer
        if peer is not None and not peer.session.books.asked:
            self._disconnect(peer, "another client has connected before this one sent INIT")
            peer = None
        if peer is not None:
            with accepted, suppress(OSError):
                accepted.send(protocol.disconnect("already connected"), socket.MSG_DONTWAIT)
            return
        made = self._join(accepted)
        self._do(made, made.begin)

    def _connect(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            made.setblocking(False)
            made.connect(str(self.settings.connect))
        except OSError as error:
            made.close()
            self.problem = f"{self.settings.connect}: {system_error(error)}"
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                self.problem += ": waiting for a memif server to listen there"
            elif error.errno == errno.EACCES:
                self.problem += f": vnic's user, {os.geteuid()}, needs the right to write to it"
            return
        self._join(made)

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
        self._peer, self._socket = Connection(connected, session, self._store), connected
        return self._peer

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
        self.problem, self._peer, self._socket = why, None, None
        with suppress(VnicError):  # the supervisor does not answer, and is stored to again
            peer.close(why)

    def resume(self, kept: KeptMemif, descriptors: Sequence[int]) -> None:
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
        sockets = [each for each in (self.listener, self._socket) if each is not None]
        kept = KeptMemif(
            books=msgspec.Raw(msgspec.json.encode(books)),
            place=_place(self.settings),
            listens=self.listener is not None,
            connected=self._socket is not None,
            roles=list(descriptors),
        )
        self._origin.keep(
            msgspec.json.encode(kept),
            [*(each.fileno() for each in sockets), *descriptors.values()],
        )

    def listen(self) -> None:
        """Makes the socket of `listen`. Raises ConfigError, PortError."""
        from virt.memif.session import Books

        if self.settings.listen is not None:
            self.listener = listen_at(self.settings, socket.SOCK_SEQPACKET)
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
        if self._peer is not None:
            self._disconnect(self._peer, "the NIC was detached")
        if self.listener is not None:
            self.listener.close()
            self.listener = None
            with suppress(OSError):
                os.unlink(str(self.settings.listen))
        super().close()


class MemifKind(NicKind[MemifNic]):
    """Shared-memory rings of another program."""

    NAME = "memif"
    SETTINGS = frozenset(
        {
            "listen", "connect", "socket_mode", "socket_group", "mac", "mtu", "queues", "rss",
            "id", "secret", "ring_size", "mode",
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
        kept, descriptors = _kept(settings, origin)
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


def _place(settings: Settings) -> tuple[str, int, int, int]:
    path = str(settings.listen or settings.connect)
    return path, settings.id, settings.queues, settings.ring_size


def _kept(settings: Settings, origin: Origin) -> tuple[KeptMemif | None, list[int]]:
    """What the last worker stored, and its descriptors; None if it is of a NIC with other
    settings: that worker died after it had stored new ones."""
    found = origin.kept()
    if found is None:
        return None, []
    try:
        kept = msgspec.json.decode(found[0], type=KeptMemif)
    except msgspec.MsgspecError:
        close_all(found[1])
        raise VnicError(ANOTHER_VERSION) from None
    if kept.place == _place(settings):
        return kept, found[1]
    close_all(found[1])
    return None, []


def _check(settings: Settings) -> None:
    """Raises ConfigError for settings that do not fit each other."""
    from virt.memif.session import BUFFER_BYTES, MEMORY_BYTES_MOST

    check_paths(settings)
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
