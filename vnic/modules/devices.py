"""Opens NICs by their kinds: for an instance, whose supervisor stores them; for a program without a
supervisor; or all with one kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from dataplane.descriptors import close_all
from dataplane.errors import PortError, VnicError
from vnic.config.schema import NicConfig
from vnic.device.agent import NamespaceAgent
from vnic.device.kinds.contract import Device, InterfaceKind, NicKind
from vnic.device.kinds.registry import kind_of
from vnic.device.namespaces import NetNamespace
from vnic.device.tap import LinkChange, Tap, TapRequest, Work
from vnic.store.keeper import Keeper, kept_nic, kept_request, read_document

D = TypeVar("D", bound=Device)


class Passed(NamedTuple):
    """A container that a client passed: descriptors of its network namespace and of a process with
    which the container ends (-1: none)."""

    netns: int
    process: int = -1


class Devices(Protocol):
    """Opens NICs. `start` is called first, before any thread starts; `stop` last, also without
    `start`. `forget` deletes the stored state of a NIC that is closed, or that could not be
    opened."""

    def start(self) -> None: ...
    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Device: ...
    def forget(self, name: str, /) -> None: ...
    def stop(self) -> None: ...


class Alone:
    """The origin of NICs of a program without a supervisor: nothing is stored."""

    @property
    def owns(self) -> bool:
        """True: there is no other worker."""
        return True

    def keep(self, document: bytes, descriptors: Sequence[int]) -> None:
        """No effect: there is no next worker."""

    def kept(self) -> None:
        """Nothing."""


class AgentDevices(Alone):
    """NICs of a program without a supervisor: an agent of its own makes the interfaces. choose:
    returns the kind of a NIC; by default the configured one."""

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
        """No effect: no other process stores the NIC."""

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop()


class _Elsewhere:
    """The agent of a NIC in a worker: passes on to the supervisor the requests that a worker may
    make."""

    def __init__(self, keeping: Keeper, nic: str) -> None:
        self._keeping, self._nic = keeping, nic

    def run(self, namespace: NetNamespace, work: Work) -> dict[str, int]:
        if isinstance(work, LinkChange) and work.up is not None:
            self._keeping.set_carrier(self._nic, work.up)
            return {}
        raise PortError(f"{namespace.label}: a worker does nothing inside containers")


class _StoredOrigin:
    """The origin of a NIC of an instance: the interface that the previous worker left, or a new one
    from the supervisor."""

    def __init__(
        self, keeping: Keeper, config: NicConfig, passed: Passed | None, kept: set[str]
    ) -> None:
        self._keeping, self._config, self._passed, self._kept = keeping, config, passed, kept
        self._key = f"nic/{config.name}"

    def interface(self, kind: InterfaceKind, request: TapRequest) -> Tap:
        descriptors = self._inherited(request)
        if descriptors is None and self._config.passed and self._passed is None:
            raise PortError(
                f"nic {self._config.name}: its container was passed by a client, and is not kept; "
                "attach it again"
            )
        if descriptors is None:
            try:
                container = [each for each in self._passed or () if each >= 0]
                descriptors = self._keeping.open_nic(self._config.name, request, container)
            except VnicError:
                # the supervisor may store it all the same: its reply was lost, or came too late
                with suppress(VnicError):
                    self._keeping.drop(self._key)
                raise
        return kept_nic(descriptors, _Elsewhere(self._keeping, self._config.name))

    def alter(self, kind: InterfaceKind, interface: Tap, request: TapRequest) -> None:
        """Has the supervisor change the interface, and updates its handle."""
        descriptors = self._keeping.alter_nic(self._config.name, request)
        altered = kept_nic(descriptors, _Elsewhere(self._keeping, self._config.name))
        interface.mtu, interface.offloads = altered.mtu, altered.offloads
        altered.release()

    @property
    def owns(self) -> bool:
        """Whether this worker may change the store."""
        return self._keeping.may_change

    def keep(self, document: bytes, descriptors: Sequence[int]) -> None:
        """Has the supervisor store it."""
        self._kept.add(self._config.name)
        self._keeping.put_document(f"guest/{self._config.name}", document, descriptors)

    def kept(self) -> tuple[bytes, list[int]] | None:
        """What the last worker had stored."""
        found = self._keeping.take(f"guest/{self._config.name}")
        if found is None:
            return None
        self._kept.add(self._config.name)
        document, *descriptors = found
        try:
            return read_document(document), descriptors
        finally:
            os.close(document)

    def _inherited(self, request: TapRequest) -> list[int] | None:
        """The interface that the previous worker left, if it fits the request. It does not if that
        worker died after it had stored new settings and before it had removed the interface with
        the old ones."""
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
    """NICs of an instance. The supervisor makes and stores their interfaces, so closing a NIC
    leaves its interface, and `forget` removes it."""

    def __init__(self, keeping: Keeper) -> None:
        self._keeping = keeping
        self._kept: set[str] = set()  # names of NICs for which a document is stored

    def start(self) -> None:
        """No effect: the supervisor runs already."""

    def open(self, config: NicConfig, number: int, passed: Passed | None = None, /) -> Device:
        return kind_of(config.kind).open(
            config, number, _StoredOrigin(self._keeping, config, passed, self._kept)
        )

    def forget(self, name: str) -> None:
        """Has the supervisor remove the NIC."""
        self._keeping.drop(f"nic/{name}")
        if name in self._kept:
            self._kept.discard(name)
            self._keeping.drop(f"guest/{name}")

    def stop(self) -> None:
        """No effect: the supervisor continues."""


class OneKind(Alone, Generic[D]):
    """NICs that are all of one kind, regardless of their settings: for tests and replays. nics: the
    open ones, by name."""

    def __init__(self, kind: NicKind[D]) -> None:
        self._kind = kind
        self.nics: dict[str, D] = {}

    def start(self) -> None:
        """No effect: there is nothing to start."""

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
        """Removes a closed NIC from `nics`."""
        self.nics.pop(name, None)

    def stop(self) -> None:
        """No effect: there is nothing to stop."""


def _differs(kept: TapRequest, wanted: TapRequest) -> bool:
    """Whether a stored interface differs from the wanted one. Offloads are not compared, since
    versions of vnic may request different ones."""
    return (
        type(kept) is not type(wanted)
        or msgspec.structs.replace(kept, offloads=wanted.offloads) != wanted
    )
