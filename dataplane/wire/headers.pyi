from typing import Any

PARSE_REASONS: tuple[str, ...]

def parse_frame(
    frame: bytes | bytearray | memoryview,
    *,
    truncated: bool = False,
    vnet_flags: int = 0,
    gso_type: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
) -> tuple[str | None, dict[str, Any]]: ...
