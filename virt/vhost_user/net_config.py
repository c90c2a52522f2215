"""The configuration space of a virtio-net device (Virtio, section 5.1.4): struct
virtio_net_config."""

from __future__ import annotations

import struct
from enum import IntFlag

import msgspec

# Virtio's byte order is little-endian, whatever the machine's. Fields stay at their offsets, also
# those of features that were not acknowledged.
_LAYOUT = struct.Struct("<6sHHHIBBHII")
CONFIG_BYTES = _LAYOUT.size

_MOST_SPEED_MBPS = 0x7FFF_FFFF
SPEED_UNKNOWN = 0xFFFF_FFFF
DUPLEX_FULL, DUPLEX_UNKNOWN = 0x01, 0xFF
LEAST_RSS_KEY_BYTES = 40  # "at least" (section 5.1.4)
LEAST_RSS_TABLE_ENTRIES = 128


class LinkStatus(IntFlag):
    """The field `status`."""

    LINK_UP = 1
    ANNOUNCE = 2  # asks the driver to announce itself; cleared when it has


class NetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Values of the configuration space.

    mac           six bytes
    mtu           in bytes; 0 if MTU is not offered: a driver ignores the feature then
    speed_mbps    SPEED_UNKNOWN: not known
    rss_key_bytes, rss_table_entries, hash_types   0 without RSS and HASH_REPORT
    """

    mac: bytes
    up: bool = True
    announce: bool = False
    queue_pairs: int = 1
    mtu: int = 0
    speed_mbps: int = SPEED_UNKNOWN
    full_duplex: bool = True
    rss_key_bytes: int = 0
    rss_table_entries: int = 0
    hash_types: int = 0
    tunnel_types: int = 0

    def __post_init__(self) -> None:
        if len(self.mac) != 6:
            raise ValueError(f"mac: {len(self.mac)} bytes: expected 6")
        if not 0 <= self.speed_mbps <= _MOST_SPEED_MBPS and self.speed_mbps != SPEED_UNKNOWN:
            raise ValueError(f"speed_mbps: {self.speed_mbps}: expected 0 to {_MOST_SPEED_MBPS}")
        if self.rss_key_bytes and self.rss_key_bytes < LEAST_RSS_KEY_BYTES:
            raise ValueError(f"rss_key_bytes: expected {LEAST_RSS_KEY_BYTES} at least, or 0")
        if self.rss_table_entries and self.rss_table_entries < LEAST_RSS_TABLE_ENTRIES:
            raise ValueError(
                f"rss_table_entries: expected {LEAST_RSS_TABLE_ENTRIES} at least, or 0"
            )

    def packed(self) -> bytes:
        """The bytes that a driver reads."""
        status = (self.up and LinkStatus.LINK_UP) | (self.announce and LinkStatus.ANNOUNCE)
        return _LAYOUT.pack(
            self.mac,
            status,
            self.queue_pairs,
            self.mtu,
            self.speed_mbps,
            DUPLEX_FULL if self.full_duplex else DUPLEX_UNKNOWN,
            self.rss_key_bytes,
            self.rss_table_entries,
            self.hash_types,
            self.tunnel_types,
        )
