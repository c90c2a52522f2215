"""A worker's process, as the supervisor starts it and speaks to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from vnic.control import keeper, privileges

UNSENT_MOST = 1 << 15  # messages: an inventory, and what a worker that does not read is told once in a while

# The worker whose engines run, while another one loads, builds or ends beside it. At niceness 0, 36 upgrades
# under 100,000 packets/s and a TCP stream on two CPUs lost 12,073 packets of 8.4 million; with -5, -12 and
# -20, interleaved with these, none. Not all the time: the thread that receives a packet then waits
# longer for its CPU, and a UDP round trip took 110 us instead of 72.
PREFERRED_NICE = -10


class WorkerProcess:
    """A worker as the supervisor sees it. store: what is kept for it. To start one raises OSError where there is no room for another
    process or file."""

    def __init__(
        self,
        python: str,
        module: str,
        listener: socket.socket,
        role: str,
        capabilities: Iterable[int],
        store: keeper.Store | None = None,
    ) -> None:
        self.python = python
        self._store = store or keeper.Store()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as undo:
            self.calls, their_calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.calls.close)
            theirs.enter_context(their_calls)
            self.events, their_events = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.events.close)
            theirs.enter_context(their_events)
            descriptors = (their_calls.fileno(), their_events.fileno(), listener.fileno())
            start = f"from {module} import main; main()"  # with less to load than -m
            self.process = subprocess.Popen(
                [python or sys.executable, "-P", "-c", start, *map(str, descriptors), str(os.getpid()), role],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                process_group=0,  # Ctrl-C on the terminal is ours to hear, and we end it in order
                env=environment(python),
                preexec_fn=lambda: privileges.drop(capabilities, inherit=True),  # we have one thread: nothing is locked
            )
            undo.callback(self.process.wait)
            undo.callback(self.process.kill)
            self.pidfd = os.pidfd_open(self.process.pid)
            undo.pop_all()
        # Nothing here waits for a worker to read: what finds no room is kept in `unsent`, or ends it.
        self.unsent: deque[msgspec.Struct] = deque()
        self.began_s = self.ready_s = time.monotonic()
        self.ready = self.stopped = False
        self.joined = False  # a successor: to the worker before it
        self.took_over_s: float | None = None  # when it said so
        self.asked_s: float | None = None  # since when it owes us a Pong
        self.silent = False  # it was said not to answer
        self.failure: keeper.Failed | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Sends it now or, where there is no room, later; with descriptors, now or not at all."""
        if descriptors:
            with contextlib.suppress(OSError):  # dead, or asleep: both are found out soon enough
                keeper.send(self.events, message, descriptors, wait=False)
        elif len(self.unsent) < UNSENT_MOST or isinstance(message, keeper.Quit):
            self.unsent.append(message)
            self.send_on()

    def send_on(self) -> None:
        """Sends what waits for room, as far as there is some now."""
        try:
            while self.unsent:
                message = self.unsent[0]
                descriptors = self._store.get(message.key) if isinstance(message, keeper.Item) else []
                if descriptors is not None:  # else it is kept no more
                    keeper.send(self.events, message, descriptors, wait=False)
                self.unsent.popleft()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.unsent.clear()  # it died already, and is found dead like any other
        except OSError as error:
            self.unsent.clear()
            self.failure = keeper.Failed(f"it could not be given what is kept: {error.strerror or error}")
            self.process.kill()

    def prefer(self, preferred: bool = True) -> None:
        """Gives every thread of the worker niceness PREFERRED_NICE, or this process' own again. Does
        nothing where that is not permitted: it needs CAP_SYS_NICE or RLIMIT_NICE."""
        own = os.getpriority(os.PRIO_PROCESS, 0)
        nice = min(PREFERRED_NICE, own) if preferred else own
        with contextlib.suppress(OSError):  # not permitted, or the worker has ended
            # The main thread first: threads that it starts from here on have its niceness.
            os.setpriority(os.PRIO_PROCESS, self.pid, nice)
            for thread in os.listdir(f"/proc/{self.pid}/task"):
                with contextlib.suppress(ProcessLookupError):  # this thread has ended
                    os.setpriority(os.PRIO_PROCESS, int(thread), nice)

    def epitaph(self) -> str:
        """Why it ended; call it once it has."""
        code = self.process.wait()
        if self.failure is not None:
            return self.failure.error
        how = f"exit status {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"killed by {signal.Signals(-code).name}"
        if self.ready or not self.python:
            return how
        return f"{self.python}: ended before it was a worker ({how}): is vnic installed there? the log has what it said"

    def close(self) -> None:
        """Ends it if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.calls.close()
        self.events.close()
        os.close(self.pidfd)


def environment(python: str = "") -> dict[str, str]:
    """For a worker. Our own Python ("") would not find us where we run from a source tree; another one finds its own vnic, if ours is not
    in its way."""
    root = Path(__file__).resolve().parents[2]
    paths = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each and Path(each).resolve() != root]
    if not python and not root.name.endswith("-packages"):
        paths.insert(0, str(root))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
