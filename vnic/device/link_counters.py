"""Kernel counters of an interface in another network namespace, by a netlink socket created there.

Needs no privilege: any process that has the socket may request them (rtnetlink(7), RTM_GETSTATS).
The kernel answers before send returns.

Sources: include/uapi/linux/if_link.h (struct if_stats_msg, struct rtnl_link_stats64), netlink(7).
"""

from __future__ import annotations

import os
import socket
import struct

RTM_NEWSTATS, RTM_GETSTATS = 92, 94
NLM_F_REQUEST = 1
RTMGRP_LINK = 1  # the multicast group of changes to interfaces
STATS_LINK_64 = 1  # the attribute, and its bit in the mask
REQUEST = struct.Struct("=IHHII BBHII")  # nlmsghdr, if_stats_msg
ATTRIBUTE = struct.Struct("=HH")
TX_DROPPED = struct.Struct("=56xQ")  # the eighth counter of rtnl_link_stats64
ANSWER_BYTES = 8192


def open_socket() -> int:
    """Creates a netlink socket in this process' network namespace; the caller closes it. Raises
    OSError."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE).detach()


def open_link_events() -> int:
    """Creates a non-blocking netlink socket in this process' network namespace, which becomes
    readable when an interface there is created, changed or deleted; needs no privilege. The caller
    closes it. Raises OSError."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as sock:
        # The kernel's minimum: the content is not used, and a container may change a lot.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.bind((0, RTMGRP_LINK))
        return sock.detach()


def tx_dropped(netlink: int, ifindex: int) -> int | None:
    """Packets that the interface could not transmit: for a TAP, those that its full queues dropped.
    None where the interface is gone, or the kernel does not report it."""
    try:
        with socket.socket(fileno=os.dup(netlink)) as sock:
            sock.setblocking(False)
            sock.sendto(
                REQUEST.pack(
                    REQUEST.size, RTM_GETSTATS, NLM_F_REQUEST, 0, 0, 0, 0, 0, ifindex, STATS_LINK_64
                ),
                (0, 0),
            )
            answer = sock.recv(ANSWER_BYTES)
            if struct.unpack_from("=4xH", answer)[0] != RTM_NEWSTATS:
                return None
            at = REQUEST.size
            while at < len(answer):
                length, kind = ATTRIBUTE.unpack_from(answer, at)
                if kind == STATS_LINK_64:
                    return int(TX_DROPPED.unpack_from(answer, at + ATTRIBUTE.size)[0])
                at += max(length + 3 & ~3, ATTRIBUTE.size)
    except (OSError, struct.error):
        pass
    return None
