"""What NICs are made of: TAPs in containers, or whatever else stands where a container would (captures, in a replay)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import msgspec

from dataplane.elements.rss import Rss
from dataplane.errors import PortError, VnicError
from dataplane.graph.element import Element
from dataplane.graph.port import Port
from vnic.config.schema import NicConfig
from vnic.device.agent import NamespaceAgent
from vnic.device.descriptors import close_all
from vnic.device.namespaces import NetNamespace
from vnic.device.nic import Nic
from vnic.device.tap import LinkChange, Offload, Route, TapRequest, Work, check
from vnic.device.veth import Veth, VethRequest
from vnic.device.veth_nic import VethNic
from vnic.store.keeper import Keeper, kept_document, kept_nic


class Watch(Protocol):
    """Tells when the thing at the other end of a NIC is gone, and why. deleted: the interface alone is."""

    @property
    def why(self) -> str: ...
    @property
    def deleted(self) -> bool: ...
    def on_gone(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object], /) -> None: ...
    def close(self) -> None: ...


class Device(Protocol):
    """A NIC: `port` is what an engine receives from, `tx` the element that delivers to its other end."""

    @property
    def port(self) -> Port: ...
    @property
    def tx(self) -> Element: ...
    def watch(self) -> Watch: ...
    def set_carrier(self, up: bool) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def queue_statistics(self) -> list[dict[str, int]]: ...
    def close(self) -> None: ...


class Passed(NamedTuple):
    """A container as a client passed it: descriptors of its network namespace and of a process whose end is the container's (-1: none)."""

    netns: int
    process: int = -1


class Devices(Protocol):
    """Opens NICs. `start` comes first, before any thread; `stop` last, also without `start`. `forget`: a NIC that is closed, or that could
    not be opened, is nobody's any more."""

    def start(self) -> None: ...
    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Device: ...
    def forget(self, name: str, /) -> None: ...
    def stop(self) -> None: ...


class TapDevices:
    """NICs over TAPs inside containers, made by an agent."""

    def __init__(self) -> None:
        self._agent: NamespaceAgent | None = None

    def start(self) -> None:
        self._agent = NamespaceAgent.start()

    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Nic:
        assert self._agent is not None
        if passed is not None:
            raise PortError(f"nic {config.name}: a container is passed to a running instance only")
        request = nic_request(config)
        kind = VethNic if isinstance(request, VethRequest) else Nic
        return kind.open(self._agent, config.name, number, request, rss_key=config.rss.key, rss_table=config.rss.table)

    def forget(self, name: str) -> None:
        """Nothing: nobody else holds it."""

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop()


class _Elsewhere:
    """The agent of a NIC in a worker: none. What is done inside a container goes by the supervisor, as far as a worker asks for it."""

    def __init__(self, keeping: Keeper, nic: str) -> None:
        self._keeping, self._nic = keeping, nic

    def run(self, namespace: NetNamespace, work: Work) -> dict[str, int]:
        if isinstance(work, LinkChange) and work.up is not None:
            self._keeping.set_carrier(self._nic, work.up)
            return {}
        raise PortError(f"{namespace.label}: a worker does nothing inside containers")


class KeptTapDevices:
    """NICs over TAPs that the supervisor makes and keeps, and those that a worker before this one left. The interface goes when both have
    let go: closing a NIC leaves it kept, `forget` ends it."""

    def __init__(self, keeping: Keeper) -> None:
        self._keeping = keeping

    def start(self) -> None:
        """Nothing: the supervisor runs already."""

    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Nic:
        rss = Rss(config.rss.key, config.rss.table, queues=config.queues)
        request = nic_request(config)
        check(request)  # before anything is touched
        descriptors = self._keeping.take(f"nic/{config.name}")
        if descriptors is not None and self._keeping.may_change and _differs(kept_document(descriptors).request, request):
            # The worker before died when it had stored the new settings, and not yet removed the interface of the old ones.
            close_all(descriptors)
            self._keeping.drop(f"nic/{config.name}")
            descriptors = None
        if descriptors is None and config.passed and passed is None:
            raise PortError(f"nic {config.name}: its container was passed by a client, and is not kept; attach it again")
        if descriptors is None:
            try:
                descriptors = self._keeping.open_nic(config.name, request, [each for each in passed or () if each >= 0])
            except VnicError:  # the supervisor may have it all the same: the answer got lost, or comes too late
                with suppress(VnicError):
                    self._keeping.drop(f"nic/{config.name}")
                raise
        tap = kept_nic(descriptors, _Elsewhere(self._keeping, config.name))
        try:
            if isinstance(tap, Veth):
                return VethNic(config.name, number, tap, rss)
            return Nic(config.name, number, tap, rss)
        except BaseException:
            tap.close()
            raise

    def forget(self, name: str) -> None:
        """The supervisor lets go of the TAP."""
        self._keeping.drop(f"nic/{name}")

    def stop(self) -> None:
        """Nothing: the supervisor goes on."""


def _differs(kept: TapRequest | VethRequest, wanted: TapRequest | VethRequest) -> bool:
    """Whether a kept interface is not the one that is wanted. Versions of vnic may differ in the offloads that they ask for."""
    return type(kept) is not type(wanted) or msgspec.structs.replace(kept, offloads=wanted.offloads) != wanted


def offloads_of(config: NicConfig) -> Offload:
    """What a configuration says that the NIC takes over from the container's network stack."""
    offloads = Offload(0)
    if config.offloads.checksum:
        offloads |= Offload.CSUM
    if config.offloads.tso:
        offloads |= Offload.TSO4 | Offload.TSO6 | Offload.ECN
    if config.offloads.uso:
        offloads |= Offload.USO
    return offloads


def nic_request(config: NicConfig) -> TapRequest | VethRequest:
    """What the agent is asked for."""
    kind = VethRequest if config.kind == "veth" else TapRequest
    return kind(
        name=str(config.interface),
        pid=config.pid,
        netns=config.netns,
        queues=config.queues,
        mac=str(config.mac),
        mtu=config.mtu,
        addresses=tuple(str(address) for address in config.addresses),
        routes=tuple(Route(str(route.to), None if route.via is None else str(route.via)) for route in config.routes),
        offloads=offloads_of(config),
    )
