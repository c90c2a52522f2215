"""Control's event loop, as seen from the threads that change the network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def on_loop(loop: asyncio.AbstractEventLoop | None, function: Callable[[], object]) -> None:
    """Calls a function on the loop's thread, which alone may change what the loop waits for: an
    attach and an apply run on another thread. At once if this is that thread, or no loop runs."""
    if loop is not None and loop.is_running() and not _runs_here(loop):
        loop.call_soon_threadsafe(function)
    else:
        function()


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
