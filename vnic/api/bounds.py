"""Bounds on a user's share of control: users' changes take turns, and each user's rate of changes
is limited."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Bucket:
    """A token bucket: `burst` at once, and `per_second` after that."""

    def __init__(
        self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._per_second, self._clock = float(burst), per_second, clock
        self._tokens, self._filled = self._burst, clock()

    def take(self) -> float:
        """Takes a token and returns 0; without one, returns the seconds until one is available."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._per_second)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1
        return 0.0


class Turns:
    """A lock that users take in turns (round robin); each user's requests stay in order. However
    many requests a user has waiting, at most one of them comes before another user's next."""

    def __init__(self) -> None:
        # by user, in the order of their turns
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}
        self._held = False

    @asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Waits for a turn of the user, and holds the lock."""
        if self._held:
            mine = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(uid, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if not mine.cancelled():  # cancelled when it had just got the lock
                    self._end()
                raise
        self._held = True
        try:
            yield
        finally:
            self._end()

    def _end(self) -> None:
        # A turn may take long and blocks the loop. The next turn begins two passes of the loop
        # later, so that reads that arrived meanwhile are answered before it.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._next)

    def _next(self) -> None:
        while self._waiting:
            uid = next(iter(self._waiting))
            queue = self._waiting.pop(uid)
            first = queue.popleft()
            if queue:
                self._waiting[uid] = queue  # after the other users
            if not first.done():  # else its connection was closed
                first.set_result(None)
                return
        self._held = False
