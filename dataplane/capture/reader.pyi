"""Python face of dataplane.capture.reader."""

import os
from collections.abc import Iterator
from typing import final

@final
class CaptureReader:
    path: str
    format: str
    packets: int
    truncated: int
    overlong: int
    captured_bytes: int
    size: int
    names: list[str | None]
    def __init__(self, file: str | os.PathLike[str] | int) -> None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def position(self) -> int: ...
    def close(self) -> None: ...
    def __iter__(self) -> Iterator[tuple[int, bytes, int, int]]: ...
    def __next__(self) -> tuple[int, bytes, int, int]: ...
