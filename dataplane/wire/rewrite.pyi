"""Type stub of dataplane.wire.rewrite."""

from collections.abc import Sequence

VLAN_MODES: dict[str, int]

class Rewrite:
    vlan_mode: int
    def __init__(
        self,
        macs: Sequence[tuple[bytes, bytes]] = (),
        addresses: Sequence[tuple[bytes, bytes, int]] = (),
        vlan: tuple[str, int] | None = None,
        vlan_map: Sequence[tuple[int, int]] = (),
    ) -> None: ...
    def apply(
        self, frame: bytes, source: bytes | None = None, destination: bytes | None = None
    ) -> bytes: ...
