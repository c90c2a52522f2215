"""Offload features of an interface (`ethtool -k`): which kinds of unfinished frames its network
stack passes to the device.

Sources: include/uapi/linux/ethtool.h (ETHTOOL_GFEATURES, ETHTOOL_SFEATURES), net/ethtool/common.c
(the features' names).
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

from vnic.device.tap import Offload

SIOCETHTOOL = 0x8946
ETHTOOL_GSTRINGS, ETHTOOL_GSSET_INFO = 0x1B, 0x37
ETHTOOL_GFEATURES, ETHTOOL_SFEATURES = 0x3A, 0x3B
ETH_SS_FEATURES = 4
NAME_BYTES = 32
FEATURES_MOST = 1024  # Linux 6.18 has 66

OFFLOADS = {
    Offload.CSUM: "tx-checksum-ip-generic",
    Offload.TSO4: "tx-tcp-segmentation",
    Offload.TSO6: "tx-tcp6-segmentation",
    Offload.USO: "tx-udp-segmentation",
    Offload.ECN: "tx-tcp-ecn-segmentation",
}


def set_offloads(sock: socket.socket, interface: str, wanted: int) -> int:
    """Enables exactly the `wanted` Offloads of an interface of the socket's network namespace.
    Returns those that the kernel granted. Raises OSError.

    The virtio-net header describes only the five Offloads, so every other one is disabled: it could
    not express that a frame lacks its SCTP checksum or is to be segmented within a tunnel. Software
    segmentation stays enabled: the kernel segments such frames before the interface.
    """
    names = _names(sock, interface)
    keep = {name for offload, name in OFFLOADS.items() if wanted & offload} | {
        "tx-generic-segmentation"
    }
    valid, requested = [0] * _blocks(names), [0] * _blocks(names)
    for number, name in enumerate(names):
        if name.endswith("-segmentation") or name.startswith(("tx-checksum-", "tx-gso-")):
            valid[number // 32] |= 1 << number % 32
            requested[number // 32] |= (name in keep) << number % 32
    changeable = _features(sock, interface, len(valid))[0]
    words = [
        word
        for block, change in enumerate(changeable)
        for word in (valid[block] & change, requested[block] & change)
    ]
    _ethtool(
        sock, interface, struct.pack(f"=II{len(words)}I", ETHTOOL_SFEATURES, len(valid), *words)
    )
    active = _features(sock, interface, len(valid))[1]
    on = {name for number, name in enumerate(names) if active[number // 32] >> number % 32 & 1}
    return int(
        sum(offload for offload, name in OFFLOADS.items() if wanted & offload and name in on)
    )


def _names(sock: socket.socket, interface: str) -> list[str]:
    """Names of the kernel's features; the position of a name is the number of its bit."""
    answer = _ethtool(
        sock, interface, struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0)
    )
    count = min(struct.unpack_from("=16xI", answer)[0], FEATURES_MOST)
    request = struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count) + bytes(
        count * NAME_BYTES
    )
    answer = _ethtool(sock, interface, request)[12:]
    return [
        answer[at : at + NAME_BYTES].split(b"\0")[0].decode()
        for at in range(0, count * NAME_BYTES, NAME_BYTES)
    ]


def _blocks(names: list[str]) -> int:
    return (len(names) + 31) // 32


def _features(sock: socket.socket, interface: str, blocks: int) -> tuple[list[int], list[int]]:
    """The bits that can be changed, and those that are set, in words of 32."""
    request = struct.pack("=II", ETHTOOL_GFEATURES, blocks) + bytes(16 * blocks)
    words = struct.unpack_from(f"={4 * blocks}I", _ethtool(sock, interface, request), 8)
    available, active, never_changed = words[0::4], words[2::4], words[3::4]
    return [can & ~never for can, never in zip(available, never_changed, strict=True)], list(active)


def _ethtool(sock: socket.socket, interface: str, request: bytes) -> bytes:
    """The answer of an ethtool ioctl, which the kernel writes over the request."""
    data = array.array("B", request)
    fcntl.ioctl(
        sock, SIOCETHTOOL, struct.pack("16sQ16x", interface.encode(), data.buffer_info()[0])
    )
    return data.tobytes()
