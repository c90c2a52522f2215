"""Engine groups: engines, the threads that run them, and how (Snap, section 2.4).

| mode       | threads                                     | when idle             |
|------------|---------------------------------------------|-----------------------|
| dedicated  | one a CPU of the group, pinned; the engines of a thread share it fairly | polls on |
| spreading  | one an engine, on any CPU of the group      | polls for `spin`, then sleeps until it is notified |
| compacting | one for all engines; more, up to one a CPU, while an engine's packets wait longer than `slo` | as spreading |
"""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence
from typing import Any

from dataplane.cgroup import Cgroup
from dataplane.compactor import Compactor
from dataplane.engine import Engine
from dataplane.engine_thread import ALWAYS, EngineThread
from dataplane.errors import ConfigError, VnicError
from dataplane.guarantee import Guarantee
from dataplane.settle import settle

SLO_NS = 50_000


class Mode(enum.StrEnum):
    """How a group's engines get CPU time."""

    DEDICATED = "dedicated"
    SPREADING = "spreading"
    COMPACTING = "compacting"


class EngineGroup:
    """A set of engines with a scheduling mode and CPUs. Methods are control's, one at a time; none is called from an engine's thread.

    cpus: the CPUs that its threads may run on, None: all of this process. spin_ns: how long a thread polls in vain before it sleeps.
    slo_ns: the queueing delay to keep below when compacting. guarantee: CPU time of each thread.
    cgroups: what its threads join, at most one of each hierarchy. Raises ConfigError for one that they could not join; with
    tolerant=True it is for `status` to say so, as it is for one that refuses a thread later.
    """

    def __init__(
        self,
        name: str,
        mode: Mode | str = Mode.SPREADING,
        *,
        cpus: list[int] | None = None,
        spin_ns: int = 0,
        slo_ns: int = SLO_NS,
        guarantee: Guarantee | None = None,
        cgroups: Sequence[Cgroup] = (),
        tolerant: bool = False,
    ) -> None:
        self.name = name
        self.mode = Mode(mode)
        self.cpus, self.spin_ns, self.slo_ns, self.guarantee = cpus, spin_ns, slo_ns, guarantee
        self.cgroups = tuple(cgroups)
        self.engines: list[Engine] = []
        self.threads: list[EngineThread] = []
        self.compactor: Compactor | None = None
        self._started = False
        self._check(self.mode, cpus)
        if not tolerant:
            self._check_cgroups()
            self._check_cpusets(cpus)

    def _check(self, mode: Mode, cpus: list[int] | None) -> None:
        usable = sorted(os.sched_getaffinity(0))
        for cpu in cpus or ():
            if cpu not in usable:
                raise ConfigError(f"group {self.name}: cpu {cpu}: not usable here; want some of {', '.join(map(str, usable))}")
        if mode is Mode.DEDICATED and not cpus:
            raise ConfigError(f"group {self.name}: dedicated needs CPUs of its own; want cpus: [{usable[-1]}] or the like")

    def _check_cpusets(self, cpus: list[int] | None) -> None:
        for cgroup in self.cgroups:
            left = cgroup.cpus()
            if left is None or set(cpus or ()) <= set(left):
                continue
            cpu, some = min(set(cpus or ()) - set(left)), ", ".join(map(str, left))
            raise ConfigError(f"group {self.name}: cpu {cpu}: not in the cpuset of {cgroup.path}; want some of {some}")

    def _check_cgroups(self) -> None:
        by_hierarchy: dict[int, Cgroup] = {}
        for cgroup in self.cgroups:
            try:
                cgroup.check()
                other = by_hierarchy.setdefault(cgroup.hierarchy, cgroup)
            except ConfigError as error:
                raise ConfigError(f"group {self.name}: {error}") from None
            if other is not cgroup:  # a thread would leave the first as it joins the second
                both = f"{other.path} and {cgroup.path}"
                raise ConfigError(f"group {self.name}: cgroups {both} are of one hierarchy; want one of them")

    @property
    def alive(self) -> bool:
        """True while it runs."""
        return self._started and all(thread.alive for thread in self.threads)

    # -- life --------------------------------------------------------------------------------------------------------------

    def start(self, *, run: bool = True) -> None:
        """Starts the threads and runs the engines (run=False: none; `resume` runs each). Raises VnicError where it runs already."""
        if self._started:
            raise VnicError(f"group {self.name}: runs already")
        self._started = True
        for number in range(self._wanted()):
            self._add_thread(number)
        if self.mode is Mode.COMPACTING:
            assert self.compactor is not None
            self.compactor.set_threads(self.threads)
        for engine in self.engines if run else ():
            self._run(engine)

    def _wanted(self) -> int:
        """Threads to begin with; when spreading, each engine brings its own."""
        match self.mode:
            case Mode.DEDICATED:
                return len(self.cpus or ())
            case Mode.SPREADING:
                return 0
            case Mode.COMPACTING:
                self.compactor = Compactor(slo_ns=self.slo_ns)
                return len(self.cpus or os.sched_getaffinity(0))

    def _add_thread(self, number: int, engine: Engine | None = None) -> EngineThread:
        cpus = self.cpus
        if self.mode is Mode.DEDICATED:
            assert cpus is not None
            cpus = [cpus[number]]
        elif engine is not None and engine.cpu is not None:
            cpus = [engine.cpu]
        thread = EngineThread(
            engine.name if engine is not None else f"{self.name}.{number}",
            cpus,
            spin_ns=ALWAYS if self.mode is Mode.DEDICATED else max(self.spin_ns, engine.spin_ns if engine else 0),
            guarantee=self.guarantee,
            cgroups=self.cgroups,
            balancer=self.compactor,
        )
        thread.start()
        self.threads.append(thread)
        return thread

    def _run(self, engine: Engine) -> None:
        match self.mode:
            case Mode.DEDICATED:
                loads = [len(thread.engine_names) for thread in self.threads]
                self.threads[loads.index(min(loads))].take(engine, self)
            case Mode.SPREADING:
                self._add_thread(len(self.threads), engine).take(engine, self)
            case Mode.COMPACTING:
                assert self.compactor is not None
                self.compactor.pause()
                try:
                    self.compactor.add(engine)
                finally:
                    self.compactor.resume()
                self.threads[0].take(engine, self)

    def stop(self) -> None:
        """Ends the threads, each between two turns of its engines. What engines hold stays held. May be called twice."""
        if self.compactor is not None:
            self.compactor.pause()  # for good: a new one comes with the next start
        for engine in self.engines:
            if engine.runner is self:
                engine.release()
        for thread in self.threads:
            thread.stop()
        self.threads, self.compactor, self._started = [], None, False

    # -- engines -----------------------------------------------------------------------------------------------------------

    def add(self, engine: Engine) -> None:
        """Takes an engine, and runs it if the group runs."""
        self.engines.append(engine)
        if self._started:
            self._run(engine)

    def remove(self, engine: Engine) -> None:
        """Stops an engine between two of its turns, while the others go on, and gives it up."""
        self.halt(engine)
        self.engines.remove(engine)

    def halt(self, engine: Engine) -> None:
        """Stops an engine between two of its turns, while the others go on; `resume` runs it again."""
        if engine.runner is not self:
            return
        if self.compactor is not None:
            self.compactor.pause()
        try:
            if self.compactor is not None:
                self.compactor.remove(engine)
            engine.release()
        finally:
            if self.compactor is not None:
                self.compactor.resume()
        if self.mode is Mode.SPREADING:
            for thread in [thread for thread in self.threads if thread.name == engine.name]:
                thread.stop()
                self.threads.remove(thread)

    def resume(self, engine: Engine) -> None:
        """Runs an engine that was halted."""
        if self._started and engine.runner is None:
            self._run(engine)

    # -- settings ----------------------------------------------------------------------------------------------------------

    def set_mode(self, mode: Mode | str, *, cpus: list[int] | None = None) -> None:
        """Changes mode and CPUs (None: as they are) while packets flow: they wait in their queues for the new threads. Raises
        ConfigError, and then nothing has changed."""
        wanted, usable = Mode(mode), cpus if cpus is not None else self.cpus
        self._check(wanted, usable)
        self._check_cpusets(usable)
        running = self._started
        self.stop()
        self.mode, self.cpus = wanted, usable
        if running:
            self.start()

    # -- what control reads ------------------------------------------------------------------------------------------------

    def thread_of(self, engine: Engine) -> str | None:
        """The name of the thread that runs the engine now."""
        return next((thread.name for thread in self.threads if engine.name in thread.engine_names), None)

    def settle(self) -> None:
        """Brings the engines' charges up to date."""
        for engine in self.engines:
            settle(engine)

    def status(self) -> dict[str, Any]:
        """Mode, threads and moves, as a dict."""
        return {
            "name": self.name,
            "mode": str(self.mode),
            "cpus": self.cpus,
            "spin_ns": self.spin_ns,
            "guarantee": vars(self.guarantee) if self.guarantee else None,
            "cgroups": [self._cgroup_status(cgroup) for cgroup in self.cgroups],
            "threads": [thread.status() for thread in self.threads],
            "compacting": self.compactor.status() if self.compactor else None,
        }

    def _cgroup_status(self, cgroup: Cgroup) -> dict[str, Any]:
        """in_force: every thread is in it. That is read anew, since whoever may write to a cgroup can also move threads out of it."""
        inside = cgroup.threads()
        outside = [thread for thread in self.threads if thread.thread_id not in inside]
        why = None if self.threads else "no thread runs"
        if outside:
            why = outside[0].refused.get(cgroup.path, f"thread {outside[0].name} was moved elsewhere")
        return {"path": cgroup.path, "cpu_ns": cgroup.cpu_ns(), "in_force": why is None, "why": why}
