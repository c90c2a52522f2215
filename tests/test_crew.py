"""Threads that cannot be started: a failed change leaves a group unchanged, and a halted engine can
always run again."""

import os
import resource
import threading
from contextlib import contextmanager

import pytest

from dataplane.engine.engine import Engine
from dataplane.engine.thread import ENGINES_MOST, EngineThread
from dataplane.errors import ConfigError, VnicError
from dataplane.groups.compactor import Compactor
from dataplane.groups.group import EngineGroup
from dataplane.groups.guarantee import CLASSES, Guarantee
from dataplane.groups.threads import Mode
from tests.test_group import CPUS, lanes, pool, until  # noqa: F401 - fixtures


@contextmanager
def descriptors(left):
    """Limits this process to `left` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.dup(0) for _ in range(left + 1)]
    for each in opened:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_threads():
    """Prevents new threads: their stack would be larger than the address space."""
    before = threading.stack_size(1 << 47)
    try:
        yield
    finally:
        threading.stack_size(before)


FAILURES = [(lambda: descriptors(0), "raise the limit, see ulimit -n"), (no_threads, "can't start new thread; raise the limit")]
# the second thread cannot be started
FAILURES += [(lambda: descriptors(1), "raise the limit, see ulimit -n")]
CHANGES = [
    {"mode": Mode.SPREADING},
    {"mode": Mode.COMPACTING, "cpus": CPUS[:1] * 2},
    {"mode": Mode.DEDICATED, "cpus": CPUS[:1] * 2},
]


@pytest.fixture
def started(lanes):  # noqa: F811
    groups = []

    def make(mode, count=2, **settings):
        group, made = EngineGroup("g", mode, cpus=CPUS, **settings), lanes(count)
        for lane in made:
            group.add(lane.engine)
        group.start()
        groups.append(group)
        return group, made

    yield make
    for group in groups:
        group.stop()


def runs(group, some):
    """Whether all engines of the group run, on existing threads."""
    assert group.alive
    for lane in some:
        lane.send(40)
        until(lambda lane=lane: lane.through() == lane.sent)
        assert lane.engine.conservation()["conserved"]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(("failure", "said"), FAILURES, ids=["no descriptor", "no thread", "one descriptor"])
def test_a_change_that_fails_changes_nothing(started, mode, failure, said):
    group, two = started(mode)
    before, settings, threads = group.status(), group.settings, group.threads
    tasks = set(os.listdir("/proc/self/task"))  # a thread of an earlier test may be about to end
    for change in CHANGES:
        with failure(), pytest.raises(VnicError, match=said):
            group.change(**change)
        assert group.settings is settings and group.threads is threads
        assert group.status()["mode"] == before["mode"]
        # the threads that could be started have ended
        until(lambda: set(os.listdir("/proc/self/task")) <= tasks)
        runs(group, two)
    for change in CHANGES:
        group.change(**change)
        runs(group, two)


@pytest.mark.parametrize("mode", list(Mode))
def test_who_was_halted_always_comes_back(started, mode):
    group, two = started(mode)
    for lane in two:
        group.halt(lane.engine)
    with descriptors(0), no_threads():
        for lane in two:
            group.resume(lane.engine)
    runs(group, two)


def test_engines_are_run_later_without_a_new_thread(lanes):  # noqa: F811
    """As the engines of a successor: their threads are started first, the engines run one by
    one."""
    group, two = EngineGroup("g", "spreading", guarantee=Guarantee(500_000, 10_000_000)), lanes(2)
    for lane in two:
        group.add(lane.engine)
    group.start(run=False)
    assert [thread.scheduling for thread in group.threads] == ["none", "none"]
    with descriptors(0), no_threads():
        group.resume(two[0].engine)
    first, second = (thread.scheduling for thread in group.threads)
    assert first in CLASSES and second == "none"
    group.resume(two[1].engine)
    runs(group, two)
    group.halt(two[0].engine)  # its CPU time is available to others meanwhile
    first, second = sorted(group.threads, key=lambda thread: thread.name)
    assert first.scheduling == "none" and second.scheduling in CLASSES
    assert os.sched_getscheduler(first.thread_id) == os.SCHED_OTHER
    with descriptors(0), no_threads():
        group.resume(two[0].engine)
    runs(group, two)
    with no_threads(), pytest.raises(VnicError, match="can't start new thread"):
        group.halt(two[0].engine)
    runs(group, two)
    group.stop()


@pytest.mark.parametrize("mode", list(Mode))
def test_a_change_leaves_who_is_halted_halted(started, mode):
    group, (goes, stands) = started(mode)
    group.halt(stands.engine)
    for change in CHANGES:
        group.change(**change)
        assert stands.engine.runner is None
        runs(group, [goes])
    group.resume(stands.engine)
    runs(group, [goes, stands])


def test_a_start_that_fails_starts_nothing(lanes):  # noqa: F811
    group, two = EngineGroup("g", "spreading"), lanes(2)
    for lane in two:
        group.add(lane.engine)
    with descriptors(1), pytest.raises(VnicError, match="engine thread e1: no descriptor for it: Too many open files"):
        group.start()
    assert not group.alive and group.threads == [] and all(lane.engine.runner is None for lane in two)
    group.start()
    runs(group, two)
    group.stop()


def test_an_engine_without_a_thread_is_nobody_s(started, lanes):  # noqa: F811
    group, two = started("spreading")
    (third,) = lanes(1)
    with no_threads(), pytest.raises(VnicError, match="can't start new thread"):
        group.add(third.engine)
    assert third.engine not in group.engines and third.engine.runner is None
    runs(group, two)
    group.add(third.engine)
    runs(group, [*two, third])


def test_a_thread_that_does_not_get_to_its_loop():
    thread = EngineThread("\ud800")  # a name that cannot be encoded for the kernel
    for _ in range(2):
        with pytest.raises(VnicError, match="did not start: .*surrogates not allowed"):
            thread.start()
        assert not thread.alive and thread.cpu_ns == 0
        thread.stop()


def test_settings_are_the_threads_settings(started):
    group, two = started("spreading", spin_ns=20_000)
    for spin_ns in (5_000, 0):
        group.change(spin_ns=spin_ns, guarantee=Guarantee(500_000, 10_000_000))
        assert {thread.spin_ns for thread in group.threads} == {spin_ns}
        assert {thread.scheduling for thread in group.threads} <= set(CLASSES)
        runs(group, two)
    group.change(guarantee=None, cpus=None)
    assert {(thread.scheduling, thread.cpus) for thread in group.threads} == {("none", None)}
    runs(group, two)


def test_an_objective_needs_no_other_threads(started):
    group, two = started("compacting")
    threads = group.threads
    group.change(slo_ns=80_000)
    assert group.threads is threads and group.compactor.slo_ns == group.status()["slo_ns"] == 80_000
    group.change(mode=Mode.SPREADING)
    group.change(slo_ns=90_000)
    group.change(mode=Mode.COMPACTING)
    assert group.compactor.slo_ns == 90_000
    runs(group, two)


# -- many CPUs, many engines -----------------------------------------------------------------------


def test_more_cpus_than_a_group_can_have_threads(started):
    """The machine need not have that many CPUs: one CPU may be listed several times."""
    group, two = started("compacting")
    group.change(mode=Mode.COMPACTING, cpus=CPUS[:1] * (ENGINES_MOST + 1))
    assert len(group.threads) == ENGINES_MOST
    runs(group, two)


def test_a_compactor_has_room_for_so_many_threads():
    compactor = Compactor()
    threads = [EngineThread(f"t{number}", balancer=compactor) for number in range(ENGINES_MOST + 1)]
    with pytest.raises(VnicError, match=f"{ENGINES_MOST + 1} threads; {ENGINES_MOST} at most"):
        compactor.set_threads(threads)
    compactor.set_threads(threads[:-1])


def test_a_group_has_room_for_so_many_engines(pool):  # noqa: F811
    group = EngineGroup("g")
    engines = [Engine(f"e{number}", pool) for number in range(ENGINES_MOST + 1)]
    for engine in engines[:-1]:
        group.add(engine)
    with pytest.raises(
        ConfigError, match=f"group g: has {ENGINES_MOST} engines, the most; put engine e{ENGINES_MOST} in another"
    ):
        group.add(engines[-1])
    for engine in engines:
        engine.close()


def test_engines_are_dealt_out_to_dedicated_threads(started):
    """By the number of engines assigned, whether or not their threads have adopted them already."""
    group, _ = started("spreading", count=4)
    for _ in range(10):
        group.change(mode=Mode.DEDICATED, cpus=CPUS[:1] * 2)
        until(lambda: sum(len(thread.engine_names) for thread in group.threads) == 4)
        assert [len(thread.engine_names) for thread in group.threads] == [2, 2]
