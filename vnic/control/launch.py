"""The first module of a worker's process: `python -P -m vnic.control.launch CALLS EVENTS LISTENER SUPERVISOR ROLE`.

A successor starts beside a worker whose engines need the CPUs, so it loads asyncio and everything
compiled, and later builds its graph, in short steps (dataplane.pace). This module itself imports next
to nothing.
"""

import sys

# A third of one CPU. A TAP's queue holds 20 ms of 100,000 packets/s, and the engines' threads get the CPU
# back after 0.5 ms. With nice 19 instead, two busy CPUs lost 0.4 to 2 % of that traffic while a successor
# loaded; with SCHED_IDLE 0.1 to 0.5 %; with these steps nothing.
STEP_NS, PAUSE_NS = 500_000, 1_000_000


def load() -> None:
    """Loads what a worker needs."""
    import vnic.control.runtime
    import vnic.control.upgrade
    import vnic.control.worker  # noqa: F401


if __name__ == "__main__":
    if sys.argv[-1] == "successor":
        from dataplane.pace import Pace

        with Pace(STEP_NS, PAUSE_NS):
            load()
    from vnic.control.worker import main

    sys.exit(main(sys.argv[1:]))
