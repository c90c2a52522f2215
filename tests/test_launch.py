"""A successor's process loads its modules on idle CPU time; the result is as if loaded at once."""

import json
import subprocess
import sys

import pytest

LOAD = """
import os, sys, threading
from vnic.daemon import launch
launch.STARVED_NS, idle = int(sys.argv[1]), float(sys.argv[2])
measured = launch.idle_share
assert 0 <= measured() <= 1.1
launch.idle_share = lambda: idle
seen = []
class Finder:
    def find_spec(name, path=None, target=None):
        if name in launch.MODULES:
            seen.append((name, threading.current_thread().name, os.sched_getscheduler(0) == os.SCHED_IDLE))
sys.meta_path.insert(0, Finder)
launch.load()
while len(os.listdir("/proc/self/task")) > 1:  # the thread was joined, and the kernel ends it
    os.sched_yield()
import json
print(json.dumps({
    "seen": seen,
    "lacking": [name for name in launch.MODULES if name not in sys.modules],
    "threads": [os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")],
    "main": threading.main_thread() is threading.current_thread(),
}))
"""


def loaded(starved_ns, idle=1.0, modules=None):
    code = LOAD if modules is None else LOAD.replace("launch.load()", f"launch.MODULES = {modules}\nlaunch.load()")
    command = [sys.executable, "-P", "-c", code, str(starved_ns), str(idle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert not found["lacking"] and found["main"]
    assert found["threads"] == [0]  # SCHED_OTHER; the loading thread has ended
    return found["seen"]


def test_everything_is_loaded_on_idle_time():
    # Few modules, since SCHED_IDLE gets 0.3 % of CPUs that others keep busy.
    seen = loaded(10**15, modules=("re", "traceback"))
    assert seen == [["re", "vnic-load", True], ["traceback", "vnic-load", True]]


def test_what_is_left_without_idle_time_is_loaded_on_the_main_thread():
    seen = loaded(0)
    assert seen[0][1:] == ["vnic-load", True]
    assert seen[-1] == ["vnic.daemon.worker", "MainThread", False]


def test_where_no_cpu_is_idle_everything_is_loaded_on_the_main_thread():
    assert {(thread, idle) for _, thread, idle in loaded(10**15, 0.0)} == {("MainThread", False)}


@pytest.mark.parametrize("starved_ns", [0, 10**15])
def test_an_error_is_raised_on_the_main_thread(starved_ns):
    code = LOAD.replace("launch.load()", "launch.MODULES = ('re', 'dataplane.nowhere', 'vnic.daemon.worker')\nlaunch.load()")
    done = subprocess.run([sys.executable, "-P", "-c", code, str(starved_ns), "1"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'dataplane.nowhere'"
