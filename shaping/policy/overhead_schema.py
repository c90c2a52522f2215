"""The schema of `overhead` in policy files."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from dataplane.config.scalars import SchemaError
from shaping.overhead import ETHERNET_HEADER, KEYWORDS, VLAN, Overhead, overhead_of
from shaping.policy.strict import Strict

OVERHEADS = ("raw", *KEYWORDS, VLAN)
OVERHEAD_META = Meta(
    description="one of CAKE's keywords such as docsis, or {bytes: 18, minimum: 64}",
    examples=[{"bytes": 18, "minimum": 64}],
)


class OverheadConfig(Strict):
    """What a line adds to each IP packet in place of the Ethernet header.

    A text stands for one of CAKE's keywords, such as `docsis`.

    keyword: One of CAKE's keywords. Excludes the others.
    bytes: Bytes that are added to each IP packet.
    minimum: Least number of bytes that a packet takes on the line.
    cell: Cells that the line divides packets into: 48 bytes in cells of 53 (`atm`), or 65 bytes for
        each 64 (`ptm`).
    """

    keyword: Annotated[
        str | None,
        Meta(description=f"one of {', '.join(OVERHEADS)}", examples=["docsis"]),
    ] = None
    bytes: (
        Annotated[int, Meta(ge=-50, le=256, description="a number of bytes, -50 to 256")] | None
    ) = None
    minimum: Annotated[int, Meta(ge=0, le=256, description="a number of bytes, 0 to 256")] = 0
    cell: Annotated[Literal["atm", "ptm", "none"], Meta(description="atm, ptm or none")] = "none"

    def __post_init__(self) -> None:
        if self.keyword is not None:
            if self.keyword not in OVERHEADS:
                raise SchemaError(
                    f"unknown keyword {self.keyword[:40]!r}: expected one of "
                    f"{', '.join(OVERHEADS)}, or {{bytes: 18, minimum: 64}}"
                )
            if (self.bytes, self.minimum, self.cell) != (None, 0, "none"):
                raise SchemaError("has both keyword and bytes, minimum or cell: expected one form")
        elif self.bytes is None:
            raise SchemaError("has no bytes: expected a number of bytes, such as 18")

    @property
    def added(self) -> Overhead:
        """What is added to a layer-2 frame."""
        if self.keyword is not None:
            return overhead_of("overhead", self.keyword)
        return Overhead((self.bytes or 0) - ETHERNET_HEADER, self.minimum, self.cell)
