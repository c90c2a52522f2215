"""The supervisor: the small process of an instance that stores what must survive, and keeps a worker running.

It holds the instance's lock, its listening control socket, and what keeper.py lists; it owns the namespace
agent; it starts the worker and watches it. A worker that ends is replaced: at once, then after pauses that
double up to PAUSE_MOST_S while workers keep ending. If the supervisor itself ends, the kernel ends worker and
agent with it. It has one thread, and imports neither numpy nor compiled modules of vnic.

    vnic up = supervisor --calls, events--> worker (vnic.daemon.worker)
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
from collections.abc import Callable, Sequence

import msgspec

from dataplane.errors import ConfigError, VnicError
from vnic.api.interface import BACKLOG, open_to_clients
from vnic.api.log import Log
from vnic.daemon import privileges
from vnic.daemon.instance import (
    allow_open_files,
    bound_log,
    hangup_ends,
    instance_lock,
    listening,
    log_path,
    signals_only_ask,
    turn_away,
    wakeups,
)
from vnic.daemon.notify import ServiceManager
from vnic.daemon.worker_process import WorkerProcess
from vnic.device.agent import NamespaceAgent
from vnic.device.descriptors import close_all, readable, system_error
from vnic.device.kinds.registry import interface_kind
from vnic.device.namespaces import NetNamespace, identity_of
from vnic.device.tap import Tap, TapRequest
from vnic.store import keeper

PAUSE_FIRST_S, PAUSE_MOST_S = 0.1, 10.0
PAUSE_TOLD_S = 1.0  # clients wait during a shorter pause, and get the reason during a longer one
WELL_S = 3.0  # after a worker that served so long, the pauses begin at 0 again
START_TIMEOUT_S = 120.0  # a thousand NICs take 10 s on two busy CPUs
STOP_TIMEOUT_S = 30.0
PING_S = 2.0  # between two Pings
MESSAGES_MOST = 1024  # taken from a worker before the other one's
# without a Pong, until it is logged; the worker may only be slow, so it is not ended
SILENT_S = 5.0
SILENT_STOP_S = 5.0  # for a worker to stop that had not answered before

log = Log("vnic")


class Supervisor:
    """Runs an instance; `run` returns at its end. module: the worker's."""

    def __init__(
        self,
        instance: str,
        listener: socket.socket,
        agent: NamespaceAgent,
        module: str,
        *,
        host_interfaces: bool = False,
    ) -> None:
        self.instance, self._listener, self._agent, self._module = instance, listener, agent, module
        self._host_interfaces = host_interfaces
        self._log = log_path(instance)
        self._python = ""  # of the last upgrade, and so of the next worker, also after a crash
        self._python_before: str | None = (
            None  # until a worker of that Python has come up outside an upgrade
        )
        self.store = keeper.Store()
        self.worker: WorkerProcess | None = None
        self.successor: WorkerProcess | None = None
        self._leaving: WorkerProcess | None = None  # has handed over, and ends
        self._ping_at_s = 0.0
        self.restarts = 0
        self.last = ""  # why the last worker ended
        self._pause_s = 0.0
        self._start_at_s: float | None = None  # of the next worker, after a pause
        self._died_s = 0.0  # when the last worker ended
        self._turns_away = False  # a pause is long: clients get the reason instead of waiting
        self._asked_to_stop_s: float | None = None
        self._announce = True  # `ready` has not been called yet
        self._manager = ServiceManager()
        self._hangup_ends = hangup_ends()

    # -- workers -----------------------------------------------------------------------------------------------------------

    def start_worker(self, role: str, python: str = "") -> WorkerProcess:
        """Starts a worker and sends it everything that is stored. Raises OSError."""
        capabilities = privileges.worker(guaranteed=keeper.GUARANTEED in self.store)
        worker = WorkerProcess(
            python or self._python, self._module, self._listener, role, capabilities, self.store
        )
        try:
            start = {
                "role": role,
                "instance": self.instance,
                "supervisor": os.getpid(),
                "restarts": self.restarts,
            }
            worker.unsent.extend(keeper.Item(key) for key, _ in self.store.items())
            worker.tell(msgspec.convert({**start, "last": self.last}, keeper.Start))
        except BaseException:
            worker.close()
            raise
        return worker

    def run(self, config: bytes, ready: Callable[[int], None]) -> None:
        """Runs the instance until a signal, or a client's Shutdown. Calls `ready` with the worker's pid when
        everything is up for the first time. Raises ConfigError, VnicError where it does not come up."""
        self.store.put("config", [keeper.write_document(config)])
        with wakeups() as woken:
            try:
                try:
                    self.worker = self.start_worker("first")
                except OSError as error:
                    raise VnicError(
                        f"the worker cannot be started: {system_error(error)}"
                    ) from None
                while not self._finished(ready):
                    self._wait(woken)
            finally:
                self._manager.stopping()
                for worker in (self.successor, self.worker, self._leaving):
                    if worker is not None:
                        worker.close()
                self.store.close()

    def _finished(self, ready: Callable[[int], None]) -> bool:
        """Checks every worker. Returns True when the instance has ended."""
        self._reap_leaving()
        worker = self.worker
        if worker is None:
            if self._asked_to_stop_s is not None:
                return True
            if self._start_at_s is not None and time.monotonic() >= self._start_at_s:
                try:
                    self.worker = self.start_worker("crash")
                    self._start_at_s, self._turns_away = None, False
                except (
                    OSError
                ) as error:  # no memory, perhaps, just after the last worker was killed for that
                    self._pause(f"it cannot be started: {error.strerror}")
            return False
        if worker.ready and self._announce:
            self._announce = False
            ready(worker.pid)
            self._manager.ready(f"up, worker {worker.pid}")
        if self._over(worker) and self.worker is worker:
            return self._replace(worker)
        if self.worker is not worker:  # its last message was HandedOver
            return False
        successor = self.successor
        if successor is not None and successor.took_over_s is not None:
            # A worker that works sends HandedOver within seconds.
            if time.monotonic() - successor.took_over_s > STOP_TIMEOUT_S:
                log.warning(
                    "worker killed", pid=worker.pid, why="it did not say that it handed over"
                )
                worker.process.kill()
                self._succeed()
        elif successor is not None and self._over(successor) and successor.took_over_s is None:
            self._end_successor(successor.why_ended())
        self._ping(worker)
        return False

    def _reap_leaving(self) -> None:
        """Closes the worker that has handed over once it has ended, which takes milliseconds."""
        if (leaving := self._leaving) is None:
            return
        if (
            leaving.process.poll() is not None
            or time.monotonic() - leaving.ready_s > STOP_TIMEOUT_S
        ):
            leaving.close()
            self._leaving = None
            if self.worker is not None and self.successor is None:
                self.worker.prefer(False)

    def _ping(self, worker: WorkerProcess) -> None:
        """Sends a Ping every PING_S, and logs once that there is no Pong. A worker that is only slow is not
        ended; clients that connect get an error, and `vnic down` does not wait for it."""
        now_s = time.monotonic()
        # During a hand-over and while it stops, a worker may not answer; both have time limits of their own.
        if not worker.ready or self.successor is not None or self._asked_to_stop_s is not None:
            return
        if worker.asked_s is None:
            if now_s >= self._ping_at_s:
                self._ping_at_s, worker.asked_s = now_s + PING_S, now_s
                worker.tell(keeper.Ping())
        elif not worker.silent and now_s - worker.asked_s > SILENT_S:
            worker.silent = True
            log.error(
                "worker does not answer", pid=worker.pid, for_s=round(now_s - worker.asked_s, 1)
            )

    def _over(self, worker: WorkerProcess) -> bool:
        """Whether a worker has ended; kills one that takes too long to come up or to stop."""
        age_s = time.monotonic() - worker.began_s
        if worker.process.poll() is not None:
            self._receive(worker)  # its last messages
            return True
        if not worker.ready and age_s > START_TIMEOUT_S:
            worker.failure = keeper.Failed(f"did not come up within {START_TIMEOUT_S:g} s")
            worker.process.kill()
        elif self._asked_to_stop_s is not None:
            most_s = SILENT_STOP_S if worker.silent else STOP_TIMEOUT_S
            if time.monotonic() - self._asked_to_stop_s > most_s:
                log.warning("worker killed", pid=worker.pid, why="it did not end when asked")
                worker.process.kill()
        return False

    def _replace(self, worker: WorkerProcess) -> bool:
        """After the worker's end: its successor goes on, or the next worker starts after a pause. Returns True when
        the instance has ended."""
        if self.successor is not None:
            self._receive(self.successor)
            took_over = self.successor is not None and self.successor.took_over_s is not None
            if took_over and worker.failure is None:  # a failure: engines are on both sides
                self._succeed()
                return False
        why, served_s, stopped = (
            worker.why_ended(),
            time.monotonic() - worker.ready_s,
            worker.stopped,
        )
        failure, was_ready = worker.failure, worker.ready
        worker.close()
        self.worker = None
        if (
            self.successor is not None
        ):  # joined to the worker that has ended: engines may be on both sides
            self._close_successor()
            self._manager.ready(f"upgrade failed: the worker ended: {why}")
        if not was_ready:
            self._swap_pythons()
        if stopped or self._asked_to_stop_s is not None:
            self._asked_to_stop_s = self._asked_to_stop_s or time.monotonic()
            return True
        if self._announce:  # it never came up
            if failure is not None:
                raise (ConfigError if failure.config else VnicError)(failure.error)
            raise VnicError(f"the worker ended while it came up: {why}")
        self._pause(why, well=was_ready and served_s >= WELL_S, pid=worker.pid)
        return False

    def _swap_pythons(self) -> None:
        """After a worker that has not come up. Until one of the last upgrade's Python has come up by itself, the
        next worker is of the Python before; and if that one cannot read what is stored, of the other again."""
        if self._python_before is not None:
            self._python, self._python_before = self._python_before, self._python
            log.error("next worker is of another Python", python=self._python or sys.executable)

    def _pause(self, why: str, *, well: bool = False, pid: int | None = None) -> None:
        """After a worker's end or failed start: logs why, and sets when the next one starts. well: it had served
        for WELL_S."""
        self.restarts += 1
        self.last = why
        self._pause_s = 0.0 if well else min(max(2 * self._pause_s, PAUSE_FIRST_S), PAUSE_MOST_S)
        if self.restarts == 1:
            self._pause_s = 0.0
        self._died_s = time.monotonic()
        self._start_at_s = self._died_s + self._pause_s
        self._turns_away = self._pause_s >= PAUSE_TOLD_S
        log.error("worker ended", pid=pid, why=why, restarts=self.restarts, next_in_s=self._pause_s)
        self._manager.status(f"worker ended: {why}; the next one starts in {self._pause_s:g} s")

    def _close_successor(self) -> None:
        """Ends the successor; the worker, where there still is one, is no longer preferred."""
        assert self.successor is not None
        self.successor.close()
        self.successor = None
        if self.worker is not None:
            self.worker.prefer(False)

    def _end_successor(self, why: str) -> None:
        self._close_successor()
        log.error("upgrade failed, the worker goes on", why=why)
        self._manager.ready(f"upgrade failed, worker goes on: {why}")
        self._tell_worker(keeper.Failed(why))

    def _tell_worker(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        if self.worker is not None:
            self.worker.tell(message, descriptors)

    def stop(self) -> None:
        """Asks the worker to stop."""
        if self._asked_to_stop_s is None:
            log.info("stopping")
            self._asked_to_stop_s = time.monotonic()
            if self.successor is not None:
                self._close_successor()
            self._tell_worker(keeper.Quit())

    # -- messages ----------------------------------------------------------------------------------------------------------

    def _wait(self, woken: socket.socket) -> None:
        """Waits for a message, a worker's end, a signal, or the end of a pause."""
        with selectors.PollSelector() as selector:  # needs no descriptor: none may be left
            selector.register(woken, selectors.EVENT_READ)
            for worker in filter(None, (self.worker, self.successor)):
                selector.register(worker.pidfd, selectors.EVENT_READ)
                selector.register(
                    worker.events,
                    selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0),
                )
                if self._answers(worker):
                    selector.register(worker.calls, selectors.EVENT_READ)
            if self._leaving is not None:
                selector.register(self._leaving.pidfd, selectors.EVENT_READ)
            if self._turns_away or self._worker_is_silent:
                selector.register(self._listener, selectors.EVENT_READ)
            timeout_s = (
                1.0 if self._start_at_s is None else max(0.0, self._start_at_s - time.monotonic())
            )
            selector.select(timeout_s)
        bound_log(self._log)
        with contextlib.suppress(BlockingIOError):
            for number in set(woken.recv(64)):
                if number == signal.SIGHUP and not self._hangup_ends:
                    log.info(
                        "SIGHUP ignored: 'vnic upgrade' replaces the program, commands change the configuration"
                    )
                else:
                    self.stop()
        for worker in filter(None, (self.worker, self.successor)):
            self._receive(worker)
            worker.send_on()
        if self._turns_away:
            self._refuse_clients()
        elif self._worker_is_silent:
            self._refuse_for_silence()

    def _answers(self, worker: WorkerProcess) -> bool:
        """Whether calls of a worker are taken. A successor that is joined to the worker may have taken over, and
        TookOver may not have been read yet: until then its calls wait."""
        return worker is not self.successor or not worker.joined

    @property
    def _worker_is_silent(self) -> bool:
        return self.worker is not None and self.worker.silent and self.successor is None

    def _refuse_for_silence(self) -> None:
        """Tells the clients that connect that the worker does not answer."""
        assert self.worker is not None
        why = (
            f"instance {self.instance}: its worker (pid {self.worker.pid}) stands still, and has not answered for "
            f"{time.monotonic() - (self.worker.asked_s or 0.0):.0f} s; end the instance with 'vnic down', or kill the worker, "
            "which another one replaces then"
        )
        if not turn_away(
            self._listener,
            why,
            f"instance {self.instance}: does not work at the moment; try again later",
        ):
            self.worker.silent = False  # no file can be opened: tried again after the next Ping
            self.worker.asked_s = None

    def _refuse_clients(self) -> None:
        """Tells the clients that connect why there is no worker."""
        now_s = time.monotonic()
        why = (
            f"instance {self.instance}: its worker died {self.restarts} times, last {now_s - self._died_s:.0f} s ago ({self.last}); "
            f"next try in {max(0.0, self._died_s + self._pause_s - now_s):.0f} s"
        )
        # Where no file can be opened, clients wait for the end of the pause: the loop would spin otherwise.
        self._turns_away = turn_away(
            self._listener,
            why,
            f"instance {self.instance}: does not work at the moment; try again later",
        )

    def _receive(self, worker: WorkerProcess) -> None:
        """Handles every message that waits. A worker that sends an invalid one is ended. A call that fails for lack
        of resources in this process is refused."""
        for sock, handle in ((worker.calls, self._answer), (worker.events, self._event)):
            for _ in range(MESSAGES_MOST):  # then the other worker: this one may send without end
                # Closed, or no worker any more after its HandedOver.
                if (
                    worker not in (self.worker, self.successor)
                    or sock.fileno() < 0
                    or not readable(sock.fileno(), 0)
                ):
                    break
                if sock is worker.calls and not self._answers(worker):
                    break
                lost: VnicError | None = None
                try:
                    data, descriptors = keeper.receive(sock)
                except ConnectionResetError:  # it ended without having read every message
                    break
                except keeper.DescriptorsLostError as error:
                    data, descriptors, lost = error.data, [], error
                try:
                    if not data:
                        break
                    handle(worker, data, descriptors, lost)
                except OSError as error:
                    wrong = f"it does not take its answer: {error.strerror or error}"
                except VnicError as error:
                    wrong = str(error)
                except (msgspec.MsgspecError, ValueError) as error:
                    wrong = f"it sent what is no message: {error}"
                else:
                    continue
                worker.failure = worker.failure or keeper.Failed(wrong)
                worker.process.kill()
                break

    def _answer(
        self, worker: WorkerProcess, data: bytes, descriptors: list[int], lost: VnicError | None
    ) -> None:
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
            if worker is not self.worker:
                close_all(descriptors)
                raise VnicError(
                    "what the other worker has cannot be changed before it is handed over"
                )
            match call:
                case keeper.Put(key):
                    self.store.put(key, descriptors)
                case keeper.Drop(key):
                    close_all(descriptors)
                    try:
                        self._remove_interface(key)
                    except (
                        VnicError,
                        OSError,
                    ) as error:  # it goes with its last descriptor, somewhat later
                        log.warning("an interface is not removed at once", key=key, why=str(error))
                    self.store.drop(key)
                case keeper.Open(nic, kind, request):
                    reply = self._open(
                        nic, self._request(nic, kind, request, descriptors), descriptors
                    )
                    answer = keeper.Opened(number=call.number)
                case keeper.Alter(nic, request):
                    close_all(descriptors)
                    reply = self._alter(nic, request)
                    answer = keeper.Opened(number=call.number)
                case keeper.SetCarrier(nic, up):
                    close_all(descriptors)
                    self._set_carrier(nic, up)
        except VnicError as error:
            answer = keeper.Refused(str(error), isinstance(error, ConfigError), number=call.number)
        except OSError as error:
            answer = keeper.Refused(
                f"the supervisor has no room for it: {system_error(error)}", number=call.number
            )
        if worker.asked_s is not None and not worker.silent:
            worker.asked_s = (
                time.monotonic()
            )  # it runs, and could not send a Pong while it waited for this
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            keeper.send(worker.calls, answer, reply, wait=False)

    def _request(
        self, nic: str, kind: str, request: msgspec.Raw, container: list[int]
    ) -> TapRequest:
        """What a worker asks for, as its kind has it. Raises ConfigError, and then closes the container's descriptors."""
        try:
            return interface_kind(kind).decode_request(request)
        except msgspec.MsgspecError as error:
            close_all(container)
            raise ConfigError(f"nic {nic}: {kind}: {error}") from None
        except BaseException:
            close_all(container)
            raise

    def _open(self, nic: str, request: TapRequest, container: list[int]) -> list[int]:
        namespace = (
            NetNamespace.passed(*container)
            if container
            else NetNamespace.find(request.pid, request.netns)
        )
        if not self._host_interfaces and namespace.identity == identity_of("/proc/self/ns/net"):
            namespace.close()
            raise ConfigError(
                f"nic {nic}: {namespace.label}: this is the network namespace that vnic itself runs in; to allow NICs there, "
                "put 'host_interfaces: true' into the configuration file and start the instance again"
            )
        descriptors = keeper.nic_descriptors(self._agent.open_nic(request, namespace), request)
        self.store.put(f"nic/{nic}", descriptors)
        return descriptors

    def _alter(self, nic: str, data: msgspec.Raw) -> list[int]:
        found = self.store.get(f"nic/{nic}")
        if not found:
            raise VnicError(f"nic {nic}: has no interface that could change")
        kind = keeper.kept_kind(found)
        try:
            request = kind.decode_request(data)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"nic {nic}: {kind.NAME}: {error}") from None
        interface = self._handle(found)
        try:
            kind.alter(interface, request)
        except BaseException:
            interface.release()
            raise
        descriptors = keeper.nic_descriptors(interface, request)
        self.store.put(f"nic/{nic}", descriptors)
        return descriptors

    def _by_agent(self, key: str) -> Tap | None:
        """The interface that is stored under a key, with descriptors of its own; None where it does not need the agent, or something
        else is stored, or nothing."""
        found = self.store.get(key) if key.startswith("nic/") else None
        if not found or not keeper.kept_kind(found).BY_AGENT:
            return None
        return self._handle(found)

    def _handle(self, found: list[int]) -> Tap:
        """An interface that is stored, with descriptors of its own."""
        duplicates: list[int] = []
        try:
            for each in found:
                duplicates.append(os.dup(each))
        except OSError:
            close_all(duplicates)
            raise
        return keeper.kept_nic(duplicates, self._agent)

    def _set_carrier(self, nic: str, up: bool) -> None:
        interface = self._by_agent(f"nic/{nic}")
        if interface is None:
            raise VnicError(f"nic {nic}: its link is not the supervisor's to set")
        try:
            interface.set_carrier(up)
        finally:
            interface.release()

    def _remove_interface(self, key: str) -> None:
        """Removes an interface at once of which the kernel takes its time when the last descriptor is closed."""
        interface = self._by_agent(key)
        if interface is not None:
            interface.close()

    def _event(
        self, worker: WorkerProcess, data: bytes, descriptors: list[int], lost: VnicError | None
    ) -> None:
        close_all(descriptors)
        match keeper.decode_from_worker(data):
            case keeper.Ready():
                worker.ready, worker.ready_s = True, time.monotonic()
                if worker is self.successor:
                    self._introduce(worker)
                else:
                    self._python_before = None
                    if not self._announce:
                        self._manager.status(
                            f"up, worker {worker.pid}, after {self.restarts} restarts"
                        )
            case keeper.TookOver() if worker is self.successor:
                if not worker.joined:
                    raise VnicError(
                        "it said that it took over, and was not joined to the worker yet"
                    )
                worker.took_over_s = (
                    worker.took_over_s or time.monotonic()
                )  # counts once the worker confirms it, or has ended
            case keeper.HandedOver() if (
                worker is self.worker and self.successor is not None and self.successor.joined
            ):
                self._succeed()
            case keeper.Pong() if worker.asked_s is not None:
                if worker.silent:
                    log.info(
                        "worker answers again",
                        pid=worker.pid,
                        after_s=round(time.monotonic() - worker.asked_s, 1),
                    )
                worker.asked_s, worker.silent = None, False
            case keeper.Abandon() if worker is self.worker and self.successor is not None:
                log.error("upgrade failed, the worker goes on", pid=worker.pid)
                self._manager.ready(f"upgrade failed, worker {worker.pid} goes on")
                self._close_successor()
            case keeper.Failed() as failure:
                worker.failure = failure
            case keeper.Stop():
                worker.stopped = True
            case keeper.Upgrade(python):
                self._upgrade(worker, python)

    # -- upgrade -----------------------------------------------------------------------------------------------------------

    def _upgrade(self, worker: WorkerProcess, python: str) -> None:
        if worker is not self.worker or self.successor is not None:
            worker.tell(keeper.Failed("an upgrade is under way already"))
            return
        try:
            self.successor = self.start_worker("successor", python)
            worker.prefer()
            self._manager.reloading("upgrade: the next worker starts")
        except (
            OSError,
            ValueError,
            subprocess.SubprocessError,
        ) as error:  # no file, no path, no privileges
            why = getattr(error, "strerror", None) or error
            worker.tell(keeper.Failed(f"{python or self._python or sys.executable}: {why}"))

    def _introduce(self, successor: WorkerProcess) -> None:
        """Joins the old worker and the new one by a socket; they hand over between themselves."""
        try:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self._end_successor(f"it cannot be joined to the worker: {error.strerror}")
            return
        with ends[0], ends[1]:
            successor.joined = True
            successor.tell(keeper.HandOver(), [ends[0].fileno()])
            self._tell_worker(keeper.HandOver(), [ends[1].fileno()])

    def _succeed(self) -> None:
        old, self.worker, self.successor = self.worker, self.successor, None
        assert old is not None
        assert self.worker is not None
        if self.worker.python != self._python:
            self._python, self._python_before = self.worker.python, self._python
        log.info("worker took over", pid=self.worker.pid, before=old.pid)
        old.prefer(False)
        self.worker.prefer()  # until the old one has freed its memory
        self._manager.ready(f"up, worker {self.worker.pid}, upgraded")
        if self._leaving is not None:
            self._leaving.close()
        # The new one counts as started now; the old one has STOP_TIMEOUT_S from now to end.
        self.worker.ready_s = old.ready_s = time.monotonic()
        self._leaving = old
        self._reap_leaving()


def supervise(
    config: bytes,
    instance: str,
    ready: Callable[[int], None],
    module: str = "vnic.daemon.launch",
    *,
    clients: bool = False,
    guaranteed: bool = False,
    host_interfaces: bool = False,
) -> None:
    """Runs an instance until SIGINT, SIGTERM, Shutdown or, on a terminal, SIGHUP. Gives up the privileges that
    this does not need (privileges.py). Calls `ready` with the worker's pid when it is up, and tells a service manager (notify.py).

    config           as vnic.config.convert.encode_config made it
    clients          other users may connect
    guaranteed       a group has a guarantee of CPU time
    host_interfaces  NICs may be in the network namespace that this process is in

    Raises ConfigError, VnicError where it does not come up.
    """
    allow_open_files()
    with signals_only_ask(), instance_lock(instance):
        privileges.drop(privileges.SUPERVISOR, inherit=True)
        agent = NamespaceAgent.start(lambda: privileges.drop(privileges.AGENT, inherit=True))
        try:
            with listening(instance) as listener:
                if clients:
                    open_to_clients(instance)
                listener.listen(BACKLOG)
                supervisor = Supervisor(
                    instance, listener, agent, module, host_interfaces=host_interfaces
                )
                if guaranteed:
                    supervisor.store.put(keeper.GUARANTEED, [keeper.write_document(b"")])
                supervisor.run(config, ready)
        finally:
            agent.stop()
