"""NICs of kind `stream`: frames over a stream socket, each behind its length, as QEMU's
`-netdev stream` has them, and passt.

The socket is vnic's (`listen`), or the peer's (`connect`), in the file system or at a loopback
address. The supervisor stores the sockets and the memory in which frames are that have passed in
part, so that the next worker goes on in the middle of a frame.

Sources: net/stream.c, net/stream_data.c and net/net.c of QEMU; passt(1).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.descriptors import close_all
from dataplane.errors import VnicError
from vnic.device.kinds.contract import NicKind, Origin, Settings
from vnic.device.kinds.sockets import KeptOf, SocketNic, check_places, connect_advice, kept_of

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from dataplane.ports.stream_port import StreamBuffers, StreamPort


class Kept(KeptOf, frozen=True, kw_only=True):
    """The document that is stored. The descriptors are, if there are, the listening socket, the
    connected socket, and the memory of frames that have passed in part."""

    listens: bool
    connected: bool


class StreamNic(SocketNic):
    """A NIC whose frames pass a stream socket."""

    ADVICE = connect_advice("waiting for the peer to listen there")

    port: StreamPort

    def __init__(self, settings: Settings, port: StreamPort, tx: Element, origin: Origin) -> None:
        super().__init__(settings, port)
        self.tx, self._origin = tx, origin
        self._buffers: StreamBuffers | None = None
        self._call: Callable[[Callable[[], object]], object] = lambda function: function()

    def serve(self, call: Callable[[Callable[[], object]], object]) -> None:
        """From now on, the port's engine runs."""
        self._call = call

    def end(self) -> None:
        """From now on, no engine serves the port."""
        self._call = lambda function: function()

    def inputs_of_peer(self) -> list[int]:
        """The engine reads the socket; it tells when the stream has ended."""
        return [] if self.peer is None else [self.port.gone]

    def begin(self, connected: socket.socket) -> None:
        """Stores the socket, then has the engine serve it."""
        from dataplane.ports.stream_port import StreamBuffers

        connected.setblocking(False)
        self.peer, self.problem = connected, ""
        try:
            if connected.family != socket.AF_UNIX:
                # a frame must not wait for the acknowledgement of the last one
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffers = StreamBuffers()
            # Stored before its first byte is read: a worker that is killed has read none.
            self._keep()
            self._connect_port()
        except (VnicError, OSError) as error:
            self._disconnect(str(error))

    def _connect_port(self) -> None:
        peer, buffers = self.peer, self._buffers
        assert peer is not None
        assert buffers is not None
        self._call(lambda: self.port.connect(peer.fileno(), buffers))

    def handle(self) -> None:
        """Disconnects a peer whose stream has ended; `problem` says why, if it did not close it."""
        if self.peer is not None and not self.port.connected:
            with suppress(BlockingIOError):
                os.eventfd_read(self.port.gone)
            self._disconnect(self.port.problem)

    def _disconnect(self, why: str) -> None:
        peer, buffers, self.peer, self._buffers = self.peer, self._buffers, None, None
        self.problem = why
        self._call(self.port.disconnect)
        with suppress(VnicError):  # the supervisor does not answer, and is stored to again
            self._keep()
        if peer is not None:
            peer.close()
        if buffers is not None:
            buffers.close()

    def stored(self) -> None:
        """A listening socket has been made."""
        self._keep()

    def _keep(self) -> None:
        sockets = [each.fileno() for each in (self.listener, self.peer) if each is not None]
        kept = Kept(
            path=self.path,
            kind=StreamKind.NAME,
            listens=self.listener is not None,
            connected=self.peer is not None,
        )
        buffers = [] if self._buffers is None else [self._buffers.fd]
        self._origin.keep(msgspec.json.encode(kept), [*sockets, *buffers])

    def resume(self, kept: Kept, descriptors: Sequence[int]) -> None:
        """Goes on from what the last worker stored; takes over the descriptors. Raises
        VnicError."""
        from dataplane.ports.stream_port import StreamBuffers

        left = list(descriptors)
        try:
            if len(left) != kept.listens + 2 * kept.connected:
                raise VnicError(f"nic {self.settings.name}: {len(left)} sockets are stored for it")
            if kept.connected:
                self._buffers = StreamBuffers(left[-1])
                os.close(left.pop())
                self.peer = socket.socket(fileno=left.pop())
            if kept.listens:
                self.listener = socket.socket(fileno=left.pop())
            if kept.connected:
                self._connect_port()
        except BaseException:
            close_all(left)
            raise

    def status(self) -> dict[str, Any]:
        """The NIC's state and settings, as a dict. guest: "connected", or "absent"; problem: why
        the last peer was disconnected, or why there is none."""
        [queue] = self.port.queue_statistics()
        return {
            "kind": StreamKind.NAME,
            "interface": self.path,
            "pid": None,
            "netns": None,
            "mac": self.mac,
            "mtu": self.settings.mtu,
            "queues": 1,
            "offloads": [],
            "guest": "absent" if self.peer is None else "connected",
            "problem": self.problem,
            "rx_packets": queue["rx_packets"],
            "tx_packets": queue["tx_packets"],
        }

    def close(self) -> None:
        """Disconnects the peer and removes the socket of `listen`. Only when no engine serves the
        port any more."""
        if self.peer is not None:
            self.peer.close()
        super().close()
        if self._buffers is not None:
            self._buffers.close()
        self.peer = self._buffers = None


class StreamKind(NicKind[StreamNic]):
    """A program at a stream socket."""

    NAME = "stream"
    SETTINGS = frozenset({"listen", "connect", "socket_mode", "socket_group", "mac", "mtu"})
    WHY = "its frames pass a stream socket"

    def open(self, settings: Settings, number: int, origin: Origin) -> StreamNic:
        from dataplane.graph.port import PortTx
        from dataplane.ports.stream_port import StreamPort

        check_places(settings, addresses=True)
        path = str(settings.listen or settings.connect)
        kept, descriptors = kept_of(Kept, self.NAME, path, origin)
        port = StreamPort(settings.name, number=number, mtu=settings.mtu)
        nic = StreamNic(settings, port, PortTx(port, name=f"{settings.name}.tx"), origin)
        try:
            if kept is None:
                nic.listen()
            else:
                nic.resume(kept, descriptors)
            return nic
        except BaseException:
            port.close()
            raise
