"""The classifier's rules: reads them from the configuration's values, checks and converts them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dataplane.errors import ConfigError

MAX_RULES = 1024
MAX_GATES = 1025  # an output per rule, and one for packets that match no rule

# IANA protocol numbers by their usual names.
PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "rsvp": 46,
    "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "eigrp": 88, "ospf": 89, "pim": 103, "vrrp": 112,
    "l2tp": 115, "sctp": 132, "udplite": 136,
}  # fmt: skip
WITH_PORTS = (6, 17, 132)  # protocols whose ports Parse reads

# DSCP names: class selectors (RFC 2474), AF (RFC 2597), EF (RFC 3246), VOICE-ADMIT (RFC 5865), LE
# (RFC 8622).
DSCP = {
    "be": 0, "default": 0, "le": 1, "ef": 46, "va": 44,
    **{f"cs{i}": 8 * i for i in range(8)},
    **{f"af{i}{j}": 8 * i + 2 * j for i in range(1, 5) for j in range(1, 4)},
}  # fmt: skip


_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]+")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


class Prefix(NamedTuple):
    """An address prefix as in a packet record: 16 bytes each, IPv4 in the first 4; version 0: the
    rule has none."""

    version: int = 0
    value: bytes = bytes(16)
    mask: bytes = bytes(16)


class PortRange(NamedTuple):
    low: int = 0
    high: int = 65535


class Rule(NamedTuple):
    """A rule with its values as numbers; None, Prefix() and PortRange() match everything."""

    gate: int
    mark: int | None = None
    protocol: int | None = None
    dscp: int | None = None
    vlan: int | None = None
    port: int | None = None
    source_mac: bytes | None = None
    source: Prefix | None = None
    destination: Prefix | None = None
    source_port: PortRange | None = None
    destination_port: PortRange | None = None


def _number(value: object, low: int, high: int, words: Mapping[str, int] | None = None) -> int:
    """Reads an int, its decimal or 0x text, or one of `words`. Raises ValueError with what is
    expected."""
    want = f"a number from {low} to {high}" + (
        f", or a name such as {', '.join(list(words)[:4])}" if words else ""
    )
    if isinstance(value, str):
        text = value.lower()
        if words and text in words:
            return words[text]
        # int() alone would accept signs, underscores and other scripts' digits; it is also slow
        # over thousands of digits.
        if len(text) > 12 or not _NUMBER.fullmatch(text):
            raise ValueError(want)
        value = int(text, 16 if text.startswith("0x") else 10)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(want)
    return value


def _prefix(value: object) -> Prefix:
    want = "an address or a prefix such as 10.0.0.0/8 or fd00::/8"
    # a zone id (an interface after the address) has no meaning here
    if not isinstance(value, str) or "%" in value:
        raise ValueError(want)
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(want) from None
    return Prefix(
        network.version,
        network.network_address.packed.ljust(16, b"\0"),
        network.netmask.packed.ljust(16, b"\0"),
    )


def _mac(value: object) -> bytes:
    if not isinstance(value, str) or not _MAC.fullmatch(value):
        raise ValueError("a MAC address such as 02:00:00:00:00:01")
    return bytes.fromhex(value.replace(":", ""))


def _port_range(value: Any) -> PortRange:
    want = "a port or a range such as 80 or 80-90, from 0 to 65535, the lower one first"
    first, dash, last = value.partition("-") if isinstance(value, str) else (value, "", "")
    try:
        low = _number(first.strip() if dash else first, 0, 65535)
        high = _number(last.strip(), 0, 65535) if dash else low
    except ValueError:
        raise ValueError(want) from None
    if high < low:
        raise ValueError(want)
    return PortRange(low, high)


READERS: dict[str, Callable[[Any], Any]] = {
    "protocol": lambda value: _number(value, 0, 255, PROTOCOLS),
    "source": _prefix,
    "destination": _prefix,
    "source_port": _port_range,
    "destination_port": _port_range,
    "dscp": lambda value: _number(value, 0, 63, DSCP),
    "vlan": lambda value: _number(value, 0, 4094),
    "port": lambda value: _number(value, 0, 65534),
    "source_mac": _mac,
    "gate": lambda value: _number(value, 0, MAX_GATES - 1),
    "mark": lambda value: _number(value, 0, 2**32 - 1),
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_rule(number: int, settings: Any) -> Rule:
    """Reads one rule; its output is by default its number. Raises ConfigError with the rule's
    number and the key."""
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"classifier rule {number}: {_shown(settings)}: expected keys and values such as "
            "protocol: tcp"
        )
    fields: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in READERS:
            raise ConfigError(
                f"classifier rule {number}: unknown key {_shown(key)}: expected one of "
                f"{', '.join(READERS)}"
            )
        try:
            fields[key] = READERS[key](value)
        except ValueError as error:
            raise ConfigError(
                f"classifier rule {number}: {key}: {_shown(value)}: expected {error}"
            ) from None
    rule = Rule(**{"gate": number, **fields})
    if rule.source and rule.destination and rule.source.version != rule.destination.version:
        raise ConfigError(
            f"classifier rule {number}: source and destination: one is IPv4, one IPv6: expected "
            "the same for both"
        )
    for key in ("source_port", "destination_port"):
        if key in fields and rule.protocol is not None and rule.protocol not in WITH_PORTS:
            protocol = _shown(settings["protocol"])
            raise ConfigError(
                f"classifier rule {number}: {key}: protocol {protocol} has no ports: expected tcp, "
                "udp or sctp"
            )
    return rule


def list_rules(rules: Any) -> list[Any]:
    """A copy of the rules, not yet checked. Raises ConfigError for a value that is not a list."""
    if isinstance(rules, (str, bytes, Mapping)) or not isinstance(rules, Iterable):
        raise ConfigError(f"classifier: rules are {_shown(rules)}: expected a list of rules")
    return [dict(each) if isinstance(each, Mapping) else each for each in rules]


def read_rules(rules: Any, default: Any = None) -> tuple[list[Rule], int, int]:
    """Reads all rules; returns them, the output of packets that match none (by default an
    additional last one), and the number of outputs. Raises ConfigError."""
    rules = list_rules(rules)
    if len(rules) > MAX_RULES:
        raise ConfigError(f"classifier: {len(rules)} rules: expected at most {MAX_RULES}")
    compiled = [read_rule(number, settings) for number, settings in enumerate(rules)]
    behind = max((rule.gate for rule in compiled), default=-1) + 1
    if default is None:
        default = behind
    try:
        default = _number(default, 0, MAX_GATES - 1)
    except ValueError as error:
        raise ConfigError(f"classifier: default: {_shown(default)}: expected {error}") from None
    return compiled, default, max(behind, default + 1)
