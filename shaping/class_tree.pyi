"""Type stub of shaping.class_tree."""

from collections.abc import Mapping
from typing import Any, final

from shaping.class_settings import TreeSetting

QUANTUM_NS: int
QUANTUM_MOST_BYTES: int
FRAME_BYTES: int
TAG_COST: int

@final
class ClassTree:
    @property
    def setting(self) -> TreeSetting: ...
    @property
    def given(self) -> Mapping[str, Any]: ...
    @property
    def shared(self) -> dict[str, int]: ...
    def __init__(
        self, name: str, given: Mapping[str, Any], burst_ns: int, before: ClassTree | None = None
    ) -> None: ...
