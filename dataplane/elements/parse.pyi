from typing import Literal, final

from dataplane.graph.element import Element
from dataplane.graph.port import Port
from dataplane.wire.headers import PARSE_REASONS as PARSE_REASONS

@final
class Parse(Element):
    def __init__(
        self,
        malformed: Literal["forward", "drop"] = "forward",
        *,
        port: Port | None = None,
        name: str | None = None,
    ) -> None: ...
