"""The sides of a capture: which NIC's container sent a packet. Derived from the beginning of the
capture, or given by the user."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dataplane.capture.reader import CaptureReader
from dataplane.errors import CaptureError, ConfigError
from dataplane.ports.side_source import Split
from dataplane.wire.rewrite import Rewrite
from vnic.config.schema import Config

LOOK_PACKETS = 10_000  # at the beginning of a capture, read to find its sides
LOOK_BYTES = 4 << 20  # at the beginning of a pipe, which cannot be read twice
WAYS = ("auto", "mac", "prefix", "port", "none")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z", re.IGNORECASE)


@dataclass
class Sides:
    """How a capture is split: one side per NIC, in the order of the configuration."""

    split: Split
    why: str


@dataclass
class Seen:
    """Senders and their destinations at the beginning of a capture."""

    macs: dict[bytes, set[bytes]]  # source -> destinations, in order of appearance, unicast only
    addresses: dict[bytes, set[bytes]]
    whole: bool  # the whole capture was read


def ip_addresses(data: bytes) -> tuple[bytes, bytes] | None:
    """Source and destination of the IP packet in a frame, with any VLAN tags before it."""
    at, kind = 12, data[12:14]
    while kind in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
        at += 4
        kind = data[at : at + 2]
    at += 2
    if kind == b"\x08\x00" and len(data) >= at + 20:
        return data[at + 12 : at + 16], data[at + 16 : at + 20]
    if kind == b"\x86\xdd" and len(data) >= at + 40:
        return data[at + 8 : at + 24], data[at + 24 : at + 40]
    return None


def look(capture: str | int) -> Seen:
    """Reads the beginning of a capture that can be opened again; a truncated one up to the
    error."""
    seen = Seen({}, {}, True)
    reader = CaptureReader(capture)
    try:
        for number, (_, data, _, _) in enumerate(reader):
            if number == LOOK_PACKETS:
                seen.whole = False
                break
            if len(data) < 14:
                continue
            target, source = data[:6], data[6:12]
            if not source[0] & 1:
                seen.macs.setdefault(source, set()).add(target)
            if (pair := ip_addresses(data)) is not None:
                seen.addresses.setdefault(pair[0], set()).add(pair[1])
    except CaptureError:
        pass
    finally:
        reader.close()
    return seen


class Prefix:
    """A pipe whose beginning is read before it is replayed: `beginning` can be read repeatedly,
    `rest()` gives the whole content."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.beginning = os.memfd_create("vnic-capture")
        self._read = -1
        while os.fstat(self.beginning).st_size < LOOK_BYTES and (
            part := os.read(descriptor, 1 << 16)
        ):
            os.write(self.beginning, part)

    def rest(self) -> int:
        """A pipe with the beginning and the rest, which a thread writes."""
        self._read, write = os.pipe()
        threading.Thread(target=self._feed, args=(write,), daemon=True).start()
        return self._read

    def _feed(self, write: int) -> None:
        try:
            at = 0
            while part := os.pread(self.beginning, 1 << 16, at):
                at += len(part)
                _write_all(write, part)
            while part := os.read(self.descriptor, 1 << 16):
                _write_all(write, part)
        except BrokenPipeError:
            pass
        finally:
            os.close(write)

    def close(self) -> None:
        os.close(self.beginning)
        if self._read >= 0:
            os.close(self._read)


def _write_all(descriptor: int, part: bytes) -> None:
    while part:
        part = part[os.write(descriptor, part) :]


def again(descriptor: int) -> str | None:
    """A path to open a descriptor's file again from its beginning; None for a pipe."""
    return f"/proc/self/fd/{descriptor}" if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _packed(mac: str) -> bytes:
    """The six bytes of an address that _MAC matches; it may be a group address."""
    return bytes.fromhex(mac.replace(":", ""))


def _mac_text(mac: bytes) -> str:
    return mac.hex(":")


def _outer(config: Config) -> list[int]:
    """The numbers, by their order in the configuration, of NICs whose packets come from outside."""
    outer = set(config.outer_nics)
    return [number for number, name in enumerate(config.nics) if name in outer]


def _two(config: Config, ends: list[bytes], own: dict[bytes, int]) -> dict[bytes, int]:
    """Sides of ends: an end in `own` gets its NIC's side, the others the free sides in order of
    appearance."""
    free = [
        number
        for number in _outer(config)
        if number not in {own[end] for end in ends if end in own}
    ]
    return {end: own[end] if end in own else free.pop(0) for end in ends}


def decide(config: Config, seen: Seen, way: str) -> tuple[Sides | None, str]:
    """(the sides, or None; a line with the decision and its reason, or "")

    auto splits only unambiguous captures: every sender has the MAC address of a configured NIC; or
    there are two NICs, and two MAC addresses (or, in a capture without them, two IP addresses) that
    send to each other; or every sender has an IP address of a NIC.
    """
    names, outer = list(config.nics), _outer(config)
    macs = {
        mac.packed: number
        for number in outer
        if (mac := config.nics[names[number]].mac) is not None
    }
    prefixes = _own_prefixes(config)
    if way == "port":
        if len(outer) < 2:
            raise ConfigError("--split port needs two NICs: a client's and a server's")
        client, server = outer[:2]
        why = (
            f"by port: {names[client]} sends what comes from the higher port and what has no "
            f"ports, {names[server]} the rest"
        )
        return Sides(Split(server=server, client=client, other=client), why), f"split {why}"
    if (
        way == "none"
        or len(outer) < 2
        or (way == "auto" and len(seen.macs) < 2 and len(seen.addresses) < 2)
    ):
        return None, ""
    if way in ("auto", "mac"):
        senders = list(seen.macs)
        if len(senders) > 1 and all(mac in macs for mac in senders):
            return _by_mac(names, macs, "these are the NICs' MAC addresses")
        if len(senders) == 2 and (way == "mac" or (len(outer) == 2 and _talk(seen.macs, senders))):
            return _by_mac(
                names, _two(config, senders, macs), "two MAC addresses talk to each other"
            )
        if way == "mac":
            if not 0 < len(senders) <= len(outer):
                raise ConfigError(
                    f"--split mac: "
                    f"{len(senders)} MAC addresses send, but there are {len(outer)} NICs; "
                    f"use --side NAME=MAC"
                )
            return _by_mac(names, _two(config, senders, macs), "in order of appearance")
    senders = list(seen.addresses)
    if len(senders) > 1 and prefixes and all(_side(prefixes, address) >= 0 for address in senders):
        why = "by address: every sender has one of the NICs' addresses"
        return Sides(Split(prefixes=prefixes), why), f"split {why}"
    alike = len(seen.macs) <= 1  # a capture of lo: MAC addresses distinguish nothing
    if len(senders) == 2 and (
        way == "prefix" or (alike and len(outer) == 2 and _talk(seen.addresses, senders))
    ):
        sides = [
            (address, 8 * len(address), number)
            for number, address in zip(outer, senders, strict=False)
        ]
        texts = ", ".join(
            f"{names[number]} sends {ipaddress.ip_address(address)}" for address, _, number in sides
        )
        why = f"by address: {texts} (two addresses talk to each other)"
        return Sides(Split(prefixes=sides, other=outer[0]), why), f"split {why}"
    if way == "prefix":
        raise ConfigError(
            f"--split prefix: {len(senders)} addresses send and are not all addresses of NICs; "
            f"use --side NAME=PREFIX"
        )
    if len(seen.macs) < 2:
        return None, ""
    why = f"{len(seen.macs)} MAC addresses send, and which NIC each belongs to is not plain"
    return (
        None,
        f"not split: {why}; "
        f"use --side NAME=MAC|PREFIX|PORT or --split mac|prefix|port, or --split none to be sure",
    )


def _by_mac(names: list[str], sides: dict[bytes, int], why: str) -> tuple[Sides, str]:
    texts = ", ".join(f"{names[number]} sends {_mac_text(mac)}" for mac, number in sides.items())
    first = min(sides.values())
    return Sides(
        Split(sides, other=first), f"by MAC: {texts} ({why})"
    ), f"split by MAC: {texts} ({why})"


def _talk(ends: dict[bytes, set[bytes]], pair: list[bytes]) -> bool:
    return pair[1] in ends[pair[0]] and pair[0] in ends[pair[1]]


def _own_prefixes(config: Config) -> list[tuple[bytes, int, int]]:
    outer = set(_outer(config))
    return [
        (interface.ip.packed, interface.max_prefixlen, number)
        for number, nic in enumerate(config.nics.values())
        if number in outer
        for interface in (ipaddress.ip_interface(str(each)) for each in nic.addresses)
    ]


def _side(prefixes: Sequence[tuple[bytes, int, int]], address: bytes) -> int:
    return next((side for each, _, side in prefixes if each == address), -1)


def given(config: Config, rules: Sequence[str]) -> Sides:
    """Sides from --side NAME=RULE,RULE; a rule is a MAC address, an IP address or prefix, a port,
    or * for all other packets."""
    names = config.outer_nics
    macs: dict[bytes, int] = {}
    prefixes: list[tuple[bytes, int, int]] = []
    ports: dict[int, int] = {}
    other = -1
    for rule in rules:
        name, equals, values = rule.partition("=")
        if not equals or not values or name not in names:
            raise ConfigError(
                f"--side {rule}: expected NAME=MAC|PREFIX|PORT|*, NAME one of {', '.join(names)}"
            )
        side = list(config.nics).index(name)
        for value in values.split(","):
            if value == "*":
                other = side
            elif _MAC.match(value):
                macs[_packed(value)] = side
            elif value.isdecimal() and int(value) < 65536:
                ports[int(value)] = side
            else:
                network = network_of(
                    value,
                    f"--side {rule}",
                    "a MAC address, a prefix such as 10.0.0.0/24, a port or *",
                )
                prefixes.append((network.network_address.packed, network.prefixlen, side))
    return Sides(Split(macs, prefixes, ports, other=other), "as --side says")


def check_inputs(config: Config, inputs: Iterable[str]) -> None:
    """Raises ConfigError for a capture of a NIC that is not there, or that sends what its module
    does."""
    for name in inputs:
        if name not in config.outer_nics:
            known = ", ".join(config.outer_nics)
            if name in config.nics:
                raise ConfigError(f"port {name}: its module sends for this NIC; others are {known}")
            raise ConfigError(f"port {name}: the configuration has no such NIC; it has {known}")


def network_of(
    text: str, where: str, expected: str = "a prefix such as 10.0.0.0/24"
) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"{where}: {text!r}: expected {expected}") from None


def rewrite_of(
    macs: Sequence[str], addresses: Sequence[str], vlans: Sequence[str]
) -> tuple[Rewrite | None, bool]:
    """(the rewrite by --rewrite-mac, --rewrite-ip and --rewrite-vlan; whether the NICs' MAC
    addresses replace those of frames)"""
    of_nics = "nics" in macs
    pairs: list[tuple[bytes, bytes]] = []
    for rule in macs:
        old, _, new = rule.partition("=")
        if rule != "nics":
            if not _MAC.match(old) or not _MAC.match(new):
                raise ConfigError(
                    f"--rewrite-mac {rule}: expected OLD=NEW, two MAC addresses, or nics"
                )
            pairs.append((_packed(old), _packed(new)))
    networks: list[tuple[bytes, bytes, int]] = []
    for rule in addresses:
        old, equals, new = rule.partition("=")
        if not equals:
            raise ConfigError(
                f"--rewrite-ip {rule}: expected OLD=NEW, such as 10.0.0.0/24=192.168.1.0/24"
            )
        left, right = (network_of(each, f"--rewrite-ip {rule}") for each in (old, new))
        if left.version != right.version or left.prefixlen != right.prefixlen:
            raise ConfigError(
                f"--rewrite-ip {rule}: expected OLD=NEW, two prefixes of one kind and length"
            )
        networks.append((left.network_address.packed, right.network_address.packed, left.prefixlen))
    vlan: tuple[str, int] | None = None
    mapped: list[tuple[int, int]] = []
    for rule in vlans:
        word, equals, value = rule.partition("=")
        if word == "remove" and not equals:
            vlan = ("remove", 0)
        elif word in ("add", "set") and value.isdecimal() and 1 <= int(value) <= 4094:
            vlan = (word, int(value))
        elif (
            word.isdecimal() and value.isdecimal() and int(word) <= 4094 and 1 <= int(value) <= 4094
        ):
            mapped.append((int(word), int(value)))
        else:
            raise ConfigError(
                f"--rewrite-vlan {rule}: "
                f"expected add=VID, set=VID, remove or OLD=NEW, numbers from 1 to 4094"
            )
    if not pairs and not networks and vlan is None and not mapped:
        return None, of_nics
    return Rewrite(pairs, networks, vlan, mapped), of_nics
