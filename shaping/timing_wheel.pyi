"""Type stub of shaping.timing_wheel."""

from typing import final

@final
class TimingWheel:
    def __init__(self) -> None: ...
