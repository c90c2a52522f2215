"""Features of a virtio-net device: their bits and names, and which of them a device offers.

The bits are Virtio's (1.3, sections 5.1.3 and 6) and vhost's. Names are the specification's in
lower case, without VIRTIO_F and VIRTIO_NET_F.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntFlag

import msgspec

from dataplane.errors import ConfigError


class Feature(IntFlag):
    """A feature's bit."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41
    DEVICE_STATS = 1 << 50
    HASH_TUNNEL = 1 << 51
    VQ_NOTF_COAL = 1 << 52
    NOTF_COAL = 1 << 53
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    GUEST_HDRLEN = 1 << 59
    RSS = 1 << 60
    RSC_EXT = 1 << 61
    STANDBY = 1 << 62
    SPEED_DUPLEX = 1 << 63


_F = Feature
_NAMES = {feature.bit_length() - 1: name.lower() for name, feature in Feature.__members__.items()}
NOTHING = Feature(0)
OF_VHOST = _F.LOG_ALL | _F.PROTOCOL_FEATURES  # a driver never sees them

# Other names of features: QEMU's, where its device has another word, and those of `offloads`, which
# stand for several.
_TSO_ALL = (
    _F.GUEST_TSO4 | _F.GUEST_TSO6 | _F.GUEST_ECN | _F.HOST_TSO4 | _F.HOST_TSO6 | _F.HOST_ECN
)  # fmt: skip
_USO_ALL = _F.GUEST_USO4 | _F.GUEST_USO6 | _F.HOST_USO
_OTHER_NAMES = {
    "packed": _F.RING_PACKED,
    "hash": _F.HASH_REPORT,
    "iommu_platform": _F.ACCESS_PLATFORM,
    "queue_reset": _F.RING_RESET,
    "tso": _TSO_ALL,
    "uso": _USO_ALL,
}

# A feature needs one feature of each of its groups (section 5.1.3.1). A device that offers it
# without them makes drivers fail in odd ways.
_TSO = _F.HOST_TSO4 | _F.HOST_TSO6
_NEEDS: dict[Feature, tuple[Feature, ...]] = {
    _F.GUEST_TSO4: (_F.GUEST_CSUM,),
    _F.GUEST_TSO6: (_F.GUEST_CSUM,),
    _F.GUEST_ECN: (_F.GUEST_TSO4 | _F.GUEST_TSO6,),
    _F.GUEST_UFO: (_F.GUEST_CSUM,),
    _F.GUEST_USO4: (_F.GUEST_CSUM,),
    _F.GUEST_USO6: (_F.GUEST_CSUM,),
    _F.HOST_TSO4: (_F.CSUM,),
    _F.HOST_TSO6: (_F.CSUM,),
    _F.HOST_ECN: (_TSO,),
    _F.HOST_UFO: (_F.CSUM,),
    _F.HOST_USO: (_F.CSUM,),
    _F.RSC_EXT: (_TSO,),
    _F.CTRL_RX: (_F.CTRL_VQ,),
    _F.CTRL_RX_EXTRA: (_F.CTRL_VQ,),
    _F.CTRL_VLAN: (_F.CTRL_VQ,),
    _F.CTRL_GUEST_OFFLOADS: (_F.CTRL_VQ,),
    _F.CTRL_MAC_ADDR: (_F.CTRL_VQ,),
    _F.GUEST_ANNOUNCE: (_F.CTRL_VQ, _F.STATUS),
    _F.MQ: (_F.CTRL_VQ,),
    _F.RSS: (_F.CTRL_VQ,),
    _F.HASH_REPORT: (_F.CTRL_VQ,),
    _F.HASH_TUNNEL: (_F.CTRL_VQ, _F.RSS | _F.HASH_REPORT),
    _F.NOTF_COAL: (_F.CTRL_VQ,),
    _F.VQ_NOTF_COAL: (_F.CTRL_VQ,),
    _F.DEVICE_STATS: (_F.CTRL_VQ,),
    _F.RING_PACKED: (_F.VERSION_1,),
    _F.IN_ORDER: (_F.VERSION_1,),
}


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a device can do, which decides what it offers.

    checksum     completes checksums of frames that the guest sends, and passes on that a frame was
                 checked
    tso, uso     takes and hands on frames that are still to be cut: TCP, UDP
    mergeable    spreads a frame over several receive buffers
    queue_pairs  more than one: MQ
    mtu          in bytes, offered to the driver; 0: none
    control      serves the control queue: receive filters, addresses, VLANs, announcements
    rss, hash_report, coalescing, statistics   commands of the control queue
    packed, in_order, event_index, indirect   forms of rings
    speed        a link's speed is known
    migration    logs the pages that it writes
    """

    checksum: bool = True
    tso: bool = True
    uso: bool = True
    mergeable: bool = True
    queue_pairs: int = 1
    mtu: int = 0
    control: bool = True
    rss: bool = False
    hash_report: bool = False
    coalescing: bool = False
    statistics: bool = False
    packed: bool = True
    in_order: bool = False
    event_index: bool = True
    indirect: bool = True
    speed: bool = True
    migration: bool = True


def offered(
    abilities: Abilities, only: Iterable[str] | None = None, without: Iterable[str] = ()
) -> Feature:
    """The features that a device offers, without PROTOCOL_FEATURES. only: names of the features
    that a driver may be offered besides VERSION_1 (parse_names), so that two hosts offer the same
    and a guest can move between them; None: all. without: names of features that it is not offered.
    What is left without a feature that it needs is not offered, either."""
    found = _F.VERSION_1 | _F.MAC | _F.STATUS
    for able, features in (
        (abilities.checksum, _F.CSUM | _F.GUEST_CSUM),
        (abilities.tso, _TSO_ALL),
        (abilities.uso, _USO_ALL),
        (abilities.mergeable, _F.MRG_RXBUF),
        (abilities.queue_pairs > 1, _F.MQ),
        (abilities.mtu > 0, _F.MTU),
        (
            abilities.control,
            _F.CTRL_VQ | _F.CTRL_RX | _F.CTRL_RX_EXTRA | _F.CTRL_VLAN | _F.CTRL_MAC_ADDR
            | _F.CTRL_GUEST_OFFLOADS | _F.GUEST_ANNOUNCE,
        ),
        (abilities.rss, _F.RSS),
        (abilities.hash_report, _F.HASH_REPORT),
        (abilities.coalescing, _F.NOTF_COAL | _F.VQ_NOTF_COAL),
        (abilities.statistics, _F.DEVICE_STATS),
        (abilities.packed, _F.RING_PACKED),
        (abilities.in_order, _F.IN_ORDER),
        (abilities.event_index, _F.EVENT_IDX),
        (abilities.indirect, _F.INDIRECT_DESC),
        (abilities.speed, _F.SPEED_DUPLEX),
        (abilities.migration, _F.LOG_ALL),
    ):  # fmt: skip
        if able:
            found |= features
    if only is not None:
        found &= parse_names(only) | _F.VERSION_1 | OF_VHOST
    return consistent(found & ~parse_names(without) | _F.VERSION_1)


def consistent(features: Feature) -> Feature:
    """The features without those that lack one that they need."""
    while lacking := [
        feature
        for feature, groups in _NEEDS.items()
        if feature in features and not all(features & group for group in groups)
    ]:
        for feature in lacking:
            features &= ~feature
    return features


def names(features: int) -> list[str]:
    """The names of bits, lowest first; "bit62" and so on for bits without one."""
    found = []
    for bit in range(64):
        if features & (1 << bit):
            found.append(_NAMES.get(bit, f"bit{bit}"))
    return found


def parse_names(wanted: Iterable[str]) -> Feature:
    """The bits of names, as `names` gives them or QEMU spells them; "tso" and "uso" are all bits of
    these offloads. Raises ConfigError for an unknown one."""
    found = NOTHING
    for name in wanted:
        feature = _of_name(name)
        if feature is None:
            known = [*_NAMES.values(), *_OTHER_NAMES]
            close = difflib.get_close_matches(name.lower(), known, n=1)
            expected = (
                f"did you mean {close[0]!r}?"
                if close
                else "expected names such as csum, guest_tso4, mrg_rxbuf, packed"
            )
            raise ConfigError(f"feature {name!r} is unknown: {expected}")
        found |= feature
    return found


def _of_name(name: str) -> Feature | None:
    word = name.lower().replace("-", "_")
    return _OTHER_NAMES.get(word) or Feature.__members__.get(word.upper())
