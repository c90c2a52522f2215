"""Virtual time of a runtime: its engines, and the steps of its policy's scenario between them."""

from __future__ import annotations

from dataplane.engine.virtual_time import VirtualTime
from vnic.runtime.runtime import Runtime


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

    def run(self, most: int) -> int:
        """Runs until nothing is due any more, or sources have delivered `most` packets; see
        VirtualTime.run."""
        total = 0
        while total < most:
            step_ns = self._scenario.due_ns
            if step_ns is None:
                return total + self._time.run(most - total)
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
