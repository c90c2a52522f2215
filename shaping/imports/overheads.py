"""`overhead` of a policy for what tc adds to each frame."""

from __future__ import annotations

from typing import Any

from shaping.imports.notes import unsupported
from shaping.overhead import ETHERNET_HEADER, KEYWORDS

BYTES_LEAST, BYTES_MOST, MINIMUM_MOST = -50, 256, 256  # of a policy


def overhead_setting(what: str, added: int, minimum: int, cell: str) -> str | dict[str, Any] | None:
    """The setting for bytes that tc adds to each frame, the least length that it charges, and cells
    ("", atm or ptm); None where nothing is added. A policy counts from the IP packet, without the
    Ethernet header. Raises Unsupported."""
    if not added and not minimum and not cell:
        return None
    sent = added + ETHERNET_HEADER
    for keyword, known in KEYWORDS.items():
        if known == (sent, minimum, cell or "none"):
            return keyword
    if not BYTES_LEAST <= sent <= BYTES_MOST or not 0 <= minimum <= MINIMUM_MOST:
        raise unsupported(
            f"{what}: overhead of {added} bytes, {minimum} at least",
            f"expected {BYTES_LEAST - ETHERNET_HEADER} to {BYTES_MOST - ETHERNET_HEADER}, and "
            f"{MINIMUM_MOST} at most",
        )
    found: dict[str, Any] = {"bytes": sent}
    if minimum:
        found["minimum"] = minimum
    if cell:
        found["cell"] = cell
    return found
