"""Opens NICs, each of its kind: of an instance, whose supervisor stores them; of a program of its own; or all of one kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from dataplane.errors import PortError, VnicError
from vnic.config.schema import NicConfig
from vnic.device.agent import NamespaceAgent
from vnic.device.descriptors import close_all
from vnic.device.kinds.contract import Device, InterfaceKind, NicKind
from vnic.device.kinds.registry import kind_of
from vnic.device.namespaces import NetNamespace
from vnic.device.tap import LinkChange, Tap, TapRequest, Work
from vnic.store.keeper import Keeper, kept_nic, kept_request

D = TypeVar("D", bound=Device)


class Passed(NamedTuple):
    """A container as a client passed it: descriptors of its network namespace and of a process whose end is the container's (-1: none)."""

    netns: int
    process: int = -1


class Devices(Protocol):
    """Opens NICs. `start` comes first, before any thread; `stop` last, also without `start`. `forget`: nothing is stored any more of a
    NIC that is closed, or that could not be opened."""

    def start(self) -> None: ...
    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Device: ...
    def forget(self, name: str, /) -> None: ...
    def stop(self) -> None: ...


class AgentDevices:
    """NICs of a program without a supervisor: an agent of its own makes the interfaces. choose: the kind of a NIC; by default the
    configured one."""

    def __init__(
        self, choose: Callable[[NicConfig], NicKind[Device]] = lambda config: kind_of(config.kind)
    ) -> None:
        self._choose = choose
        self._agent: NamespaceAgent | None = None

    def start(self) -> None:
        self._agent = NamespaceAgent.start()

    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Device:
        if passed is not None:
            raise PortError(f"nic {config.name}: a container is passed to a running instance only")
        return self._choose(config).open(config, number, self)

    def interface(self, kind: InterfaceKind, request: TapRequest) -> Tap:
        """A new interface."""
        assert self._agent is not None
        return self._agent.open_nic(request)

    def alter(self, kind: InterfaceKind, interface: Tap, request: TapRequest) -> None:
        """Changes the interface."""
        kind.alter(interface, request)

    def forget(self, name: str) -> None:
        """Nothing: no other process has the NIC."""

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop()


class _Elsewhere:
    """The agent of a NIC in a worker: the supervisor's, as far as a worker may use it."""

    def __init__(self, keeping: Keeper, nic: str) -> None:
        self._keeping, self._nic = keeping, nic

    def run(self, namespace: NetNamespace, work: Work) -> dict[str, int]:
        if isinstance(work, LinkChange) and work.up is not None:
            self._keeping.set_carrier(self._nic, work.up)
            return {}
        raise PortError(f"{namespace.label}: a worker does nothing inside containers")


class _StoredOrigin:
    """Where a NIC of an instance comes from: what the worker before left of it, or the supervisor."""

    def __init__(self, keeping: Keeper, config: NicConfig, passed: Passed | None) -> None:
        self._keeping, self._config, self._passed = keeping, config, passed
        self._key = f"nic/{config.name}"

    def interface(self, kind: InterfaceKind, request: TapRequest) -> Tap:
        descriptors = self._inherited(request)
        if descriptors is None and self._config.passed and self._passed is None:
            raise PortError(
                f"nic {self._config.name}: its container was passed by a client, and is not kept; attach it again"
            )
        if descriptors is None:
            try:
                container = [each for each in self._passed or () if each >= 0]
                descriptors = self._keeping.open_nic(self._config.name, request, container)
            except (
                VnicError
            ):  # the supervisor may have it all the same: the answer got lost, or comes too late
                with suppress(VnicError):
                    self._keeping.drop(self._key)
                raise
        return kept_nic(descriptors, _Elsewhere(self._keeping, self._config.name))

    def alter(self, kind: InterfaceKind, interface: Tap, request: TapRequest) -> None:
        """Has the supervisor change the interface, whose handle follows."""
        descriptors = self._keeping.alter_nic(self._config.name, request)
        altered = kept_nic(descriptors, _Elsewhere(self._keeping, self._config.name))
        interface.mtu, interface.offloads = altered.mtu, altered.offloads
        altered.release()

    def _inherited(self, request: TapRequest) -> list[int] | None:
        """The interface that the worker before left, if it is the one that is asked for; it died in between when it had stored new
        settings, and not yet removed the interface of the old ones."""
        descriptors = self._keeping.take(self._key)
        if descriptors is None:
            return None
        try:
            if not self._keeping.may_change or not _differs(kept_request(descriptors), request):
                return descriptors
        except BaseException:
            close_all(descriptors)
            raise
        close_all(descriptors)
        self._keeping.drop(self._key)
        return None


class StoredDevices:
    """NICs of an instance. The supervisor makes and stores their interfaces, so closing a NIC leaves its interface, and `forget` ends
    it."""

    def __init__(self, keeping: Keeper) -> None:
        self._keeping = keeping

    def start(self) -> None:
        """Nothing: the supervisor runs already."""

    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Device:
        return kind_of(config.kind).open(
            config, number, _StoredOrigin(self._keeping, config, passed)
        )

    def forget(self, name: str) -> None:
        """The supervisor lets go of the NIC."""
        self._keeping.drop(f"nic/{name}")

    def stop(self) -> None:
        """Nothing: the supervisor goes on."""


class OneKind(Generic[D]):
    """NICs that are all of one kind, whatever their settings say: of tests and replays. nics: those that are open, by name."""

    def __init__(self, kind: NicKind[D]) -> None:
        self._kind = kind
        self.nics: dict[str, D] = {}

    def start(self) -> None:
        """Nothing to start."""

    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> D:
        nic = self.nics[config.name] = self._kind.open(config, number, self)
        return nic

    def interface(self, kind: InterfaceKind, request: TapRequest) -> Tap:
        """Raises PortError: there is no agent."""
        raise PortError(f"{request.KIND} {request.name}: there is no container to make it in")

    def alter(self, kind: InterfaceKind, interface: Tap, request: TapRequest) -> None:
        """Raises PortError: there is no agent."""
        raise PortError(f"{request.KIND} {request.name}: there is no agent to change it")

    def forget(self, name: str) -> None:
        """The NIC is closed."""
        self.nics.pop(name, None)

    def stop(self) -> None:
        """Nothing to stop."""


def _differs(kept: TapRequest, wanted: TapRequest) -> bool:
    """Whether a kept interface is not the one that is wanted. Versions of vnic may differ in the offloads that they ask for."""
    return (
        type(kept) is not type(wanted)
        or msgspec.structs.replace(kept, offloads=wanted.offloads) != wanted
    )
