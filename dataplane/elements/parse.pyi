from typing import Literal

from dataplane.element import Element

class Parse(Element):
    def __init__(self, malformed: Literal["drop", "pass"] = "drop", *, name: str | None = None) -> None: ...
