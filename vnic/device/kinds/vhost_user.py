"""NICs of kind `vhost-user`: a virtio-net device whose driver is in a virtual machine, or in
another program, behind a Unix socket.

The socket is vnic's (`listen`), or the front end's (`connect`): then the machine outlives vnic, and
vnic comes back to it. What the front end has said is stored after each message, with the sockets
and descriptors, so that the next worker carries on without a word to it.

Sources: docs/interop/vhost-user.rst of QEMU; Virtio 1.3, section 5.1.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from dataplane.descriptors import close_all
from dataplane.errors import ConfigError, VnicError
from vnic.device.kinds.contract import NicKind, Origin, Settings, offloads_of
from vnic.device.kinds.sockets import (
    ANOTHER_VERSION,
    KeptOf,
    SocketNic,
    check_places,
    connect_advice,
    kept_of,
)
from vnic.device.tap import Offload, offload_names, parse_mac

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from virt.control_queue import ControlState
    from virt.guest_tx import GuestTx
    from virt.vhost_user.books import Books
    from virt.vhost_user.connection import Connection
    from virt.vhost_user.device import Offer
    from virt.vhost_user.net_config import NetConfig
    from virt.vhost_user.session import Session
    from virt.virtio_port import VirtioPort
    from vnic.device.guest import GuestDevice

# Commands of a control queue that are handled at once, and within a period. Each takes 0.2 ms of
# control, so that a guest which floods takes a tenth of it. Linux sends some ten when an
# interface is set up.
COMMANDS_A_TURN = 8
COMMANDS_MOST, PERIOD_S = 50, 0.1
SPEED_MBPS = 10_000  # nominal, as that of TAP and veth interfaces
UNMOVED = (0, 0x80008000)  # positions of a split and a packed ring that has had no frame
WAITING = "waiting for the front end to listen there (QEMU: server=on,wait=off)"
POSITION_LOST = (
    "its packed rings were used by a former instance of vnic, and the front end does not know how "
    "far: no frames pass until the guest reboots, or loads its driver again"
)


class Kept(KeptOf, frozen=True, kw_only=True):
    """The document that is stored. The descriptors are the memory of the rings' positions, then, if
    there are, the listening socket, the connected socket, and one for each of `roles`. control: a
    ControlState."""

    books: msgspec.Raw
    control: msgspec.Raw
    listens: bool
    connected: bool
    roles: list[str]


class GuestNic(SocketNic):
    """A NIC whose frames a guest's driver sends and receives."""

    ADVICE = connect_advice(WAITING)

    port: VirtioPort
    tx: GuestTx

    def __init__(
        self,
        settings: Settings,
        port: VirtioPort,
        tx: GuestTx,
        device: GuestDevice,
        offer: Offer,
        origin: Origin,
    ) -> None:
        super().__init__(settings, port)
        self.tx, self.device, self.offer, self._origin = tx, device, offer, origin
        self.connection: Connection | None = None
        # until when commands of the control queue are counted, and how many are left of them
        self._period_end_s, self._commands_left = 0.0, 0

    # -- the front end -----------------------------------------------------------------------------

    def inputs_of_peer(self) -> list[int]:
        """The connection, and the kick of the control ring."""
        if self.connection is None:
            return []
        kick = self.device.ring.kick
        found = [self.connection.fileno()]
        return found if kick is None or self.again_s is not None else [*found, kick]

    @property
    def after_parse(self) -> Sequence[Element]:
        """It remembers the guest's flows, if it has several queue pairs."""
        return () if self.tx.flows is None else (self.tx.flows,)

    def serve(self, call: Callable[[Callable[[], object]], object]) -> None:
        """From now on, the port's engine runs, and this process has the guest. call: runs a
        function on the engine's thread."""
        from virt.vhost_user.protocol import ProtocolError

        self.device.call = call
        try:
            self.device.own()
        except ProtocolError as error:
            if self.connection is not None:
                self._disconnect(self.connection, str(error))

    def end(self) -> None:
        """From now on, no engine serves the port."""
        self.device.call = lambda function: function()

    def handle(self) -> None:
        """Reads what the front end has sent. One that is wrong is disconnected; `problem` says
        why."""
        if self.connection is not None:
            self._read(self.connection)

    def begin(self, connected: socket.socket) -> None:
        """Begins a session."""
        self._begin(connected)

    def _begin(
        self,
        connected: socket.socket,
        books: Books | None = None,
        roles: Mapping[str, int] | None = None,
    ) -> Connection:
        from virt.vhost_user.connection import Connection
        from virt.vhost_user.session import Session

        connected.setblocking(False)
        session = Session(self.device, self.offer, books, roles)
        self.connection = Connection(connected, session, self._store)
        self.problem, self.peer = "", connected
        return self.connection

    def _read(self, connection: Connection) -> None:
        from virt.vhost_user.protocol import ProtocolError

        try:
            if connection.read():
                self._serve_control(connection)
                return
            why = ""
        except (ProtocolError, VnicError, OSError) as error:
            why = str(error)
        self._disconnect(connection, why)

    def _serve_control(self, connection: Connection) -> None:
        """Handles commands of the driver, a few: a guest must not keep control busy. What a
        command has set is stored before it is answered, so that a successor does not forget it."""
        ring, control, now_s = self.device.ring, self.device.control, time.monotonic()
        if not ring.runs:
            return
        if now_s >= self._period_end_s:
            self._period_end_s, self._commands_left = now_s + PERIOD_S, COMMANDS_MOST
        ring.drain()
        self._commands_left -= 1  # a kick without a command counts, too
        for _ in range(min(COMMANDS_A_TURN, self._commands_left)):
            command = ring.take()
            if command is None:
                break
            self._commands_left -= 1
            before = control.state
            reply = control.handle(command)
            if control.state is not before:
                self._store_session(connection)
            ring.answer(*reply)
        if self._commands_left <= 0:
            self.again_s = max(0.0, self._period_end_s - now_s)
        elif ring.arm():
            self.again_s = 0.0
        elif ring.runs and ring.kick is None:
            self.again_s = PERIOD_S

    def _store_session(self, connection: Connection) -> None:
        session = connection.session
        self._store(session.books, session.descriptors.by_role())

    def _disconnect(self, connection: Connection, why: str) -> None:
        self.problem, self.connection, self.peer = why, None, None
        with suppress(VnicError):  # the supervisor does not answer, and is stored to again
            connection.close()

    def resume(self, kept: Kept, descriptors: Sequence[int]) -> None:
        """Carries on from what the last worker stored; takes over the descriptors behind the first.
        A front end that cannot be carried on with is disconnected. Raises VnicError, OSError, and
        then the descriptors are still the caller's."""
        from virt.vhost_user.books import Books
        from virt.vhost_user.protocol import ProtocolError

        try:
            books = Books.decode(kept.books)
        except msgspec.MsgspecError:
            raise VnicError(ANOTHER_VERSION) from None
        left = iter(descriptors)
        if kept.listens:
            self.listener = socket.socket(fileno=next(left))
        if not kept.connected:
            return
        connected = socket.socket(fileno=next(left))
        try:
            connection = self._begin(connected, books, dict(zip(kept.roles, left, strict=True)))
        except BaseException:
            connected.detach()
            if self.listener is not None:
                self.listener.detach()
            raise
        try:
            connection.resume()
        except (ProtocolError, ConfigError, OSError) as error:
            self._disconnect(connection, str(error))

    def _store(self, books: Books, descriptors: Mapping[str, int]) -> None:
        sockets = [each for each in (self.listener, self.peer) if each is not None]
        kept = Kept(
            books=msgspec.Raw(books.encode()),
            control=msgspec.Raw(msgspec.json.encode(self.device.control.state)),
            path=self.path,
            kind=VhostUserKind.NAME,
            listens=self.listener is not None,
            connected=self.peer is not None,
            roles=list(descriptors),
        )
        self._origin.keep(
            msgspec.json.encode(kept),
            [
                self.device.positions.fd,
                *(each.fileno() for each in sockets),
                *descriptors.values(),
            ],
        )

    def stored(self) -> None:
        """A listening socket has been made."""
        from virt.vhost_user.books import Books

        self._store(Books.of(self.offer.rings), {})

    # -- the NIC -----------------------------------------------------------------------------------

    def set_carrier(self, up: bool) -> None:
        """Tells the driver that the link is up or down."""
        from virt.vhost_user.back_end_requests import tell_config_changed

        device, connection = self.device, self.connection
        # Switches may have forgotten the guest meanwhile, or another has its address: it announces
        # itself.
        announces = up and not device.config.up
        device.config = msgspec.structs.replace(device.config, up=up)
        if connection is not None:
            if announces and device.control.ask_to_announce():
                self._store_session(connection)
            tell_config_changed(connection.session)

    def status(self) -> dict[str, Any]:
        """The NIC's state and settings, as a dict. guest: "connected", or "absent"; problem: why
        the last front end was disconnected, why there is none, or why no frames pass; offered:
        features that a driver may take; features: those that it acknowledged; mac: the driver's;
        queues_used: pairs that it uses; control: what it has set by its control queue
        (ControlState.status), and the commands that were answered with OK and with an error."""
        from virt.vhost_user.features import OF_VHOST, names

        settings, queues = self.settings, self.port.queue_statistics()
        session = None if self.connection is None else self.connection.session
        device = self.device
        rings = [self.port.ring_state(ring) for ring in range(2 * self.port.queues)]
        return {
            "kind": VhostUserKind.NAME,
            "interface": self.path,
            "pid": None,
            "netns": None,
            "mac": device.mac.hex(":"),
            "mtu": settings.mtu,
            "queues": self.port.queues,
            "queues_used": device.queue_pairs,
            "offloads": offload_names(self.port.offloads),
            "guest": "absent" if session is None else "connected",
            "problem": self.problem if session is None else self._problem(session, rings),
            "offered": names(self.offer.features & ~OF_VHOST),
            "features": [] if session is None else names(session.books.features),
            "control": {
                **device.control.state.status(),
                "commands": device.control.counts[0],
                "refused": device.control.counts[1],
                "ring": device.ring.state(),
            },
            "rings": rings,
            "rx_packets": sum(queue["rx_packets"] for queue in queues),
            "tx_packets": sum(queue["tx_packets"] for queue in queues),
        }

    def _problem(self, session: Session, rings: Sequence[Mapping[str, Any]]) -> str:
        from vnic.device.guest_hindrance import hindrance

        if any(ring["position_lost"] for ring in rings):
            return POSITION_LOST
        moved = any(ring["position"] not in UNMOVED for ring in rings)
        return session.refusal if moved else hindrance(session)

    def close(self) -> None:
        """Disconnects the front end and removes the socket of `listen`. Only when no engine serves
        the port any more."""
        if self.connection is not None:
            self._disconnect(self.connection, "the NIC was detached")
        super().close()
        self.device.positions.close()


class VhostUserKind(NicKind[GuestNic]):
    """A guest's driver, through a Unix socket."""

    NAME = "vhost-user"
    SETTINGS = frozenset(
        {
            "listen", "connect", "socket_mode", "socket_group", "features", "mac", "mtu",
            "offloads", "queues", "rss",
        }
    )  # fmt: skip
    WHY = "a guest's driver is behind its socket"

    def open(self, settings: Settings, number: int, origin: Origin) -> GuestNic:
        from dataplane.elements.rss import Rss
        from virt.control_queue import ControlState
        from virt.flow_memory import FlowMemory
        from virt.guest_tx import GuestTx
        from virt.virtio_port import VirtioPort
        from vnic.device.guest import GuestDevice, Positions

        check_places(settings)
        label = f"nic {settings.name}"
        queues = settings.queues
        rss = Rss(settings.rss.key, settings.rss.table, queues=queues)
        path = str(settings.listen or settings.connect)
        kept, descriptors = kept_of(Kept, VhostUserKind.NAME, path, origin)
        port = VirtioPort(settings.name, number=number, queues=queues, mtu=settings.mtu)
        positions = None
        try:
            positions = Positions(2 * queues + 1, descriptors[0] if descriptors else None)
            mac = parse_mac(str(settings.mac), label)
            config = _config(settings, mac)
            state = ControlState() if kept is None else _control(kept)
            # with one pair nothing is to be steered
            flows = FlowMemory(rss, name=f"{settings.name}.flows") if queues > 1 else None
            tx = GuestTx(port, rss, flows, name=f"{settings.name}.tx")
            device = GuestDevice(tx, config, positions, state, owns=origin.owns)
            nic = GuestNic(settings, port, tx, device, _offer(settings), origin)
            if kept is None:
                nic.listen()
            else:
                nic.resume(kept, descriptors[1:])
            return nic
        except BaseException:
            port.close()
            if positions is not None and not descriptors:
                positions.close()
            close_all(descriptors)
            raise


def _control(kept: Kept) -> ControlState:
    from virt.control_queue import ControlState

    try:
        return msgspec.json.decode(kept.control, type=ControlState)
    except msgspec.MsgspecError:
        raise VnicError(ANOTHER_VERSION) from None


def _config(settings: Settings, mac: bytes) -> NetConfig:
    from virt.control_queue import HASH_KEY_BYTES, RSS_TABLE_MOST
    from virt.hash_types import HASH_TYPES
    from virt.vhost_user.net_config import NetConfig

    return NetConfig(
        mac=mac,
        mtu=settings.mtu,
        queue_pairs=settings.queues,
        speed_mbps=SPEED_MBPS,
        rss_key_bytes=HASH_KEY_BYTES,
        rss_table_entries=RSS_TABLE_MOST,
        hash_types=HASH_TYPES,
    )


def _offer(settings: Settings) -> Offer:
    from virt.vhost_user.device import Offer
    from virt.vhost_user.features import Abilities, offered

    offloads = offloads_of(settings.offloads)
    abilities = Abilities(
        checksum=bool(offloads & Offload.CSUM),
        tso=bool(offloads & Offload.TSO4),
        uso=bool(offloads & Offload.USO),
        mtu=settings.mtu,
        queue_pairs=settings.queues,
        rss=settings.queues > 1,
        hash_report=True,
        coalescing=True,
        statistics=True,
        in_order=True,
    )
    return Offer(
        features=int(offered(abilities, settings.features.only, settings.features.without)),
        queue_pairs=settings.queues,
    )
