"""Sockets behind which a NIC's peer is: made by vnic (`listen`) or by the peer (`connect`), in the
file system or at a loopback address. Base of the kinds whose peer comes and goes."""

from __future__ import annotations

import errno
import grp
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import msgspec

from dataplane.descriptors import close_all, system_error
from dataplane.errors import ConfigError, PortError, VnicError
from vnic.device.kinds.contract import Origin, Settings, UncontainedNic

if TYPE_CHECKING:
    from dataplane.graph.element import Element

PATH_MOST = 107  # bytes of sun_path without its end (unix(7))
BACKLOG = 4
ANOTHER_VERSION = (
    "a NIC's peer was stored by another version of vnic; use `vnic down` and `vnic up`"
)


def connect_advice(waiting: str) -> Mapping[int, str]:
    """What to do about errors of connect(2). waiting: where no peer listens yet."""
    return {
        errno.ENOENT: waiting,
        errno.ECONNREFUSED: waiting,
        errno.EACCES: f"vnic's user, {os.geteuid()}, needs the right to write to the socket",
    }


class Place(NamedTuple):
    """Address of a socket, as Python's sockets have it."""

    family: socket.AddressFamily
    address: str | tuple[str, int]

    @property
    def path(self) -> str | None:
        """Of a Unix socket."""
        return self.address if isinstance(self.address, str) else None

    def make(self, kind: socket.SocketKind) -> socket.socket:
        """A non-blocking socket for it. Raises OSError."""
        return socket.socket(self.family, kind | socket.SOCK_NONBLOCK)


def is_address(text: str) -> bool:
    """Whether a place is IP address and port rather than a path."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        return False
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def place_of(text: str) -> Place:
    """A place that `check_places` has accepted."""
    if not is_address(text):
        return Place(socket.AF_UNIX, text)
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return Place(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port)))


def check_places(settings: Settings, *, addresses: bool = False, both: bool = False) -> None:
    """Raises ConfigError for sockets that cannot be those of a NIC. addresses: they may be at
    loopback addresses; both: `listen` and `connect` are needed, of one family."""
    label = f"nic {settings.name}"
    wanted = "the path of a Unix socket"
    if addresses:
        wanted += ', or a loopback address and port such as "127.0.0.1:5000",'
    found = [
        (word, text)
        for word, text in (("listen", settings.listen), ("connect", settings.connect))
        if text is not None
    ]
    if len(found) != 1 + both:
        raise ConfigError(
            f"{label}: expected {wanted} in {'both' if both else 'one'} of listen and connect"
        )
    for word, text in found:
        if addresses and is_address(text):
            _check_address(f"{label}: {word}: {text}", place_of(text))
            continue
        if not os.path.isabs(text):
            raise ConfigError(
                f"{label}: {word}: {text} is a relative path: expected one that begins with /"
            )
        if len(os.fsencode(text)) > PATH_MOST:
            raise ConfigError(
                f"{label}: {word}: the path of a socket has at most {PATH_MOST} bytes, this one "
                f"{len(os.fsencode(text))}: expected a shorter one"
            )
    if both and len({place_of(text).family for _, text in found}) > 1:
        raise ConfigError(
            f"{label}: listen and connect are of two kinds: expected two paths, or two addresses "
            "of one version of IP"
        )
    if both and found[0][1] == found[1][1]:
        raise ConfigError(
            f"{label}: listen and connect are the same: expected the peer's in connect"
        )


def _check_address(what: str, place: Place) -> None:
    assert not isinstance(place.address, str)
    host, port = place.address
    # Frames cross in the clear, and whoever can connect is on the switch.
    if not ipaddress.ip_address(host).is_loopback:
        raise ConfigError(f"{what} is no loopback address: expected one such as 127.0.0.1")
    if not 0 < int(port) < 65536:
        raise ConfigError(f"{what}: expected a port of 1 to 65535")


def bind(settings: Settings, kind: socket.SocketKind) -> socket.socket:
    """The socket of `listen`, which may be used by whom `socket_mode` and `socket_group` permit.
    Raises ConfigError, PortError."""
    label, text = f"nic {settings.name}", str(settings.listen)
    place = place_of(text)
    made = place.make(kind)
    try:
        if place.path is None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            made.bind(place.address)
            return made
        _remove_stale(label, text, kind)
        made.bind(text)
        try:
            os.chmod(text, int(settings.socket_mode, 8))
            if settings.socket_group is not None:
                os.chown(text, -1, _group(label, settings.socket_group))
        except BaseException:
            os.unlink(text)
            raise
    except OSError as error:
        made.close()
        raise _cannot(label, text, error) from None
    except BaseException:
        made.close()
        raise
    return made


def unbind(settings: Settings, bound: socket.socket) -> None:
    """Closes the socket of `listen`, and removes it."""
    bound.close()
    if (path := place_of(str(settings.listen)).path) is not None:
        with suppress(OSError):
            os.unlink(path)


class SocketNic(UncontainedNic):
    """A NIC whose peer is at the other end of a connected socket.

    `serve` gives it the thread of its engine; afterwards `ready` is to be called when one of
    `inputs` is readable, and now and then while it `seeks` a peer to connect to.

    TYPE    of the socket
    ADVICE  what to do about an error of connect(2)
    """

    TYPE: ClassVar[socket.SocketKind] = socket.SOCK_STREAM
    ADVICE: ClassVar[Mapping[int, str]] = {}

    tx: Element
    listener: socket.socket | None = None
    peer: socket.socket | None = None  # the socket that it is connected to
    problem = ""  # why the last peer was disconnected, or why there is none
    again_s: float | None = None  # when to call `ready` without an input, from now on

    @property
    def inputs(self) -> list[int]:
        """Descriptors to wait for."""
        found = [] if self.listener is None else [self.listener.fileno()]
        return found + self.inputs_of_peer()

    @property
    def met(self) -> socket.socket | None:
        """The socket of a peer with which frames are exchanged."""
        return self.peer

    @property
    def seeks(self) -> bool:
        """Whether it has yet to find the peer's socket."""
        return self.settings.connect is not None and self.peer is None

    @property
    def path(self) -> str:
        """The socket's path or address."""
        return str(self.settings.listen or self.settings.connect)

    def ready(self) -> None:
        """Handles what has arrived, or tries to connect. Afterwards to be called after `again_s`,
        too."""
        self.again_s = None
        if self.listener is not None:
            self._accept(self.listener)
        if self.seeks:
            self._connect()
        self.handle()

    # -- of the kind -------------------------------------------------------------------------------

    def serve(self, call: Callable[[Callable[[], object]], object]) -> None:
        """From now on, the port's engine runs, and this process has the peer. call: runs a
        function on the engine's thread."""
        raise NotImplementedError

    def end(self) -> None:
        """From now on, no engine serves the port."""
        raise NotImplementedError

    def inputs_of_peer(self) -> list[int]:
        """Descriptors to wait for, of the connection."""
        raise NotImplementedError

    def begin(self, connected: socket.socket) -> None:
        """A peer is there; sets `peer`."""
        raise NotImplementedError

    def refuse(self, accepted: socket.socket) -> None:
        """Another peer has come beside the one that is there."""
        accepted.close()

    def handle(self) -> None:
        """Handles what has come of the peer, if there is one."""
        raise NotImplementedError

    def stored(self) -> None:
        """Has the listening socket stored, without a peer."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """The NIC's state and settings."""
        raise NotImplementedError

    # -- the sockets -------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        """Takes a peer, and refuses another one beside it: the first has the NIC until it goes."""
        try:
            accepted, _ = listener.accept()
        except OSError:  # none is there any more, or no descriptor is left
            return
        if self.peer is not None:
            self.refuse(accepted)
        else:
            self.begin(accepted)

    def _connect(self) -> None:
        place = place_of(str(self.settings.connect))
        try:
            made = place.make(self.TYPE)
        except OSError as error:
            self.problem = f"{self.settings.connect}: {system_error(error)}"
            return
        try:
            with suppress(BlockingIOError):  # TCP; on loopback the answer is there already
                made.connect(place.address)
            if failed := made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failed, os.strerror(failed))
            # Without a listener, TCP may choose the port that it connects to, and so itself.
            if made.getpeername() == made.getsockname() and place.path is None:
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except OSError as error:
            made.close()
            self.problem = f"{self.settings.connect}: {system_error(error)}"
            if advice := self.ADVICE.get(error.errno or 0):
                self.problem += f": {advice}"
            return
        self.begin(made)

    def listen(self) -> None:
        """Makes the socket of `listen`. Raises ConfigError, PortError."""
        if self.settings.listen is None:
            return
        made = bind(self.settings, self.TYPE)
        try:
            # peers can connect from here on only, when mode and group are set
            made.listen(BACKLOG)
            self.listener = made
            self.stored()
        except BaseException:
            self.listener = None
            unbind(self.settings, made)
            raise

    def close(self) -> None:
        """Removes the socket of `listen`, and closes the port. Only when no engine serves the port
        any more."""
        if self.listener is not None:
            unbind(self.settings, self.listener)
            self.listener = None
        super().close()


class KeptOf(msgspec.Struct, frozen=True):
    """What the stored documents of all kinds have. path: the socket's, as configured."""

    path: str
    kind: str = ""


K = TypeVar("K", bound=KeptOf)


def kept_of(document: type[K], kind: str, path: str, origin: Origin) -> tuple[K | None, list[int]]:
    """What the last worker stored, and its descriptors; None if it is of a NIC of another kind or
    with another socket: that worker died after it had stored new settings. Raises VnicError."""
    found = origin.kept()
    if found is None:
        return None, []
    try:
        name = msgspec.json.decode(found[0], type=KeptOf)
        if (name.kind, name.path) == (kind, path):
            return msgspec.json.decode(found[0], type=document), found[1]
    except msgspec.MsgspecError:
        close_all(found[1])
        raise VnicError(ANOTHER_VERSION) from None
    close_all(found[1])
    return None, []


def _remove_stale(label: str, path: str, kind: socket.SocketKind) -> None:
    """Removes a socket that nothing listens at: a killed instance has left it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{label}: listen: {path} is there and no socket: expected a free path")
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:  # its backlog is full, or it is of another type
            pass
    raise ConfigError(f"{label}: listen: {path} is in use by another program: expected a free path")


def _group(label: str, name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            f"{label}: socket_group: there is no group {name}: expected one of this machine's"
        ) from None


def _cannot(label: str, text: str, error: OSError) -> VnicError:
    what = f"{label}: listen: {text}: {system_error(error)}"
    advice = {
        errno.ENOENT: "make its directory first",
        errno.EACCES: f"vnic runs as user {os.geteuid()}, who needs the right to write there",
        errno.EPERM: "vnic's user must be a member of socket_group",
        errno.EADDRINUSE: "choose another port",
    }.get(error.errno or 0)
    return PortError(what) if advice is None else ConfigError(f"{what}: {advice}")
