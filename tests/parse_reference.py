"""A second frame parser, in plain Python, as reference for dataplane.wire.headers.parse_frame."""

from __future__ import annotations

from typing import Any

VLANS = (0x8100, 0x88A8, 0x9100)
EXTENSIONS = (0, 43, 44, 51, 60)


class Malformed(Exception):
    pass


class Cut(Exception):
    """The frame ends before the header does."""


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def take(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise Cut
    return data[at : at + count]


def nothing() -> dict[str, Any]:
    return {
        "parsed": True,
        "ipv4": False,
        "ipv6": False,
        "l4": False,
        "fragment": False,
        "malformed": False,
        "ethertype": 0,
        "vlan_count": 0,
        "vlan_tci": 0,
        "vlan_inner_tci": 0,
        "l3_offset": 0,
        "l4_offset": 0,
        "payload_offset": 0,
        "ip_protocol": 0,
        "tos": 0,
        "ttl": 0,
        "source_port": 0,
        "destination_port": 0,
        "source_address": bytes(16),
        "destination_address": bytes(16),
        "gso_type": 0,
        "gso_size": 0,
        "header_length": 0,
    }


def reference(
    frame: bytes,
    truncated: bool = False,
    vnet_flags: int = 0,
    gso_type: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
) -> tuple[str | None, dict[str, Any]]:
    """Reason and record. The record is valid if the reason is None; if it is an IP or transport
    header's, the record has the fields before the fault."""
    r = nothing()
    if len(frame) < 14:
        return "runt", r
    at = 12
    kinds = []
    try:
        while number(take(frame, at, 2)) in VLANS and len(kinds) < 2:
            kinds.append(number(take(frame, at + 2, 4)[:2]))
            at += 4
    except Cut:
        if not truncated:
            return "runt", r
    r["ethertype"] = number(frame[at : at + 2])
    at += 2
    r["vlan_count"] = len(kinds)
    r["vlan_tci"], r["vlan_inner_tci"] = [*kinds, 0, 0][:2]
    r["l3_offset"] = r["payload_offset"] = at
    reasons: list[str] = []
    try:
        if r["ethertype"] == 0x0800:
            ipv4(frame, r, truncated, gso_type, reasons)
        elif r["ethertype"] == 0x86DD:
            ipv6(frame, r, truncated, gso_type, reasons)
    except Malformed as error:
        reasons.append(str(error))
    if reasons:
        r["malformed"] = True
        return reasons[0], r
    return offloads(frame, r, truncated, vnet_flags, gso_type, gso_size, csum_start, csum_offset), r


def whether_it_can_be_forwarded(
    frame: bytes, reason: str | None, r: dict[str, Any], *, truncated: bool = False, **fields: int
) -> bool:
    """Whether a switch can forward a frame with this result of `reference`."""
    if reason in ("runt", "bad_gso", "bad_csum_offset"):
        return False
    defaults = {"vnet_flags": 0, "gso_type": 0, "gso_size": 0, "csum_start": 0, "csum_offset": 0}
    return reason is None or offloads(frame, dict(r), truncated, *{**defaults, **fields}.values()) is None


def believed(said: int, present: int, truncated: bool, gso: int) -> int:
    """Bytes of the packet, or Malformed. said=0: as many as are present."""
    if said in (0, present):
        return present
    if not gso and said < present:
        return said
    if not gso and truncated:
        return present
    raise Malformed


def ipv4(frame: bytes, r: dict[str, Any], truncated: bool, gso: int, reasons: list[str]) -> None:
    l3 = r["l3_offset"]
    try:
        head = take(frame, l3, 20)
        size = head[0] % 16 * 4
        if head[0] // 16 != 4 or size < 20:
            raise Malformed("ipv4_header")
        take(frame, l3, size)
    except Cut:
        if truncated:
            return
        raise Malformed("ipv4_header") from None
    try:
        total = believed(number(head[2:4]), len(frame) - l3, truncated, gso)
    except Malformed:
        total = len(frame) - l3
        reasons.append("ipv4_length")
    if total < size:
        total = size
        reasons.append("ipv4_length")
    fragment = number(head[6:8]) & 0x3FFF
    r.update(
        ipv4=True,
        tos=head[1],
        ttl=head[8],
        ip_protocol=head[9],
        source_address=head[12:16] + bytes(12),
        destination_address=head[16:20] + bytes(12),
        payload_offset=l3 + size,
        fragment=fragment != 0,
    )
    if fragment & 0x1FFF == 0:
        r["l4_offset"] = l3 + size
        transport(frame[: l3 + total], r, truncated or r["fragment"])


def ipv6(frame: bytes, r: dict[str, Any], truncated: bool, gso: int, reasons: list[str]) -> None:
    l3 = r["l3_offset"]
    try:
        head = take(frame, l3, 40)
    except Cut:
        if truncated:
            return
        raise Malformed("ipv6_header") from None
    if head[0] // 16 != 6:
        raise Malformed("ipv6_header")
    said = number(head[4:6])
    r.update(
        ipv6=True, tos=number(head[:2]) >> 4 & 0xFF, ttl=head[7], source_address=head[8:24], destination_address=head[24:40]
    )
    try:
        frame = frame[: l3 + 40 + believed(said, len(frame) - l3 - 40, truncated, gso)]
        if gso and said == 0 and head[6] == 0:
            raise Malformed
    except Malformed:
        reasons.append("ipv6_length")
    r.update(ip_protocol=head[6], payload_offset=l3 + 40)
    later, seen = False, 0
    try:
        while r["ip_protocol"] in EXTENSIONS and not later:
            if seen == 24:
                raise Malformed("ipv6_header")
            seen += 1
            first = take(frame, r["payload_offset"], 8)
            if r["ip_protocol"] == 44:
                r["fragment"], later = True, number(first[2:4]) >> 3 != 0
            size = {44: 8, 51: (first[1] + 2) * 4}.get(r["ip_protocol"], (first[1] + 1) * 8)
            take(frame, r["payload_offset"], size)
            r.update(ip_protocol=first[0], payload_offset=r["payload_offset"] + size)
    except Cut:
        if not truncated:
            raise Malformed("ipv6_header") from None
        return
    if not later:
        r["l4_offset"] = r["payload_offset"]
        transport(frame, r, truncated)


def transport(packet: bytes, r: dict[str, Any], truncated: bool) -> None:
    at, protocol = r["l4_offset"], r["ip_protocol"]
    sizes = {6: 20, 17: 8, 132: 12}
    other = {1: 8} if r["ipv4"] else {58: 4}
    size = {**sizes, **other}.get(protocol)
    if size is None:
        return
    if protocol in sizes and len(packet) >= at + 4:
        r.update(l4=True, source_port=number(packet[at : at + 2]), destination_port=number(packet[at + 2 : at + 4]))
    try:
        if protocol == 6:
            size = take(packet, at, 20)[12] // 16 * 4
        r["payload_offset"] = at + max(size, 20 if protocol == 6 else 0)
        take(packet, at, size)
    except Cut:
        r["payload_offset"] = len(packet)
        if not truncated:
            raise Malformed("l4_header") from None
    if protocol == 6 and size < 20:
        raise Malformed("l4_header")


def checksum_place_is_sound(frame: bytes, r: dict[str, Any], csum_start: int, csum_offset: int) -> bool:
    place = csum_start + csum_offset
    if csum_start < r["l3_offset"] or place + 2 > len(frame):
        return False
    if not (r["ipv4"] or r["ipv6"]):
        return True
    if not r["l4_offset"] or place < r["l4_offset"]:
        return False
    own = {6: 16, 17: 6}.get(r["ip_protocol"])
    return (
        place == r["l4_offset"] + own
        if own is not None and place < r["payload_offset"]
        else (not r["l4"] or place >= r["payload_offset"])
    )


def offloads(
    frame: bytes,
    r: dict[str, Any],
    truncated: bool,
    flags: int,
    gso_type: int,
    gso_size: int,
    csum_start: int,
    csum_offset: int,
) -> str | None:
    if gso_type == 0:
        sound = not flags & 1 or checksum_place_is_sound(frame, r, csum_start, csum_offset)
        return None if sound else "bad_csum_offset"
    want = {1: ("ipv4", 6), 0x81: ("ipv4", 6), 4: ("ipv6", 6), 0x84: ("ipv6", 6), 5: ("", 17)}.get(gso_type)
    if want is None or r["malformed"] or r["fragment"] or truncated or not flags & 1:
        return "bad_gso"
    family, protocol = want
    if not (r[family] if family else r["ipv4"] or r["ipv6"]) or r["ip_protocol"] != protocol or not r["l4"]:
        return "bad_gso"
    tcp = protocol == 6
    payload = len(frame) - r["payload_offset"]
    if (
        csum_start != r["l4_offset"]
        or csum_offset != (16 if tcp else 6)
        or gso_size < (8 if tcp else 1)
        or r["payload_offset"] > 512
    ):
        return "bad_gso"
    if payload <= gso_size:
        return None
    if payload > gso_size * (2048 if tcp else 128) or r["payload_offset"] - r["l3_offset"] + gso_size > 65535:
        return "bad_gso"
    r.update(gso_type=gso_type, gso_size=gso_size, header_length=r["payload_offset"])
    return None
