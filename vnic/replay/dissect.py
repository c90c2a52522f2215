"""Dissects packets with scapy, imported only to show a difference or to ignore fields."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from dataplane.errors import ConfigError

LINES_MOST = 40


def _scapy() -> Any:
    try:
        importlib.import_module("scapy.layers.inet6")
        return importlib.import_module("scapy.layers.all")
    except ImportError:
        return None


def packet(data: bytes) -> Any:
    """A frame as a scapy packet. Raises ConfigError where scapy is not installed."""
    scapy = _scapy()
    if scapy is None:
        raise ConfigError("scapy is not installed: pip install 'vnic[test]'")
    return scapy.Ether(data)


def fields(data: bytes) -> list[tuple[str, str]]:
    """(Layer.field, value) of a frame, outermost layer first; empty without scapy."""
    scapy = _scapy()
    if scapy is None:
        return []
    found: list[tuple[str, str]] = []
    layer = scapy.Ether(data)
    seen: dict[str, int] = {}
    while layer and type(layer).__name__ != "NoPayload":
        name = type(layer).__name__
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name}#{seen[name]}"
        for each in layer.fields_desc:
            value = layer.getfieldval(each.name)
            shown = value.hex(" ") if isinstance(value, bytes) else str(each.i2repr(layer, value))
            found.append((f"{label}.{each.name}", shown))
        layer = layer.payload
    return found


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def differences(found: bytes, expected: bytes | None) -> list[str]:
    """Lines on how a frame differs from the expected one; with expected=None, on its content."""
    if expected is None:
        return [f"{name:24} {_short(value)}" for name, value in fields(found)][:LINES_MOST] or [
            _short(found.hex(" "))
        ]
    lines: list[str] = []
    if len(found) != len(expected):
        lines.append(f"{'length':24} {len(found)}, expected {len(expected)} bytes")
    left, right = dict(fields(found)), dict(fields(expected))
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            mine, other = left.get(name, "absent"), right.get(name, "absent")
            if max(len(mine), len(other)) > 60:
                lines.append(f"{name:24} differs")
            else:
                lines.append(f"{name:24} {mine}, expected {other}")
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
        min(len(found), len(expected)),
    )
    window = slice(max(at - 4, 0), at + 12)
    lines.append(
        f"{'first byte that differs':24} {at}: "
        f".. {found[window].hex(' ')} .., expected .. {expected[window].hex(' ')} .."
    )
    return lines[:LINES_MOST]


def normaliser(ignore: Iterable[str]) -> Callable[[bytes], bytes]:
    """A function that maps frames which differ only in ignored fields to equal bytes. Raises
    ConfigError for an unknown field."""
    wanted: dict[str, set[str]] = {}
    for name in ignore:
        layer, dot, field = name.partition(".")
        if not dot:
            raise ConfigError(
                f"--ignore {name}: expected Layer.field in scapy's names, such as IP.id, or time"
            )
        wanted.setdefault(layer, set()).add(field)
    if not wanted:
        return lambda data: data
    scapy = _scapy()
    if scapy is None:
        raise ConfigError("--ignore needs scapy: pip install 'vnic[test]'")
    classes: dict[Any, set[str]] = {}
    for layer, names in wanted.items():
        found = getattr(scapy, layer, None)
        known = [each.name for each in getattr(found, "fields_desc", [])]
        for name in names:
            if name not in known:
                what = (
                    f"{layer} has {', '.join(known)}" if known else f"scapy knows no layer {layer}"
                )
                raise ConfigError(f"--ignore {layer}.{name}: no such field; {what}")
        # The layer's checksum covers the ignored fields, so it is ignored, too.
        classes[found] = names | {name for name in known if name in ("chksum", "cksum")}

    def normal(data: bytes) -> bytes:
        packet = scapy.Ether(data)
        for kind, names in classes.items():
            number = 1
            while (layer := packet.getlayer(kind, number)) is not None:
                for name in names:
                    layer.setfieldval(name, layer.get_field(name).default or 0)
                number += 1
        return bytes(packet)

    return normal
