"""The namespace agent: a small process that works inside containers' namespaces.

Only a process with a single thread may enter a user namespace, and it cannot return. The daemon has
threads and must stay in its own namespaces, so a process beside it forks a child for each request;
the child enters the container's namespaces, works, sends the answer (descriptors by SCM_RIGHTS) and
exits. The exit of a failed child frees what it has created.

    daemon  --SOCK_SEQPACKET-->  agent  --fork-->  child: setns, work, answer on that socket, exit

One request at a time. A message is JSON, at most MAX_MESSAGE_BYTES; a request carries the
namespace's descriptor, the answer to Create those of the interface. After the child's answer the
agent sends `Done`: the child has exited and holds nothing any more. The agent ends when its socket
closes, which happens with the daemon's end in any case. An agent that died or does not answer is
replaced.
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
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import TYPE_CHECKING, Self

import msgspec

from dataplane.descriptors import close_all, readable, receive_with_descriptors, system_error
from dataplane.errors import ConfigError, PortError, VnicError
from vnic.device import link, sockets
from vnic.device.kinds.registry import interface_kind
from vnic.device.namespaces import NetNamespace, enter
from vnic.device.tap import (
    MAX_QUEUES,
    DeleteLink,
    FindSocket,
    LinkChange,
    ReadCounters,
    Tap,
    TapRequest,
    Work,
    check,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MESSAGE_BYTES = 65536
NOTHING = msgspec.Raw(b"null")
MAX_MESSAGE_FDS = (
    2 * MAX_QUEUES + 3
)  # of a veth: two sockets a queue, its far namespace, two netlink sockets
CHILD_TIMEOUT_S = 5.0  # then the agent kills its child
CALL_TIMEOUT_S = 8.0  # longer, so that the agent can still report that the child was killed
STOP_TIMEOUT_S = 2.0
QUIET_S = (
    # after so long without a request, the agent executes itself again, without the netlink library
    # (17 MB)
    10.0
)


class Create(msgspec.Struct, frozen=True, tag="create"):
    """Asks for an interface of a kind. request: as the kind's REQUEST."""

    kind: str
    request: msgspec.Raw


class Request(msgspec.Struct, frozen=True):
    """To the agent, with the namespace's descriptor. label: the namespace's name in error
    messages."""

    number: int
    label: str
    work: Work | Create


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """From the child. error: one line; config: the error is a ConfigError. report: of an interface,
    as its kind's REPORT."""

    number: int
    error: str | None = None
    config: bool = False
    report: msgspec.Raw = NOTHING
    counters: dict[str, int] = {}


class Done(msgspec.Struct, frozen=True, tag="done"):
    """From the agent, last: the child has exited. error: the child has not answered."""

    number: int
    error: str | None = None


def send_message(sock: socket.socket, message: Request | Answer | Done, fds: list[int]) -> None:
    """Sends one message, with descriptors; the receiver gets duplicates."""
    data = msgspec.json.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ConfigError(
            f"a message of {len(data)} bytes to the namespace agent is too long; "
            f"ask for less at once"
        )
    socket.send_fds(sock, [data], fds)


def receive_message(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receives one message and its descriptors, which the caller closes; b"" at the end."""
    data, fds, lost = receive_with_descriptors(sock, MAX_MESSAGE_BYTES, MAX_MESSAGE_FDS)
    if lost:
        close_all(fds)
        raise PortError(
            "descriptors of the namespace agent got lost: too many open files; "
            "raise the limit (ulimit -n)"
        )
    return data, fds


# --- the agent's process --------------------------------------------------------------------------


def serve(sock: socket.socket, *, warm_up: bool = True) -> None:
    """Answers requests until the other end closes. warm_up: load the netlink library before the
    first request."""
    # The terminal sends SIGINT and SIGHUP to all processes in the foreground. The daemon handles
    # them; the agent ends with the daemon.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    decoder = msgspec.json.Decoder(Request)
    ours = [__file__] + [
        str(module.__file__)
        for name, module in sys.modules.items()
        if name.startswith(("vnic.", "dataplane."))
    ]
    code = identities(ours)
    while True:
        # The netlink library is slow to load: once, here and not in each child, and if possible
        # while no request waits.
        if warm_up and not link.has_netlink() and not readable(sock.fileno(), 0):
            link.netlink()
        # Another version of vnic may be installed by now, but the supervisor stays, and needs an
        # agent that uses the same messages.
        if link.has_netlink() and not readable(sock.fileno(), QUIET_S) and identities(ours) == code:
            begin_anew(sock)
        data, fds = receive_message(sock)
        if not data:
            return
        try:
            request = decoder.decode(data)
            if needs_netlink(request.work):
                link.netlink()
            error = run_child(sock, request, fds[0])
        finally:
            close_all(fds)
        try:
            send_message(sock, Done(request.number, error), [])
        except BrokenPipeError:  # the daemon has ended meanwhile
            return


def needs_netlink(work: Work | Create) -> bool:
    """Whether some work needs the netlink library."""
    if not isinstance(work, Create):
        return True
    kind = interface_kind(work.kind)
    return kind.needs_netlink(kind.decode_request(work.request))


def identities(files: list[str]) -> list[tuple[int, ...]]:
    """Identities of files; they change when a file is replaced, written to, or removed."""
    found: list[tuple[int, ...]] = []
    for file in files:
        try:
            status = os.stat(file)
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append(())
    return found


def begin_anew(sock: socket.socket) -> None:
    """Executes the agent again in this process with the same socket, which unloads the netlink
    library. A request that arrives meanwhile waits in the socket."""
    sock.set_inheritable(True)
    os.execv(
        sys.executable,
        [sys.executable, "-P", "-m", "vnic.device.agent", str(sock.fileno()), "cold"],
    )


def run_child(sock: socket.socket, request: Request, netns_fd: int) -> str | None:
    """Runs a request in a child; returns when the child has exited: None, or the error of a child
    that has not answered."""
    pid = os.fork()
    if pid:
        return wait_for_child(pid, request.label)
    status = 1
    try:
        answer, fds = answer_to(request, netns_fd)
        send_message(sock, answer, fds)
        status = 0
    except BrokenPipeError:  # the daemon has ended
        pass
    except BaseException as error:  # printed here; the agent reports that the child failed
        report(error)
    finally:
        os._exit(status)


def report(error: BaseException) -> None:
    """Writes the traceback of a bug to the log: one object where the log is JSON (see
    vnic.api.log, which is not loaded here)."""
    if os.environ.get("VNIC_LOG_FORMAT") != "json":
        traceback.print_exception(error)
        return
    entry = {
        "time": datetime.now(UTC).isoformat(),
        "level": "error",
        "event": "namespace agent failed",
    }
    entry |= {
        "exception": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }
    os.write(2, msgspec.json.encode(entry) + b"\n")


def wait_for_child(pid: int, label: str) -> str | None:
    """Waits until a child has exited, and kills it after CHILD_TIMEOUT_S; returns as `run_child`.

    An alarm in the child would not suffice: root of the user namespace that it entered may stop it,
    and a stopped process reacts only to SIGKILL.
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
    return (
        f"{label}: work in its namespaces failed unexpectedly (wait status {status}); "
        "see standard error"
    )


def answer_to(request: Request, netns_fd: int) -> tuple[Answer, list[int]]:
    """Enters the namespaces and does the work; returns the answer and the descriptors to send with
    it."""
    try:
        enter(netns_fd, request.label)
        match request.work:
            case Create() as work:
                kind = interface_kind(work.kind)
                report, fds = kind.create(kind.decode_request(work.request))
                return Answer(
                    number=request.number, report=msgspec.Raw(msgspec.json.encode(report))
                ), fds
            case ReadCounters() as work:
                return Answer(number=request.number, counters=link.counters(work)), []
            case FindSocket() as work:
                return Answer(
                    number=request.number, counters={"found": int(sockets.found(work))}
                ), []
            case LinkChange() as work:
                return Answer(number=request.number, counters=link.change(work)), []
            case DeleteLink() as work:
                link.delete(work)
        return Answer(number=request.number), []
    except VnicError as error:
        return Answer(
            number=request.number, error=str(error), config=isinstance(error, ConfigError)
        ), []
    except OSError as error:
        return Answer(number=request.number, error=f"{request.label}: {system_error(error)}"), []


# --- the daemon's side ----------------------------------------------------------------------------


class NamespaceAgent:
    """The daemon's handle of its agent. Calls may come from any thread; one runs at a time. If the
    agent died or did not answer, the next call starts another one.

    `with NamespaceAgent.start() as agent: tap = agent.open_nic(TapRequest(name="eth0", pid=1234))`
    """

    def __init__(
        self, process: Popen[bytes], sock: socket.socket, prepare: Callable[[], None] | None = None
    ) -> None:
        self._process, self._socket, self._prepare = process, sock, prepare
        self._lock = threading.Lock()
        self._number = 0
        self._decoder: msgspec.json.Decoder[Answer | Done] = msgspec.json.Decoder(Answer | Done)
        sock.settimeout(CALL_TIMEOUT_S)

    @classmethod
    def start(cls, prepare: Callable[[], None] | None = None) -> NamespaceAgent:
        """Starts an agent, as a program and not as a fork, since this process may have threads.
        prepare: runs in the new process before the program; only for a caller with a single thread.

        A daemon that detaches must do so first: the agent is a child of the process that started
        it, and ends with that process' socket.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = dict(os.environ)
        root = Path(__file__).resolve().parents[2]
        # vnic runs from a source tree, which the new interpreter would not find
        if not root.name.endswith("-packages"):
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(root), *filter(None, [environment.get("PYTHONPATH")])]
            )
        try:
            with theirs:
                process = Popen(
                    # -P: a file in the working directory must not be imported in place of a module.
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
            raise PortError(
                f"the namespace agent cannot be started: {system_error(error)}"
            ) from None
        return cls(process, ours, prepare)

    @property
    def pid(self) -> int:
        """The agent's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the agent's process runs."""
        return self._socket.fileno() >= 0 and self._process.poll() is None

    def open_nic(self, request: TapRequest, namespace: NetNamespace | None = None) -> Tap:
        """Creates an interface of the request's kind in its container, or in `namespace`, which the
        Tap then owns. On an error, nothing is left.

        Raises ConfigError for a request that is invalid or not permitted, PortError for a failure.
        """
        try:
            check(request)
            kind = interface_kind(request.KIND)
            namespace = namespace or NetNamespace.find(request.pid, request.netns)
            create = Create(request.KIND, msgspec.Raw(msgspec.json.encode(request)))
            answer, fds = self._call(namespace, create)
            if answer.report == NOTHING:
                close_all(fds)
                raise PortError(
                    f"{request.KIND} {request.name}: "
                    f"the namespace agent's answer is no {request.KIND}; restart the daemon"
                )
            return kind.interface(kind.decode_report(answer.report), fds, namespace, self)
        except BaseException:
            if namespace is not None:
                namespace.close()
            raise

    def run(self, namespace: NetNamespace, work: Work) -> dict[str, int]:
        """Does other work in a namespace; returns counters, if it reads any."""
        answer, fds = self._call(namespace, work)
        close_all(fds)
        return answer.counters

    def _call(self, namespace: NetNamespace, work: Work | Create) -> tuple[Answer, list[int]]:
        with self._lock:
            if self._process.poll() is not None and self._socket.fileno() >= 0:
                self._replace()
            self._number += 1
            try:
                send_message(
                    self._socket, Request(self._number, namespace.label, work), [namespace.fd]
                )
                answer, fds = self._await(self._number)
            except TimeoutError:
                self._kill()
                raise PortError(
                    f"{namespace.label}: "
                    f"no answer from the namespace agent for {CALL_TIMEOUT_S:g} s; try again"
                ) from None
            except OSError as error:
                self._kill()
                raise PortError(
                    f"{namespace.label}: the namespace agent (pid {self.pid}) is gone: "
                    f"{error.strerror}; try again"
                ) from None
        if answer.error is not None:
            close_all(fds)
            raise (ConfigError if answer.config else PortError)(answer.error)
        return answer, fds

    def _await(self, number: int) -> tuple[Answer, list[int]]:
        """Waits for the answer to request `number` and for the end of its child, which holds
        duplicates of the descriptors: closing a Tap then removes its interface at once."""
        deadline = time.monotonic() + CALL_TIMEOUT_S
        answer, fds = (
            Answer(number=number, error="the namespace agent has not answered; restart the daemon"),
            list[int](),
        )
        try:
            while time.monotonic() < deadline:
                data, received = receive_message(self._socket)
                if not data:
                    raise ConnectionResetError(0, "it has closed its socket")
                fds += received
                message = self._decoder.decode(data)
                if message.number != number:  # an earlier call's, which has timed out
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
        """Kills the agent's process and its child."""
        # not reaped yet, so no other process or group has its number
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def _replace(self) -> None:
        """Starts another agent in place of the dead one."""
        fresh = NamespaceAgent.start(self._prepare)
        self._socket.close()
        self._process, self._socket = fresh._process, fresh._socket

    def stop(self) -> None:
        """Ends the agent. TAPs stay as they are. May be called twice."""
        self._socket.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except TimeoutExpired:
            self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), warm_up="cold" not in sys.argv)
    # without finalizing the interpreter, which takes longer than everything else; the caller waits
    os._exit(0)
