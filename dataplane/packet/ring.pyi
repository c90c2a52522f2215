from collections.abc import Sequence
from typing import Self

class Ring:
    kind: int
    cell_bytes: int
    fd: int
    doorbell: int
    capacity: int
    def __new__(
        cls,
        capacity: int = ...,
        start: int = ...,
        *,
        descriptor: int | None = ...,
        doorbell: int | None = ...,
        reset: bool = ...,
    ) -> Self: ...
    @classmethod
    def from_descriptor(cls, descriptor: int, doorbell: int, *, reset: bool = ...) -> Self: ...
    def __len__(self) -> int: ...
    def push_many(self, values: Sequence[int]) -> int: ...
    def pop_many(self, count: int) -> list[int]: ...

class SpscRing(Ring): ...

class MpscRing(Ring):
    def peek(self) -> list[int]: ...
