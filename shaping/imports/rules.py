"""Rules of a Classifier as filters of other tools make them: which packets two of them share, and
what a part of a line with them is called."""

from __future__ import annotations

import hashlib
import ipaddress
import re

from dataplane.elements.classifier_rules import READERS, WITH_PORTS, Prefix, read_rule
from dataplane.elements.classifier_rules import Rule as Numbers
from dataplane.errors import ConfigError
from shaping.imports.filters import IPV4_ANY, IPV6_ANY, Rule
from shaping.imports.notes import Notes, quoted, unsupported
from shaping.policy.keys import PART_MOST

# What stands for all packets: a filter for all protocols, and for those of one that tools shape.
ALL: list[list[Rule]] = [[{}], [{"destination": IPV4_ANY}], [{"destination": IPV6_ANY}]]
# A part has a match: frames without a VLAN tag, and those of IP in VLANs.
EVERYTHING: list[Rule] = [{"vlan": 0}, {"destination": IPV4_ANY}, {"destination": IPV6_ANY}]
REST = "rest"  # the name of the part for what no other part has
_OF_FAMILY = {"source", "destination", "source_mac", "destination_mac", "vlan"}
_DIGEST = 6  # hexadecimal digits at the end of a name that is too long
_WORDS = {
    "protocol": "", "vlan": "vlan-", "dscp": "dscp-", "source": "from-", "destination": "",
    "source_port": "from-", "destination_port": "", "source_mac": "from-",
}  # fmt: skip


def numbers_of(rule: Rule) -> Numbers:
    """A rule with its values as numbers. Raises Unsupported for one that no packet matches, such as
    ports of ICMP."""
    try:
        return read_rule(0, rule)
    except ConfigError as error:
        raise unsupported("a filter", str(error).removeprefix("classifier rule 0: ")) from None


def disjoint(first: Numbers, second: Numbers) -> bool:
    """Whether no packet matches both rules."""
    for key in ("protocol", "dscp", "vlan", "port", "source_mac"):
        one, two = getattr(first, key), getattr(second, key)
        if one is not None and two is not None and one != two:
            return True
    for key in ("source_port", "destination_port"):
        one, two = getattr(first, key), getattr(second, key)
        if one is not None and two is not None and (one.low > two.high or two.low > one.high):
            return True
    for key in ("source", "destination"):
        if _apart(getattr(first, key), getattr(second, key)):
            return True
    return (
        {_version(first), _version(second)} == {4, 6}
        or _without_ports(first, second)
        or _without_ports(second, first)
    )


def _apart(first: Prefix | None, second: Prefix | None) -> bool:
    if first is None or second is None or first.version != second.version:
        return False
    bits = zip(first.value, second.value, first.mask, second.mask, strict=True)
    return any((one ^ two) & mask & other for one, two, mask, other in bits)


def _version(rule: Numbers) -> int:
    """4 or 6, where an address tells; 0: either."""
    return next((each.version for each in (rule.source, rule.destination) if each is not None), 0)


def _without_ports(first: Numbers, second: Numbers) -> bool:
    """Whether packets of the first rule have no ports, and those of the second one have some."""
    ports = second.source_port is not None or second.destination_port is not None
    return ports and first.protocol is not None and first.protocol not in WITH_PORTS


def note_families(rule: Rule, where: str, notes: Notes) -> None:
    """Notes that a rule without an address is for packets of IPv4 and IPv6, as tc's filters are
    not."""
    if rule and not rule.keys() & _OF_FAMILY:
        notes.note(
            where,
            "filters of one protocol: a rule without an address matches IPv4 and IPv6; "
            f"destination: {IPV4_ANY} limits it to IPv4",
        )


# -- names -----------------------------------------------------------------------------------------


def part_name(rules: list[Rule]) -> str:
    """A name for the packets of some rules: that of the first, such as udp-port-53. Where it is too
    long, it is without the last conditions, and a digest tells it from others."""
    words = [f"{word}{_value_name(key, rules[0][key])}" for key, word in _WORDS.items()
             if key in rules[0]]  # fmt: skip
    ending = f"-and-{len(rules) - 1}-more" if len(rules) > 1 else ""
    if not ending and len("-".join(words)) > PART_MOST:
        digest = hashlib.sha256(repr(sorted(rules[0].items())).encode()).hexdigest()
        ending = f"-{digest[:_DIGEST]}"
    while len(words) > 1 and len("-".join(words) + ending) > PART_MOST:
        words.pop()
    return "-".join(words)[: PART_MOST - len(ending)].rstrip("-") + ending


def _value_name(key: str, value: object) -> str:
    text = str(value).lower()
    if key in ("source", "destination"):
        network = ipaddress.ip_network(text, strict=False)
        host = network.num_addresses == 1
        text = str(network.network_address if host else network).replace("::", ":0:")
        if key == "destination":
            text = f"host-{text}" if host else f"net-{text}"
    elif key in ("source_port", "destination_port"):
        text = f"ports-{text}" if "-" in text else f"port-{text}"
    elif key == "protocol" and text.isdigit():
        text = f"protocol-{text}"
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


# -- conditions ------------------------------------------------------------------------------------


def condition(what: str, key: str, text: str) -> int | str:
    """The value of a condition such as source or destination_port, from the text of an option.
    Raises ConfigError."""
    try:
        READERS[key](text)
    except ValueError as error:
        raise ConfigError(f"{what} {quoted(text)}: expected {error}") from None
    return int(text) if text.isdigit() else text
