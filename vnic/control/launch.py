"""The first module of a worker's process: `python -P -m vnic.control.launch CALLS EVENTS LISTENER SUPERVISOR ROLE`.

A successor starts beside a worker whose engines need the CPUs. A thread of policy SCHED_IDLE therefore
loads asyncio, numpy and everything compiled, and ends. (sched(7): a thread inherits its policy, and
leaving SCHED_IDLE takes a privilege. So the main thread, which starts the engines' threads, keeps its
own.) This module itself imports next to nothing.
"""

import os
import sys
import threading


def yield_cpu() -> None:
    """Gives the calling thread policy SCHED_IDLE, for the rest of its life.

    Any thread that becomes runnable preempts it at once, and the kernel takes a CPU that runs only such
    threads for an idle one when it places a thread that wakes. Neither is true of nice 19: beside
    100,000 packets/s on two CPUs, TAPs dropped 10 times as many packets while a successor loaded.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def load() -> None:
    """Loads what a worker needs, on CPU time that no other thread wants."""
    yield_cpu()
    import vnic.control.runtime
    import vnic.control.upgrade
    import vnic.control.worker  # noqa: F401


if __name__ == "__main__":
    if sys.argv[-1] == "successor":
        loader = threading.Thread(target=load)
        loader.start()
        loader.join()
    from vnic.control.worker import main

    sys.exit(main(sys.argv[1:]))
