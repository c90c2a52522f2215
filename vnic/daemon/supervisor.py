"""The supervisor: the small process of an instance that stores its persistent resources and
restarts its worker.

It holds the instance's lock, its listening control socket, and the items listed in keeper.py, and
starts the namespace agent and the worker. A worker that ends is replaced: at once, then after
pauses that double up to PAUSE_MOST_S while workers keep ending. If the supervisor itself ends, the
kernel ends worker and agent. It has one thread, and imports neither numpy nor compiled modules of
vnic.

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

from dataplane.descriptors import close_all, readable, system_error
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
    refuse_clients,
    signals_deferred,
    wakeups,
)
from vnic.daemon.notify import ServiceManager
from vnic.daemon.worker_process import WorkerProcess
from vnic.device.agent import NamespaceAgent
from vnic.device.kinds.registry import interface_kind
from vnic.device.namespaces import NetNamespace, identity_of
from vnic.device.tap import Tap, TapRequest
from vnic.store import keeper

PAUSE_FIRST_S, PAUSE_MOST_S = 0.1, 10.0
PAUSE_TOLD_S = 1.0  # clients wait during a shorter pause, and get an error during a longer one
WELL_S = 3.0  # after a worker that ran this long, pauses begin at 0 again
START_TIMEOUT_S = 120.0  # a thousand NICs take 10 s on two busy CPUs
STOP_TIMEOUT_S = 30.0
PING_S = 2.0  # between two Pings
MESSAGES_MOST = 1024  # messages from one worker before those from the other
# time without a Pong until it is logged; the worker may only be slow, so it is not killed
SILENT_S = 5.0
SILENT_STOP_S = 5.0  # time limit to stop for a worker that did not answer before

log = Log("vnic")


class Supervisor:
    """Runs an instance until its end. module: the worker's main module."""

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
        self._python = ""  # interpreter of the next worker: the last upgrade's, also after a crash
        # the interpreter before the last upgrade, until the new one has started a worker by itself
        self._python_before: str | None = None
        self.store = keeper.Store()
        self.worker: WorkerProcess | None = None
        self.successor: WorkerProcess | None = None
        self._leaving: WorkerProcess | None = None  # has handed over and is ending
        self._ping_at_s = 0.0
        self.restarts = 0
        self.last = ""  # why the last worker ended
        self._pause_s = 0.0
        self._start_at_s: float | None = None  # when to start the next worker
        self._died_s = 0.0  # when the last worker ended
        self._refusing = False  # during a long pause, clients get an error instead of waiting
        self._asked_to_stop_s: float | None = None
        self._announce = True  # `ready` has not been called yet
        self._manager = ServiceManager()
        self._hangup_ends = hangup_ends()

    # -- workers -----------------------------------------------------------------------------------

    def start_worker(self, role: str, python: str = "") -> WorkerProcess:
        """Starts a worker and sends it all stored items. Raises OSError."""
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
        """Runs the instance until a signal or a client's Shutdown. Calls `ready` with the worker's
        pid once the first worker is up. Raises ConfigError, VnicError if it cannot be started."""
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
                    self._start_at_s, self._refusing = None, False
                except OSError as error:  # such as ENOMEM, after the OOM killer ended the last one
                    self._pause(f"it cannot be started: {system_error(error)}")
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
            # a healthy worker sends HandedOver within seconds
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
        """Closes the worker that has handed over, once it has ended, which takes milliseconds."""
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
        """Sends a Ping every PING_S, and logs once that there is no Pong. The worker may only be
        slow, so it is not killed; clients get an error, and `vnic down` does not wait for it."""
        now_s = time.monotonic()
        # a worker may not answer while it hands over or stops; both have their own time limits
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
        """Whether a worker has ended; kills one that takes too long to start or to stop."""
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
        """After the worker's end: its successor continues, or the next worker starts after a pause.
        Returns True when the instance has ended."""
        if self.successor is not None:
            self._receive(self.successor)
            took_over = self.successor is not None and self.successor.took_over_s is not None
            if took_over and worker.failure is None:  # else both workers have engines
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
        if self.successor is not None:  # both workers may have engines
            self._close_successor()
            self._manager.ready(f"upgrade failed: the worker ended: {why}")
        if not was_ready:
            self._swap_pythons()
        if stopped or self._asked_to_stop_s is not None:
            self._asked_to_stop_s = self._asked_to_stop_s or time.monotonic()
            return True
        if self._announce:  # no worker has come up yet
            if failure is not None:
                raise (ConfigError if failure.config else VnicError)(failure.error)
            raise VnicError(f"the worker ended while it came up: {why}")
        self._pause(why, well=was_ready and served_s >= WELL_S, pid=worker.pid)
        return False

    def _swap_pythons(self) -> None:
        """Selects the next worker's interpreter after one failed to start: alternately the last
        upgrade's and the one before, whose version may be unable to read the stored items, until
        a worker has started outside an upgrade."""
        if self._python_before is not None:
            self._python, self._python_before = self._python_before, self._python
            log.error("next worker is of another Python", python=self._python or sys.executable)

    def _pause(self, why: str, *, well: bool = False, pid: int | None = None) -> None:
        """After a worker's end or failed start: logs the reason and schedules the next start. well:
        the worker had run for WELL_S."""
        self.restarts += 1
        self.last = why
        self._pause_s = 0.0 if well else min(max(2 * self._pause_s, PAUSE_FIRST_S), PAUSE_MOST_S)
        if self.restarts == 1:
            self._pause_s = 0.0
        self._died_s = time.monotonic()
        self._start_at_s = self._died_s + self._pause_s
        self._refusing = self._pause_s >= PAUSE_TOLD_S
        log.error("worker ended", pid=pid, why=why, restarts=self.restarts, next_in_s=self._pause_s)
        self._manager.status(f"worker ended: {why}; the next one starts in {self._pause_s:g} s")

    def _close_successor(self) -> None:
        """Ends the successor, and the preference of the worker if there is one."""
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

    # -- messages ----------------------------------------------------------------------------------

    def _wait(self, woken: socket.socket) -> None:
        """Waits for a message, a worker's end, a signal, or the end of a pause."""
        with selectors.PollSelector() as selector:  # needs no descriptor: all may be in use
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
            if self._refusing or self._worker_is_silent:
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
                        "SIGHUP ignored: 'vnic upgrade' replaces the program, "
                        "commands change the configuration"
                    )
                else:
                    self.stop()
        for worker in filter(None, (self.worker, self.successor)):
            self._receive(worker)
            worker.send_on()
        if self._refusing:
            self._refuse_clients()
        elif self._worker_is_silent:
            self._refuse_for_silence()

    def _answers(self, worker: WorkerProcess) -> bool:
        """Whether to process a worker's calls. Those of a successor that is joined to the worker
        wait until its TookOver was read."""
        return worker is not self.successor or not worker.joined

    @property
    def _worker_is_silent(self) -> bool:
        return self.worker is not None and self.worker.silent and self.successor is None

    def _refuse_for_silence(self) -> None:
        """Refuses clients because the worker does not answer."""
        assert self.worker is not None
        why = (
            f"instance {self.instance}: its worker (pid {self.worker.pid}) stands still, "
            f"and has not answered for {time.monotonic() - (self.worker.asked_s or 0.0):.0f} s; "
            "end the instance with 'vnic down', or kill the worker, "
            "which another one replaces then"
        )
        if not refuse_clients(
            self._listener,
            why,
            f"instance {self.instance}: does not work at the moment; try again later",
        ):
            self.worker.silent = False  # no file can be opened: try again after the next Ping
            self.worker.asked_s = None

    def _refuse_clients(self) -> None:
        """Refuses clients because there is no worker."""
        now_s = time.monotonic()
        why = (
            f"instance {self.instance}: its worker died {self.restarts} times, "
            f"last {now_s - self._died_s:.0f} s ago ({self.last}); "
            f"next try in {max(0.0, self._died_s + self._pause_s - now_s):.0f} s"
        )
        # Where no file can be opened, clients wait for the end of the pause, or this loop would
        # spin.
        self._refusing = refuse_clients(
            self._listener,
            why,
            f"instance {self.instance}: does not work at the moment; try again later",
        )

    def _receive(self, worker: WorkerProcess) -> None:
        """Handles all waiting messages. Kills a worker that sends an invalid one; refuses a call
        that fails because this process lacks resources."""
        for sock, handle in ((worker.calls, self._answer), (worker.events, self._event)):
            for _ in range(MESSAGES_MOST):  # bounded: a worker may send without end
                # closed, or no longer a worker after its HandedOver
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
                except ConnectionResetError:  # it ended with unread messages
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
                    except (VnicError, OSError) as error:
                        # the kernel removes it somewhat after its last descriptor is closed
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
            # the worker waited for this answer, so it could not send a Pong
            worker.asked_s = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            keeper.send(worker.calls, answer, reply, wait=False)

    def _request(
        self, nic: str, kind: str, request: msgspec.Raw, container: list[int]
    ) -> TapRequest:
        """Decodes a worker's request according to the NIC's kind. Raises ConfigError after closing
        the container's descriptors."""
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
                f"nic {nic}: {namespace.label}: this is the network namespace that vnic itself "
                "runs in; to allow NICs there, put 'host_interfaces: true' into the configuration "
                "file and start the instance again"
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
        """The interface stored under a key, with duplicates of its descriptors; None if no
        interface that needs the agent is stored there."""
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
        """Removes an interface now, if the kernel would remove it only somewhat after its last
        descriptor is closed."""
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
                # valid once the worker confirms it or has ended
                worker.took_over_s = worker.took_over_s or time.monotonic()
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

    # -- upgrade -----------------------------------------------------------------------------------

    def _upgrade(self, worker: WorkerProcess, python: str) -> None:
        if worker is not self.worker or self.successor is not None:
            worker.tell(keeper.Failed("an upgrade is under way already"))
            return
        try:
            self.successor = self.start_worker("successor", python)
            worker.prefer()
            self._manager.reloading("upgrade: the next worker starts")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            # no such file, not a path, no privileges
            why = getattr(error, "strerror", None) or error
            worker.tell(keeper.Failed(f"{python or self._python or sys.executable}: {why}"))

    def _introduce(self, successor: WorkerProcess) -> None:
        """Connects the old and the new worker by a socket, over which they hand over."""
        try:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self._end_successor(f"it cannot be joined to the worker: {system_error(error)}")
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
        # start of the new one's run time, and of the old one's STOP_TIMEOUT_S
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
    """Runs an instance until SIGINT, SIGTERM, Shutdown or, on a terminal, SIGHUP. Drops unneeded
    privileges (privileges.py). When the worker is up, calls `ready` with its pid and notifies the
    service manager (notify.py).

    config           from vnic.config.convert.encode_config
    clients          other users may connect
    guaranteed       a group has a guarantee of CPU time
    host_interfaces  NICs may be in this process' network namespace

    Raises ConfigError, VnicError if the instance cannot be started.
    """
    allow_open_files()
    with signals_deferred(), instance_lock(instance):
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
