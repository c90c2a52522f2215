"""Runs one engine, on a thread of its own or in virtual time. For several engines see
dataplane.groups.group and dataplane.engine.virtual_time."""

from __future__ import annotations

from dataplane.engine.engine import Engine
from dataplane.engine.thread import EngineThread
from dataplane.engine.virtual_time import VirtualTime
from dataplane.errors import VnicError


def start(engine: Engine) -> EngineThread:
    """Starts a thread that runs only this engine, until `engine.stop()`. Raises ConfigError for a
    CPU that this process may not use, VnicError for an engine that has a virtual clock or runs
    already."""
    if engine.clock.virtual:
        raise VnicError(f"engine {engine.name}: has a virtual clock; use advance()")
    if engine.runner is not None:
        raise VnicError(f"engine {engine.name}: runs already")
    thread = EngineThread(
        engine.name, [engine.cpu] if engine.cpu is not None else None, spin_ns=engine.spin_ns
    )
    thread.start([engine])
    return thread


def advance(engine: Engine, until_ns: int) -> int:
    """Runs everything that is due up to and including `until_ns` in virtual time, and sets the
    clock to `until_ns`. Returns the number of packets that sources delivered."""
    return VirtualTime([engine]).advance(until_ns)
