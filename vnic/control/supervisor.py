"""The supervisor: the small process of an instance that holds what must survive, and sees to it that a worker runs.

It holds the instance's lock, its listening control socket, and what keeper.py lists; it owns the namespace agent; it starts the worker and
watches it. A worker that dies is replaced: at once, then after pauses that double up to PAUSE_MOST_S while it goes on dying. If the
supervisor dies, however, the kernel ends worker and agent with it. It has one thread, and imports neither numpy nor anything compiled here.

    vnic up = supervisor --calls, events--> worker (vnic.control.worker)
                   `------------------> agent (vnic.device.agent)
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from dataplane.errors import ConfigError, VnicError
from vnic.control import keeper, privileges
from vnic.control.api import BACKLOG, open_to_clients
from vnic.control.instance import (
    SIGNALS,
    allow_open_files,
    bound_log,
    instance_lock,
    listening,
    log_path,
    signals_only_ask,
    turn_away,
)
from vnic.control.log import Log
from vnic.control.notify import ServiceManager
from vnic.device.agent import NamespaceAgent
from vnic.device.descriptors import close_all, readable
from vnic.device.namespaces import NetNamespace
from vnic.device.tap import TapReport, TapRequest

PAUSE_FIRST_S, PAUSE_MOST_S = 0.1, 10.0
PAUSE_TOLD_S = 1.0  # clients wait through a shorter pause, and are told of a longer one
WELL_S = 3.0  # a worker that served so long ran well: the next death is the first again
START_TIMEOUT_S = 120.0  # a thousand NICs are attached in a minute
STOP_TIMEOUT_S = 30.0
SEND_TIMEOUT_S = 10.0  # a worker that does not take what it is sent for so long is found dead or hanging soon enough

log = Log("vnic")


class WorkerProcess:
    """A worker as the supervisor sees it. To start one raises OSError where there is no room for another process or file."""

    def __init__(self, python: str, module: str, listener: socket.socket, role: str, capabilities: Iterable[int]) -> None:
        self.python = python
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as undo:
            self.calls, their_calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.calls.close)
            theirs.enter_context(their_calls)
            self.events, their_events = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.events.close)
            theirs.enter_context(their_events)
            descriptors = (their_calls.fileno(), their_events.fileno(), listener.fileno())
            self.process = subprocess.Popen(
                [python or sys.executable, "-P", "-m", module, *map(str, descriptors), str(os.getpid()), role],
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
        self.events.settimeout(SEND_TIMEOUT_S)
        self.calls.settimeout(SEND_TIMEOUT_S)
        self.began_s = self.ready_s = time.monotonic()
        self.ready = self.stopped = False
        self.failure: keeper.Failed | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

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


class Supervisor:
    """Runs an instance; `run` returns at its end. `module`: what the worker is."""

    def __init__(self, instance: str, listener: socket.socket, agent: NamespaceAgent, module: str) -> None:
        self.instance, self._listener, self._agent, self._module = instance, listener, agent, module
        self._log = log_path(instance)
        self._python = ""  # that an upgrade went to: the next worker is of that version too, also after a crash
        self.store = keeper.Store()
        self.worker: WorkerProcess | None = None
        self.successor: WorkerProcess | None = None
        self.restarts = 0
        self.last = ""  # why the last worker died
        self._pause_s = 0.0
        self._start_at_s: float | None = None  # of the next worker, after a pause
        self._died_s = 0.0  # when the last worker did
        self._tells = False  # a pause is long: clients need not wait for its end
        self._asked_to_stop_s: float | None = None
        self._announce = True  # that all is up: once
        self._manager = ServiceManager()
        self._hangup_ends = hangup_ends()

    # -- workers -----------------------------------------------------------------------------------------------------------

    def start_worker(self, role: str, python: str = "") -> WorkerProcess:
        """Starts a worker and gives it everything that is kept. Raises OSError."""
        capabilities = privileges.worker(guaranteed=keeper.GUARANTEED in self.store)
        worker = WorkerProcess(python or self._python, self._module, self._listener, role, capabilities)
        try:
            for key, descriptors in self.store.items():
                keeper.send(worker.events, keeper.Item(key), descriptors)
            start = {"role": role, "instance": self.instance, "supervisor": os.getpid(), "restarts": self.restarts}
            keeper.send(worker.events, msgspec.convert({**start, "last": self.last}, keeper.Start))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died already, and is found dead like any other
        except OSError as error:
            worker.failure = keeper.Failed(f"it could not be given what is kept: {error.strerror or error}")
            worker.process.kill()
        except BaseException:
            worker.close()
            raise
        return worker

    def run(self, config: bytes, ready: Callable[[int], None]) -> None:
        """Until a signal, or a client's Shutdown. `ready` is called with the worker's pid when all is up for the first time. Raises
        ConfigError, VnicError where it does not come up at all."""
        self.store.put("config", [keeper.write_document(config)])
        with _wakeups() as wakeups:
            try:
                try:
                    self.worker = self.start_worker("first")
                except OSError as error:
                    raise VnicError(f"the worker cannot be started: {error.strerror}") from None
                while not self._finished(ready):
                    self._wait(wakeups)
            finally:
                self._manager.stopping()
                for worker in (self.successor, self.worker):
                    if worker is not None:
                        worker.close()
                self.store.close()

    def _finished(self, ready: Callable[[int], None]) -> bool:
        """Looks at every worker. True: it is over."""
        worker = self.worker
        if worker is None:
            if self._asked_to_stop_s is not None:
                return True
            if self._start_at_s is not None and time.monotonic() >= self._start_at_s:
                try:
                    self.worker = self.start_worker("crash")
                    self._start_at_s, self._tells = None, False
                except OSError as error:  # for want of memory, say, just after the last one was killed for that
                    self._pause(f"it cannot be started: {error.strerror}")
            return False
        if worker.ready and self._announce:
            self._announce = False
            ready(worker.pid)
            self._manager.ready(f"up, worker {worker.pid}")
        successor = self.successor
        if successor is not None and self._over(successor):
            if self.successor is None:  # its last words were that it took over
                worker = successor
            else:
                self._end_successor(successor.epitaph())
        if self._over(worker):
            return self._bury(worker)
        return False

    def _over(self, worker: WorkerProcess) -> bool:
        """Whether a worker has ended; one that takes too long is ended."""
        age_s = time.monotonic() - worker.began_s
        if worker.process.poll() is not None:
            self._hear(worker)  # its last words
            return True
        if not worker.ready and age_s > START_TIMEOUT_S:
            worker.failure = keeper.Failed(f"did not come up within {START_TIMEOUT_S:g} s")
            worker.process.kill()
        elif self._asked_to_stop_s is not None and time.monotonic() - self._asked_to_stop_s > STOP_TIMEOUT_S:
            log.warning("worker killed", pid=worker.pid, why="it did not end when asked")
            worker.process.kill()
        return False

    def _bury(self, worker: WorkerProcess) -> bool:
        why, served_s, stopped = worker.epitaph(), time.monotonic() - worker.ready_s, worker.stopped
        failure, was_ready = worker.failure, worker.ready
        if worker is not self.worker:  # its last words were that its successor has everything
            return False
        worker.close()
        self.worker = None
        if self.successor is not None:  # joined to one that is gone: engines may be on both sides
            self.successor.close()
            self.successor = None
            self._manager.ready(f"upgrade failed: the worker ended: {why}")
        if stopped or self._asked_to_stop_s is not None:
            self._asked_to_stop_s = self._asked_to_stop_s or time.monotonic()
            return True
        if self._announce:  # it never came up
            if failure is not None:
                raise (ConfigError if failure.config else VnicError)(failure.error)
            raise VnicError(f"the worker ended while it came up: {why}")
        self._pause(why, well=was_ready and served_s >= WELL_S, pid=worker.pid)
        return False

    def _pause(self, why: str, *, well: bool = False, pid: int | None = None) -> None:
        """After a death, or a start that failed: says why, and when the next worker is started. well: the last one ran well."""
        self.restarts += 1
        self.last = why
        self._pause_s = 0.0 if well else min(max(2 * self._pause_s, PAUSE_FIRST_S), PAUSE_MOST_S)
        if self.restarts == 1:
            self._pause_s = 0.0
        self._died_s = time.monotonic()
        self._start_at_s = self._died_s + self._pause_s
        self._tells = self._pause_s >= PAUSE_TOLD_S
        log.error("worker ended", pid=pid, why=why, restarts=self.restarts, next_in_s=self._pause_s)
        self._manager.status(f"worker ended: {why}; the next one starts in {self._pause_s:g} s")

    def _end_successor(self, why: str) -> None:
        assert self.successor is not None
        self.successor.close()
        self.successor = None
        log.error("upgrade failed, the worker goes on", why=why)
        self._manager.ready(f"upgrade failed, worker goes on: {why}")
        self._tell(self.worker, keeper.Failed(why))

    def _tell(self, worker: WorkerProcess | None, message: msgspec.Struct, descriptors: list[int] | None = None) -> None:
        if worker is not None:
            with contextlib.suppress(OSError):  # dead: found so soon enough
                keeper.send(worker.events, message, descriptors or [])

    def stop(self) -> None:
        """Asks the worker to take everything down."""
        if self._asked_to_stop_s is None:
            log.info("stopping")
            self._asked_to_stop_s = time.monotonic()
            if self.successor is not None:
                self.successor.close()
                self.successor = None
            self._tell(self.worker, keeper.Quit())

    # -- messages ----------------------------------------------------------------------------------------------------------

    def _wait(self, wakeups: socket.socket) -> None:
        """Until something happens: a message, a death, a signal, the end of a pause."""
        with selectors.PollSelector() as selector:  # which needs no descriptor: there may be none left
            selector.register(wakeups, selectors.EVENT_READ)
            for worker in filter(None, (self.worker, self.successor)):
                for each in (worker.pidfd, worker.events, worker.calls):
                    selector.register(each, selectors.EVENT_READ)
            if self._tells:
                selector.register(self._listener, selectors.EVENT_READ)
            timeout_s = 1.0 if self._start_at_s is None else max(0.0, self._start_at_s - time.monotonic())
            selector.select(timeout_s)
        bound_log(self._log)
        with contextlib.suppress(BlockingIOError):
            for number in set(wakeups.recv(64)):
                if number == signal.SIGHUP and not self._hangup_ends:
                    log.info("SIGHUP ignored: 'vnic upgrade' replaces the program, commands change the configuration")
                else:
                    self.stop()
        if self._tells:
            self._tell_clients()
        for worker in filter(None, (self.worker, self.successor)):
            self._hear(worker)

    def _tell_clients(self) -> None:
        """Says to those who wait for a worker why there is none."""
        now_s = time.monotonic()
        why = (
            f"instance {self.instance}: its worker died {self.restarts} times, last {now_s - self._died_s:.0f} s ago ({self.last}); "
            f"next try in {max(0.0, self._died_s + self._pause_s - now_s):.0f} s"
        )
        # Where no file can be opened, they wait like everybody else: else this would be asked again and again.
        self._tells = turn_away(self._listener, why, f"instance {self.instance}: does not work at the moment; try again later")

    def _hear(self, worker: WorkerProcess) -> None:
        """Takes every message that waits. What is no message of ours comes from a worker that lost its mind, and ends it. What fails for
        want of something here is refused, and is nobody's fault."""
        for sock, handle in ((worker.calls, self._answer), (worker.events, self._event)):
            # Closed: what it said before was that its successor has everything.
            while sock.fileno() >= 0 and readable(sock.fileno(), 0):
                lost: VnicError | None = None
                try:
                    data, descriptors = keeper.receive(sock)
                except ConnectionResetError:  # it ended without having read all of ours
                    break
                except keeper.DescriptorsLostError as error:
                    data, descriptors, lost = error.data, [], error
                try:
                    if not data:
                        break
                    handle(worker, data, descriptors, lost)
                except OSError as error:
                    wrong = f"it does not take its answer: {error.strerror or error}"
                except (VnicError, msgspec.MsgspecError, ValueError) as error:
                    wrong = f"it sent what is no message: {error}"
                else:
                    continue
                worker.failure = worker.failure or keeper.Failed(wrong)
                worker.process.kill()
                break

    def _answer(self, worker: WorkerProcess, data: bytes, descriptors: list[int], lost: VnicError | None) -> None:
        try:
            call = keeper.decode_call(data)
        except BaseException:
            close_all(descriptors)
            raise
        answer: keeper.Answer = keeper.Done(number=call.number)
        reply: list[int] = []
        try:
            if lost is not None:
                raise lost
            match call:
                case keeper.Put(key):
                    self.store.put(key, descriptors)
                case keeper.Drop(key):
                    close_all(descriptors)
                    self.store.drop(key)
                case keeper.OpenTap(nic, request):
                    reply = self._open_tap(nic, request, descriptors)
                    answer = keeper.Opened(number=call.number)
        except VnicError as error:
            answer = keeper.Refused(str(error), isinstance(error, ConfigError), number=call.number)
        except OSError as error:
            answer = keeper.Refused(f"the supervisor has no room for it: {error.strerror}", number=call.number)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            keeper.send(worker.calls, answer, reply)

    def _open_tap(self, nic: str, request: TapRequest, container: list[int]) -> list[int]:
        tap = self._agent.open_tap(request, NetNamespace.passed(*container) if container else None)
        try:
            namespace = tap.namespace
            report = TapReport(
                name=tap.name,
                ifindex=tap.ifindex,
                mac=tap.mac,
                mtu=tap.mtu,
                offloads=int(tap.offloads),
                netlink=tap.netlink >= 0,
            )
            document = keeper.KeptTap(report, namespace.label, namespace.pid, namespace.path)
            descriptors = [keeper.write_document(msgspec.json.encode(document)), namespace.fd]
        except BaseException:
            tap.close()
            raise
        descriptors += [namespace.pidfd] if namespace.pidfd >= 0 else []
        descriptors += tap.fds + ([tap.netlink] if tap.netlink >= 0 else [])
        # They are the store's now: neither object shall close them.
        tap.fds, tap.netlink, namespace.fd, namespace.pidfd = [], -1, -1, -1
        self.store.put(f"nic/{nic}", descriptors)
        return descriptors

    def _event(self, worker: WorkerProcess, data: bytes, descriptors: list[int], lost: VnicError | None) -> None:
        close_all(descriptors)
        match keeper.decode_from_worker(data):
            case keeper.Ready():
                worker.ready, worker.ready_s = True, time.monotonic()
                if worker is self.successor:
                    self._introduce(worker)
                elif not self._announce:
                    self._manager.status(f"up, worker {worker.pid}, after {self.restarts} restarts")
            case keeper.TookOver() if worker is self.successor:
                self._succeed()
            case keeper.HandedOver() if worker is self.worker and self.successor is not None:
                self._succeed()
            case keeper.Abandon() if worker is self.worker and self.successor is not None:
                log.error("upgrade failed, the worker goes on", pid=worker.pid)
                self._manager.ready(f"upgrade failed, worker {worker.pid} goes on")
                self.successor.close()
                self.successor = None
            case keeper.Failed() as failure:
                worker.failure = failure
            case keeper.Stop():
                worker.stopped = True
            case keeper.Upgrade(python):
                self._upgrade(worker, python)

    # -- upgrade -----------------------------------------------------------------------------------------------------------

    def _upgrade(self, worker: WorkerProcess, python: str) -> None:
        if worker is not self.worker or self.successor is not None:
            self._tell(worker, keeper.Failed("an upgrade is under way already"))
            return
        try:
            self.successor = self.start_worker("successor", python)
            self._manager.reloading("upgrade: the next worker starts")
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # no such file, no path, no rights left to drop
            why = getattr(error, "strerror", None) or error
            self._tell(worker, keeper.Failed(f"{python or self._python or sys.executable}: {why}"))

    def _introduce(self, successor: WorkerProcess) -> None:
        """Joins the old worker and the new one; the rest they do between them."""
        try:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self._end_successor(f"it cannot be joined to the worker: {error.strerror}")
            return
        with ends[0], ends[1]:
            self._tell(successor, keeper.HandOver(), [ends[0].fileno()])
            self._tell(self.worker, keeper.HandOver(), [ends[1].fileno()])

    def _succeed(self) -> None:
        old, self.worker, self.successor = self.worker, self.successor, None
        assert old is not None
        assert self.worker is not None
        self._python = self.worker.python
        log.info("worker took over", pid=self.worker.pid, before=old.pid)
        self._manager.ready(f"up, worker {self.worker.pid}, upgraded")
        with contextlib.suppress(subprocess.TimeoutExpired):
            old.process.wait(STOP_TIMEOUT_S)  # it gives up its engines' threads and ends: milliseconds
        old.close()


def hangup_ends() -> bool:
    """Whether SIGHUP asks this process to end: it has a terminal that can hang up, and SIGHUP was not ignored when it started."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup(1)
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _wakeups() -> Iterator[socket.socket]:
    """A socket that is readable once one of SIGNALS came."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield reader
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)


def supervise(
    config: bytes,
    instance: str,
    ready: Callable[[int], None],
    module: str = "vnic.control.launch",
    *,
    clients: bool = False,
    guaranteed: bool = False,
) -> None:
    """Runs an instance until SIGINT, SIGTERM, Shutdown or, on a terminal, SIGHUP. Gives up the rights that this does not need
    (privileges.py). `config`: vnic.control.convert.encode_config's. clients: other users may connect. guaranteed: a group has a
    guarantee of CPU time. Calls `ready` with the worker's pid when it is up, and tells a service manager (notify.py). Raises
    ConfigError, VnicError where it does not come up."""
    allow_open_files()
    with signals_only_ask(), instance_lock(instance):
        privileges.drop(privileges.SUPERVISOR, inherit=True)
        agent = NamespaceAgent.start(lambda: privileges.drop(privileges.AGENT, inherit=True))
        try:
            with listening(instance) as listener:
                if clients:
                    open_to_clients(instance)
                listener.listen(BACKLOG)
                supervisor = Supervisor(instance, listener, agent, module)
                if guaranteed:
                    supervisor.store.put(keeper.GUARANTEED, [keeper.write_document(b"")])
                supervisor.run(config, ready)
        finally:
            agent.stop()
