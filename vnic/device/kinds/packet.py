"""NICs of kind `packet`: packet sockets at an existing interface, such as the machine's uplink.

vnic receives the frames that arrive at the interface, and transmits through it. The host's network
stack continues to use the interface and receives the same frames. vnic does not create, delete,
rename or configure the interface; it puts it into promiscuous mode while its sockets are open, and
transmits through its queueing discipline, as the stack does.

Sources: packet(7), netdevice(7); net/packet/af_packet.c of Linux 6.18.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataplane.descriptors import system_error
from dataplane.errors import ConfigError, PortError
from vnic.device import link_counters
from vnic.device.kinds.contract import CONTAINER, LIVE, QUEUES, InterfaceKind, Settings, offloads_of
from vnic.device.packet_sockets import (
    RingReport,
    SocketInterface,
    open_queues,
    open_sending,
    receive_all,
    ring_settings,
)
from vnic.device.tap import (
    ARPHRD_ETHER,
    FindSocket,
    Offload,
    ReadCounters,
    Tap,
    TapReport,
    TapRequest,
    Work,
    format_mac,
)

if TYPE_CHECKING:
    from dataplane.graph.port import Port
    from vnic.device.namespaces import NetNamespace
    from vnic.device.tap import Agent

SIOCGIFMTU, SIOCGIFHWADDR = 0x8921, 0x8927
NAMES_MOST = 8  # interfaces that an error names


class PacketRequest(
    TapRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open_packet"
):
    """A request for an existing interface: `name`, `pid` or `netns`, `queues` and `offloads` of
    TapRequest; its other fields are not used. The kernel spreads flows over the NIC's `queues` by
    hash."""

    KIND = "packet"


# --- in the agent's child, inside the interface's network namespace -------------------------------


def create(request: PacketRequest) -> tuple[RingReport, list[int]]:
    """Opens sockets at an interface of this process' network namespace. Returns its properties, and
    the descriptors in the order of RingReport. Raises ConfigError, PortError."""
    label = f"packet {request.name}"
    try:
        ifindex = socket.if_nametoindex(request.name)
    except OSError:
        names = [name for _, name in socket.if_nameindex()]
        some = ", ".join(names[:NAMES_MOST]) + (", ..." if len(names) > NAMES_MOST else "")
        raise ConfigError(
            f"{label}: there is no such interface in that network namespace: expected one of {some}"
        ) from None
    if request.queues > 1 and _kernel() < (6, 2):
        raise ConfigError(f"{label}: queues: more than one needs Linux 6.2 or newer")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ioctls:
            address = fcntl.ioctl(ioctls, SIOCGIFHWADDR, struct.pack("32s", request.name.encode()))
            (mtu,) = struct.unpack_from(
                "i", fcntl.ioctl(ioctls, SIOCGIFMTU, struct.pack("32s", request.name.encode())), 16
            )
        if struct.unpack_from("H", address, 16)[0] != ARPHRD_ETHER:
            raise ConfigError(
                f"{label}: is no Ethernet interface: expected one with a MAC address of its own"
            )
        queues = open_queues(request.name, request.queues, bypass=False)
        sending = [open_sending(request.name, bypass=False) for _ in range(request.queues)]
        receive_all(queues[0], ifindex)
        fds = [each.detach() for each in (*queues, *sending)] + [
            link_counters.open_socket(),
            link_counters.open_link_events(),
        ]
    except PermissionError:
        raise ConfigError(
            f"{label}: not permitted to open packet sockets in that network namespace; "
            "run vnic as root, or attach to a container that you started as the same user"
        ) from None
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise PortError(
                f"{label}: the interface is gone from its network namespace; attach it again"
            ) from None
        raise PortError(f"{label}: cannot set it up: {system_error(error)}") from None
    report = RingReport(
        name=request.name,
        ifindex=ifindex,
        mac=format_mac(address[18:24]),
        mtu=mtu,
        offloads=request.offloads if _kernel() >= (6, 2) else request.offloads & ~int(Offload.USO),
        netlink=True,
        link_events=True,
        **ring_settings(request.queues),
    )
    return report, fds


def _kernel() -> tuple[int, ...]:
    """The kernel's version. From 6.2 on, the virtio-net header supports USO, and sockets of a
    fanout group can ignore outgoing frames."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


# --- the handle -----------------------------------------------------------------------------------


class PacketInterface(SocketInterface):
    """The handle of an interface that vnic does not own. Closing it only closes the sockets."""

    KIND = "packet"

    def set_carrier(self, on: bool) -> None:
        """Does nothing, since vnic does not own the link. Only the switch stops forwarding."""

    def set_mac(self, mac: str) -> None:
        """Raises PortError."""
        raise self._refusal()

    def set_mtu(self, mtu: int) -> None:
        """Raises PortError."""
        raise self._refusal()

    def queue_drops(self) -> int:
        """Frames dropped because a queue's ring was full."""
        return self.ring_drops()

    def delete(self) -> None:
        """Closes the sockets."""
        self.close()

    def _refusal(self) -> PortError:
        return PortError(f"packet {self.name}: the interface is not vnic's to change")

    def _run(self, work: Work) -> dict[str, int]:
        if not isinstance(work, ReadCounters | FindSocket):
            raise self._refusal()
        return super()._run(work)


# --- the kind -------------------------------------------------------------------------------------


class PacketKind(InterfaceKind):
    """An existing interface of a network namespace."""

    NAME = "packet"
    SETTINGS = CONTAINER | QUEUES | {"interface"}
    WHY = "the interface exists and keeps its own"
    REQUEST, REPORT = PacketRequest, RingReport
    LIVE = LIVE

    @property
    def needs_container(self) -> bool:
        """False: without a container, it is an interface of the host, for which `host_interfaces:
        true` is needed."""
        return False

    def request(self, settings: Settings) -> PacketRequest:
        return PacketRequest(
            name=str(settings.interface),
            pid=settings.pid,
            netns=settings.netns,
            queues=settings.queues,
            offloads=offloads_of(settings.offloads),
        )

    def needs_netlink(self, request: TapRequest) -> bool:
        """False: `create` uses ioctls only."""
        return False

    def create(self, request: TapRequest) -> tuple[RingReport, list[int]]:
        assert isinstance(request, PacketRequest)
        return create(request)

    def interface(
        self, report: TapReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> PacketInterface:
        assert isinstance(report, RingReport)
        return PacketInterface(report, fds, namespace, agent)

    def port(self, name: str, number: int, interface: Tap) -> Port:
        assert isinstance(interface, PacketInterface)
        return interface.make_port(name, number)
