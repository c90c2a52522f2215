"""The first module of a worker's process: `main` of `python -P -c '...' CALLS EVENTS LISTENER
SUPERVISOR ROLE`.

A successor starts while another worker's engines need the CPUs, so it loads asyncio and compiled
modules on otherwise idle CPU time, and later builds its graph in short steps
(dataplane.engine.pace). This module itself imports very little, since that competes with the
engines.
"""

import os
import sys
import threading  # here, since it treats the thread that imports it as the main thread
import time

# With SCHED_IDLE, a shorter pause is enough: any other thread that wakes up gets the CPU at once.
PAUSE_IDLE_NS = 250_000
# SCHED_IDLE gets 0.3 % of a CPU that other threads keep busy, such as polling engines. So it is
# used only if the CPUs were idle for IDLE_LEAST of WATCH_S, and until a module takes STARVED_NS.
WATCH_S, IDLE_LEAST = 0.2, 0.05
STARVED_NS = 200_000_000

# A worker's modules, in an order in which each takes at most 15 ms of CPU time.
MODULES = ("re", "traceback", "logging", "concurrent.futures", "socket", "ssl", "inspect",
           "asyncio.events", "asyncio.base_events", "asyncio", "msgspec",
           "dataplane.graph.handlers", "dataplane.graph.element", "dataplane.groups.group",
           "vnic.config.convert", "vnic.modules.chain", "vnic.modules.devices",
           "vnic.modules.network", "vnic.runtime.runtime", "vnic.daemon.upgrade",
           "vnic.daemon.worker")  # fmt: skip


def idle_share() -> float:
    """Waits for WATCH_S; returns the share, 0 to 1, in which the CPUs of this process were idle."""

    def idle_s() -> float:
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        with open("/proc/stat") as stat:  # cpuN user nice system idle iowait ...: proc_stat(5)
            fields = [line.split() for line in stat if line.startswith("cpu")]
        ticks = sum(int(each[4]) + int(each[5]) for each in fields if each[0] in mine)
        return ticks / os.sysconf("SC_CLK_TCK") / len(mine)

    before_s, began_s = idle_s(), time.monotonic()
    time.sleep(WATCH_S)
    return (idle_s() - before_s) / (time.monotonic() - began_s)


def load() -> None:
    """Loads a worker's modules while another worker's engines run.

    Most modules are loaded by a thread with SCHED_IDLE. A normal thread, even in short steps, makes
    its CPU look busy, so that the kernel leaves an engine and the receiver that it wakes on the
    other CPU: at 100,000 packets/s on two CPUs that lost two to nine times as many packets, in
    three runs. A thread cannot leave SCHED_IDLE without a privilege, so it ends after the last
    module, or early if it gets too little CPU time; the main thread loads the rest.
    """
    from dataplane.engine.pace import PAUSE_NS, STEP_NS, Pace

    def on_idle_time() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # of this thread alone
            with Pace(STEP_NS, PAUSE_IDLE_NS):
                for name in MODULES:
                    began_ns = time.monotonic_ns()
                    __import__(name)
                    if time.monotonic_ns() - began_ns > STARVED_NS:
                        return
        except Exception:
            return  # the import on the main thread, below, raises it again

    if idle_share() >= IDLE_LEAST:
        thread = threading.Thread(target=on_idle_time, name="vnic-load")
        thread.start()
        thread.join()
    with Pace(STEP_NS, PAUSE_NS):
        for name in MODULES:
            __import__(name)


def main() -> None:
    if sys.argv[-1] == "successor":
        load()
    from vnic.daemon.worker import main as work

    sys.exit(work(sys.argv[1:]))
