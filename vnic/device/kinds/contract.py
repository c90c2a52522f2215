"""The contract of a kind of NICs. docs/kinds.md says how to add one.

`NicKind` is what every kind is: which settings it takes and how its NIC is opened. `InterfaceKind` is for those whose NIC is an
interface of a network namespace: how the interface is made there by the agent, and how another process rebuilds its handle from what
the supervisor stores. Modules of kinds are loaded by the supervisor and the agent too, so they import compiled modules where they
need them only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from vnic.device.tap import Agent, Offload, Route, Tap, TapReport, TapRequest, check

if TYPE_CHECKING:
    import asyncio

    from dataplane.graph.element import Element
    from dataplane.graph.port import Port
    from vnic.device.namespaces import NetNamespace
    from vnic.device.nic import Nic

# Settings that belong to the port on the switch, and not to what is behind it. They change while the NIC stays as it is.
LIVE = frozenset({"egress", "ingress", "vlan", "spoof_check", "malformed", "on", "engine"})
# Those of an interface that is there.
ALTERED = frozenset({"mtu", "offloads"})
# Of every kind.
COMMON = LIVE | {"kind", "owner"}
CONTAINER = frozenset({"pid", "netns"})
QUEUES = frozenset({"queues", "rss", "offloads"})
INTERFACE = CONTAINER | QUEUES | {"interface", "mac", "mtu", "addresses", "gateway", "routes"}


class RouteSettings(Protocol):
    """A route, as a NIC's configuration has it."""

    @property
    def to(self) -> str: ...
    @property
    def via(self) -> str | None: ...


class OffloadSettings(Protocol):
    """Offloads, as a NIC's configuration has them."""

    @property
    def checksum(self) -> bool: ...
    @property
    def tso(self) -> bool: ...
    @property
    def uso(self) -> bool: ...


class RssSettings(Protocol):
    """Receive-side scaling, as a NIC's configuration has it."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def table(self) -> list[int] | None: ...


class Settings(Protocol):
    """What kinds read of a NIC's configuration (`vnic.config.schema.NicConfig`)."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def netns(self) -> str | None: ...
    @property
    def interface(self) -> str | None: ...
    @property
    def queues(self) -> int: ...
    @property
    def mac(self) -> str | None: ...
    @property
    def mtu(self) -> int: ...
    @property
    def addresses(self) -> Sequence[str]: ...
    @property
    def routes(self) -> Sequence[RouteSettings]: ...
    @property
    def offloads(self) -> OffloadSettings: ...
    @property
    def rss(self) -> RssSettings: ...
    @property
    def read(self) -> str | None: ...
    @property
    def write(self) -> str | None: ...

    began_ns: int | None


class Watch(Protocol):
    """Reports that the other end of a NIC is gone, and why. deleted: the interface is gone, but not its container."""

    @property
    def why(self) -> str: ...
    @property
    def deleted(self) -> bool: ...
    def on_gone(
        self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object], /
    ) -> None: ...
    def close(self) -> None: ...


class Forever:
    """A watch on an end that never goes."""

    why, deleted = "", False

    def on_gone(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object], /) -> None:
        """Never calls back."""

    def close(self) -> None:
        """Nothing to do."""


class Device(Protocol):
    """An open NIC. port: engines receive from it. tx: the element that delivers to its other end. mac: its address."""

    @property
    def port(self) -> Port: ...
    @property
    def tx(self) -> Element: ...
    @property
    def mac(self) -> str: ...
    def watch(self) -> Watch: ...
    def set_carrier(self, up: bool) -> None: ...
    def change(self, settings: Settings) -> Callable[[], object]:
        """Gives its other end the settings that are LIVE of its kind alone; returns what is left to do for
        its port, on the engine's thread. Raises ConfigError, PortError, and then nothing has changed."""
        ...

    def status(self) -> dict[str, Any]: ...
    def queue_statistics(self) -> list[dict[str, int]]: ...
    def queue_drops(self) -> int | None: ...
    def close(self) -> None: ...


class Origin(Protocol):
    """Where a NIC comes from: an instance's store, which may have it already, or a program of its own."""

    def interface(self, kind: InterfaceKind, request: TapRequest) -> Tap:
        """The NIC's interface: the one that the supervisor stores, or one that is made. Raises ConfigError, PortError."""
        ...

    def alter(self, kind: InterfaceKind, interface: Tap, request: TapRequest) -> None:
        """Makes the NIC's interface the one of `request`, see InterfaceKind.alter. Raises ConfigError, PortError."""
        ...


D = TypeVar("D", bound=Device, covariant=True)


class NicKind(ABC, Generic[D]):
    """A kind of NICs.

    NAME      as in `kind: NAME`
    SETTINGS  names of the settings that it takes, besides COMMON
    WHY       why it takes no others, for the error about one
    LIVE      settings that change while its NIC stays open; for others the NIC is made again
    """

    NAME: ClassVar[str]
    SETTINGS: ClassVar[frozenset[str]] = frozenset()
    WHY: ClassVar[str] = ""
    LIVE: ClassVar[frozenset[str]] = LIVE

    @property
    def needs_container(self) -> bool:
        """Whether a NIC of the configuration has to name its container."""
        return self.takes("pid")

    def takes(self, setting: str) -> bool:
        """Whether a NIC of this kind has such a setting."""
        return setting in COMMON or setting in self.SETTINGS

    @abstractmethod
    def open(self, settings: Settings, number: int, origin: Origin) -> D:
        """Opens a NIC as port `number` of its switch. All or nothing. Raises ConfigError, PortError."""


class InterfaceKind(NicKind["Nic"]):
    """A kind whose NICs are interfaces of network namespaces.

    REQUEST, REPORT  what an interface is asked for by, and what another process needs besides its descriptors
    BY_AGENT         setting its link and removing it at once take the agent; a worker asks the supervisor
    """

    SETTINGS: ClassVar[frozenset[str]] = INTERFACE
    LIVE: ClassVar[frozenset[str]] = LIVE | ALTERED
    WHY: ClassVar[str] = "its frames are those of an interface"
    REQUEST: ClassVar[type[TapRequest]]
    REPORT: ClassVar[type[TapReport]]
    BY_AGENT: ClassVar[bool] = False

    def request(self, settings: Settings) -> TapRequest:
        """The interface that a NIC needs."""
        return self.REQUEST(
            name=str(settings.interface),
            pid=settings.pid,
            netns=settings.netns,
            queues=settings.queues,
            mac=str(settings.mac),
            mtu=settings.mtu,
            addresses=tuple(str(address) for address in settings.addresses),
            routes=tuple(
                Route(str(route.to), None if route.via is None else str(route.via))
                for route in settings.routes
            ),
            offloads=offloads_of(settings.offloads),
        )

    def decode_request(self, data: bytes | msgspec.Raw) -> TapRequest:
        """A request from JSON. Raises msgspec.MsgspecError."""
        return msgspec.json.decode(data, type=self.REQUEST)

    def decode_report(self, data: bytes | msgspec.Raw) -> TapReport:
        """A report from JSON. Raises msgspec.MsgspecError."""
        return msgspec.json.decode(data, type=self.REPORT)

    def needs_netlink(self, request: TapRequest) -> bool:
        """Whether `create` needs the netlink library, which takes long to load."""
        return True

    @abstractmethod
    def create(self, request: TapRequest) -> tuple[TapReport, list[int]]:
        """Makes the interface in this process' network namespace; returns its properties and descriptors. Runs in the agent's
        child. Raises ConfigError, PortError; on failure nothing is left once the child has exited."""

    @abstractmethod
    def interface(
        self, report: TapReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> Tap:
        """The handle of an interface that is there; it owns the descriptors and the namespace."""

    def alter(self, interface: Tap, request: TapRequest) -> None:
        """Gives an interface that is there the settings of `request` that are LIVE. Takes the agent. Raises
        ConfigError, PortError, and then nothing has changed."""
        mtu = interface.mtu
        if request.mtu != mtu:
            interface.set_mtu(request.mtu)
        try:
            if request.offloads != interface.offloads:
                interface.set_offloads(request.offloads)
        except BaseException:
            if request.mtu != mtu:
                interface.set_mtu(mtu)
            raise

    @abstractmethod
    def port(self, name: str, number: int, interface: Tap) -> Port:
        """The port over an interface. Raises PortError."""

    def open(self, settings: Settings, number: int, origin: Origin) -> Nic:
        from dataplane.elements.rss import Rss
        from vnic.device.nic import Nic

        rss = Rss(settings.rss.key, settings.rss.table, queues=settings.queues)
        request = self.request(settings)
        check(request)  # before anything is touched
        interface = origin.interface(self, request)
        try:
            port = self.port(settings.name, number, interface)
            return Nic(settings.name, interface, port, rss, partial(self._alter, origin, interface))
        except BaseException:
            interface.release()
            raise

    def _alter(self, origin: Origin, interface: Tap, settings: Settings) -> None:
        request = self.request(settings)
        check(request)
        origin.alter(self, interface, request)


def offloads_of(settings: OffloadSettings) -> Offload:
    """What a configuration says that the NIC takes over from the container's network stack."""
    offloads = Offload(0)
    if settings.checksum:
        offloads |= Offload.CSUM
    if settings.tso:
        offloads |= Offload.TSO4 | Offload.TSO6 | Offload.ECN
    if settings.uso:
        offloads |= Offload.USO
    return offloads
