"""Types of hashes of received frames (Virtio 1.2, section 5.1.6.4.3)."""

from __future__ import annotations

from enum import IntFlag


class HashType(IntFlag):
    """The packets that a hash is calculated for: by protocols; the field `hash_types`. A header
    names the type of a frame's hash by the number of its bit, from 1 on."""

    IPV4 = 1 << 0
    TCPV4 = 1 << 1
    UDPV4 = 1 << 2
    IPV6 = 1 << 3
    TCPV6 = 1 << 4
    UDPV6 = 1 << 5


# All that the device calculates. Those of addresses in IPv6 extension headers are not offered:
# without them, such packets are hashed like others.
HASH_TYPES = int(sum(HashType))


def names_of_types(types: int) -> list[str]:
    """The names of a mask's types."""
    return [each.name.lower() for each in HashType if types & each and each.name is not None]
