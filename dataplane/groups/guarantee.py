"""CPU guarantees for engines' threads, after MicroQuanta (Snap, section 2.4.1).

A thread gets `runtime` of CPU time out of every `period`, and no more. The classes are tried in
this order; one that this process may not use is skipped:

| class      | guaranteed by | bounded by            | needs                                       |
|------------|---------------|-----------------------|---------------------------------------------|
| "deadline" | kernel        | kernel                | CAP_SYS_NICE in the initial user namespace, |
|            |               |                       | and all CPUs                                |
| "rr"       | kernel        | EngineThread.throttle | CAP_SYS_NICE or RLIMIT_RTPRIO               |
| "budget"   | -             | EngineThread.throttle | -                                           |

"budget" only bounds: other threads get the rest of each period, but nothing guarantees `runtime`.
Sources: sched(7), sched_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import threading
from dataclasses import dataclass

from dataplane.errors import ConfigError

CLASSES = ("deadline", "rr", "budget")
PERIOD_LEAST_NS = 100_000  # Linux' default of kernel.sched_deadline_period_min_us
PERIOD_MOST_NS = 1_000_000_000
RUNTIME_LEAST_NS = 10_000
PRIORITY = 1  # the lowest real-time priority: the kernel's own threads are above

_SCHED_DEADLINE = 6
_FLAG_RESET_ON_FORK = 1
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}.get(platform.machine())
# struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


@dataclass(frozen=True)
class Guarantee:
    """`runtime_ns` of CPU time in each `period_ns`. Raises ConfigError for values outside the
    bounds above."""

    runtime_ns: int
    period_ns: int

    def __post_init__(self) -> None:
        if not PERIOD_LEAST_NS <= self.period_ns <= PERIOD_MOST_NS:
            raise ConfigError(f"guarantee: a period of {self.period_ns} ns: expected 100us to 1s")
        if not RUNTIME_LEAST_NS <= self.runtime_ns <= self.period_ns:
            raise ConfigError(
                f"guarantee: a runtime of {self.runtime_ns} ns: expected 10us up to the period"
            )

    def apply(self, thread_id: int = 0) -> str:
        """Puts a thread of this process (0: the calling one) into the best permitted class; returns
        its name. Child processes and threads do not inherit it.

        Only the end of the thread undoes it: Linux 6.18 never gets back the bandwidth of a deadline
        thread that is made an ordinary one while it sleeps.
        """
        if self._deadline(thread_id):
            return "deadline"
        try:
            os.sched_setscheduler(
                thread_id, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY)
            )
        except OSError:
            return "budget"
        return "rr"

    def _deadline(self, thread_id: int) -> bool:
        if _SCHED_SETATTR is None:
            return False
        attributes = _ATTRIBUTES.pack(
            _ATTRIBUTES.size,
            _SCHED_DEADLINE,
            _FLAG_RESET_ON_FORK,
            0,
            0,
            self.runtime_ns,
            self.period_ns,
            self.period_ns,
        )
        return bool(
            ctypes.CDLL(None, use_errno=True).syscall(_SCHED_SETATTR, thread_id, attributes, 0) == 0
        )


def permitted(cpus: list[int] | None = None) -> str:
    """The class that a thread of this process would get, determined by a probe thread that ends at
    once."""
    found: list[str] = []

    def probe() -> None:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        found.append(Guarantee(RUNTIME_LEAST_NS, 100 * PERIOD_LEAST_NS).apply())

    thread = threading.Thread(target=probe)
    thread.start()
    thread.join()
    return found[0]
