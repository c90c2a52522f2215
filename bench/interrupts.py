"""Ctrl-C and SIGTERM as KeyboardInterrupt, but never between starting something and noting that it has to be ended."""

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
    """Takes over SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keeps an interrupt back until the block is done. Blocks nest."""
    global _held, _pending
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _pending and not _held:
        _pending = False
        raise KeyboardInterrupt
