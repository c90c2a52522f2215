"""TAP interfaces: requests for them, and the handle of an existing one.

- `TapRequest` describes a TAP to create; `check()` rejects invalid ones before anything is changed.
- `vnic.device.link` creates it inside the container's namespaces.
- `Tap` holds the queues' descriptors. The interface is never persistent: closing the last one
  removes it.

Sources: Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h of Linux, netdevice(7),
virtio 1.2 section 5.1.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import ipaddress
import os
import struct
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import msgspec

from dataplane.errors import ConfigError, PortError
from vnic.device import link_counters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vnic.device.namespaces import Identity, NetNamespace, TargetWatch

MAX_QUEUES = 64
# RFC 791; 65535 minus the Ethernet header, the kernel's limit for a TAP
MIN_MTU, MAX_MTU = 68, 65521
MIN_MTU_IPV6 = 1280  # RFC 8200 section 5: with less the kernel switches IPv6 off
MAX_NAME_BYTES = 15  # IFNAMSIZ minus the final zero
MAX_ADDRESSES, MAX_ROUTES = 64, 256
VNET_HEADER_BYTES = 10  # struct virtio_net_hdr without num_buffers, in front of each frame

# ioctls that work on a queue's descriptor, from outside the namespace
TUNSETCARRIER = 0x4004_54E2
TUNGETIFF = 0x8004_54D2
SIOCSIFHWADDR = 0x8924
ARPHRD_ETHER = 1


class Offload(enum.IntFlag):
    """Offloads: the container's kernel leaves checksums and segmentation to the device. The bits
    are OFFLOAD_* of dataplane/graph/port.pxd."""

    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    USO = 0x08
    ECN = 0x10
    ALL = 0x1F


TUNSETOFFLOAD = 0x4004_54D0
TUN_OFFLOADS = {  # include/uapi/linux/if_tun.h
    Offload.CSUM: 0x01,
    Offload.TSO4: 0x02,
    Offload.TSO6: 0x04,
    Offload.USO: 0x20 | 0x40,  # IPv4 and IPv6: the kernel takes both or neither
    Offload.ECN: 0x08,
}


def set_tun_offloads(fd: int, wanted: int) -> int:
    """Asks for offloads of a TAP, by one of its queues; without USO if the kernel does not know
    that (Linux before 6.2). Returns those granted. Raises OSError."""

    def ask(offloads: int) -> None:
        mask = sum(bits for offload, bits in TUN_OFFLOADS.items() if offloads & offload)
        fcntl.ioctl(fd, TUNSETOFFLOAD, mask)

    try:
        ask(wanted)
    except OSError as error:
        if error.errno != errno.EINVAL or not wanted & Offload.USO:
            raise
        wanted &= ~int(Offload.USO)
        ask(wanted)
    return wanted


def offload_names(offloads: int) -> list[str]:
    """Offloads as status has them."""
    return [
        str(flag.name).lower() for flag in Offload if flag & offloads and flag is not Offload.ALL
    ]


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route in the container: `to` is a network in CIDR form or "default", `via` a gateway (None:
    on the link)."""

    to: str
    via: str | None = None


class TapRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open_tap"
):
    """A request for a TAP.

    name        interface name in the container, 1-15 bytes
    pid, netns  the container: one of its processes, or its network namespace's path or `ip netns`
                name; neither: here
    queues      queue pairs, 1-64
    mac         "02:00:00:00:00:01"; None: the kernel chooses one
    mtu         bytes of layer 3, 68-65521
    addresses   IPv4 and IPv6 in CIDR form; IPv6 ones are usable at once (no duplicate address
                detection)
    routes      set after the addresses
    up          bring the interface up
    offloads    mask of Offload; the kernel may grant less, see `Tap.offloads`
    """

    KIND: ClassVar[str] = "tap"  # in messages

    name: str
    pid: int | None = None
    netns: str | None = None
    queues: int = 1
    mac: str | None = None
    mtu: int = 1500
    addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    up: bool = True
    offloads: int = Offload.ALL


class LinkChange(msgspec.Struct, frozen=True, kw_only=True, tag="change_link"):
    """A change of an existing interface, by its index, since a container may rename it. None: no
    change."""

    ifindex: int
    up: bool | None = None
    mtu: int | None = None
    mac: str | None = None
    offloads: int | None = None


class ReadCounters(msgspec.Struct, frozen=True, tag="read_counters"):
    """A request for the counters of an interface."""

    ifindex: int


class FindSocket(msgspec.Struct, frozen=True, tag="find_socket"):
    """Asks whether a socket receives from a port (protocol "udp" or "tcp"), or every frame
    ("packet")."""

    protocol: str
    port: int = 0


class DeleteLink(msgspec.Struct, frozen=True, tag="delete_link"):
    """Deletes an interface, even if other processes hold queues of it."""

    ifindex: int


class TapReport(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a new TAP, from the kernel. netlink: after the queues' descriptors comes that
    of a netlink socket of its namespace; link_events: then another one, which becomes readable when
    an interface of the namespace changes."""

    name: str
    ifindex: int
    mac: str
    mtu: int
    offloads: int
    netlink: bool = False
    link_events: bool = False


Work = LinkChange | ReadCounters | FindSocket | DeleteLink


# --- checking requests ----------------------------------------------------------------------------


def check(request: TapRequest) -> None:
    """Raises ConfigError, with the field's name, if a request is invalid on every machine."""
    check_name(request.name, request.KIND)
    label = f"{request.KIND} {request.name}"
    if not 1 <= request.queues <= MAX_QUEUES:
        raise ConfigError(
            f"{label}: queues: {request.queues} is out of range: expected 1 to {MAX_QUEUES}"
        )
    if request.mac is not None:
        parse_mac(request.mac, label)
    check_mtu(request.mtu, label)
    if request.offloads & ~int(Offload.ALL):  # as int: a flag's complement has known bits only
        raise ConfigError(
            f"{label}: offloads: {request.offloads:#x} has unknown bits: "
            f"expected some of {int(Offload.ALL):#x}"
        )
    if request.offloads & ~Offload.CSUM and not request.offloads & Offload.CSUM:
        raise ConfigError(
            f"{label}: offloads: segmentation needs checksum offload too; "
            f"add csum or drop the others"
        )
    if len(request.addresses) > MAX_ADDRESSES or len(request.routes) > MAX_ROUTES:
        raise ConfigError(
            f"{label}: too many addresses or routes; at most {MAX_ADDRESSES} and {MAX_ROUTES}"
        )
    for text in request.addresses:
        address = _parse(
            ipaddress.ip_interface, text, f"{label}: addresses", "10.0.0.2/24 or fd00::2/64"
        )
        if "/" not in text:
            raise ConfigError(
                f"{label}: addresses: {text!r} has no prefix length: expected one, like /24 or /64"
            )
        if address.version == 6 and request.mtu < MIN_MTU_IPV6:
            raise ConfigError(
                f"{label}: mtu: {request.mtu} is too small for IPv6 ({text}): "
                f"expected {MIN_MTU_IPV6} or more"
            )
    if request.routes and not request.up:
        raise ConfigError(
            f"{label}: routes: cannot be set while the interface is down; say up: "
            f"true or leave them out"
        )
    for route in request.routes:
        _check_route(route, f"{label}: routes")


def check_name(name: str, kind: str = "tap") -> None:
    """Raises ConfigError unless the kernel accepts `name` for an interface unchanged."""
    allowed = name.isascii() and name.isprintable() and not set(name) & set(" /:%")
    if not allowed or not 1 <= len(name) <= MAX_NAME_BYTES or name in (".", "..", "all", "default"):
        raise ConfigError(
            f"{kind} {name!r}: no valid interface name: "
            f"expected 1 to {MAX_NAME_BYTES} ASCII characters without space, / : %"
        )


def check_mtu(mtu: int, label: str) -> None:
    """Raises ConfigError unless a TAP can have this MTU."""
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise ConfigError(f"{label}: mtu: {mtu} is out of range: expected {MIN_MTU} to {MAX_MTU}")


def parse_mac(text: str, label: str) -> bytes:
    """Six bytes of "02:00:00:00:00:01". Raises ConfigError for text that is no unicast address."""
    octets = text.split(":")
    try:
        if len(octets) != 6 or any(len(octet) != 2 for octet in octets):
            raise ValueError
        mac = bytes.fromhex("".join(octets))
        if len(mac) != 6:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{label}: mac: {text!r} is not a MAC address: "
            f"expected six bytes like 02:00:00:00:00:01"
        ) from None
    if mac[0] & 1:
        raise ConfigError(
            f"{label}: mac: {text} is a multicast address: expected an even first byte, like 02"
        )
    if not any(mac):
        raise ConfigError(
            f"{label}: mac: {text} is all zero: expected an address like 02:00:00:00:00:01"
        )
    return mac


def format_mac(mac: bytes) -> str:
    """Six bytes as 02:00:00:00:00:01."""
    return mac.hex(":")


def _parse(kind: Any, text: str, label: str, example: str) -> Any:
    try:
        if "%" in text:  # a scope id: the interface is always this TAP
            raise ValueError
        return kind(text)
    except ValueError:
        raise ConfigError(f"{label}: {text!r} is none: expected one like {example}") from None


def _check_route(route: Route, label: str) -> None:
    if route.to == "default":
        if route.via is None:
            raise ConfigError(f"{label}: the default route has no gateway; say via")
        _parse(ipaddress.ip_address, route.via, f"{label}: via", "10.0.0.1")
        return
    network = _parse(ipaddress.ip_network, route.to, label, "10.1.0.0/16, fd00:1::/64 or default")
    if route.via is not None:
        via = _parse(ipaddress.ip_address, route.via, f"{label}: via", "10.0.0.1")
        if via.version != network.version:
            raise ConfigError(
                f"{label}: {route.to} via {route.via} mixes IPv4 and IPv6: "
                f"expected both of one kind"
            )


# --- the handle -----------------------------------------------------------------------------------


class Agent(Protocol):
    """The part of the agent that a Tap uses: work inside a namespace."""

    def run(self, namespace: NetNamespace, work: Work) -> dict[str, int]:
        """Does `work` in `namespace`; returns counters, if it reads any."""
        ...


class Tap:
    """An existing TAP: its queues' descriptors and its properties. Closing it removes the
    interface.

    fds        one per queue pair, non-blocking, close-on-exec; the Tap owns them
    netlink    a netlink socket of the namespace, or -1; the Tap owns it
    link_events  the same; readable when an interface of the namespace changes
    name       as requested (a container may rename its interface; `ifindex` stays)
    mac, mtu   as the kernel has them; changed by `set_mac` and `set_mtu` only
    offloads   granted, mask of Offload
    namespace  its network namespace, held open; `namespace.identity` distinguishes it from others
    """

    KIND: ClassVar[str] = "tap"  # in messages

    def __init__(
        self, report: TapReport, fds: Sequence[int], namespace: NetNamespace, agent: Agent
    ) -> None:
        self.name, self.ifindex, self.mac, self.mtu = (
            report.name,
            report.ifindex,
            report.mac,
            report.mtu,
        )
        self.offloads = report.offloads
        self.vnet_header_bytes = VNET_HEADER_BYTES
        self.fds = list(fds)
        self.link_events = self.fds.pop() if report.link_events else -1
        self.netlink = self.fds.pop() if report.netlink else -1
        self.namespace = namespace
        self._agent = agent

    @property
    def queues(self) -> int:
        """Queue pairs."""
        return len(self.fds)

    @property
    def netns_identity(self) -> Identity:
        """(st_dev, st_ino) of the network namespace."""
        return self.namespace.identity

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self.fds

    def watch(self) -> TargetWatch:
        """A watch that reports that the container or the interface is gone. Close the Tap then,
        since it keeps the namespace alive."""
        return self.namespace.watch(self)

    def present(self) -> bool:
        """Whether the interface exists: root of its container may delete it. True for a closed
        Tap."""
        try:
            if not self.closed:
                fcntl.ioctl(self.fds[0], TUNGETIFF, bytes(40))
        except OSError as error:
            return error.errno != errno.EBADFD
        return True

    def report(self) -> TapReport:
        """What another process needs besides the descriptors of `let_go`."""
        return TapReport(
            name=self.name,
            ifindex=self.ifindex,
            mac=self.mac,
            mtu=self.mtu,
            offloads=int(self.offloads),
            netlink=self.netlink >= 0,
            link_events=self.link_events >= 0,
        )

    def let_go(self) -> list[int]:
        """Passes the descriptors of queues and netlink sockets, in the order of TapReport, to the
        caller; the Tap is closed then."""
        fds, self.fds = (
            [*self.fds, *(each for each in (self.netlink, self.link_events) if each >= 0)],
            [],
        )
        self.netlink = self.link_events = -1
        return fds

    def set_up(self, up: bool) -> None:
        """Sets or clears IFF_UP, as `ip link set up|down` in the container does."""
        self._run(LinkChange(ifindex=self.ifindex, up=up))

    def set_mtu(self, mtu: int) -> None:
        """Changes the MTU."""
        check_mtu(mtu, f"{self.KIND} {self.name}")
        self._run(LinkChange(ifindex=self.ifindex, mtu=mtu))
        self.mtu = mtu

    def set_offloads(self, offloads: int) -> None:
        """Changes the offloads; `offloads` has those that the kernel granted."""
        if self.closed:
            raise PortError(f"{self.KIND} {self.name}: is closed")
        try:
            self.offloads = set_tun_offloads(self.fds[0], offloads)
        except OSError as error:
            raise PortError(f"{self.KIND} {self.name}: offloads: {error.strerror}") from None

    def set_carrier(self, on: bool) -> None:
        """Sets the carrier: the container sees the link (operational state) go up or down."""
        self._ioctl(TUNSETCARRIER, struct.pack("i", on))

    def set_mac(self, mac: str) -> None:
        """Changes the MAC address."""
        address = parse_mac(mac, f"{self.KIND} {self.name}")
        self._ioctl(SIOCSIFHWADDR, struct.pack("16sH14s", b"", ARPHRD_ETHER, address))
        self.mac = format_mac(address)

    def counters(self) -> dict[str, int]:
        """The kernel's counters, from the container's point of view: tx_packets are those that we
        read from the queues."""
        return self._run(ReadCounters(self.ifindex))

    def listens(self, protocol: str, port: int = 0) -> bool:
        """Whether a socket of the namespace receives from a UDP or TCP port or, for "packet", every
        frame."""
        return bool(self._run(FindSocket(protocol, port))["found"])

    def queue_drops(self) -> int | None:
        """Packets of the container that the full queues dropped, from the kernel; None where it
        does not report them. Takes microseconds, since it does not use the agent."""
        return link_counters.tx_dropped(self.netlink, self.ifindex) if self.netlink >= 0 else None

    def delete(self) -> None:
        """Removes the interface even if another process holds queues of it, and closes the Tap."""
        try:
            self._run(DeleteLink(self.ifindex))
        finally:
            self.close()

    def close(self) -> None:
        """Removes the interface, unless another process holds a queue. May be called twice.

        Waits for the kernel to remove it (milliseconds), like `ip link del`.
        """
        self.release()

    def release(self) -> None:
        """Closes queues and namespace; the interface stays while another process holds them. May be
        called twice."""
        for fd in self.let_go():
            os.close(fd)
        self.namespace.close()

    def _run(self, work: Work) -> dict[str, int]:
        if self.closed:
            raise PortError(f"{self.KIND} {self.name}: is closed")
        return self._agent.run(self.namespace, work)

    def _ioctl(self, request: int, argument: bytes) -> None:
        if self.closed:
            raise PortError(f"{self.KIND} {self.name}: is closed")
        try:
            fcntl.ioctl(self.fds[0], request, argument)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise PortError(
                    f"{self.KIND} {self.name}: the interface is gone from its network namespace; "
                    f"attach it again"
                ) from None
            raise PortError(f"{self.KIND} {self.name}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fds", None):
            warnings.warn(
                f"unclosed {self.KIND} {self.name}", ResourceWarning, stacklevel=2, source=self
            )
            self.close()
