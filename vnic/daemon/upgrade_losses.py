"""Packets lost in an upgrade, as the engines and the kernel count them.

While an engine is halted, frames of its containers wait in their TAPs' queues, and packets from
other engines in rings. Both are bounded. So the counters of both workers' engines and of the TAPs
are read before the first engine is halted and after the last one runs again; the differences are
reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dataplane.engine.engine import Engine
from dataplane.graph.port import PortRx, PortTx


class Drops(msgspec.Struct):
    """Packets that an engine dropped so far, by reason. lost: those dropped because a port's queue
    was full or the pool empty, not those that a shaper drops at its limit."""

    dropped: dict[str, int]
    lost: int = 0


def drops_of(engines: Iterable[Engine]) -> dict[str, Drops]:
    """The current drop counters of engines, by name."""
    found = {}
    for engine in engines:
        ports = {
            element.name for element in engine.elements if isinstance(element, (PortRx, PortTx))
        }
        found[engine.name] = drops = Drops({})
        for name, statistics in engine.snapshot():
            for reason, count in statistics["dropped"].items():
                drops.dropped[reason] = drops.dropped.get(reason, 0) + count
                if reason == "no_buffer" or (reason == "queue_full" and name in ports):
                    drops.lost += count
    return found


def engine_losses(before: Drops, after: Drops | None) -> dict[str, Any]:
    """{"packets_lost": n, "dropped": {reason: n}} of one engine between two readings; None and {}
    where there is no second one."""
    if after is None:
        return {"packets_lost": None, "dropped": {}}
    rise = {
        reason: count - before.dropped.get(reason, 0) for reason, count in after.dropped.items()
    }
    return {
        "packets_lost": after.lost - before.lost,
        "dropped": {reason: count for reason, count in rise.items() if count},
    }


def queue_losses(
    before: dict[str, int | None], after: dict[str, int | None]
) -> dict[str, int | None]:
    """By NIC, the packets that its full queues dropped between two readings; None where the kernel
    does not report it."""
    found: dict[str, int | None] = {}
    for nic, was in before.items():
        now = after.get(nic)
        found[nic] = None if was is None or now is None else now - was
    return found
