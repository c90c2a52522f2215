from collections.abc import Callable
from typing import Any

class Work:
    error: BaseException | None
    result: Any

class Call(Work):
    def __init__(self, function: Callable[[], object]) -> None: ...
