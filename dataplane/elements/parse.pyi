from typing import Literal, final

from dataplane.element import Element
from dataplane.wire.headers import PARSE_REASONS as PARSE_REASONS

@final
class Parse(Element):
    def __init__(self, malformed: Literal["drop", "pass"] = "drop", *, name: str | None = None) -> None: ...
