"""NICs of kind `tap`: a multi-queue TAP in the container (`vnic.device.tap`,
`vnic.device.link`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vnic.device import link
from vnic.device.kinds.contract import InterfaceKind
from vnic.device.tap import Agent, Tap, TapReport, TapRequest

if TYPE_CHECKING:
    from dataplane.graph.port import Port
    from vnic.device.namespaces import NetNamespace


class TapKind(InterfaceKind):
    """A TAP made in the container."""

    NAME = "tap"
    REQUEST, REPORT = TapRequest, TapReport

    def needs_netlink(self, request: TapRequest) -> bool:
        """Root creates a TAP without addresses by ioctls alone."""
        return bool(request.addresses or request.routes) or os.geteuid() != 0

    def create(self, request: TapRequest) -> tuple[TapReport, list[int]]:
        return link.create(request)

    def interface(
        self, report: TapReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> Tap:
        return Tap(report, fds, namespace, agent)

    def port(self, name: str, number: int, interface: Tap) -> Port:
        from dataplane.ports.tap_port import TapPort

        return TapPort(
            name, interface.fds, number=number, offloads=interface.offloads, mtu=interface.mtu
        )
