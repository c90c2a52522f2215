"""Cgroups of engine groups: real ones, whose figures from the kernel are compared with vnic's."""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from dataplane.engine import cgroup
from dataplane.engine.cgroup import MEMBERS, Cgroup, hierarchies
from dataplane.errors import ConfigError
from dataplane.groups.group import EngineGroup
from dataplane.groups.guarantee import CLASSES, Guarantee
from dataplane.groups.threads import Mode
from tests.support import plain_user
from tests.test_group import lanes, pool, until  # noqa: F401 - fixtures

CPUS = sorted(os.sched_getaffinity(0))
MODES = [("spreading", None), ("compacting", None), ("dedicated", CPUS[-1:])]


class Made:
    """A cgroup for the test. kind: "v2", or the v1 hierarchy with that controller."""

    def __init__(self, kind, name, *, threaded=True):
        wanted = [each for each in hierarchies() if (each.version == 2 if kind == "v2" else kind in each.controllers)]
        if kind != "v2":
            wanted = [each for each in wanted if each.version == 1]
        if not wanted:
            pytest.skip(f"no cgroup hierarchy of kind {kind} is mounted here")
        self.kind, self.parent = kind, Path(wanted[0].own)
        self.path = self.parent / name
        try:
            self.path.mkdir()
        except OSError as error:
            pytest.skip(f"no cgroup can be made in {self.parent}: {error.strerror}")
        if kind == "v2" and threaded:
            try:
                self.write("cgroup.type", "threaded")
            except OSError as error:
                self.remove()
                pytest.skip(f"no cgroup of {self.parent} can be threaded: {error.strerror}")

    @property
    def cgroup(self):
        return Cgroup(str(self.path))

    def write(self, name, text):
        (self.path / name).write_text(text)

    def holds(self, thread_id, pid="self"):
        """By the thread's file in /proc, independent of vnic."""
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/{pid}/task/{thread_id}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if self.kind in (controllers.split(",") if controllers else ["v2"]):
                    return Path(path).name == self.path.name
        return False

    def remove(self):
        """Waits for threads to leave: the kernel removes a thread from its cgroup shortly after a
        join returns."""

        def gone():
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return True
            except OSError:
                return False
            return True

        until(gone)


@pytest.fixture
def make_cgroup(request):
    made = []

    def make(kind, **settings):
        made.append(Made(kind, f"vnic-test-{os.getpid()}-{len(made)}", **settings))
        return made[-1]

    yield make
    for each in reversed(made):
        each.remove()


@pytest.fixture
def make_group(make_cgroup, lanes):  # noqa: F811 - after cgroups, so that threads end before those go
    made = []

    def make(*args, **settings):
        made.append(EngineGroup("g", *args, **settings))
        return made[-1]

    yield make
    for group in made:
        group.stop()


def run(group, some):
    for lane in some:
        lane.send(32 * 30)
    for lane in some:
        until(lambda lane=lane: lane.through() == lane.sent)
        lane.output.take()
        assert lane.engine.conservation()["conserved"]


def ids(group):
    return {thread.thread_id for thread in group.threads}


@pytest.mark.root
@pytest.mark.timing
@pytest.mark.parametrize("kind", ["v2", "cpuacct"])
@pytest.mark.parametrize(("mode", "cpus"), MODES)
def test_the_kernel_charges_what_the_engines_are_charged(make_cgroup, make_group, lanes, kind, mode, cpus):  # noqa: F811
    box = make_cgroup(kind)
    group = make_group(mode, cpus=cpus, cgroups=[box.cgroup])
    before = box.cgroup.cpu_ns()
    two = lanes(2, burn_us=2000)
    for lane in two:
        group.add(lane.engine)
    group.start()
    assert len(group.threads) >= 1 and all(box.holds(each) for each in ids(group))
    assert not box.holds(os.getpid())
    (said,) = group.status()["cgroups"]
    assert (said["path"], said["in_force"], said["why"]) == (str(box.path), True, None)
    run(group, two)
    group.stop()
    until(lambda: not box.cgroup.threads())  # the last CPU time is charged when they end
    ours, theirs = sum(lane.engine.cpu_ns for lane in two), box.cgroup.cpu_ns() - before
    assert ours > 100_000_000
    # The kernel also counts a thread's start and end, which no engine caused: milliseconds on a
    # busy machine.
    assert theirs == pytest.approx(ours, rel=0.05, abs=10_000_000)
    assert group.status()["cgroups"][0]["why"] == "no thread runs"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["v2", "cpuacct"])
def test_a_change_of_mode_keeps_the_cgroup(make_cgroup, make_group, lanes, kind):  # noqa: F811
    box = make_cgroup(kind)
    group = make_group("spreading", cpus=CPUS, cgroups=[box.cgroup])
    two = lanes(2)
    for lane in two:
        group.add(lane.engine)
    group.start()
    for mode in ("compacting", "dedicated", "spreading", "dedicated", "compacting", "spreading"):
        group.change(mode=Mode(mode))
        assert all(box.holds(each) for each in ids(group))
        assert group.status()["cgroups"][0]["in_force"]
        run(group, two)
    group.halt(two[0].engine)
    group.resume(two[0].engine)
    assert len(group.threads) == 2
    until(lambda: box.cgroup.threads() == ids(group))  # and the previous ones have left


@pytest.mark.root
def test_version_1_has_a_cgroup_for_each_purpose(make_cgroup, make_group, lanes):  # noqa: F811
    """cpu bounds, cpuacct charges; the kernel counts CPU time that it bounds."""
    bounds, charges = make_cgroup("cpu"), make_cgroup("cpuacct")
    if bounds.parent.stat().st_dev == charges.parent.stat().st_dev:
        pytest.skip("cpu and cpuacct are one hierarchy here")
    bounds.write("cpu.cfs_period_us", "10000")
    bounds.write("cpu.cfs_quota_us", "2000")
    group = make_group(cgroups=[bounds.cgroup, charges.cgroup])
    (lane,) = lanes(1, burn_us=5000)
    group.add(lane.engine)
    group.start()
    (thread,) = ids(group)
    assert bounds.holds(thread) and charges.holds(thread)
    assert [each["in_force"] for each in group.status()["cgroups"]] == [True, True]

    def throttled():
        lane.send(32)
        until(lambda: lane.through() == lane.sent)
        lane.output.take()
        return int((bounds.path / "cpu.stat").read_text().split("nr_throttled")[1].split()[0]) > 0

    until(throttled)
    assert [each["cpu_ns"] is None for each in group.status()["cgroups"]] == [True, False]


@pytest.mark.root
def test_a_guarantee_in_a_cgroup_without_real_time(make_cgroup, make_group, lanes):  # noqa: F811
    """A v1 cpu cgroup without real-time CPU time accepts no SCHED_RR threads: the thread joins
    first, and the guarantee then uses another class."""
    box = make_cgroup("cpu")
    group = make_group("dedicated", cpus=CPUS[-1:], cgroups=[box.cgroup], guarantee=Guarantee(5_000_000, 10_000_000))
    (lane,) = lanes(1)
    group.add(lane.engine)
    group.start()
    run(group, [lane])
    assert group.status()["cgroups"][0]["in_force"]
    assert group.threads[0].scheduling in CLASSES


@pytest.mark.root
@pytest.mark.parametrize("kind", ["v2", "cpuacct"])
def test_a_cgroup_that_goes_meanwhile_stops_nobody(make_cgroup, make_group, lanes, kind):  # noqa: F811
    box = make_cgroup(kind)
    group = make_group(cgroups=[box.cgroup])
    (lane,) = lanes(1)
    group.add(lane.engine)
    box.remove()
    group.start()
    run(group, [lane])
    (said,) = group.status()["cgroups"]
    assert said["path"] == str(box.path) and not said["in_force"] and said["cpu_ns"] is None
    assert said["why"] == f"cgroup {box.path}: does not exist; mkdir {box.path}"
    with pytest.raises(ConfigError, match=f"group h: cgroup {box.path}: does not exist"):
        EngineGroup("h", cgroups=[box.cgroup])
    assert EngineGroup("h", cgroups=[box.cgroup], tolerant=True).settings.cgroups
    box.path.mkdir()
    if kind == "v2":
        box.write("cgroup.type", "threaded")
    group.change(mode=Mode("compacting"))
    assert group.status()["cgroups"][0]["in_force"]


@pytest.mark.root
def test_a_thread_that_was_moved_is_seen(make_cgroup, make_group, lanes):  # noqa: F811
    box = make_cgroup("cpuacct")
    group = make_group(cgroups=[box.cgroup])
    (lane,) = lanes(1)
    group.add(lane.engine)
    group.start()
    (box.parent / "tasks").write_text(str(group.threads[0].thread_id))
    (said,) = group.status()["cgroups"]
    assert not said["in_force"] and said["why"] == "thread e0 was moved elsewhere"
    run(group, [lane])


@pytest.mark.root
def test_version_2_takes_threads_in_threaded_cgroups_only(make_cgroup):
    box = make_cgroup("v2", threaded=False)
    remedy = f"echo threaded > {box.path}/cgroup.type"
    with pytest.raises(ConfigError) as refused:
        EngineGroup("g", cgroups=[box.cgroup])
    assert str(refused.value) == f"group g: cgroup {box.path}: is of type 'domain', which takes no single threads; {remedy}"
    box.write("cgroup.type", "threaded")  # as the error advises
    box.cgroup.check()
    until(lambda: not box.cgroup.threads())  # the probe thread has ended


@pytest.mark.root
def test_version_2_takes_no_threads_of_another_domain(make_cgroup):
    outer = make_cgroup("v2", threaded=False)
    inner = Cgroup(str(outer.path / "inner"))
    os.mkdir(inner.path)
    try:
        (Path(inner.path) / "cgroup.type").write_text("threaded")
        with pytest.raises(ConfigError, match=f"another domain than vnic, which is in {outer.parent}; choose a cgroup below"):
            inner.check()
    finally:
        os.rmdir(inner.path)


@pytest.mark.root
def test_one_cgroup_of_each_hierarchy(make_cgroup):
    a, b = make_cgroup("cpuacct"), make_cgroup("cpuacct")
    with pytest.raises(ConfigError, match=f"cgroups {a.path} and {b.path} are of one hierarchy; choose one of them"):
        EngineGroup("g", cgroups=[a.cgroup, b.cgroup])


@pytest.mark.root
@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU only: a cpuset could leave none out")
def test_a_cpuset_and_cpus(make_cgroup, make_group, lanes):  # noqa: F811
    box = make_cgroup("cpuset")
    with pytest.raises(ConfigError, match="has a cpuset without CPUs or memory; set its cpuset.cpus and cpuset.mems"):
        EngineGroup("g", cgroups=[box.cgroup])
    box.write("cpuset.mems", (box.parent / "cpuset.effective_mems").read_text())
    box.write("cpuset.cpus", str(CPUS[0]))
    assert box.cgroup.cpus() == CPUS[:1]
    with pytest.raises(ConfigError, match=f"cpu {CPUS[1]}: not in the cpuset of {box.path}: expected some of {CPUS[0]}"):
        EngineGroup("g", cpus=CPUS[:2], cgroups=[box.cgroup])
    (lane,) = lanes(1)
    group = make_group("dedicated", cpus=CPUS[1:2], cgroups=[box.cgroup], tolerant=True)
    group.add(lane.engine)
    group.start()
    assert lane.engine.call(lambda: sorted(os.sched_getaffinity(0))) == CPUS[:1]
    assert group.status()["threads"][0]["cpus"] == CPUS[:1] and group.status()["cgroups"][0]["in_force"]
    with pytest.raises(ConfigError, match="not in the cpuset"):
        group.change(mode=Mode("spreading"))
    group.change(mode=Mode.DEDICATED, cpus=CPUS[:1])
    run(group, [lane])


CHECK = "import sys; from dataplane.engine.cgroup import Cgroup; Cgroup(sys.argv[1]).check()"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["v2", "cpuacct"])
def test_a_plain_user_wants_it_delegated(make_cgroup, kind):
    box = make_cgroup(kind)
    argv = [sys.executable, "-c", CHECK, str(box.path)]
    remedy = f"delegate it: chown -R {plain_user.UID} {box.path}"
    said = plain_user.run(argv).stderr
    assert f"cgroup {box.path}: uid {plain_user.UID} may not write to it; {remedy}" in said
    for path in (box.path, *box.path.iterdir()):
        os.chown(path, plain_user.UID, plain_user.UID)
    said = plain_user.run(argv).stderr
    if kind == "v2":  # the common ancestor belongs to root
        assert f"uid {plain_user.UID} may not move threads from {box.parent} to it; delegate both" in said
    else:
        assert said == ""


def test_what_is_no_cgroup(tmp_path):
    (tmp_path / "tasks").write_text("")
    with pytest.raises(
        ConfigError, match=f"group g: cgroup {tmp_path}: is not a cgroup: expected a directory with cgroup.threads"
    ):
        EngineGroup("g", cgroups=[Cgroup(str(tmp_path))])
    with pytest.raises(ConfigError, match="does not exist"):
        Cgroup(str(tmp_path / "none")).check()
    none = Cgroup(str(tmp_path))
    assert (none.cpu_ns(), none.cpus(), none.threads()) == (None, None, frozenset())


def test_what_the_kernel_writes_is_read(tmp_path):
    box = Cgroup(str(tmp_path))
    (tmp_path / "cpu.stat").write_text("nr_periods 0\nnr_throttled 0\nthrottled_time 0\n")
    assert box.cpu_ns() is None  # only v1 hierarchies with cpuacct have it
    (tmp_path / "cpu.stat").write_text("usage_usec 50330\nuser_usec 12582\nsystem_usec 37747\n")
    assert box.cpu_ns() == 50_330_000
    (tmp_path / "cpuacct.usage").write_text("120703696\n")
    assert box.cpu_ns() == 120_703_696
    (tmp_path / "cpuset.cpus.effective").write_text("0-2,5,7-8\n")
    assert box.cpus() == [0, 1, 2, 5, 7, 8]


MOUNTS = r"""
24 1 0:22 / /proc rw - proc proc rw
31 1 0:27 /jobs /mnt/a\040b rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 1 0:28 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw,nsdelegate
33 1 0:29 /elsewhere /mnt/named rw - cgroup cgroup rw,name=systemd
"""


def test_hierarchies_are_found(monkeypatch):
    files = {
        "/proc/self/cgroup": "4:cpu,cpuacct:/jobs/mine\n1:name=systemd:/here\n0::/user.slice/a:b\n",
        "/proc/self/mountinfo": MOUNTS,
    }
    real = open

    def fake(path, *args, **options):
        if path in files:
            return io.StringIO(files[path].lstrip("\n"))
        return real(path, *args, **options)

    monkeypatch.setattr(cgroup, "open", fake, raising=False)
    assert [(each.version, each.controllers, each.own, each.device) for each in hierarchies()] == [
        (1, ("cpu", "cpuacct"), "/mnt/a b/mine", (0, 27)),
        (2, (), "/sys/fs/cgroup/user.slice/a:b", (0, 28)),
        (1, ("name=systemd",), "/mnt/named", (0, 29)),
    ]


def test_this_process_is_where_it_is_found():
    for each in hierarchies():
        box = Cgroup(each.own)
        if os.access(each.own, os.R_OK) and os.path.exists(os.path.join(each.own, MEMBERS[each.version])):
            assert box.version == each.version
            assert os.getpid() in box.threads() or not os.access(os.path.join(each.own, MEMBERS[each.version]), os.R_OK)
