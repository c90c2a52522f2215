"""Warnings of a replay: most packets were dropped (how many, why, what to do), the captures are far
apart in time, or a capture's lengths cannot be true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataplane.elements.parse import Parse

DAY_NS = 86_400 * 10**9
ABSURD_NS = DAY_NS  # between the first packets of two captures: they are probably unrelated

# reason -> (why, what to do)
REASONS: dict[str, tuple[str, str]] = {
    "hairpin": (
        "the switch would send them back to the NIC they came from, which holds for both "
        "directions of one capture",
        "--split mac|prefix|port or --side NAME=MAC|PREFIX|PORT; "
        "for frames without MAC addresses --rewrite-mac nics, too",
    ),
    "no_buffer": ("the pool of packets had no room", "a lower rate or a shorter `queue:`"),
    "too_long": ("they are longer than the NIC's MTU allows", "a larger `mtu:`"),
    "vlan_filtered": ("their NIC is not in their VLAN", "--rewrite-vlan, or `vlan:` of the NICs"),
    "bad_source": (
        "their source MAC address is zero or a group's, as in captures of lo",
        "--rewrite-mac nics, with --split prefix|port where both directions are in one file",
    ),
    "no_destination": ("no NIC may receive them", "more NICs, or `vlan:` of the NICs"),
    "reserved_multicast": (
        "a switch does not forward these control frames (IEEE 802.1Q, 8.6.3)",
        "another capture",
    ),
    "delay_line_full": (
        "a quarter of the pool of packets was on a link's line",
        "a larger `pool:`",
    ),
    "queue_full": ("a shaper's queue was full", "a higher `rate:` or a longer `queue:`"),
    "horizon": (
        "they would have waited longer than a pacer's horizon",
        "a higher `rate:` or a longer `horizon:`",
    ),
    "runt": (
        "they are shorter than an Ethernet header",
        "another capture: these are no Ethernet frames",
    ),
}


def drop_warnings(result: Mapping[str, Any], *, split: bool) -> list[dict[str, str]]:
    """One warning where more than half of the packets were dropped or belong to no side."""
    received, dropped = result["received"], result["dropped"]
    unassigned = result.get("unassigned", 0)
    lost = min(sum(dropped.values()) + unassigned, received)
    if received == 0 or 2 * lost <= received:
        return []
    reasons: dict[str, int] = {}
    for key, count in dropped.items():
        reason = key.rsplit(": ", 1)[1]
        reasons[reason] = reasons.get(reason, 0) + count
    parts = []
    if unassigned:
        parts.append(
            f"{unassigned} are of no side: no rule fits them; use --side NAME=* for the rest"
        )
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        if reason in Parse.COUNTERS:  # of malformed packets, and drop reasons of the same names
            why, remedy = (
                "their IP or transport header is malformed",
                "the setting `malformed`, or another capture",
            )
        else:
            why, remedy = REASONS.get(reason, ("", ""))
        if reason == "hairpin" and split:
            remedy = "--rewrite-mac nics, which gives each side its NIC's MAC address"
        text = f"{count} {reason}" + (f": {why}" if why else "")
        parts.append(text + (f"; use {remedy}" if remedy else ""))
    share = 100 * lost // received
    return [
        {
            "code": "mostly_dropped",
            "text": f"{lost} of {received} packets ({share} %) were dropped - {'. '.join(parts)}",
        }
    ]


def span_warning(apart_ns: int) -> dict[str, str]:
    """A warning that the captures' beginnings are far apart."""
    days = apart_ns / DAY_NS
    return {
        "code": "starts_apart",
        "text": f"the captures begin {days:.1f} days apart; use --align to let all begin at once",
    }


def length_warning(path: str, count: int) -> dict[str, str]:
    """A warning that `count` packets of a capture claim to have been longer than any frame is."""
    return {
        "code": "overlong",
        "text": f"{path}: {count} packets have an original length above 262144 bytes, which no "
        "frame has; shapers take 262144 instead",
    }
