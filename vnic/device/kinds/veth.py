"""NICs of kind `veth`: requests, how a veth pair is made, and the handle of an existing one.

A NIC of this kind needs no /dev/net/tun. Its interface in the container is one end of a veth pair.
The far end is in a separate network namespace without a name, where AF_PACKET sockets receive and
transmit its frames (`dataplane.ports.packet_port`). The far namespace exists as long as its last
descriptor: when the program closes them, or is killed, the kernel removes the namespace and both
ends.

The far namespace belongs to the user namespace of the process that made it: if a plain user's agent
had to enter the container's user namespace (`vnic.device.namespaces.enter`), to that one. Then root
of the container may change or delete the far end by netlink (IFLA_TARGET_NETNSID), with the same
effect as a deleted or disabled interface; it cannot access the sockets.

Sources: veth(4), packet(7), rtnetlink(7); drivers/net/veth.c, net/packet/af_packet.c and
Documentation/networking/packet_mmap.rst of Linux 6.18.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from dataplane.descriptors import readable, system_error
from dataplane.errors import ConfigError, PortError
from vnic.device import link, link_counters
from vnic.device.features import set_offloads
from vnic.device.kinds.contract import InterfaceKind
from vnic.device.namespaces import CLONE_NEWNET, NetNamespace, unshare
from vnic.device.packet_sockets import (
    RingReport,
    SocketInterface,
    open_queues,
    open_sending,
    ring_settings,
)
from vnic.device.tap import DeleteLink, LinkChange, Offload, Tap, TapReport, TapRequest, parse_mac

if TYPE_CHECKING:
    from dataplane.graph.port import Port
    from vnic.device.tap import Agent

FAR_END = "far"  # the far end's name; its namespace has no other interface but lo
FAR_MTU = 65535  # a veth's maximum, so that only the container's MTU limits its frames
# With MAC header and VLAN tag, a frame of 65,535 bytes of IP is longer than the default of 65,536:
# the kernel would segment it in software, and drops such frames when the queueing discipline is
# bypassed.
FAR_GSO_BYTES = 65536 + 64
ALIAS = "vnic"  # of the container's end: identifies interfaces of vnic, some about to be removed

RTM_SETLINK, NLM_F_REQUEST = 19, 1
IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE = 41, 63
REQUEST = struct.Struct("=IHHII BxHiII")  # nlmsghdr, ifinfomsg
ATTRIBUTE = struct.Struct("=HHI")
ADDR_GEN_NONE = 1  # IN6_ADDR_GEN_MODE_NONE

# how long to wait for the removal of an old interface of the same name; the kernel needs some 20 ms
GONE_TIMEOUT_S = 1.5


class VethRequest(
    TapRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open_veth"
):
    """A request for a veth interface, with the fields of TapRequest. The kernel spreads the
    container's flows over the NIC's `queues` by hash; the container sees a veth's own queues."""

    KIND: ClassVar[str] = "veth"


class VethReport(RingReport, frozen=True, kw_only=True):
    """The properties of a veth interface. The kind's extra descriptor is the far namespace.
    far_ifindex: index of the far end there."""

    far_ifindex: int


# --- in the agent's child, inside the container's network namespace -------------------------------


def create(request: VethRequest) -> tuple[VethReport, list[int]]:
    """Makes a veth pair between the present network namespace and a new one, which this process is
    in afterwards. Returns the properties of the container's end, and the descriptors in the order
    of VethReport. Raises ConfigError, PortError; after a failure no interface is left.

    The caller exits soon afterwards, which closes other descriptors.
    """
    label = f"veth {request.name}"
    try:
        # opened before this process leaves the container's namespace
        container = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        ioctls = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        netlink, events = link_counters.open_socket(), link_counters.open_link_events()
        with link.netlink()() as near_ip:
            _enter_far_namespace(label)
            with link.netlink()() as far_ip:
                _make_pair(far_ip, near_ip, container, request, events, label)
                try:
                    far = socket.if_nametoindex(FAR_END)
                    _prepare_far_end(far_ip, far, label)
                    queues = open_queues(FAR_END, request.queues, bypass=True)
                    sending = [open_sending(FAR_END, bypass=True) for _ in range(request.queues)]
                    offloads = set_offloads(
                        ioctls, request.name, _supported(queues[0], request.offloads)
                    )
                    near = _configure(near_ip, request, label)
                except BaseException:
                    # the kernel would remove it only some time after the namespace's last use
                    link.call(label, lambda: far_ip.link("del", ifname=FAR_END))
                    raise
        report = VethReport(
            name=request.name,
            ifindex=near["index"],
            mac=near.get("address"),
            mtu=near.get("mtu"),
            offloads=offloads,
            netlink=True,
            link_events=True,
            far_ifindex=far,
            **ring_settings(request.queues),
        )
        far_namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PortError(f"{label}: cannot set it up: {system_error(error)}") from None
    return report, [
        *(each.detach() for each in (*queues, *sending)),
        far_namespace,
        netlink,
        events,
    ]


def _enter_far_namespace(label: str) -> None:
    """Moves this process into a new network namespace, in which no interface speaks IPv6 by
    itself."""
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        raise ConfigError(
            f"{label}: not permitted to make a network namespace beside the container's; "
            f"run vnic as root, or attach to a "
            "container that you started as the same user"
        ) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigError(
            f"{label}: too many network namespaces: "
            f"raise user.max_net_namespaces (see namespaces(7))"
        ) from None
    # Where /proc may not be written to, there is still the mode in which no link-local address is
    # made, which _prepare_far_end sets.
    with suppress(OSError), open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as setting:
        setting.write("1")


def _make_pair(
    far_ip: Any, near_ip: Any, container: int, request: VethRequest, events: int, label: str
) -> None:
    """Makes the pair. An interface of the same name that vnic made is waited for, since it may be
    about to go: the kernel removes a namespace some time after its last descriptor was closed.
    events: tells when an interface of the container changes."""
    from pyroute2.netlink.exceptions import (  # type: ignore[import-untyped,unused-ignore]
        NetlinkError,
    )

    near: dict[str, Any] = {"ifname": request.name, "mtu": request.mtu, "net_ns_fd": container}
    if request.mac is not None:
        near["address"] = request.mac
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while True:
        try:
            far_ip.link("add", ifname=FAR_END, kind="veth", peer=near, mtu=FAR_MTU)
            return
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                raise ConfigError(
                    f"{label}: this kernel has no veth interfaces: "
                    "load the module (modprobe veth), or use a TAP"
                ) from None
            if error.code != errno.EEXIST:
                raise link.creation_error(error.code, label) from None
        links = near_ip.link("dump", ifname=request.name)
        ours = any(
            each.get("ifname") == request.name and each.get("ifalias") == ALIAS for each in links
        )
        if not ours or not readable(events, max(deadline - time.monotonic(), 0)):
            raise link.creation_error(errno.EEXIST, label)
        _take(events)


def _take(events: int) -> None:
    with suppress(OSError):  # the socket is empty, or has overflowed
        while os.read(events, 4096):
            pass


def _prepare_far_end(far_ip: Any, far: int, label: str) -> None:
    """Sets the far end up, and keeps the kernel's stack from sending frames there: no IPv6 address,
    no ARP."""
    no_address = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", ADDR_GEN_NONE]]}]]}
    with suppress(ConfigError, PortError):  # a kernel without IPv6
        link.call(label, lambda: far_ip.link("set", index=far, IFLA_AF_SPEC=no_address))
    _lift_gso_limits(far)
    link.call(label, lambda: far_ip.link("set", index=far, arp=False, state="up"))


def _lift_gso_limits(far: int) -> None:
    """Permits GSO frames of FAR_GSO_BYTES at the far end. Encodes the message here, since pyroute2
    lacks IPv4's limit."""
    limits = b"".join(
        ATTRIBUTE.pack(ATTRIBUTE.size, kind, FAR_GSO_BYTES)
        for kind in (IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE)
    )
    message = (
        REQUEST.pack(
            REQUEST.size + len(limits),
            RTM_SETLINK,
            NLM_F_REQUEST,
            0,
            0,
            socket.AF_UNSPEC,
            0,
            far,
            0,
            0,
        )
        + limits
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        # The change is made before send returns. Linux before 6.3 has only one limit and ignores
        # the other; before 5.19 neither can be changed, and such frames are dropped (queue_full).
        sock.send(message)


def _supported(queue: socket.socket, wanted: int) -> int:
    """`wanted` without USO if the kernel's virtio-net header does not support it (Linux before
    6.2). Tried with a frame that is not delivered, since the container's end is not up yet: the
    kernel returns EINVAL."""
    if not wanted & Offload.USO:
        return wanted
    header = struct.pack("=BBHHHH", 1, 5, 42, 8, 34, 6)  # NEEDS_CSUM, GSO_UDP_L4
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 44, 0, 0, 64, 17, 0, bytes(4), bytes(4))
    frame = bytes(12) + b"\x08\x00" + ip + struct.pack("!HHHH", 9, 9, 24, 0) + bytes(16)
    try:
        queue.send(header + frame)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return wanted & ~Offload.USO
    return wanted


def _configure(near_ip: Any, request: VethRequest, label: str) -> Any:
    """Configures the container's end; returns its netlink message."""
    index = link.call(label, lambda: near_ip.link("get", ifname=request.name))[0]["index"]
    link.call(label, lambda: near_ip.link("set", index=index, ifalias=ALIAS))
    if request.up:
        link.call(label, lambda: near_ip.link("set", index=index, state="up"))
    link.configure(near_ip, index, request, label)
    return link.call(label, lambda: near_ip.link("get", index=index))[0]


# --- the handle -----------------------------------------------------------------------------------


class Veth(SocketInterface):
    """The handle of a veth interface, with the methods of a Tap. `close` removes the interface: at
    once if the agent can delete it, else soon after the last process has closed the descriptors,
    since the kernel removes the far namespace in the background.

    far  the far namespace, held open
    """

    KIND = "veth"

    def __init__(
        self, report: VethReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> None:
        super().__init__(report, fds, namespace, agent)
        self.far_ifindex = report.far_ifindex
        self.far = NetNamespace(self.extra.pop(), f"the far end of veth {self.name}")

    def report(self) -> VethReport:
        """The data that another process needs besides the descriptors of `let_go`."""
        return VethReport(**msgspec.structs.asdict(super().report()), far_ifindex=self.far_ifindex)

    def let_go(self) -> list[int]:
        """Returns the descriptors in the order of VethReport, which the caller closes; the Veth is
        closed."""
        if not self.closed:
            self.extra, self.far.fd = [self.far.fd], -1
        return super().let_go()

    def set_carrier(self, on: bool) -> None:
        """Sets the link up or down, by the far end's state. While it is down, the port drops the
        packets to transmit (link_down)."""
        if self.closed:
            raise PortError(f"veth {self.name}: is closed")
        self._agent.run(self.far, LinkChange(ifindex=self.far_ifindex, up=on))

    def set_offloads(self, offloads: int) -> None:
        """Changes the offloads of the container's end."""
        granted = self._run(LinkChange(ifindex=self.ifindex, offloads=offloads))
        self.offloads = granted["offloads"]

    def set_mac(self, mac: str) -> None:
        """Changes the MAC address live."""
        address = parse_mac(mac, f"veth {self.name}")
        self._run(LinkChange(ifindex=self.ifindex, mac=mac))
        self.mac = address.hex(":")

    def delete(self) -> None:
        """Removes the interface even if another process has its queues open, and closes."""
        try:
            if self.closed:
                raise PortError(f"veth {self.name}: is closed")
            self._agent.run(self.far, DeleteLink(self.far_ifindex))
        finally:
            self.release()

    def close(self) -> None:
        """Closes queues and namespaces. May be called twice."""
        if not self.closed:
            # A worker has no agent: it only closes its descriptors; the interface stays while
            # another process has them.
            with suppress(ConfigError, PortError):
                self._agent.run(self.far, DeleteLink(self.far_ifindex))
        self.release()

    def queue_drops(self) -> int | None:
        """Frames of the container that were dropped at the interface or because a ring was full."""
        drops = super().queue_drops()
        return None if drops is None else drops + self.ring_drops()


# --- the kind -------------------------------------------------------------------------------------


class VethKind(InterfaceKind):
    """One end of a veth pair in the container, packet sockets at the other."""

    NAME = "veth"
    REQUEST, REPORT = VethRequest, VethReport
    BY_AGENT = True

    def create(self, request: TapRequest) -> tuple[VethReport, list[int]]:
        assert isinstance(request, VethRequest)
        return create(request)

    def interface(
        self, report: TapReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> Veth:
        assert isinstance(report, VethReport)
        return Veth(report, fds, namespace, agent)

    def port(self, name: str, number: int, interface: Tap) -> Port:
        assert isinstance(interface, Veth)
        return interface.make_port(name, number)
