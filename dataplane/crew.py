"""A crew: the threads of an engine group in one scheduling mode, and which engine goes to which of them.

| mode       | threads                                     | when idle             |
|------------|---------------------------------------------|-----------------------|
| dedicated  | one a CPU of the group, pinned; the engines of a thread share it fairly | polls on |
| spreading  | one an engine, on any CPU of the group      | polls for `spin`, then sleeps until it is notified |
| compacting | one for all engines; more, up to one a CPU, while an engine's packets wait longer than `slo` | as spreading |

All that can fail - descriptors, threads - is had when a crew is made, or before an engine is assigned or halted. To run an engine takes
nothing, so that one which was halted always comes back.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.cgroup import Cgroup
from dataplane.compactor import Compactor
from dataplane.engine import Engine
from dataplane.engine_thread import ALWAYS, ENGINES_MOST, EngineThread
from dataplane.guarantee import Guarantee

if TYPE_CHECKING:
    from dataplane.engine import Runner

SLO_NS = 50_000


class Mode(enum.StrEnum):
    """How a group's engines get CPU time."""

    DEDICATED = "dedicated"
    SPREADING = "spreading"
    COMPACTING = "compacting"


@dataclass(frozen=True)
class Settings:
    """cpus: those that the threads may run on, None: all of this process. spin_ns: how long a thread polls in vain before it sleeps.
    slo_ns: the queueing delay to keep below when compacting. guarantee: CPU time of each thread. cgroups: what its threads join, at most
    one of each hierarchy."""

    mode: Mode = Mode.SPREADING
    cpus: list[int] | None = None
    spin_ns: int = 0
    slo_ns: int = SLO_NS
    guarantee: Guarantee | None = None
    cgroups: tuple[Cgroup, ...] = ()


class Crew:
    """Threads for `engines` of the group `name`, none of which it runs yet. runner: who answers for those that it runs, see
    EngineThread.take. Raises VnicError where a thread cannot be had, and then there is none."""

    def __init__(self, name: str, settings: Settings, engines: Iterable[Engine], runner: Runner) -> None:
        self.settings, self._runner = settings, runner
        self.threads: list[EngineThread] = []
        self.compactor = Compactor(slo_ns=settings.slo_ns) if settings.mode is Mode.COMPACTING else None
        self._own: dict[Engine, EngineThread] = {}  # where each belongs, unless compacting moves it about
        cpus = settings.cpus or sorted(os.sched_getaffinity(0))
        try:
            if settings.mode is Mode.DEDICATED:
                for number, cpu in enumerate(cpus):
                    self._hire(f"{name}.{number}", [cpu], ALWAYS)
            if self.compactor is not None:
                for number in range(min(len(cpus), ENGINES_MOST)):  # more threads than engines were for nothing
                    self._hire(f"{name}.{number}", settings.cpus, settings.spin_ns)
                self.compactor.set_threads(self.threads)
            for engine in engines:
                self.assign(engine)
        except BaseException:
            self.stop()
            raise

    def _hire(self, name: str, cpus: list[int] | None, spin_ns: int) -> EngineThread:
        guarantee, cgroups = self.settings.guarantee, self.settings.cgroups
        thread = EngineThread(name, cpus, spin_ns=spin_ns, guarantee=guarantee, cgroups=cgroups, balancer=self.compactor)
        thread.start()
        self.threads.append(thread)
        return thread

    def assign(self, engine: Engine) -> None:
        """Sees to it that the engine can be run. Raises VnicError where that takes a thread that cannot be had."""
        match self.settings.mode:
            case Mode.DEDICATED:
                assigned = list(self._own.values())
                self._own[engine] = min(self.threads, key=assigned.count)
            case Mode.SPREADING:
                self._own[engine] = self._hire_for(engine)

    def _hire_for(self, engine: Engine) -> EngineThread:
        cpus = [engine.cpu] if engine.cpu is not None else self.settings.cpus
        return self._hire(engine.name, cpus, max(self.settings.spin_ns, engine.spin_ns))

    def run(self, engine: Engine) -> None:
        """Runs an engine that was assigned and that nobody runs."""
        if self.compactor is None:
            self._own[engine].take(engine, self._runner)
            return
        self.compactor.pause()
        try:
            self.compactor.add(engine)
        finally:
            self.compactor.resume()
        self.threads[0].take(engine, self._runner)

    def reserve(self) -> None:
        """Takes the CPU guarantee for the threads; when spreading, for those whose engine runs. What is in force already stays."""
        idle = {self._own[engine] for engine in self._own if engine.runner is None and self.settings.mode is Mode.SPREADING}
        for thread in self.threads:
            if thread not in idle:
                thread.reserve()

    def release(self, engine: Engine) -> None:
        """Stops an engine that it runs between two turns, while the others go on. Its thread waits."""
        if self.compactor is None:
            engine.release()
            return
        self.compactor.pause()
        try:
            self.compactor.remove(engine)
            engine.release()
        finally:
            self.compactor.resume()

    def halt(self, engine: Engine) -> None:
        """Releases an engine. Where its thread has a guarantee of its own, that is given up, since in an upgrade the next worker's thread
        wants it: another thread waits instead. Raises VnicError where that cannot be had; then the engine goes on."""
        if self.settings.mode is not Mode.SPREADING or self.settings.guarantee is None:
            self.release(engine)
            return
        spare = self._hire_for(engine)
        self.release(engine)
        self.dismiss(engine)
        self._own[engine] = spare

    def dismiss(self, engine: Engine) -> None:
        """Forgets an engine that it does not run."""
        thread = self._own.pop(engine, None)
        if thread is not None and self.settings.mode is Mode.SPREADING:
            thread.stop()
            self.threads.remove(thread)

    def stop(self) -> None:
        """Ends the threads; whoever calls has taken the engines away."""
        if self.compactor is not None:
            self.compactor.pause()  # for good
        for thread in self.threads:
            thread.stop()
        self.threads = []
