"""Raises KeyboardInterrupt for Ctrl-C and SIGTERM, but not between starting a process and recording
it."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_held = 0
_pending = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _pending
    if _held:
        _pending = True
    else:
        raise KeyboardInterrupt


def install() -> None:
    """Installs the handler of SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Defers interrupts until the block ends. Blocks may nest."""
    global _held, _pending
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _pending and not _held:
        _pending = False
        raise KeyboardInterrupt
