"""The threads of an engine group in one scheduling mode, and the assignment of engines to them.

| mode       | threads                                               | when idle                   |
|------------|-------------------------------------------------------|-----------------------------|
| dedicated  | one per CPU of the group, pinned; its engines share   | polls on                    |
|            | it fairly                                             |                             |
| spreading  | one per engine, on any CPU of the group               | polls for `spin`, then      |
|            |                                                       | sleeps until notified       |
| compacting | one for all engines; more, up to one per CPU, while   | as spreading                |
|            | an engine's packets wait longer than `slo`            |                             |

Everything that can fail (descriptors, threads) is allocated when GroupThreads are made, or before
an engine is assigned or halted. Running an engine allocates nothing, so a halted engine can always
run again.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.engine.cgroup import Cgroup
from dataplane.engine.engine import Engine
from dataplane.engine.thread import ALWAYS, ENGINES_MOST, EngineThread
from dataplane.groups.compactor import Compactor
from dataplane.groups.guarantee import Guarantee

if TYPE_CHECKING:
    from dataplane.engine.engine import Runner

SLO_NS = 50_000


class Mode(enum.StrEnum):
    """How a group's engines get CPU time."""

    DEDICATED = "dedicated"
    SPREADING = "spreading"
    COMPACTING = "compacting"


@dataclass(frozen=True)
class Settings:
    """Settings of a group.

    cpus: CPUs that the threads may run on; None: all CPUs of this process. spin_ns: how long an
    idle thread polls before it sleeps. slo_ns: queueing delay to keep below when compacting.
    guarantee: CPU time of each thread. cgroups: cgroups that the threads join, at most one of each
    hierarchy.
    """

    mode: Mode = Mode.SPREADING
    cpus: list[int] | None = None
    spin_ns: int = 0
    slo_ns: int = SLO_NS
    guarantee: Guarantee | None = None
    cgroups: tuple[Cgroup, ...] = ()


class GroupThreads:
    """Threads for `engines` of the group `name`; it runs none of them yet.

    runner: the object that the engines name as their runner, see EngineThread.take. Raises
    VnicError where a thread cannot be started; then none is left.
    """

    def __init__(
        self, name: str, settings: Settings, engines: Iterable[Engine], runner: Runner
    ) -> None:
        self.settings, self._runner = settings, runner
        self.threads: list[EngineThread] = []
        self.compactor = (
            Compactor(slo_ns=settings.slo_ns) if settings.mode is Mode.COMPACTING else None
        )
        # the thread of each engine, except when compacting
        self._own: dict[Engine, EngineThread] = {}
        cpus = settings.cpus or sorted(os.sched_getaffinity(0))
        try:
            if settings.mode is Mode.DEDICATED:
                for number, cpu in enumerate(cpus):
                    self._hire(f"{name}.{number}", [cpu], ALWAYS)
            if self.compactor is not None:
                # a group has at most ENGINES_MOST engines
                for number in range(min(len(cpus), ENGINES_MOST)):
                    self._hire(f"{name}.{number}", settings.cpus, settings.spin_ns)
                self.compactor.set_threads(self.threads)
            for engine in engines:
                self.assign(engine)
        except BaseException:
            self.stop()
            raise

    def _hire(self, name: str, cpus: list[int] | None, spin_ns: int) -> EngineThread:
        guarantee, cgroups = self.settings.guarantee, self.settings.cgroups
        thread = EngineThread(
            name,
            cpus,
            spin_ns=spin_ns,
            guarantee=guarantee,
            cgroups=cgroups,
            balancer=self.compactor,
        )
        thread.start()
        self.threads.append(thread)
        return thread

    def assign(self, engine: Engine) -> None:
        """Makes sure that the engine can be run. Raises VnicError where that needs a thread that
        cannot be started."""
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
        """Runs an engine that was assigned and is not running."""
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
        """Applies the CPU guarantee to the threads; when spreading, only to threads whose engine
        runs. Guarantees in force stay."""
        idle = {
            self._own[engine]
            for engine in self._own
            if engine.runner is None and self.settings.mode is Mode.SPREADING
        }
        for thread in self.threads:
            if thread not in idle:
                thread.reserve()

    def release(self, engine: Engine) -> None:
        """Stops an engine of these threads between two iterations, while the others run. Its thread
        stays, idle."""
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
        """Releases an engine. A guarantee of its thread alone (spreading) is given up, since in an
        upgrade the thread of the next worker needs it: the thread ends, and another one waits
        instead. Raises VnicError where that one cannot be started; then the engine goes on."""
        if self.settings.mode is not Mode.SPREADING or self.settings.guarantee is None:
            self.release(engine)
            return
        spare = self._hire_for(engine)
        self.release(engine)
        self.dismiss(engine)
        self._own[engine] = spare

    def dismiss(self, engine: Engine) -> None:
        """Removes an engine that is not running; when spreading, its thread ends."""
        thread = self._own.pop(engine, None)
        if thread is not None and self.settings.mode is Mode.SPREADING:
            thread.stop()
            self.threads.remove(thread)

    def stop(self) -> None:
        """Ends the threads. The caller has released the engines."""
        if self.compactor is not None:
            self.compactor.pause()  # never resumed
        for thread in self.threads:
            thread.stop()
        self.threads = []
