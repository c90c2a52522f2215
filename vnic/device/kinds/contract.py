"""The contract of a kind of NICs. docs/kinds.md tells how to add one.

`NicKind` is the base of every kind: its settings, and how its NIC is opened. `InterfaceKind` is the
base of kinds whose NIC is an interface in a network namespace: how the agent makes the interface,
and how another process rebuilds its handle from the stored descriptors. The supervisor and the
agent load the kinds' modules, too, so these import compiled modules only inside functions.
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

# Settings of the port on the switch, not of the interface behind it: they change while the NIC
# stays open.
LIVE = frozenset({"egress", "ingress", "vlan", "spoof_check", "malformed", "on", "engine"})
# Settings of an existing interface.
ALTERED = frozenset({"mtu", "offloads"})
# settings of every kind
COMMON = LIVE | {"kind", "owner"}
CONTAINER = frozenset({"pid", "netns"})
QUEUES = frozenset({"queues", "rss", "offloads"})
INTERFACE = CONTAINER | QUEUES | {"interface", "mac", "mtu", "addresses", "gateway", "routes"}


class RouteSettings(Protocol):
    """A route in a NIC's configuration."""

    @property
    def to(self) -> str: ...
    @property
    def via(self) -> str | None: ...


class OffloadSettings(Protocol):
    """Offloads in a NIC's configuration."""

    @property
    def checksum(self) -> bool: ...
    @property
    def tso(self) -> bool: ...
    @property
    def uso(self) -> bool: ...


class RssSettings(Protocol):
    """Receive-side scaling in a NIC's configuration."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def table(self) -> list[int] | None: ...


class FeatureSettings(Protocol):
    """Features of virtio-net in a NIC's configuration."""

    @property
    def only(self) -> list[str] | None: ...
    @property
    def without(self) -> list[str]: ...


class Settings(Protocol):
    """The part of a NIC's configuration (`vnic.config.schema.NicConfig`) that kinds read."""

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
    @property
    def listen(self) -> str | None: ...
    @property
    def connect(self) -> str | None: ...
    @property
    def socket_mode(self) -> str: ...
    @property
    def socket_group(self) -> str | None: ...
    @property
    def features(self) -> FeatureSettings: ...
    @property
    def id(self) -> int: ...
    @property
    def secret(self) -> str | None: ...
    @property
    def ring_size(self) -> int: ...

    began_ns: int | None


class Watch(Protocol):
    """Reports that a NIC's container or interface is gone, and why. deleted: only the interface is
    gone."""

    @property
    def why(self) -> str: ...
    @property
    def deleted(self) -> bool: ...
    def on_gone(
        self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object], /
    ) -> None: ...
    def close(self) -> None: ...


class Forever:
    """A Watch that never reports."""

    why, deleted = "", False

    def on_gone(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object], /) -> None:
        """Never calls back."""

    def close(self) -> None:
        """Nothing to do."""


class Device(Protocol):
    """An open NIC. port: receives the container's frames; after_parse: elements that they pass when
    they were parsed; tx: the element that transmits to it; mac: the NIC's address."""

    @property
    def port(self) -> Port: ...
    @property
    def after_parse(self) -> Sequence[Element]: ...
    @property
    def tx(self) -> Element: ...
    @property
    def mac(self) -> str: ...
    def watch(self) -> Watch: ...
    def set_carrier(self, up: bool) -> None: ...
    def change(self, settings: Settings) -> Callable[[], object]:
        """Gives its other end the settings that are LIVE of its kind alone; returns what is left to
        do for its port, on the engine's thread. Raises ConfigError, PortError, and then nothing has
        changed."""
        ...

    def status(self) -> dict[str, Any]: ...
    def queue_statistics(self) -> list[dict[str, int]]: ...
    def queue_drops(self) -> int | None: ...
    def close(self) -> None: ...


class UncontainedNic:
    """Base of NICs whose other end is no interface of a container: files, a program, a module.
    Nothing there can go, lose its carrier or take other settings."""

    def __init__(self, settings: Settings, port: Port) -> None:
        self.settings, self.port = settings, port

    @property
    def after_parse(self) -> Sequence[Element]:
        """None."""
        return ()

    @property
    def mac(self) -> str:
        """The configured address."""
        return str(self.settings.mac)

    def watch(self) -> Forever:
        """A watch that never reports."""
        return Forever()

    def set_carrier(self, up: bool) -> None:
        """No effect: only the switch stops forwarding."""

    def change(self, settings: Settings) -> Callable[[], object]:
        """There are no such settings."""
        return lambda: None

    def queue_statistics(self) -> list[dict[str, int]]:
        """One dict per queue pair."""
        return self.port.queue_statistics()

    def queue_drops(self) -> None:
        """Unknown: no kernel counts them."""

    def close(self) -> None:
        """Closes the port."""
        self.port.close()


class Origin(Protocol):
    """Opens interfaces: from an instance's store, or newly made for a program without an
    instance."""

    def interface(self, kind: InterfaceKind, request: TapRequest) -> Tap:
        """The NIC's interface: the stored one, or a new one. Raises ConfigError, PortError."""
        ...

    def alter(self, kind: InterfaceKind, interface: Tap, request: TapRequest) -> None:
        """Makes the NIC's interface the one of `request`, see InterfaceKind.alter. Raises
        ConfigError, PortError."""
        ...

    @property
    def owns(self) -> bool:
        """Whether this process may change what is stored: False for a successor that has not taken
        over."""
        ...

    def keep(self, document: bytes, descriptors: Sequence[int]) -> None:
        """For a kind without an interface: stores what the next worker needs to carry on with the
        NIC, in place of what was stored before. Raises VnicError."""
        ...

    def kept(self) -> tuple[bytes, list[int]] | None:
        """What the last worker stored by `keep`; the caller closes the descriptors. None: none."""
        ...


D = TypeVar("D", bound=Device, covariant=True)


class NicKind(ABC, Generic[D]):
    """A kind of NICs.

    NAME      of the kind, in `kind: NAME`
    SETTINGS  names of its settings, in addition to COMMON
    WHY       why it has no others, for error messages
    LIVE      settings that change while the NIC stays open; others need a new NIC
    """

    NAME: ClassVar[str]
    SETTINGS: ClassVar[frozenset[str]] = frozenset()
    WHY: ClassVar[str] = ""
    LIVE: ClassVar[frozenset[str]] = LIVE

    @property
    def needs_container(self) -> bool:
        """Whether a NIC's configuration must name its container."""
        return self.takes("pid")

    def takes(self, setting: str) -> bool:
        """Whether NICs of this kind have the setting."""
        return setting in COMMON or setting in self.SETTINGS

    @abstractmethod
    def open(self, settings: Settings, number: int, origin: Origin) -> D:
        """Opens a NIC as port `number` of its switch. All or nothing. Raises ConfigError,
        PortError."""


class InterfaceKind(NicKind["Nic"]):
    """A kind whose NICs are interfaces in network namespaces.

    REQUEST   class of the requests for an interface
    REPORT    class of the data that another process needs besides the interface's descriptors
    BY_AGENT  the agent is needed to set the link or to remove the interface at once; a worker asks
              the supervisor
    """

    SETTINGS: ClassVar[frozenset[str]] = INTERFACE
    LIVE: ClassVar[frozenset[str]] = LIVE | ALTERED
    WHY: ClassVar[str] = "its frames are those of an interface"
    REQUEST: ClassVar[type[TapRequest]]
    REPORT: ClassVar[type[TapReport]]
    BY_AGENT: ClassVar[bool] = False

    def request(self, settings: Settings) -> TapRequest:
        """The request for a NIC's interface."""
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
        """Decodes a request from JSON. Raises msgspec.MsgspecError."""
        return msgspec.json.decode(data, type=self.REQUEST)

    def decode_report(self, data: bytes | msgspec.Raw) -> TapReport:
        """Decodes a report from JSON. Raises msgspec.MsgspecError."""
        return msgspec.json.decode(data, type=self.REPORT)

    def needs_netlink(self, request: TapRequest) -> bool:
        """Whether `create` needs the netlink library, which is slow to load."""
        return True

    @abstractmethod
    def create(self, request: TapRequest) -> tuple[TapReport, list[int]]:
        """Makes the interface in this process' network namespace; returns its properties and
        descriptors. Runs in the agent's child. Raises ConfigError, PortError; after a failure,
        nothing is left once the child has exited."""

    @abstractmethod
    def interface(
        self, report: TapReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> Tap:
        """The handle of an existing interface; it owns the descriptors and the namespace."""

    def alter(self, interface: Tap, request: TapRequest) -> None:
        """Gives an interface that is there the settings of `request` that are LIVE. Takes the
        agent. Raises ConfigError, PortError, and then nothing has changed."""
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
        check(request)
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
    """The configured offloads as flags."""
    offloads = Offload(0)
    if settings.checksum:
        offloads |= Offload.CSUM
    if settings.tso:
        offloads |= Offload.TSO4 | Offload.TSO6 | Offload.ECN
    if settings.uso:
        offloads |= Offload.USO
    return offloads
