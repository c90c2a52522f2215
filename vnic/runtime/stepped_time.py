"""Virtual time of a runtime: its engines, and the steps of its policy's scenario between them."""

from __future__ import annotations

from dataplane.engine.virtual_time import VirtualTime
from vnic.runtime.runtime import Runtime

FOREVER = 2**64 - 1


class SteppedTime:
    """As VirtualTime, for the engines of a runtime. A step is made at its instant, before any
    packet of that instant, and does not prolong a run. After a change of a graph, make a new
    one."""

    def __init__(self, runtime: Runtime) -> None:
        self._time = VirtualTime(runtime.engines)
        self._scenario = runtime.policy.scenario

    def advance(self, until_ns: int) -> int:
        """Runs everything that is due up to and including `until_ns`; see VirtualTime.advance."""
        total = 0
        while (step_ns := self._scenario.due_ns) is not None and step_ns <= until_ns:
            total += self._to(step_ns)
        return total + self._time.advance(until_ns)

    def due_ns(self) -> int | None:
        """See VirtualTime.due_ns: a step alone is not due."""
        due_ns = self._time.due_ns()
        return None if due_ns is None else max(due_ns, self._time.clock.now_ns)

    def run(self, most: int, until_ns: int = FOREVER) -> int:
        """Runs until nothing is due any more, at least not up to and including `until_ns`, or
        sources have delivered `most` packets; see VirtualTime.run."""
        total = 0
        while total < most:
            step_ns = self._scenario.due_ns
            if step_ns is None or step_ns > until_ns:
                return total + self._time.run(most - total, until_ns)
            if step_ns > self._time.clock.now_ns:
                total += self._time.run(most - total, step_ns - 1)
                if total >= most or self._time.due_ns() is None:
                    break
            self._to(step_ns)
        return total

    def _to(self, step_ns: int) -> int:
        """Runs everything before the step, and makes it."""
        total, clock = 0, self._time.clock
        if step_ns > clock.now_ns:
            total = self._time.advance(step_ns - 1)
            clock.set(step_ns)
        self._scenario.step()
        return total
