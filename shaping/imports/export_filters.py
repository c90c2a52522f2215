"""Rules of a Classifier as u32 filters of tc."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dataplane.elements.classifier_rules import DSCP, PROTOCOLS, read_rule
from shaping.imports.rules import EVERYTHING


class Matches(NamedTuple):
    """A filter: its protocol, and what its packets have; all of it."""

    protocol: str
    matches: list[str]

    def command(self, device: str, parent: str, pref: int, flowid: str) -> str:
        return (
            f"tc filter add dev {device} parent {parent} protocol {self.protocol} pref {pref} u32 "
            f"{' '.join(f'match {each}' for each in self.matches)} flowid {flowid}"
        )


ALL = Matches("all", ["u32 0 0"])


def filters_of(
    rules: list[dict[str, Any]], what: str, cannot: Callable[[str], None]
) -> Iterator[Matches]:
    """The filters that together match what any of the rules does. what: for errors; cannot: takes
    a line on what u32 does not know. Raises ConfigError."""
    if rules == EVERYTHING:
        yield ALL
        return
    for number, rule in enumerate(rules):
        read_rule(number, rule)
        if left := rule.keys() & {"vlan", "port", "mark", "gate"}:
            cannot(f"{what}.match: {', '.join(sorted(left))}: u32 does not know it")
            continue
        yield from _of_rule(rule)


def _of_rule(rule: dict[str, Any]) -> Iterator[Matches]:
    """(protocol, what to match) of the filters that together match what a rule does."""
    macs = [f"ether src {rule['source_mac']}"] if "source_mac" in rule else []
    if not rule.keys() - {"source_mac"}:
        yield Matches("all", macs) if macs else ALL
        return
    networks: dict[str, Any] = {
        key: ipaddress.ip_network(rule[key], strict=False)
        for key in ("source", "destination") if key in rule
    }  # fmt: skip
    versions = {each.version for each in networks.values()} or {4, 6}
    for version in sorted(versions):
        yield from _of_version(rule, version, macs, networks)


def _of_version(
    rule: dict[str, Any], version: int, macs: list[str], networks: dict[str, Any]
) -> Iterator[Matches]:
    ip = "ip" if version == 4 else "ip6"
    matches = list(macs)
    if "protocol" in rule:
        value = rule["protocol"]
        number = PROTOCOLS.get(value.lower(), value) if isinstance(value, str) else value
        matches.append(f"{ip} protocol {number} 0xff")
    if "dscp" in rule:
        value = rule["dscp"]
        number = int(DSCP.get(value.lower(), value) if isinstance(value, str) else value)
        field = "tos" if version == 4 else "priority"
        matches.append(f"{ip} {field} {number << 2:#x} 0xfc")
    for key, network in networks.items():
        matches.append(f"{ip} {'src' if key == 'source' else 'dst'} {network}")
    ports = [
        [f"{ip} {'sport' if key == 'source_port' else 'dport'} {port} {mask:#x}"
         for port, mask in _masks(rule[key])]
        for key in ("source_port", "destination_port") if key in rule
    ]  # fmt: skip
    for each in itertools.product(*ports):
        yield Matches("ip" if version == 4 else "ipv6", [*matches, *each])


def _masks(ports: int | str) -> Iterator[tuple[int, int]]:
    """(value, mask) of the aligned ranges that make up a range of ports."""
    first, dash, last = str(ports).partition("-")
    low = int(first)
    high = int(last) if dash else low
    while low <= high:
        size = low & -low or 1 << 16
        while low + size - 1 > high:
            size //= 2
        yield low, 0xFFFF & ~(size - 1)
        low += size
