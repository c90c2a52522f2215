"""The namespace agent: a small process that does what must be done inside containers' namespaces.

Only a process with a single thread may enter a user namespace, and none comes back. The daemon has threads and must stay
where it is, so a process beside it forks a child for each piece of work; the child enters the container's namespaces,
works, sends the answer home - descriptors by SCM_RIGHTS - and exits. What a failed child had made half goes with it.

    daemon  --SOCK_SEQPACKET-->  agent  --fork-->  child: setns, work, answer over the same socket, exit

One request at a time. A message is JSON, at most MAX_MESSAGE_BYTES; a request carries the namespace's descriptor, the answer
to TapRequest the queues'. After the child's answer comes `Done` from the agent: the child has exited, nothing it held is left.
The agent ends when its socket closes, that is with the daemon, however that ended. An agent that died or does not answer is replaced.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import TYPE_CHECKING, Self

import msgspec

from dataplane.errors import ConfigError, PortError, VnicError
from vnic.device import link
from vnic.device.descriptors import close_all, readable, receive_with_descriptors
from vnic.device.namespaces import NetNamespace, enter
from vnic.device.tap import (
    MAX_QUEUES,
    DeleteLink,
    LinkChange,
    ReadCounters,
    Tap,
    TapReport,
    TapRequest,
    Work,
    check,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MAX_MESSAGE_BYTES = 65536
MAX_MESSAGE_FDS = MAX_QUEUES + 1  # a netlink socket
CHILD_TIMEOUT_S = 5.0  # then the agent kills its child
CALL_TIMEOUT_S = 8.0  # longer, so that the agent can still say that the child was killed
STOP_TIMEOUT_S = 2.0
QUIET_S = (
    10.0  # without a request, after which the agent begins anew without the netlink library: 17 MB that nobody needs any more
)


class Request(msgspec.Struct, frozen=True):
    """To the agent, with the namespace's descriptor. `label` names the namespace in error messages."""

    number: int
    label: str
    work: Work


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """From the child. `error` is one line; `config`: it is a ConfigError."""

    number: int
    error: str | None = None
    config: bool = False
    tap: TapReport | None = None
    counters: dict[str, int] = {}


class Done(msgspec.Struct, frozen=True, tag="done"):
    """From the agent, last: the child has exited; `error`: without an answer."""

    number: int
    error: str | None = None


def send_message(sock: socket.socket, message: Request | Answer | Done, fds: list[int]) -> None:
    """One message, with descriptors; the receiver gets duplicates."""
    data = msgspec.json.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ConfigError(f"a message of {len(data)} bytes to the namespace agent is too long; ask for less at once")
    socket.send_fds(sock, [data], fds)


def receive_message(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors, which are now the caller's; b"" at the end."""
    data, fds, lost = receive_with_descriptors(sock, MAX_MESSAGE_BYTES, MAX_MESSAGE_FDS)
    if lost:
        close_all(fds)
        raise PortError("descriptors of the namespace agent got lost: too many open files; raise the limit (ulimit -n)")
    return data, fds


# --- the agent's process ----------------------------------------------------------------------------------------------


def serve(sock: socket.socket, *, warm_up: bool = True) -> None:
    """Answer requests until the other end closes. warm_up: load the netlink library before anybody needs it."""
    # Ctrl-C and a closed terminal go to everybody in the foreground; the daemon decides, and its end is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    decoder = msgspec.json.Decoder(Request)
    ours = [__file__] + [
        str(module.__file__) for name, module in sys.modules.items() if name.startswith(("vnic.", "dataplane."))
    ]
    code = identities(ours)
    while True:
        # The netlink library takes long to load: once, here and not in each child, and while nobody waits if possible.
        if warm_up and not link.has_netlink() and not readable(sock.fileno(), 0):
            link.netlink()
        # Another vnic may be installed by now; the supervisor, which stays, speaks as this one does.
        if link.has_netlink() and not readable(sock.fileno(), QUIET_S) and identities(ours) == code:
            begin_anew(sock)
        data, fds = receive_message(sock)
        if not data:
            return
        try:
            request = decoder.decode(data)
            if link.needs_netlink(request.work):
                link.netlink()
            error = run_child(sock, request, fds[0])
        finally:
            close_all(fds)
        try:
            send_message(sock, Done(request.number, error), [])
        except BrokenPipeError:  # the daemon has gone meanwhile
            return


def identities(files: list[str]) -> list[tuple[int, ...]]:
    """Of files; others once one of them is replaced, is written to, or has gone."""
    found: list[tuple[int, ...]] = []
    for file in files:
        try:
            status = os.stat(file)
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append(())
    return found


def begin_anew(sock: socket.socket) -> None:
    """The same process and socket, but nothing loaded that can be loaded again. A request that comes meanwhile waits in the socket."""
    sock.set_inheritable(True)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "vnic.device.agent", str(sock.fileno()), "cold"])


def run_child(sock: socket.socket, request: Request, netns_fd: int) -> str | None:
    """Do a request in a child, and return when it has exited; what went wrong where it has not answered."""
    pid = os.fork()
    if pid:
        return wait_for_child(pid, request.label)
    status = 1
    try:
        answer, fds = answer_to(request, netns_fd)
        send_message(sock, answer, fds)
        status = 0
    except BrokenPipeError:  # the daemon has gone
        pass
    except BaseException:  # reported, and the agent says that it failed
        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for_child(pid: int, label: str) -> str | None:
    """Wait until a child has exited, and see to it that it does: what `run_child` returns.

    No alarm of the child's own would do: while it is in a user namespace of somebody else, root of that may stop it, and a process
    that is stopped acts on SIGKILL only.
    """
    descriptor = os.pidfd_open(pid)
    late = not readable(descriptor, CHILD_TIMEOUT_S)
    os.close(descriptor)
    if late:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        return None
    if late:
        return f"{label}: work in its namespaces took longer than {CHILD_TIMEOUT_S:g} s; try again"
    return f"{label}: work in its namespaces failed unexpectedly (wait status {status}); see standard error"


def answer_to(request: Request, netns_fd: int) -> tuple[Answer, list[int]]:
    """Enter the namespaces and do the work: the answer and the descriptors that go with it."""
    try:
        enter(netns_fd, request.label)
        match request.work:
            case TapRequest() as work:
                report, fds = link.create(work)
                return Answer(number=request.number, tap=report), fds
            case ReadCounters() as work:
                return Answer(number=request.number, counters=link.counters(work)), []
            case LinkChange() as work:
                link.change(work)
            case DeleteLink() as work:
                link.delete(work)
        return Answer(number=request.number), []
    except VnicError as error:
        return Answer(number=request.number, error=str(error), config=isinstance(error, ConfigError)), []


# --- the daemon's side ------------------------------------------------------------------------------------------------


class NamespaceAgent:
    """The daemon's handle of its agent. Calls may come from any thread; they wait for each other. Where the agent died, or does not answer,
    the next call is another one's.

    `with NamespaceAgent.start() as agent: tap = agent.open_tap(TapRequest(name="eth0", pid=1234))`
    """

    def __init__(self, process: Popen[bytes], sock: socket.socket, prepare: Callable[[], None] | None = None) -> None:
        self._process, self._socket, self._prepare = process, sock, prepare
        self._lock = threading.Lock()
        self._number = 0
        self._decoder: msgspec.json.Decoder[Answer | Done] = msgspec.json.Decoder(Answer | Done)
        sock.settimeout(CALL_TIMEOUT_S)

    @classmethod
    def start(cls, prepare: Callable[[], None] | None = None) -> NamespaceAgent:
        """Start an agent. It is a program of its own, not a fork: so it can be started whatever threads there are. `prepare`, for who has
        but one thread, runs in the new process before the program.

        A daemon that detaches does so first: the agent is the child, and watches the socket, of the process that started it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = dict(os.environ)
        root = Path(__file__).resolve().parents[2]
        if not root.name.endswith("-packages"):  # run from a source tree, which the new interpreter would not find
            environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
        try:
            with theirs:
                process = Popen(
                    # -P: a file in the working directory must not pass for a module.
                    [sys.executable, "-P", "-m", "vnic.device.agent", str(theirs.fileno())],
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                    env=environment,
                    preexec_fn=prepare,
                )
        except OSError as error:
            ours.close()
            raise PortError(f"the namespace agent cannot be started: {error}") from None
        return cls(process, ours, prepare)

    @property
    def pid(self) -> int:
        """The agent's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the agent is there to be asked."""
        return self._socket.fileno() >= 0 and self._process.poll() is None

    def open_tap(self, request: TapRequest, namespace: NetNamespace | None = None) -> Tap:
        """Make a TAP in a container: that of the request, or `namespace`, which is the Tap's then. All of it or, with an error, nothing.

        ConfigError: what is asked for cannot be, or is not permitted. PortError: it failed.
        """
        try:
            check(request)
            namespace = namespace or NetNamespace.find(request.pid, request.netns)
            answer, fds = self._call(namespace, request)
            if answer.tap is None:
                close_all(fds)
                raise PortError(f"tap {request.name}: the namespace agent's answer is no TAP; restart the daemon")
            return Tap(answer.tap, fds, namespace, self)
        except BaseException:
            if namespace is not None:
                namespace.close()
            raise

    def run(self, namespace: NetNamespace, work: Work) -> dict[str, int]:
        """Do other work in a namespace; its counters, if it reads any."""
        answer, fds = self._call(namespace, work)
        close_all(fds)
        return answer.counters

    def _call(self, namespace: NetNamespace, work: Work) -> tuple[Answer, list[int]]:
        with self._lock:
            if self._process.poll() is not None and self._socket.fileno() >= 0:
                self._replace()
            self._number += 1
            try:
                send_message(self._socket, Request(self._number, namespace.label, work), [namespace.fd])
                answer, fds = self._await(self._number)
            except TimeoutError:
                self._kill()
                raise PortError(
                    f"{namespace.label}: no answer from the namespace agent for {CALL_TIMEOUT_S:g} s; try again"
                ) from None
            except OSError as error:
                self._kill()
                raise PortError(
                    f"{namespace.label}: the namespace agent (pid {self.pid}) is gone: {error.strerror}; try again"
                ) from None
        if answer.error is not None:
            close_all(fds)
            raise (ConfigError if answer.config else PortError)(answer.error)
        return answer, fds

    def _await(self, number: int) -> tuple[Answer, list[int]]:
        """The answer to request `number`, once its child has exited: a Tap that is closed then is gone at once."""
        deadline = time.monotonic() + CALL_TIMEOUT_S
        answer, fds = Answer(number=number, error="the namespace agent has not answered; restart the daemon"), list[int]()
        try:
            while time.monotonic() < deadline:
                data, received = receive_message(self._socket)
                if not data:
                    raise ConnectionResetError(0, "it has closed its socket")
                fds += received
                message = self._decoder.decode(data)
                if message.number != number:  # too late for its caller
                    close_all(received)
                    del fds[len(fds) - len(received) :]
                elif isinstance(message, Answer):
                    answer = message
                elif message.error is not None:
                    raise PortError(message.error)
                else:
                    return answer, fds
            raise TimeoutError
        except BaseException:
            close_all(fds)
            raise

    def _kill(self) -> None:
        """End the agent's process and the child it may have, at once."""
        if self._process.poll() is None:  # not waited for yet: its number, which is its group's, is nobody else's
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def _replace(self) -> None:
        """Start another agent in the place of the one that is dead."""
        fresh = NamespaceAgent.start(self._prepare)
        self._socket.close()
        self._process, self._socket = fresh._process, fresh._socket

    def stop(self) -> None:
        """End the agent. TAPs stay as they are. Twice does no harm."""
        self._socket.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except TimeoutExpired:
            self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), warm_up="cold" not in sys.argv)
    os._exit(0)  # at once: to take the interpreter apart in good order takes longer than all else, and somebody waits
