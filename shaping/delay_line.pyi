"""Type stub of shaping.delay_line."""

from typing import final

@final
class DelayLine: ...
