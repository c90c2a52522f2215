"""An engine that a module has built: changes of its graph, and the counts of elements that it no
longer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dataplane.engine.engine import Engine
from dataplane.errors import GraphError
from dataplane.graph.element import Element, Source
from dataplane.packet.ring import MpscRing
from vnic.modules.accounts import NOBODY

DRAINED_AT_ONCE = 256  # packets: 0.3 ms of an engine that writes each to a TAP


class _Pending:
    """The changes of the graph that `EngineHost.at_once` postpones, and whether to load it.
    prepared: new elements by name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names = {element.name for element in engine.elements}
        self.changes: list[Callable[[], object]] = []
        # elements whose outputs the changes may connect elsewhere
        self.touched: dict[Element, None] = {}
        self.load = False
        self.prepared: dict[str, Element] = {}

    def prepare(self, fresh: Iterable[Element]) -> None:
        fresh = [element for element in fresh if element.engine is None]
        for element in fresh:
            if element.name in self._names:
                raise GraphError(
                    f"{element.name}: two elements of engine {self._engine.name} have this name"
                )
        self._engine.prepare(fresh)
        for element in fresh:
            self._names.add(element.name)
            self.prepared[element.name] = element

    def leave(self, elements: Iterable[Element]) -> None:
        self._names.difference_update(element.name for element in elements)

    def abandon(self, fresh: Iterable[Element]) -> None:
        mine = [element for element in fresh if self.prepared.get(element.name) is element]
        self._engine.abandon(mine)
        for element in mine:
            self._names.discard(element.name)
            del self.prepared[element.name]


def _restore(outputs: dict[Element, list[Element | None]]) -> None:
    for element, targets in outputs.items():
        element.set_gates(len(targets))
        for gate, target in enumerate(targets):
            if target is not None:
                element.connect(gate, target)


class EngineHost:
    """An engine that a module has built, with the counts of elements that it no longer runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sources: list[Source] = []
        self._pending: _Pending | None = None  # within at_once
        # by owner: CPU time of elements that are gone, until the accounts take it
        self.charged: dict[str, int] = {}
        self.retired = {"received": 0, "generated": 0, "transmitted": 0, "dropped": 0}

    def load(
        self, sources: list[Source], fresh: Iterable[Element] = (), leaving: Iterable[Element] = ()
    ) -> None:
        """Makes the engine run the graph that begins at `sources`; keeps the counts of elements
        that it no longer runs. fresh: elements that are new in this graph. leaving: elements that
        leave the graph, whose names may then be used again. Raises VnicError, OSError, and then
        nothing has changed."""
        before = self.sources
        if self._pending is not None:
            self._pending.leave(leaving)
            self._pending.prepare(fresh)
            self.sources, self._pending.load = sources, True
            return
        self.sources = sources
        try:
            left = self.engine.load(sources)
        except BaseException:
            self.sources = before
            raise
        self._retire(left)

    def add(self, sources: list[Source], fresh: Iterable[Element]) -> None:
        """Makes the engine run, in addition, the graph that begins at `sources` and the elements
        `fresh`; in constant time. Raises as `load`."""
        if self._pending is not None:
            self.load(self.sources + sources, fresh)
            return
        self._retire(self.engine.extend(sources, fresh))
        self.sources = self.sources + sources

    def _retire(self, left: Iterable[tuple[Element, dict[str, Any]]]) -> None:
        """Keeps the counts of elements that have left."""
        for element, statistics in left:
            owner = element.owner or NOBODY
            self.charged[owner] = self.charged.get(owner, 0) + statistics["charged_ns"]
            for term in ("received", "generated", "transmitted"):
                self.retired[term] += statistics[term]
            self.retired["dropped"] += sum(statistics["dropped"].values())

    def abandon(self, fresh: Iterable[Element]) -> None:
        """Undoes the preparation of `fresh` by a postponed `load`."""
        if self._pending is not None:
            self._pending.abandon(fresh)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Postpones changes of the graph to the end of a `with`: first all changes, in one call on
        the engine's thread, then one load. A load visits every element of the engine, so that one
        load for each NIC would make the start with many NICs quadratic. New elements are bound and
        initialized immediately, so that an error belongs to the NIC that owns them."""
        if self._pending is not None:
            yield
            return
        before, pending = self.sources, _Pending(self.engine)
        self._pending = pending
        try:
            yield
        finally:
            self._pending = None
            outputs = {element: list(element.outputs) for element in pending.touched}
            failures: list[Exception] = []

            def make() -> None:
                for change in pending.changes:
                    try:
                        change()
                    except Exception as error:  # a user's element may refuse a setting
                        failures.append(error)

            if pending.changes:
                self.do(make)
            if pending.load:
                after, self.sources = self.sources, before
                try:
                    self.load(after)
                except BaseException:
                    self.do(lambda: _restore(outputs))
                    pending.abandon(list(pending.prepared.values()))
                    raise
            if failures:  # not before, so that the graph is whole, and can be changed back
                raise failures[0]

    def do(self, change: Callable[[], object], touches: Iterable[Element] = ()) -> None:
        """Makes a change on the engine's thread between two batches. touches: the elements whose
        outputs it may connect elsewhere."""
        if self._pending is None:
            self.engine.call(change)
        else:
            self._pending.changes.append(change)
            self._pending.touched.update(dict.fromkeys(touches))

    def drain(self, leaving: Sequence[Element]) -> None:
        """Before others take their place: lets elements forward what they hold. leaving: in the
        order in which packets pass them, so that each gets what those before it had."""
        # Most of it before the change, a few packets at a time: thousands at once would take the
        # engine some milliseconds, in which the queues of containers overflow.
        for element in leaving:
            for _ in range(2 * int(element.statistics()["held"]) // DRAINED_AT_ONCE):
                self.engine.call(partial(element.drain, DRAINED_AT_ONCE))
                if element.statistics()["held"] <= DRAINED_AT_ONCE:
                    break
        if leaving:

            def drain() -> None:
                for element in leaving:
                    element.drain()

            self.do(drain)

    def receive_all(self, ring: MpscRing | None) -> None:
        """Waits until the engine, if it runs, has received all packets of a ring that nothing fills
        any more."""
        while ring is not None and len(ring) and self.engine.running:
            self.engine.call(lambda: None)

    def conservation(self) -> dict[str, Any]:
        """The terms of the conservation law, from the engine's first packet on."""
        terms = self.engine.conservation()
        for term, value in self.retired.items():
            terms[term] += value
        into = terms["received"] + terms["generated"]
        terms["conserved"] = into == terms["transmitted"] + terms["dropped"] + terms["held"]
        return terms
