"""The `overhead` of a Link as users write it: a keyword of tc-cake(8), or its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dataplane.config.convert import did_you_mean
from dataplane.errors import ConfigError

ETHERNET_HEADER = 14  # keywords count from the IP packet, which begins behind it
VLAN_TAG = 4
CELLS = ("none", "atm", "ptm")  # in the order of CELL_* of framing.pxd
# What Mahimahi's mm-link counts of a frame: without Ethernet's header, with its own of 4 bytes.
MAHIMAHI_BYTES = 4 - ETHERNET_HEADER
BYTES_LEAST, BYTES_MOST, MINIMUM_MOST = -64, 256, 256


class Overhead(NamedTuple):
    """What a line adds to each layer-2 frame: bytes, then a least length, then cells."""

    bytes: int = 0
    minimum: int = 0
    cell: str = "none"

    def on_line(self, frame_bytes: int) -> int:
        """Bytes on the line of a layer-2 frame."""
        length = max(frame_bytes + self.bytes, self.minimum, 1)
        if self.cell == "atm":
            return -(-length // 48) * 53
        return length + -(-length // 64) if self.cell == "ptm" else length


# Bytes that the line sends with each IP packet, least length, cells: see tc-cake(8).
KEYWORDS = {
    "ethernet": (38, 84, "none"),
    "docsis": (18, 64, "none"),
    "pppoe-ptm": (30, 0, "ptm"),
    "bridged-ptm": (22, 0, "ptm"),
    "pppoa-vcmux": (10, 0, "atm"),
    "pppoa-llc": (14, 0, "atm"),
    "pppoe-vcmux": (32, 0, "atm"),
    "pppoe-llcsnap": (40, 0, "atm"),
    "bridged-vcmux": (24, 0, "atm"),
    "bridged-llcsnap": (32, 0, "atm"),
    "ipoa-vcmux": (8, 0, "atm"),
    "ipoa-llcsnap": (16, 0, "atm"),
    "conservative": (48, 0, "atm"),
}
NOTHING = ("none", "raw")
VLAN = "ether-vlan"


def _keyword(name: str, text: str) -> Overhead:
    words = text.lower().split()
    tags = 0
    while words and words[-1] == VLAN:
        words.pop()
        tags += 1
    if not words and tags:
        words = ["ethernet"]
    if words in (["none"], ["raw"]) and not tags:
        return Overhead()
    if len(words) != 1 or words[0] not in KEYWORDS:
        hint = did_you_mean(text, [*NOTHING, *KEYWORDS, VLAN])
        raise ConfigError(f"{name}: overhead {text!r}: unknown; {hint}")
    sent, minimum, cell = KEYWORDS[words[0]]
    return Overhead(sent - ETHERNET_HEADER + VLAN_TAG * tags, minimum, cell)


def _number(name: str, key: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(
            f"{name}: overhead: {key} {value!r}: expected a number of bytes, {least} to {most}"
        )
    return value


def overhead_of(name: str, overhead: str | Mapping[str, Any]) -> Overhead:
    """The parts of an overhead. Raises ConfigError."""
    if isinstance(overhead, str):
        found = _keyword(name, overhead)
    elif isinstance(overhead, Mapping):
        for key in overhead:
            if key not in Overhead._fields:
                hint = did_you_mean(str(key), Overhead._fields)
                raise ConfigError(f"{name}: overhead: unknown key {str(key)!r}; {hint}")
        found = Overhead(
            _number(name, "bytes", overhead.get("bytes", 0), BYTES_LEAST, BYTES_MOST),
            _number(name, "minimum", overhead.get("minimum", 0), 0, MINIMUM_MOST),
            overhead.get("cell", "none"),
        )
        if found.cell not in CELLS:
            raise ConfigError(
                f"{name}: overhead: cell {found.cell!r}: expected one of {', '.join(CELLS)}"
            )
    else:
        raise ConfigError(
            f"{name}: overhead {overhead!r}: expected a keyword or bytes, minimum and cell"
        )
    if found.bytes > BYTES_MOST:
        raise ConfigError(f"{name}: overhead {overhead!r}: more than {BYTES_MOST} bytes")
    return found


def cell_number(overhead: Overhead) -> int:
    """The CELL_* of framing.pxd."""
    return CELLS.index(overhead.cell)


def overhead_text(overhead: Overhead) -> str:
    """An overhead as text, such as "+24 bytes, at least 84"; "none" where nothing is added."""
    if overhead == Overhead():
        return "none"
    parts = [f"{overhead.bytes:+} bytes"]
    if overhead.minimum:
        parts.append(f"at least {overhead.minimum}")
    if overhead.cell != "none":
        parts.append(f"{overhead.cell} cells")
    return ", ".join(parts)
