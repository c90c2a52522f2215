"""Events of an instance, delivered to subscribers. Emitting an event never blocks."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

Event = dict[str, Any]
QUEUE_MOST = 1024  # maximum number of events that a subscriber may be behind


class Emit(Protocol):
    """Emits an event: its name, and fields that describe it."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


class Subscription:
    """A subscriber's queue. When it is full, events are lost; the next event delivered has their
    number (`lost`). wanted: filter."""

    def __init__(self, wanted: Callable[[Event], bool] | None = None) -> None:
        self._wanted = wanted
        self._queue: deque[Event] = deque()
        self._lost = 0
        self._there = asyncio.Event()

    def offer(self, event: Event) -> None:
        """Appends an event if there is room."""
        if self._wanted is not None and not self._wanted(event):
            return
        if len(self._queue) >= QUEUE_MOST:
            self._lost += 1
            return
        self._queue.append({**event, "lost": self._lost} if self._lost else event)
        self._lost = 0
        self._there.set()

    async def next(self) -> Event:
        """Waits for the next event and returns it."""
        while not self._queue:
            self._there.clear()
            await self._there.wait()
        return self._queue.popleft()


class Bus:
    """Delivers events to all subscribers. `emit` may be called from any thread, the rest from the
    loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._listeners: set[Subscription] = set()

    def emit(self, event: str, /, **fields: object) -> None:
        """Emits an event with the current time."""
        self._loop.call_soon_threadsafe(
            self._deliver, {"event": event, "time": round(time.time(), 6), **fields}
        )

    def _deliver(self, event: Event) -> None:
        for listener in self._listeners:
            listener.offer(event)

    @property
    def heard(self) -> bool:
        """Whether there are subscribers."""
        return bool(self._listeners)

    def subscribe(self, wanted: Callable[[Event], bool] | None = None) -> Subscription:
        listener = Subscription(wanted)
        self._listeners.add(listener)
        return listener

    def unsubscribe(self, listener: Subscription) -> None:
        self._listeners.discard(listener)


def observe(status: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
    """The data that `differences` compares: engines' threads and overruns, drops by reason, those
    of elements and of NICs' full queues."""
    return {
        "engines": {
            each["name"]: (each.get("thread"), each.get("overruns", 0))
            for each in status["engines"]
        },
        "drops": {
            ("element", element["name"], element.get("nic"), reason): count
            for engine in stats["engines"]
            for element in engine["elements"]
            for reason, count in element.get("dropped", {}).items()
        }
        | {
            ("nic", nic["name"], nic["name"], "queue_full"): nic["queue_drops"] or 0
            for nic in stats["nics"]
        },
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The events, as names and fields, for the changes between two observations."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name, (thread, overruns) in now["engines"].items():
        old_thread, old_overruns = before["engines"].get(name, (thread, overruns))
        if thread != old_thread and None not in (thread, old_thread):
            found.append(("engine-moved", {"engine": name, "from": old_thread, "to": thread}))
        if overruns > old_overruns:
            found.append(("overrun", {"engine": name, "turns": overruns - old_overruns}))
    for key, count in now["drops"].items():
        if (rise := count - before["drops"].get(key, 0)) > 0:
            kind, name, nic, reason = key
            found.append(
                (
                    "drops",
                    {
                        kind: name,
                        **({"nic": nic} if nic else {}),
                        "reason": reason,
                        "packets": rise,
                    },
                )
            )
    return found
