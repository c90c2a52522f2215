"""Handlers: values of an element that control reads and writes while packets flow (as in Click).

    HANDLERS = {"ttl": Handler(read="get_ttl", write="prepare_ttl", argument="ttl",
                               help="TTL that packets get, 1 to 255")}

A class has its own handlers and those of its bases; every element has `counters`. A Handler names
methods:

**read** takes no arguments and returns plain data. It runs between two batches, and its result is
also encoded there, so the result is consistent whatever the element does afterwards.

**write** takes the value and *prepares* the change on control's thread, while the element runs: it
checks the value, allocates, compiles, raises ConfigError, and changes nothing. It returns the
*change*: a `Work`, or a callable without arguments. The change runs between two batches, so it must
be short and must not fail: it stores all that was prepared at once, so that no reader sees half.

How the copies of an element (at most one per engine) get a change:

    live        one copy after the other, each through its engine's mailbox, while all engines run
    quiescing   all engines with a copy are stopped between two batches, then all copies change,
                then the engines go on: no engine uses the new value while another uses the old

In both modes all copies are prepared before the first changes: an error leaves all unchanged.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dataplane.errors import GraphError


class Mode(enum.StrEnum):
    """How the copies of an element get a change; see the module."""

    LIVE = "live"
    QUIESCING = "quiescing"


@dataclass(frozen=True, kw_only=True)
class Handler:
    """One handler. read, write: names of methods; None: the handler cannot be read, or written.

    argument: the constructor's argument that a written value replaces, so that an element built
    again (after a crash, in an upgrade) gets the last value written. None: no argument changes.

    shared: the handler accesses what all copies share and any thread may access at any time (the
    switch's table): it runs once, on control's thread, and no engine waits for it.
    """

    help: str
    read: str | None = None
    write: str | None = None
    mode: Mode = Mode.LIVE
    argument: str | None = None
    shared: bool = False


def handlers_of(kind: type) -> dict[str, Handler]:
    """The handlers of a class by name, with those of its bases. Raises GraphError for a handler
    whose method does not exist."""
    found: dict[str, Handler] = {}
    for each in reversed(kind.__mro__):
        found.update(vars(each).get("HANDLERS", {}))
    for name, handler in found.items():
        for method in filter(None, (handler.read, handler.write)):
            if not callable(getattr(kind, method, None)):
                raise GraphError(f"{kind.__name__}: handler {name}: there is no method {method}")
        if handler.read is None and handler.write is None:
            raise GraphError(
                f"{kind.__name__}: handler {name}: can neither be read nor written; name a method"
            )
    return found
