"""What NICs are made of: TAPs in containers, or whatever else stands where a container would (captures, in a replay)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from dataplane.element import Element
from dataplane.port import Port
from vnic.control.schema import NicConfig
from vnic.device.agent import NamespaceAgent
from vnic.device.nic import Nic
from vnic.device.tap import Offload, TapRequest


class Watch(Protocol):
    """Tells when the thing at the other end of a NIC is gone."""

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


class Devices(Protocol):
    """Opens NICs. `start` comes first, before any thread; `stop` last, also without `start`."""

    def start(self) -> None: ...
    def open(self, config: NicConfig, number: int) -> Device: ...
    def stop(self) -> None: ...


class TapDevices:
    """NICs over TAPs inside containers, made by an agent."""

    def __init__(self) -> None:
        self._agent: NamespaceAgent | None = None

    def start(self) -> None:
        self._agent = NamespaceAgent.start()

    def open(self, config: NicConfig, number: int) -> Nic:
        assert self._agent is not None
        return Nic.open(
            self._agent, config.name, number, tap_request(config), rss_key=config.rss.key, rss_table=config.rss.table
        )

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop()


def tap_request(config: NicConfig) -> TapRequest:
    """What the agent is asked for."""
    offloads = Offload(0)
    if config.offloads.checksum:
        offloads |= Offload.CSUM
    if config.offloads.tso:
        offloads |= Offload.TSO4 | Offload.TSO6 | Offload.ECN
    if config.offloads.uso:
        offloads |= Offload.USO
    return TapRequest(
        name=str(config.interface),
        pid=config.pid,
        netns=config.netns,
        queues=config.queues,
        mac=str(config.mac),
        mtu=config.mtu,
        addresses=tuple(str(address) for address in config.addresses),
        offloads=offloads,
    )
