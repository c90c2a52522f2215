"""Engine groups: engines, the threads that run them, and how (Snap, section 2.4). The three modes are in crew.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dataplane.cgroup import Cgroup
from dataplane.compactor import Compactor
from dataplane.crew import SLO_NS, Crew, Mode, Settings
from dataplane.engine import Engine
from dataplane.engine_thread import ENGINES_MOST, EngineThread
from dataplane.errors import ConfigError, VnicError
from dataplane.guarantee import Guarantee
from dataplane.settle import settle


class EngineGroup:
    """A set of engines with a scheduling mode and CPUs. Methods are control's, one at a time; none is called from an engine's thread.

    Its settings are those of dataplane.crew.Settings. Raises ConfigError for what cannot be had, cgroups that its threads could not join
    among it; with tolerant=True it is for `status` to say so of a cgroup, as it is for one that refuses a thread later.
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
        self.settings = Settings(Mode(mode), cpus, spin_ns, slo_ns, guarantee, tuple(cgroups))
        self.engines: list[Engine] = []
        self._crew: Crew | None = None  # while it is started
        self._check_cpus(self.settings)
        if not tolerant:
            self._check_cgroups(self.settings)
            self._check_cpusets(self.settings)

    def _check_cpus(self, settings: Settings) -> None:
        usable, cpus = sorted(os.sched_getaffinity(0)), settings.cpus
        for cpu in cpus or ():
            if cpu not in usable:
                raise ConfigError(f"group {self.name}: cpu {cpu}: not usable here; want some of {', '.join(map(str, usable))}")
        if settings.mode is Mode.DEDICATED and not cpus:
            raise ConfigError(f"group {self.name}: dedicated needs CPUs of its own; want cpus: [{usable[-1]}] or the like")

    def _check_cpusets(self, settings: Settings) -> None:
        cpus = set(settings.cpus or ())
        for cgroup in settings.cgroups:
            left = cgroup.cpus()
            if left is None or cpus <= set(left):
                continue
            cpu, some = min(cpus - set(left)), ", ".join(map(str, left))
            raise ConfigError(f"group {self.name}: cpu {cpu}: not in the cpuset of {cgroup.path}; want some of {some}")

    def _check_cgroups(self, settings: Settings) -> None:
        by_hierarchy: dict[int, Cgroup] = {}
        for cgroup in settings.cgroups:
            try:
                cgroup.check()
                other = by_hierarchy.setdefault(cgroup.hierarchy, cgroup)
            except ConfigError as error:
                raise ConfigError(f"group {self.name}: {error}") from None
            if other is not cgroup:  # a thread would leave the first as it joins the second
                both = f"{other.path} and {cgroup.path}"
                raise ConfigError(f"group {self.name}: cgroups {both} are of one hierarchy; want one of them")

    @property
    def mode(self) -> Mode:
        """How its engines get CPU time."""
        return self.settings.mode

    @property
    def threads(self) -> list[EngineThread]:
        """Those that there are; none before `start`."""
        return self._crew.threads if self._crew is not None else []

    @property
    def compactor(self) -> Compactor | None:
        """Who moves engines, while it runs and compacts."""
        return self._crew.compactor if self._crew is not None else None

    @property
    def alive(self) -> bool:
        """True while it runs."""
        return self._crew is not None and all(thread.alive for thread in self.threads)

    # -- life --------------------------------------------------------------------------------------------------------------

    def start(self, *, run: bool = True) -> None:
        """Starts the threads and runs the engines (run=False: none; `resume` runs each). Raises VnicError where it runs already, or a
        thread cannot be had; then there is none."""
        if self._crew is not None:
            raise VnicError(f"group {self.name}: runs already")
        self._crew = Crew(self.name, self.settings, self.engines, self)
        for engine in self.engines if run else ():
            self._crew.run(engine)
        self._crew.reserve()

    def stop(self) -> None:
        """Ends the threads, each between two turns of its engines. What engines hold stays held. May be called twice."""
        if self._crew is None:
            return
        crew, self._crew = self._crew, None
        for engine in self.engines:
            if engine.runner is self:
                crew.release(engine)
        crew.stop()

    # -- engines -----------------------------------------------------------------------------------------------------------

    def add(self, engine: Engine) -> None:
        """Takes an engine, and runs it if the group runs. Raises ConfigError where the group is full, VnicError where a thread cannot be
        had; the engine is nobody's then."""
        if len(self.engines) == ENGINES_MOST:
            raise ConfigError(f"group {self.name}: has {ENGINES_MOST} engines, the most; want engine {engine.name} in another")
        if self._crew is not None:
            self._crew.assign(engine)
        self.engines.append(engine)
        self.resume(engine)

    def remove(self, engine: Engine) -> None:
        """Stops an engine between two of its turns, while the others go on, and gives it up."""
        if self._crew is not None:
            if engine.runner is self:
                self._crew.release(engine)
            self._crew.dismiss(engine)
        self.engines.remove(engine)

    def halt(self, engine: Engine) -> None:
        """Stops an engine between two of its turns, while the others go on; `resume` runs it again. Raises VnicError where a guarantee is
        to be given up and no other thread can be had; then the engine goes on."""
        if engine.runner is self and self._crew is not None:
            self._crew.halt(engine)

    def resume(self, engine: Engine) -> None:
        """Runs an engine that was halted. That takes nothing which could be used up."""
        if self._crew is not None and engine.runner is None:
            self._crew.run(engine)
            self._crew.reserve()

    # -- settings ----------------------------------------------------------------------------------------------------------

    def change(self, **settings: Any) -> None:
        """Changes some of its settings (fields of dataplane.crew.Settings) while packets flow: engines move to new threads, each between
        two of its turns. Raises ConfigError, or VnicError where a thread cannot be had, and then nothing has changed."""
        wanted = replace(self.settings, **settings)
        self._check_cpus(wanted)
        if "cgroups" in settings:  # those that it has may be gone since, which is for `status` to say
            self._check_cgroups(wanted)
        self._check_cpusets(wanted)
        if self._crew is not None and settings.keys() == {"slo_ns"}:  # needs no other threads
            if self.compactor is not None:
                self.compactor.slo_ns = wanted.slo_ns
        elif self._crew is not None:
            self._replace(self._crew, Crew(self.name, wanted, self.engines, self))
        self.settings = wanted

    def _replace(self, old: Crew, new: Crew) -> None:
        """Nothing of this can fail. Engines that are halted stay so."""
        for engine in self.engines:
            if engine.runner is self:
                old.release(engine)
                new.run(engine)
        self._crew = new
        old.stop()
        new.reserve()  # the kernel gives guarantees only while CPU time is left: first the old threads go

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
            "cpus": self.settings.cpus,
            "spin_ns": self.settings.spin_ns,
            "slo_ns": self.settings.slo_ns,
            "guarantee": vars(self.settings.guarantee) if self.settings.guarantee else None,
            "cgroups": [self._cgroup_status(cgroup) for cgroup in self.settings.cgroups],
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
