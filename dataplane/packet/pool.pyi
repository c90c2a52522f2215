from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

PACKET_DTYPE: np.dtype[np.void]

def check_layout(dtype: np.dtype[Any]) -> None: ...

class PacketPool:
    fd: int
    small_count: int
    large_count: int
    @property
    def records(self) -> NDArray[np.void]: ...
    def damage(self, index: int) -> str: ...
    def __new__(
        cls,
        small: int = ...,
        large: int = ...,
        name: str = ...,
        *,
        descriptor: int | None = ...,
        reset: bool = ...,
    ) -> Self: ...
    @classmethod
    def from_descriptor(cls, descriptor: int, *, reset: bool = ...) -> Self: ...
    def check_held(
        self, packets: bytes, owners: bytearray, owner: int
    ) -> tuple[int, str | int] | None: ...
    def frame(self, index: int) -> NDArray[np.uint8]: ...
    def memory_bytes(self, indices: Sequence[int]) -> int: ...
    @property
    def in_use(self) -> int: ...
