"""Filters of tc - u32, flower, matchall - as rules of a Classifier.

A rule is a mapping with the Classifier's keys. A filter becomes a list of rules, any of which may
match: a mask of some bits of DSCP is several values.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from dataplane.elements.classifier_rules import DSCP, PROTOCOLS, WITH_PORTS
from dataplane.errors import ConfigError
from shaping.imports.notes import quoted, unsupported
from shaping.imports.quantities import hex_of, whole_of
from shaping.imports.words import Words

Rule = dict[str, Any]

IPV4_ANY, IPV6_ANY = "0.0.0.0/0", "::/0"
PROTOCOL_WORDS = {"ip": "ip", "ipv4": "ip", "0x800": "ip", "0x0800": "ip", "ipv6": "ipv6",
                  "0x86dd": "ipv6", "all": "all", "802.1q": "802.1q", "0x8100": "802.1q",
                  }  # fmt: skip
VALUES_MOST = 16  # values of DSCP that a mask may stand for: others are for whole groups
_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", re.ASCII)
_DSCP_NAMES = {number: name for name, number in DSCP.items() if name not in ("default", "be")}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


@dataclass
class U32:
    """Words of 32 bits that a packet must have: (value, mask) by offset from the network header.

    beyond: keys behind the header that another table gives the length of; unknown: what cannot be
    read
    """

    words: dict[int, tuple[int, int]] = field(default_factory=dict)
    beyond: bool = False
    unknown: str = ""

    def add(self, value: int, mask: int, at: int) -> None:
        """Adds bits of the word at an offset. Raises ConfigError."""
        if at % 4:
            raise ConfigError(f"u32: offset {at}: expected a multiple of 4")
        if not -14 - 2 <= at <= 1500:
            raise ConfigError(f"u32: offset {at}: expected an offset within a packet")
        old_value, old_mask = self.words.get(at, (0, 0))
        if (old_value ^ value) & old_mask & mask:
            raise ConfigError(f"u32: two values for the same bits at {at}: expected one")
        self.words[at] = (old_value | (value & mask), old_mask | mask)


def parse_match(words: Words, found: U32) -> None:
    """One selector behind the word match. Raises ConfigError."""
    kind = words.value("match")
    kinds = ("u32", "u16", "u8", "ip", "ip6", "udp", "tcp", "icmp", "mark", "ether")
    name = next((each for each in kinds if kind and each.startswith(kind)), None)
    if name in ("u32", "u16", "u8"):
        _bits(words, found, {"u32": 32, "u16": 16, "u8": 8}[name], 0)
    elif name == "ip":
        _ip(words, found)
    elif name == "ip6":
        _ip6(words, found)
    elif name in ("udp", "tcp", "icmp"):
        words.value(name)
        _bits(words, found, 8 if name == "icmp" else 16, 0)
        found.beyond = True
    elif name == "mark":
        whole_of("u32 mark", words.value("mark"))
        whole_of("u32 mark", words.value("mark"))
        found.unknown = "match mark: marks of the firewall do not exist here"
    elif name == "ether":
        _ether(words, found)
    else:
        raise ConfigError(f"u32 match: unknown word {quoted(kind)}: expected one of "
                          f"{', '.join(kinds)}")  # fmt: skip


def _bits(words: Words, found: U32, size: int, at: int) -> None:
    """VALUE MASK [at [nexthdr+]OFFSET]"""
    most = 2**size - 1
    value = whole_of("u32 match", words.value("match"), most=most)
    mask = hex_of("u32 mask", words.value("match"), most)
    at, beyond = _at(words, at)
    found.beyond |= beyond
    if size < 32 and at % (size // 8):
        raise ConfigError(f"u32: offset {at}: expected a multiple of {size // 8}")
    shift = 32 - size - 8 * (at % 4)
    found.add(value << shift, mask << shift, at - at % 4)


def _at(words: Words, at: int) -> tuple[int, bool]:
    if not words.skip("at"):
        return at, False
    text = words.value("at")
    beyond = text.startswith("nexthdr+")
    if text == "nexthdr+":
        text = words.value("at")
    return whole_of("u32 at", text.removeprefix("nexthdr+"), -(2**31), 2**31 - 1), beyond


def _network(text: str, version: int) -> Any:
    try:
        if "%" in text:
            raise ValueError
        found = ipaddress.ip_network(text, strict=False)
        if found.version == version:
            return found
    except ValueError:
        pass
    if text in ("any", "default", "all"):
        return ipaddress.ip_network(IPV4_ANY if version == 4 else IPV6_ANY)
    raise ConfigError(f"{quoted(text)}: expected an IPv{version} address or prefix")


def _ip(words: Words, found: U32) -> None:
    name = words.value("ip")
    eight = {"tos": 1, "dsfield": 1, "precedence": 1, "ihl": 0, "protocol": 9, "icmp_type": 20,
             "icmp_code": 21}  # fmt: skip
    fragments = {"nofrag": (0, 0x3FFF), "firstfrag": (0x2000, 0x3FFF), "df": (0x4000, 0x4000),
                 "mf": (0x2000, 0x2000)}  # fmt: skip
    if name in ("src", "dst"):
        network = _network(words.value(name), 4)
        at, found.beyond = _at(words, 12 if name == "src" else 16)
        found.add(int(network.network_address), int(network.netmask), at)
    elif name in eight:
        _bits(words, found, 8, eight[name])
    elif name in ("sport", "dport"):
        _bits(words, found, 16, 20 if name == "sport" else 22)
    elif name in fragments:
        found.add(*fragments[name], 4)
    else:
        known = ", ".join(["src", "dst", "sport", "dport", *eight, *fragments])
        raise ConfigError(f"u32 match ip: unknown word {quoted(name)}: expected one of {known}")


def _ip6(words: Words, found: U32) -> None:
    name = words.value("ip6")
    if name in ("src", "dst"):
        network = _network(words.value(name), 6)
        at, found.beyond = _at(words, 8 if name == "src" else 24)
        value, mask = int(network.network_address), int(network.netmask)
        for word in range(4):
            shift = 96 - 32 * word
            if bits := mask >> shift & 0xFFFFFFFF:
                found.add(value >> shift & 0xFFFFFFFF, bits, at + 4 * word)
    elif name == "priority":
        value = whole_of("u32 priority", words.value(name), most=255)
        mask = hex_of("u32 mask", words.value(name), 255)
        found.add(value << 20, mask << 20, 0)
    elif name == "flowlabel":
        _bits(words, found, 32, 0)
    elif name in ("sport", "dport"):
        _bits(words, found, 16, 40 if name == "sport" else 42)
    elif name in ("protocol", "icmp_type", "icmp_code"):
        _bits(words, found, 8, {"protocol": 6, "icmp_type": 40, "icmp_code": 41}[name])
    else:
        raise ConfigError(f"u32 match ip6: unknown word {quoted(name)}: expected src, dst, sport, "
                          "dport, protocol or priority")  # fmt: skip


def _ether(words: Words, found: U32) -> None:
    name = words.value("ether")
    text = words.value("ether")
    if name not in ("src", "dst") or _MAC.fullmatch(text) is None:
        raise ConfigError("u32 match ether: expected src or dst and a MAC address")
    mac = bytes(int(each, 16) for each in text.split(":"))
    at, found.beyond = _at(words, -8 if name == "src" else -14)
    for number, byte in enumerate(mac):
        place = at + number
        shift = 24 - 8 * (place % 4)
        found.add(byte << shift, 0xFF << shift, place - place % 4)


# -- u32 as rules ----------------------------------------------------------------------------------


def u32_rules(match: U32, protocol: str) -> list[Rule]:
    """The rules of a u32 filter. Raises Unsupported."""
    if match.unknown:
        raise unsupported("u32", match.unknown)
    if match.beyond:
        raise unsupported(
            "u32 nexthdr",
            "it counts from a header whose place another table gives: write match ip dport",
        )
    left = {at: word for at, word in match.words.items() if word[1]}
    rule: Rule = {}
    version = {"ip": 4, "ipv6": 6}.get(protocol, 0)
    mac = _take_mac(left, -8)
    if mac is not None:
        rule["source_mac"] = mac
    if (target := _take_mac(left, -16)) is not None:
        rule["destination_mac"] = target  # no rule has it: lines between NICs are told by it
    if not version and left:
        if not any(at in left for at in (12, 16, 8, 20)):
            raise unsupported("u32", "its bits say nothing of addresses, ports, protocol or DSCP")
        version = 4
    if version == 4:
        dscp, ports = _ipv4(left, rule)
    elif version == 6:
        dscp, ports = _ipv6(left, rule)
    else:
        return [rule]
    if left:
        at, (value, mask) = next(iter(left.items()))
        raise unsupported(
            f"u32 match {value:#010x}/{mask:#010x} at {at}",
            "rules know addresses, ports, protocol and DSCP",
        )
    rule.update(ports)
    if protocol in ("ip", "ipv6") and not rule and not dscp:
        rule["destination"] = IPV4_ANY if version == 4 else IPV6_ANY
    return [{**rule, "dscp": each} for each in dscp] or [rule]


def _take_mac(left: dict[int, tuple[int, int]], at: int) -> str | None:
    """The MAC address whose bytes begin at -8 (source) or, as -14 is within the word at -16,
    there."""
    parts = ((at, 0xFFFFFFFF), (at + 4, 0xFFFF0000)) if at == -8 else (
        (at, 0x0000FFFF), (at + 4, 0xFFFFFFFF))  # fmt: skip
    if any(left.get(offset, (0, 0))[1] & mask != mask for offset, mask in parts):
        return None
    bits = b""
    for offset, mask in parts:
        value, whole = left[offset]
        rest = whole & ~mask
        if rest:
            left[offset] = (value & rest, rest)
        else:
            del left[offset]
        word = (value & mask).to_bytes(4, "big")
        bits += {0xFFFFFFFF: word, 0xFFFF0000: word[:2], 0x0000FFFF: word[2:]}[mask]
    return bits.hex(":")


def _ipv4(left: dict[int, tuple[int, int]], rule: Rule) -> tuple[list[int | str], Rule]:
    dscp = _take_dscp(left, 16)
    value, mask = left.get(8, (0, 0))
    if mask == 0x00FF0000:
        rule["protocol"] = _protocol(value >> 16)
        del left[8]
    for at, key in ((12, "source"), (16, "destination")):
        value, mask = left.get(at, (0, 0))
        if mask and (prefix := _prefix_length(mask, 32)) is not None:
            rule[key] = f"{ipaddress.IPv4Address(value)}/{prefix}"
            del left[at]
    return dscp, _take_ports(left, 20)


def _ipv6(left: dict[int, tuple[int, int]], rule: Rule) -> tuple[list[int | str], Rule]:
    dscp = _take_dscp(left, 20)
    value, mask = left.get(4, (0, 0))
    if mask == 0x0000FF00:
        rule["protocol"] = _protocol(value >> 8)
        del left[4]
    for at, key in ((8, "source"), (24, "destination")):
        parts = [left.get(at + 4 * word, (0, 0)) for word in range(4)]
        value, mask = (
            sum(part[which] << (96 - 32 * word) for word, part in enumerate(parts))
            for which in (0, 1)
        )
        if mask and (prefix := _prefix_length(mask, 128)) is not None:
            rule[key] = f"{ipaddress.IPv6Address(value)}/{prefix}"
            for word in range(4):
                left.pop(at + 4 * word, None)
    return dscp, _take_ports(left, 40)


def _take_dscp(left: dict[int, tuple[int, int]], shift: int) -> list[int | str]:
    """Values of DSCP of the first word, whose traffic class begins `shift` bits from the right."""
    value, mask = left.get(0, (0, 0))
    tos_mask = mask >> shift & 0xFF
    if not tos_mask or mask != tos_mask << shift:
        return []
    tos = value >> shift & 0xFF
    values = [each for each in range(64) if not (each << 2 ^ tos) & tos_mask & 0xFC]
    if len(values) > VALUES_MOST:
        return []
    del left[0]
    return [dscp_name(each) for each in values]


def dscp_name(value: int) -> int | str:
    """A DSCP by its name, where it has one."""
    return _DSCP_NAMES.get(value, value)


def _protocol(number: int) -> int | str:
    return _PROTOCOL_NAMES.get(number, number)


def _prefix_length(mask: int, bits: int) -> int | None:
    ones = mask.bit_count()
    return ones if mask == ((1 << ones) - 1) << (bits - ones) else None


def _take_ports(left: dict[int, tuple[int, int]], at: int) -> Rule:
    found: Rule = {}
    value, mask = left.get(at, (0, 0))
    rest = mask
    for key, shift in (("source_port", 16), ("destination_port", 0)):
        part = mask >> shift & 0xFFFF
        if part and _prefix_length(part, 16) is not None:
            low = value >> shift & 0xFFFF
            high = low | ~part & 0xFFFF
            found[key] = low if low == high else f"{low}-{high}"
            rest &= ~(0xFFFF << shift)
    if mask and not rest:
        del left[at]
    elif mask:
        left[at] = (value & rest, rest)
    return found


# -- flower ----------------------------------------------------------------------------------------

_FLOWER = {"ip_proto": "protocol", "src_ip": "source", "dst_ip": "destination",
           "src_port": "source_port", "dst_port": "destination_port", "ip_tos": "dscp",
           "src_mac": "source_mac", "vlan_id": "vlan"}  # fmt: skip
# Keys of flower and the number of their values, for messages and to read on behind them.
FLOWER_OTHERS = (
    "hw_tc", "ip_flags", "ct_state", "ct_zone", "ct_mark", "ct_label", "indev", "num_of_vlans",
    "vlan_prio", "vlan_ethtype", "cvlan_id", "cvlan_prio", "cvlan_ethtype", "mpls", "mpls_label",
    "mpls_tc", "mpls_bos", "mpls_ttl", "ip_ttl", "tcp_flags", "type", "code", "arp_tip",
    "arp_sip", "arp_op", "arp_tha", "arp_sha", "enc_dst_ip", "enc_src_ip", "enc_key_id",
    "enc_dst_port", "enc_tos", "enc_ttl", "geneve_opts", "vxlan_opts", "erspan_opts", "l2_miss",
    "dst_mac",
)  # fmt: skip
FLOWER_KEYS = (*_FLOWER, *FLOWER_OTHERS)


def flower_rules(pairs: list[tuple[str, str]], protocol: str) -> list[Rule]:
    """The rules of a flower filter with these keys and values. Raises ConfigError."""
    rule: Rule = {}
    for key, text in pairs:
        if key == "eth_type":
            protocol = {"ipv4": "ip"}.get(text, text)
            continue
        if key == "dst_mac":
            rule["destination_mac"] = _flower_mac(text)
            continue
        if key not in _FLOWER:
            raise unsupported(
                f"flower {key}", "rules know addresses, ports, protocol, DSCP, VLAN and source MAC"
            )
        rule[_FLOWER[key]] = _flower_value(key, text)
    ports = {"source_port", "destination_port"} & rule.keys()
    if ports and PROTOCOLS.get(str(rule.get("protocol")), rule.get("protocol")) not in WITH_PORTS:
        raise ConfigError("flower: ports need ip_proto tcp, udp or sctp")
    if protocol in ("ip", "ipv6") and not rule:
        rule["destination"] = IPV4_ANY if protocol == "ip" else IPV6_ANY
    dscp = rule.pop("dscp", None)
    if isinstance(dscp, tuple):
        return [{**rule, "dscp": dscp_name(each)} for each in dscp]
    return [rule]


def _flower_mac(text: str) -> str:
    mac, _, mask = text.partition("/")
    if _MAC.fullmatch(mac) is None or mask not in ("", "ff:ff:ff:ff:ff:ff", "48"):
        raise ConfigError(f"flower: {quoted(text)}: expected a MAC address")
    return bytes(int(each, 16) for each in mac.split(":")).hex(":")


def _flower_value(key: str, text: str) -> Any:
    what = f"flower {key}"
    if key == "ip_proto":
        if text.lower() in PROTOCOLS:
            return text.lower()
        return _protocol(whole_of(what, text, most=255))
    if key in ("src_ip", "dst_ip"):
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ConfigError(f"{what} {quoted(text)}: expected an address or prefix") from None
        return str(network)
    if key in ("src_port", "dst_port"):
        low, dash, high = text.partition("-")
        first = whole_of(what, low, most=65535)
        if dash:
            return f"{first}-{whole_of(what, high, first, 65535)}"
        return first
    if key == "ip_tos":
        tos_text, _, mask_text = text.partition("/")
        # as tc: decimal digits are a decimal number, all else hexadecimal
        tos = whole_of(what, tos_text, most=255) if tos_text.isdigit() else hex_of(
            what, tos_text, 255)  # fmt: skip
        mask = hex_of(what, mask_text, 255) if mask_text else 255
        values = tuple(each for each in range(64) if not (each << 2 ^ tos) & mask & 0xFC)
        if len(values) > VALUES_MOST:
            raise unsupported(f"{what} {quoted(text)}", "it stands for too many values of DSCP")
        return values
    if key == "src_mac":
        return _flower_mac(text)
    return whole_of(what, text, most=4094)
