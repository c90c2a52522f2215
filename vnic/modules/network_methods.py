"""API methods about NICs, and what a client other than the instance's owner may do with them.

`clients:` of the configuration grants such a client what it may use. Its requests are untrusted:

- The container must be the client's. Any user can open a network namespace in /run/netns, so a
  descriptor of one proves nothing: the user namespace that owns it must be one that the client
  made.
- Elements run inside the worker and may be any Python code, so only the owner loads them.
- A capture goes to a pipe that vnic makes. With a descriptor of the client's, the client could
  clear O_NONBLOCK while vnic writes; a path would be opened with vnic's rights.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import ExitStack, suppress
from typing import Annotated, Any

import msgspec

from dataplane.config.scalars import Rate, User
from dataplane.errors import ConfigError
from dataplane.units import parse_rate
from vnic.api.interface import DESCRIPTION, INTERFACE
from vnic.api.method import Caller, Method, Named, NotPermittedError, Parameters, Reply, Session
from vnic.config.convert import convert_nic
from vnic.config.schema import NicConfig
from vnic.device.kinds.registry import kind_of
from vnic.device.namespaces import is_network_namespace, owner_of
from vnic.modules.devices import Passed
from vnic.modules.network import Network

PIPE_BYTES = 1 << 20  # as much as a plain user may have (fs.pipe-max-size)
F_SETPIPE_SZ = 1031
MORE = "the instance's owner can grant more under clients: in the configuration"


class Attach(Named):
    nic: dict[str, Any]
    netns: int | None = None
    process: int | None = None


class SetRate(Named):
    egress: str | None = None
    ingress: str | None = None


class SetLink(Named):
    up: bool


class SetSpoofCheck(Named):
    on: bool


class StartCapture(Parameters):
    point: str
    path: str | None = None
    snaplen: Annotated[int, msgspec.Meta(ge=1, le=262144)] = 262144


class StopCapture(Parameters):
    capture: int


def parse_limit(text: str) -> int | None:
    """bit/s of a rate, None of "none". Raises ConfigError."""
    return None if text == "none" else int(Rate(parse_rate(text)))


def network_methods(network: Network) -> list[Method]:
    """The methods of `network`."""
    ours = _Methods(network)
    return [
        Method("Attach", ours.attach, Attach, "change", clients=True),
        Method("Detach", ours.detach, Named, "change", clients=True),
        Method("SetRate", ours.set_rate, SetRate, "change", clients=True),
        Method("SetLink", ours.set_link, SetLink, "change", clients=True),
        Method("SetSpoofCheck", ours.set_spoof_check, SetSpoofCheck, "change"),
        Method("StartCapture", ours.start_capture, StartCapture, "change", clients=True),
        Method("StopCapture", ours.stop_capture, StopCapture, "task", clients=True),
    ]


class NetworkModule(Network):
    """The network with its methods of the control API."""

    interface = INTERFACE
    description = DESCRIPTION

    def methods(self) -> list[Method]:
        return network_methods(self)


class _Methods:
    def __init__(self, network: Network) -> None:
        self._nics = network

    # -- attaching ---------------------------------------------------------------------------------

    async def attach(self, parameters: Attach, caller: Caller) -> dict[str, Any]:
        session, name, given = caller.session, parameters.name, parameters.netns
        config = convert_nic(
            name, parameters.nic, (name,), contained=given is None and session.is_owner
        )
        if given is not None and not kind_of(config.kind).takes("netns"):
            raise ConfigError(
                f"nic {name}: a NIC of kind {config.kind} is in no container, and came with a "
                "namespace's descriptor"
            )
        if given is not None and (config.pid is not None or config.netns is not None):
            raise ConfigError(
                f"nic {name}: has pid or netns, and came with a namespace's descriptor: choose one "
                "of them"
            )
        if not session.is_owner:
            self._check_client(config, session, given is not None)
        if given is None:
            return {"nic": await self._attach(config)}
        with ExitStack() as closing:
            netns, process = caller.take(given), -1
            closing.callback(os.close, netns)
            if not is_network_namespace(netns):
                raise ConfigError(f"nic {name}: descriptor {given} is not a network namespace")
            if not session.is_owner and owner_of(netns) != session.uid:
                raise NotPermittedError(
                    f"nic {name}: the network namespace belongs to a user namespace that "
                    f"{session.who} did not make"
                )
            if parameters.process is not None:
                process = caller.take(parameters.process)
                closing.callback(os.close, process)
            return {"nic": await self._attach(config, Passed(netns, process))}

    async def _attach(self, config: NicConfig, passed: Passed | None = None) -> dict[str, Any]:
        return await self._nics.runtime.aside(lambda: self._nics.attach(config, passed))

    def _check_client(self, config: NicConfig, session: Session, given: bool) -> None:
        """Checks the NIC of a client other than the instance's owner against its grant in
        `clients:`, and completes it. Raises ConfigError, NotPermittedError."""
        name, instance = config.name, self._nics.config
        granted = instance.clients[str(session.uid)]
        if not given:
            raise NotPermittedError(
                f"nic {name}: {session.who} passes the container's network namespace as a "
                "descriptor"
            )
        if len(self._nics.names(session.uid)) >= granted.nics:
            raise NotPermittedError(
                f"nic {name}: {session.who} may have {granted.nics} NICs, and has them; {MORE}"
            )
        if config.queues > granted.queues:
            raise NotPermittedError(
                f"nic {name}: {session.who} may have {granted.queues} queues, not {config.queues}; "
                f"{MORE}"
            )
        if config.engine is not None and instance.engine_index(
            config.engine
        ) not in instance.engines_of(session.uid):
            raise NotPermittedError(
                f"nic {name}: {session.who} may be in engines of group {granted.group} only; {MORE}"
            )
        if config.egress.elements or config.ingress.elements:
            raise NotPermittedError(
                f"nic {name}: elements run inside vnic; only its owner may load them"
            )
        if config.owner not in (None, session.uid):
            raise NotPermittedError(
                f"nic {name}: {session.who} attaches NICs of {session.who} only; leave owner out"
            )
        if config.spoof_check is False:
            raise NotPermittedError(
                f"nic {name}: spoof_check may be switched off by the instance's owner only; leave "
                "it out"
            )
        if config.on is not None and config.on != granted.on:
            may = (
                f"on {granted.on} only"
                if granted.on is not None
                else "on the instance's only switch"
            )
            raise NotPermittedError(
                f"nic {name}: {session.who} may have NICs {may}, so leave `on` out; {MORE}"
            )
        config.owner = User(session.uid)
        self._check_vlan(config, session, granted.vlans)
        for way in (config.egress, config.ingress):
            if granted.rate is not None:
                way.rate = Rate(min(way.rate or granted.rate, granted.rate))

    def _check_vlan(self, config: NicConfig, session: Session, granted: list[int] | None) -> None:
        vlan = config.vlan
        if vlan is None:  # `Network.restrict` chooses one within the grant
            return
        wanted = {0} if vlan.untagged else {vlan.access, vlan.native, *(vlan.trunk or ())} - {None}
        # without a grant: VLAN 0, which is the untagged frames
        if not wanted <= set(granted or (0,)):
            may = f"VLANs {', '.join(map(str, granted))} only" if granted else "no VLAN"
            raise NotPermittedError(f"nic {config.name}: {session.who} may be in {may}; {MORE}")

    def detach(self, parameters: Named, caller: Caller) -> dict[str, Any]:
        session = caller.session
        if not session.is_owner and not self._nics.get(parameters.name, session).config.passed:
            raise NotPermittedError(
                f"nic {parameters.name}: it was attached by the instance's owner; {session.who} "
                "may cut its link"
            )
        self._nics.detach(parameters.name, f"detached by {session.who}")
        return {}

    # -- settings ----------------------------------------------------------------------------------

    def set_rate(self, parameters: SetRate, caller: Caller) -> dict[str, Any]:
        session = caller.session
        given = {"egress_bps": parameters.egress, "ingress_bps": parameters.ingress}
        limits = {
            direction: parse_limit(text) for direction, text in given.items() if text is not None
        }
        if not limits:
            raise ConfigError(f"{parameters.name}: no rate given: expected egress, ingress or both")
        config = self._nics.get(parameters.name, session).config
        if not session.is_owner:
            most = self._nics.config.clients[str(session.uid)].rate
            if not config.passed:
                raise NotPermittedError(
                    f"nic {parameters.name}: its rates are set by the instance's owner, not by "
                    f"{session.who}"
                )
            if most is not None and any(limit is None or limit > most for limit in limits.values()):
                raise NotPermittedError(
                    f"nic {parameters.name}: {session.who} may have at most {most}; {MORE}"
                )
        return {"nic": self._nics.set_rate(parameters.name, **limits)}

    def set_link(self, parameters: SetLink, caller: Caller) -> dict[str, Any]:
        self._nics.get(parameters.name, caller.session)
        self._nics.set_link(parameters.name, parameters.up)
        return {}

    def set_spoof_check(self, parameters: SetSpoofCheck, caller: Caller) -> dict[str, Any]:
        return {"nic": self._nics.set_spoof_check(parameters.name, parameters.on)}

    # -- captures ----------------------------------------------------------------------------------

    def start_capture(self, parameters: StartCapture, caller: Caller) -> dict[str, Any]:
        session = caller.session
        self._nics.get(self._nics.nic_of(parameters.point), session)
        if not session.is_owner and parameters.path is not None:
            raise NotPermittedError(
                f"capture: only the instance's owner has it write files; {session.who} leaves path "
                "out"
            )
        if parameters.path is not None:
            number = self._nics.start_capture(parameters.point, parameters.path, parameters.snaplen)
            session.captures.add(number)
            return {"capture": number}
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            # fails beyond the limit of all pipes of a user together: the pipe stays small
            with suppress(OSError):
                fcntl.fcntl(reading, F_SETPIPE_SZ, PIPE_BYTES)
            uid = None if session.is_owner else session.uid
            number = self._nics.start_capture(parameters.point, writing, parameters.snaplen, uid)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        session.captures.add(number)
        return Reply({"capture": number, "descriptor": 0}, [reading])

    async def stop_capture(self, parameters: StopCapture, caller: Caller) -> dict[str, Any]:
        captures = caller.session.captures
        if parameters.capture not in captures:
            raise ConfigError(f"capture {parameters.capture}: is none of this connection's")
        captures.remove(parameters.capture)
        # A client that does not read its pipe delays only itself.
        result: dict[str, Any] = await asyncio.wrap_future(
            self._nics.stop_capture(parameters.capture)
        )
        return result
