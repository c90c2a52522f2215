"""Where a worker's process begins: `python -P -m vnic.control.launch CALLS EVENTS LISTENER SUPERVISOR ROLE`.

A successor starts beside a worker whose engines need the CPUs. So all that it loads - asyncio, numpy, everything compiled - is loaded by a
thread of the lowest priority, which ends then. (Not by the process: to raise a priority again is not a plain user's right, and the
engines' threads inherit that of the thread that starts them.) This module itself imports next to nothing.
"""

import os
import sys
import threading


def load() -> None:
    """Loads what a worker needs, at the lowest priority."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)  # of this thread, setpriority(2)
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
