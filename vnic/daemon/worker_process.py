"""A worker's process, as the supervisor starts it and communicates with it."""

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

from vnic.daemon import privileges
from vnic.store import keeper

# messages: all stored keys, and those for a worker that does not read for a while
UNSENT_MOST = 1 << 15

# Niceness of the worker whose engines run while another one loads, builds or ends. At niceness 0,
# 36 upgrades under 100,000 packets/s and a TCP stream on two CPUs lost 12,073 packets of 8.4
# million; at -5, -12 and -20, interleaved with these, none. Open vSwitch gives its daemon -10, too.
# Not permanent: the thread that receives a packet then waits longer for its CPU, and a UDP round
# trip took 110 us instead of 72.
PREFERRED_NICE = -10


class WorkerProcess:
    """A worker as the supervisor sees it. store: the descriptors to send to it. Raises OSError
    where no process can be started or no file opened."""

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
        with contextlib.ExitStack() as workers_ends, contextlib.ExitStack() as undo:
            self.calls, their_calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.calls.close)
            workers_ends.enter_context(their_calls)
            self.events, their_events = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.events.close)
            workers_ends.enter_context(their_events)
            descriptors = (their_calls.fileno(), their_events.fileno(), listener.fileno())
            start = f"from {module} import main; main()"  # loads fewer modules than -m
            self.process = subprocess.Popen(
                [
                    python or sys.executable,
                    "-P",
                    "-c",
                    start,
                    *map(str, descriptors),
                    str(os.getpid()),
                    role,
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                # Ctrl-C on the terminal reaches only the supervisor, which stops the worker
                process_group=0,
                env=environment(python),
                # safe, since this process has one thread
                preexec_fn=lambda: privileges.drop(capabilities, inherit=True),
            )
            undo.callback(self.process.wait)
            undo.callback(self.process.kill)
            self.pidfd = os.pidfd_open(self.process.pid)
            undo.pop_all()
        # Messages that do not fit the socket are sent later: the supervisor never waits for a
        # worker.
        self.unsent: deque[msgspec.Struct] = deque()
        self.began_s = self.ready_s = time.monotonic()
        self.ready = self.stopped = False
        self.joined = False  # a successor, with a socket to the worker before it
        self.took_over_s: float | None = None  # when its TookOver arrived
        self.asked_s: float | None = None  # when the Ping was sent that has no Pong yet
        self.silent = False  # it does not answer, and the log says so
        self.failure: keeper.Failed | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Sends a message, now or, if the socket is full, later; one with descriptors now or not at
        all."""
        if descriptors:
            # the worker has ended or does not read: both are detected elsewhere
            with contextlib.suppress(OSError):
                keeper.send(self.events, message, descriptors, wait=False)
        elif len(self.unsent) < UNSENT_MOST or isinstance(message, keeper.Quit):
            self.unsent.append(message)
            self.send_on()

    def send_on(self) -> None:
        """Sends waiting messages until the socket is full."""
        try:
            while self.unsent:
                message = self.unsent[0]
                descriptors = (
                    self._store.get(message.key) if isinstance(message, keeper.Item) else []
                )
                if descriptors is not None:  # else it is no longer stored
                    keeper.send(self.events, message, descriptors, wait=False)
                self.unsent.popleft()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.unsent.clear()  # it has ended; the supervisor waits on its pidfd
        except OSError as error:
            self.unsent.clear()
            self.failure = keeper.Failed(
                f"what is stored could not be sent to it: {error.strerror or error}"
            )
            self.process.kill()

    def prefer(self, preferred: bool = True) -> None:
        """Gives every thread of the worker niceness PREFERRED_NICE, or this process' niceness
        again. Does nothing where that is not permitted: it needs CAP_SYS_NICE or RLIMIT_NICE."""
        if self.process.returncode is not None:  # its pid may belong to another process by now
            return
        own = os.getpriority(os.PRIO_PROCESS, 0)
        nice = min(PREFERRED_NICE, own) if preferred else own
        done: set[str] = set()
        with contextlib.suppress(OSError):  # not permitted, or the worker has ended
            # Repeated, since threads that start meanwhile inherit the old niceness; bounded, since
            # a faulty worker may start threads without end.
            for _ in range(16):
                threads = set(os.listdir(f"/proc/{self.pid}/task")) - done
                if not threads:
                    break
                for thread in threads:
                    with contextlib.suppress(ProcessLookupError):  # this thread has ended
                        os.setpriority(os.PRIO_PROCESS, int(thread), nice)
                done |= threads

    def why_ended(self) -> str:
        """Why the worker ended. Only after its end."""
        code = self.process.wait()
        if self.failure is not None:
            return self.failure.error
        how = f"exit status {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"killed by {signal.Signals(-code).name}"
        if self.ready or not self.python:
            return how
        return (
            f"{self.python}: ended before it was a worker ({how}): "
            "is vnic installed there? the log has what it said"
        )

    def close(self) -> None:
        """Kills the worker if it has not ended, and closes the sockets."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.calls.close()
        self.events.close()
        os.close(self.pidfd)


def environment(python: str = "") -> dict[str, str]:
    """The environment of a worker. If vnic runs from a source tree, PYTHONPATH has that tree for
    this process' Python (""), but not for another Python, which must import its own vnic."""
    root = Path(__file__).resolve().parents[2]
    paths = [
        each
        for each in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if each and Path(each).resolve() != root
    ]
    if not python and not root.name.endswith("-packages"):
        paths.insert(0, str(root))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
