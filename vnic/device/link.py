"""Interfaces inside a container's network namespace: creates a TAP; changes, reads, deletes
interfaces.

Runs in a short-lived child of `vnic.device.agent` that has entered the namespace. python-pytun
creates TAPs, ioctls do what it lacks, pyroute2 sets addresses and routes.

Sources: Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h of Linux, rtnetlink(7).
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from typing import Any

import pytun  # loaded by the agent, so not in every child

from dataplane.descriptors import system_error
from dataplane.errors import ConfigError, PortError
from vnic.device import link_counters
from vnic.device.features import set_offloads
from vnic.device.tap import (
    VNET_HEADER_BYTES,
    DeleteLink,
    LinkChange,
    ReadCounters,
    TapReport,
    TapRequest,
    format_mac,
    parse_mac,
    set_tun_offloads,
)

TUN_DEVICE = "/dev/net/tun"
TUNSETVNETHDRSZ = 0x4004_54D8
SIOCSIFTXQLEN = 0x8943
# txqueuelen of a TAP: at 100,000 packets/s, 2000 last 20 ms while the engine is halted for an
# upgrade or gets no CPU; Linux' default of 1000 overflows when a busy host stops the engine for 10
# ms. Larger queues do not fit a cache: a flood of small packets loses 1 % of its throughput with
# 2000, 4 % with 3000, 9 % with 4096. Set at creation, since a later change drops milliseconds of
# packets: the kernel deactivates the queue meanwhile (dev_qdisc_change_tx_queue_len).
QUEUE_PACKETS, QUEUE_PACKETS_LEAST = 2000, 1000
IFA_F_NODAD = 0x02  # no duplicate address detection: the address is usable at once


def netlink() -> Any:
    """The netlink library. Imported late: it takes 170 ms, longer than everything else together."""
    from pyroute2 import IPRoute  # type: ignore[import-untyped,unused-ignore]

    return IPRoute


def has_netlink() -> bool:
    """Whether the netlink library is loaded."""
    return "pyroute2" in sys.modules


def create(request: TapRequest) -> tuple[TapReport, list[int]]:
    """Creates a TAP in this process' namespace. Returns its properties, and the descriptors of its
    queues (non-blocking) and of two netlink sockets, see TapReport.

    After an error, the caller's exit closes the descriptors, which removes the interface.
    """
    label = f"tap {request.name}"
    try_tun_device()
    flags = pytun.IFF_TAP | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR
    if request.queues > 1:
        # Root in the container's user namespace can attach a queue to a TAP with this flag, and
        # then change settings of the whole interface (header size, persistence). Without it, a TAP
        # has one queue, ours, and attaching fails with EBUSY.
        flags |= pytun.IFF_MULTI_QUEUE
    try:
        # IFF_TUN_EXCL: else our queues might be attached to an existing interface of the same user.
        queues = [pytun.TunTapDevice(request.name, flags | pytun.IFF_TUN_EXCL, TUN_DEVICE)]
        queues += [
            pytun.TunTapDevice(request.name, flags, TUN_DEVICE) for _ in range(request.queues - 1)
        ]
    except OSError as error:
        raise creation_error(
            int(error.args[0]), label
        ) from None  # pytun fills `errno` in some of its errors only
    first = queues[0]
    try:
        # Duplicates, since python-pytun closes its descriptors when it frees the object.
        fds = [os.dup(queue.fileno()) for queue in queues]
        fcntl.ioctl(fds[0], TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
        offloads = set_tun_offloads(fds[0], request.offloads)
        for fd in fds:
            os.set_blocking(fd, False)
        if request.mac is not None:
            first.hwaddr = parse_mac(request.mac, label)
        first.mtu = request.mtu
        _set_queue_length(request.name, max(QUEUE_PACKETS // request.queues, QUEUE_PACKETS_LEAST))
        if request.up:
            first.up()
        ifindex = socket.if_nametoindex(request.name)
        fds += [link_counters.open_socket(), link_counters.open_link_events()]
    except OSError as error:
        raise PortError(f"{label}: cannot set it up: {system_error(error)}") from None
    if request.addresses or request.routes:
        with netlink()() as ip:
            configure(ip, ifindex, request, label)
    mac = format_mac(first.hwaddr)
    report = TapReport(
        name=request.name,
        ifindex=ifindex,
        mac=mac,
        mtu=first.mtu,
        offloads=offloads,
        netlink=True,
        link_events=True,
    )
    return report, fds


def _set_queue_length(name: str, packets: int) -> None:
    """Sets the length of each of the interface's queues, before it is up."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # netdevice(7)
            fcntl.ioctl(any_socket, SIOCSIFTXQLEN, struct.pack("16si20x", name.encode(), packets))
    except PermissionError:  # in a user namespace, only netlink is permitted
        with netlink()() as ip:
            ip.link("set", index=socket.if_nametoindex(name), txqlen=packets)


def try_tun_device() -> None:
    """Raises ConfigError, with advice, when /dev/net/tun cannot be opened."""
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise ConfigError(
            f"{TUN_DEVICE}: not permitted to open it: "
            f"ask root for chmod 0666 {TUN_DEVICE} (what most "
            "distributions have), or to give it to a group that you are in; "
            "a NIC of kind veth does without it"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO):
            raise PortError(f"{TUN_DEVICE}: cannot open it: {system_error(error)}") from None
        raise ConfigError(
            f"{TUN_DEVICE} is missing: "
            f"load the tun module (modprobe tun) or pass the device into the "
            f"container (--device {TUN_DEVICE}); a NIC of kind veth does without it"
        ) from None


def creation_error(code: int, label: str) -> ConfigError | PortError:
    """What to say of an interface that the kernel did not make."""
    if code in (errno.EBUSY, errno.EEXIST):
        return ConfigError(
            f"{label}: the name is taken in that network namespace; "
            f"choose another or delete that interface"
        )
    if code == errno.EPERM:
        return ConfigError(
            f"{label}: not permitted to make interfaces in that network namespace; "
            f"run vnic as root, or "
            "attach to a container that you started as the same user"
        )
    if code == errno.EINVAL:
        return ConfigError(
            f"{label}: the kernel refuses the name or multi-queue interfaces; choose another name"
        )
    return PortError(f"{label}: cannot make it: {system_error(OSError(code, os.strerror(code)))}")


def configure(ip: Any, ifindex: int, request: TapRequest, label: str) -> None:
    """Gives an interface its addresses and routes."""
    for text in request.addresses:
        address = ipaddress.ip_interface(text)
        settings: dict[str, Any] = {
            "index": ifindex,
            "address": str(address.ip),
            "prefixlen": address.network.prefixlen,
        }
        if address.version == 6:
            settings["flags"] = IFA_F_NODAD
        elif address.network.prefixlen < 31:
            settings["broadcast"] = str(address.network.broadcast_address)
        call(f"{label}: address {text}", lambda settings=settings: ip.addr("add", **settings))
    for route in request.routes:
        settings = {"oif": ifindex}
        if route.via is not None:
            settings["gateway"] = route.via
        version = (
            ipaddress.ip_address(route.via).version if route.to == "default" and route.via else None
        )
        settings["dst"] = {4: "0.0.0.0/0", 6: "::/0", None: route.to}[version]
        settings["family"] = socket.AF_INET6 if ":" in settings["dst"] else socket.AF_INET
        call(f"{label}: route to {route.to}", lambda settings=settings: ip.route("add", **settings))


_NETLINK_ADVICE = {
    errno.EACCES: "IPv6 is switched off in that network namespace; "
    "set net.ipv6.conf.all.disable_ipv6=0 or leave IPv6 out",
    errno.EPERM: "not permitted in that network namespace; "
    "run vnic as the user who started the container, or as root",
    errno.EEXIST: "it is there already; leave it out",
    errno.ENETUNREACH: "no address reaches its gateway; "
    "give the interface an address in the gateway's network",
    errno.EHOSTUNREACH: "no address reaches its gateway; "
    "give the interface an address in the gateway's network",
    errno.EINVAL: "the kernel finds it invalid; see that address, gateway and network fit together",
}


def call(label: str, request: Any) -> Any:
    """The answer to a netlink request. Raises ConfigError where advice is known, else PortError."""
    from pyroute2.netlink.exceptions import (  # type: ignore[import-untyped,unused-ignore]
        NetlinkError,
    )

    try:
        return request()
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            raise PortError(
                f"{label}: the interface is gone from its network namespace; attach it again"
            ) from None
        advice = _NETLINK_ADVICE.get(error.code)
        if advice is not None:
            raise ConfigError(f"{label}: {advice}") from None
        raise PortError(f"{label}: {os.strerror(error.code)}") from None


def change(work: LinkChange) -> dict[str, int]:
    """Changes an interface of this process' namespace; returns the offloads that it has now, if it
    is to change them."""
    settings: dict[str, Any] = {"index": work.ifindex}
    if work.up is not None:
        settings["state"] = "up" if work.up else "down"
    if work.mtu is not None:
        settings["mtu"] = work.mtu
    if work.mac is not None:
        settings["address"] = work.mac
    if len(settings) > 1:
        with netlink()() as ip:
            call(f"interface {work.ifindex}", lambda: ip.link("set", **settings))
    if work.offloads is None:
        return {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ioctls:
        interface = socket.if_indextoname(work.ifindex)
        return {"offloads": set_offloads(ioctls, interface, work.offloads)}


def counters(work: ReadCounters) -> dict[str, int]:
    """The kernel's counters of an interface, as the container sees them: rx_packets, ..."""
    with netlink()() as ip:
        links = call(f"interface {work.ifindex}", lambda: ip.link("get", index=work.ifindex))
        return {
            name: int(value)
            for name, value in links[0].get("stats64").items()
            if isinstance(value, int)
        }


def delete(work: DeleteLink) -> None:
    """Deletes an interface of this process' namespace."""
    with netlink()() as ip:
        call(f"interface {work.ifindex}", lambda: ip.link("del", index=work.ifindex))
