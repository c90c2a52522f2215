"""Engine groups: engines and the threads that run them (Snap, section 2.4). threads.py has the
modes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dataplane.engine.cgroup import Cgroup
from dataplane.engine.engine import Engine
from dataplane.engine.settle import settle
from dataplane.engine.thread import ENGINES_MOST, EngineThread
from dataplane.errors import ConfigError, VnicError
from dataplane.groups.compactor import Compactor
from dataplane.groups.guarantee import Guarantee
from dataplane.groups.threads import SLO_NS, GroupThreads, Mode, Settings


class EngineGroup:
    """A set of engines with a scheduling mode and CPUs. Only control calls its methods, one at a
    time; no engine's thread does.

    The settings are those of dataplane.groups.threads.Settings. Raises ConfigError for invalid
    settings, which include cgroups that threads could not join. With tolerant=True such a cgroup is
    reported by `status` instead, as is one that rejects a thread later.
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
        self._group_threads: GroupThreads | None = None  # None: not started
        self._check_cpus(self.settings)
        if not tolerant:
            self._check_cgroups(self.settings)
            self._check_cpusets(self.settings)

    def _check_cpus(self, settings: Settings) -> None:
        usable, cpus = sorted(os.sched_getaffinity(0)), settings.cpus
        for cpu in cpus or ():
            if cpu not in usable:
                raise ConfigError(
                    f"group {self.name}: cpu {cpu}: not usable here: "
                    f"expected some of {', '.join(map(str, usable))}"
                )
        if settings.mode is Mode.DEDICATED and not cpus:
            raise ConfigError(
                f"group {self.name}: dedicated needs CPUs of its own, such as cpus: [{usable[-1]}]"
            )

    def _check_cpusets(self, settings: Settings) -> None:
        cpus = set(settings.cpus or ())
        for cgroup in settings.cgroups:
            left = cgroup.cpus()
            if left is None or cpus <= set(left):
                continue
            cpu, some = min(cpus - set(left)), ", ".join(map(str, left))
            raise ConfigError(
                f"group {self.name}: cpu {cpu}: not in the cpuset of {cgroup.path}: "
                f"expected some of {some}"
            )

    def _check_cgroups(self, settings: Settings) -> None:
        by_hierarchy: dict[int, Cgroup] = {}
        for cgroup in settings.cgroups:
            try:
                cgroup.check()
                other = by_hierarchy.setdefault(cgroup.hierarchy, cgroup)
            except ConfigError as error:
                raise ConfigError(f"group {self.name}: {error}") from None
            # joining the second cgroup would remove a thread from the first
            if other is not cgroup:
                both = f"{other.path} and {cgroup.path}"
                raise ConfigError(
                    f"group {self.name}: cgroups {both} are of one hierarchy; choose one of them"
                )

    @property
    def mode(self) -> Mode:
        """How the engines get CPU time."""
        return self.settings.mode

    @property
    def threads(self) -> list[EngineThread]:
        """The running threads; none before `start`."""
        return self._group_threads.threads if self._group_threads is not None else []

    @property
    def compactor(self) -> Compactor | None:
        """The balancer that moves engines, while the group runs and compacts."""
        return self._group_threads.compactor if self._group_threads is not None else None

    @property
    def alive(self) -> bool:
        """True while the group runs."""
        return self._group_threads is not None and all(thread.alive for thread in self.threads)

    # -- lifecycle ---------------------------------------------------------------------------------

    def start(self, *, run: bool = True) -> None:
        """Starts the threads and runs the engines (run=False: runs none; `resume` runs each).

        Raises VnicError where the group is running, or a thread cannot be started; then none is
        left.
        """
        if self._group_threads is not None:
            raise VnicError(f"group {self.name}: runs already")
        self._group_threads = GroupThreads(self.name, self.settings, self.engines, self)
        for engine in self.engines if run else ():
            self._group_threads.run(engine)
        self._group_threads.reserve()

    def stop(self) -> None:
        """Ends the threads, each between two iterations. Engines keep the packets that they hold.
        May be called twice."""
        if self._group_threads is None:
            return
        old, self._group_threads = self._group_threads, None
        for engine in self.engines:
            if engine.runner is self:
                old.release(engine)
        old.stop()

    # -- engines -----------------------------------------------------------------------------------

    def add(self, engine: Engine) -> None:
        """Adds an engine, and runs it if the group runs. Raises ConfigError where the group is
        full, VnicError where a thread cannot be started; then the engine belongs to no group."""
        if len(self.engines) == ENGINES_MOST:
            raise ConfigError(
                f"group {self.name}: has {ENGINES_MOST} engines, the most; "
                f"put engine {engine.name} in another"
            )
        if self._group_threads is not None:
            self._group_threads.assign(engine)
        self.engines.append(engine)
        self.resume(engine)

    def remove(self, engine: Engine) -> None:
        """Stops an engine between two iterations, while the others run, and removes it."""
        if self._group_threads is not None:
            if engine.runner is self:
                self._group_threads.release(engine)
            self._group_threads.dismiss(engine)
        self.engines.remove(engine)

    def halt(self, engine: Engine) -> None:
        """Stops an engine between two iterations, while the others run; `resume` runs it again.
        Raises VnicError where a guarantee has to be given up and the replacing thread cannot be
        started; then the engine goes on."""
        if engine.runner is self and self._group_threads is not None:
            self._group_threads.halt(engine)

    def resume(self, engine: Engine) -> None:
        """Runs an engine that was halted. That allocates nothing, so it cannot fail for want of
        resources."""
        if self._group_threads is not None and engine.runner is None:
            self._group_threads.run(engine)
            self._group_threads.reserve()

    # -- settings ----------------------------------------------------------------------------------

    def change(self, **settings: Any) -> None:
        """Changes settings (fields of dataplane.groups.threads.Settings) while packets flow:
        engines move to new threads, each between two iterations. Raises ConfigError, or VnicError
        where a thread cannot be started; then nothing has changed."""
        wanted = replace(self.settings, **settings)
        self._check_cpus(wanted)
        # a present cgroup may have been removed since: `status` reports that
        if "cgroups" in settings:
            self._check_cgroups(wanted)
        self._check_cpusets(wanted)
        if self._group_threads is not None and settings.keys() == {
            "slo_ns"
        }:  # needs no new threads
            if self.compactor is not None:
                self.compactor.slo_ns = wanted.slo_ns
        elif self._group_threads is not None:
            self._replace(self._group_threads, GroupThreads(self.name, wanted, self.engines, self))
        self.settings = wanted

    def _replace(self, old: GroupThreads, new: GroupThreads) -> None:
        """Moves the engines from old threads to new ones, which cannot fail. Halted engines stay
        halted."""
        for engine in self.engines:
            if engine.runner is self:
                old.release(engine)
                new.run(engine)
        self._group_threads = new
        old.stop()
        # after the old threads ended: the kernel admits a guarantee only while bandwidth is left
        new.reserve()

    # -- status -----------------------------------------------------------------------------------

    def thread_of(self, engine: Engine) -> str | None:
        """The name of the thread that runs the engine now."""
        return next(
            (thread.name for thread in self.threads if engine.name in thread.engine_names), None
        )

    def settle(self) -> None:
        """Updates the engines' CPU time accounts."""
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
        """in_force: every thread is in the cgroup. This is read each time, since any process that
        may write to the cgroup can move threads out of it."""
        inside = cgroup.threads()
        outside = [thread for thread in self.threads if thread.thread_id not in inside]
        why = None if self.threads else "no thread runs"
        if outside:
            why = outside[0].refused.get(
                cgroup.path, f"thread {outside[0].name} was moved elsewhere"
            )
        return {"path": cgroup.path, "cpu_ns": cgroup.cpu_ns(), "in_force": why is None, "why": why}
