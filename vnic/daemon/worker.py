"""The worker: the process that runs an instance's engines and serves its clients.

The supervisor starts it by launch.py, with three descriptors, its own pid and the worker's role,
and sends it the stored items (keeper.py): the configuration only, or everything that an earlier
worker has stored.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dataplane.descriptors import close_all
from dataplane.engine.pace import PAUSE_NS, STEP_NS, Pace
from dataplane.errors import ConfigError, VnicError, one_line
from vnic.api.events import Bus, differences, observe
from vnic.api.log import Log, set_up
from vnic.api.methods import Methods
from vnic.api.server import Server
from vnic.config.convert import decode_config
from vnic.daemon import privileges
from vnic.runtime.instance import Instance
from vnic.store import keeper

if TYPE_CHECKING:
    from vnic.api.connection import Transfer
    from vnic.config.schema import Config
    from vnic.runtime.runtime import Runtime

    MakeRuntime = Callable[
        [Config, asyncio.AbstractEventLoop, keeper.Keeper, keeper.Start], Runtime
    ]

PR_SET_PDEATHSIG = 1
BROWNOUT_S = 120.0
WATCH_S = 1.0
RETRY_S = 0.25
RECORD_LEAST_S, RECORD_RETRY_S = 0.01, 60.0

log = Log("vnic")


def die_with(supervisor: int) -> None:
    """Makes the kernel kill this process when the supervisor ends in any way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it ended before that
        os._exit(1)


def _inherit(events: socket.socket) -> tuple[dict[str, list[int]], keeper.Start]:
    """Receives the stored items, by key, and the Start message."""
    items: dict[str, list[int]] = {}
    while True:
        data, descriptors = keeper.receive(events)
        if not data:
            raise VnicError("the supervisor is gone")
        message = keeper.decode_to_worker(data)
        if isinstance(message, keeper.Start):
            return items, message
        assert isinstance(message, keeper.Item)
        items[message.key] = descriptors


def _read(item: list[int]) -> bytes:
    """Reads an item that is a document, and closes it."""
    try:
        return keeper.read_document(item[0])
    finally:
        close_all(item)


def make_runtime(
    config: Config, loop: asyncio.AbstractEventLoop, keeping: keeper.Keeper, start: keeper.Start
) -> Runtime:
    """Makes the runtime of an instance."""
    from vnic.modules.devices import StoredDevices
    from vnic.runtime.runtime import Runtime

    return Runtime(
        config, loop=loop, devices=StoredDevices(keeping), keeping=keeping, role=start.role
    )


def failure(error: BaseException) -> keeper.Failed:
    """The message by which a worker reports why it ends."""
    if not isinstance(error, VnicError) and os.environ.get("VNIC_DEBUG", "0") not in ("", "0"):
        log.error("worker failed", error=error)
    return keeper.Failed(one_line(error), isinstance(error, ConfigError))


class Worker:
    """Serves a runtime until the supervisor or a client ends it."""

    def __init__(
        self,
        calls: socket.socket,
        events: socket.socket,
        listener: socket.socket,
        make: MakeRuntime,
    ) -> None:
        self._events, self._listener, self._make = events, listener, make
        items, self._start = _inherit(events)
        self._document = _read(items.pop("config"))
        self._config = decode_config(self._document)
        # the first worker's version, also the supervisor's and agent's, which upgrades do not
        # change
        self._first_version = (
            _read(items.pop("version")).decode() if "version" in items else _version()
        )
        # The supervisor dropped them already (privileges.py), except for inheritance. There is no
        # other thread yet.
        privileges.drop(privileges.worker(guaranteed=self._config.guaranteed))
        self._keeper = keeper.Keeper(calls, items)
        self._keeper.may_change = self._start.role != "successor"
        if self._start.role == "first":
            self._keeper.put_document("version", self._first_version.encode())
        self._stop = asyncio.Event()
        self._look = asyncio.Event()  # the end of the policy of shaping may have come
        # the socket to the other worker during an upgrade
        self._joined: asyncio.Future[socket.socket] | None = None
        self._handed_over = False  # the successor has all engines
        self._clients: list[Transfer] = []  # from the worker before
        self._runtime: Runtime | None = None
        self._up = False  # the supervisor has been told that this worker is ready

    def tell(self, message: keeper.FromWorker) -> None:
        """Sends a message to the supervisor; if that has ended, the kernel kills this process."""
        with contextlib.suppress(OSError):
            keeper.send(self._events, message)

    async def run(self) -> None:
        """Starts the runtime, reports that, and returns when it was closed in an orderly way.

        That happens when the supervisor or a client requests it, or when the first worker fails to
        start, whose resources no other process uses. After any other failure, the next worker or
        the one that still runs needs these resources: then this process ends at once, as if it had
        been killed, since Python's shutdown would free and close them.
        """
        try:
            await self._run()
        except BaseException as error:
            if self._start.role != "first" or self._up:
                self.tell(failure(error))
                os._exit(1)
            if self._runtime is not None:
                self._runtime.close()
            raise

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._bus = Bus(loop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor handles it
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_reader(self._events, self._hear)
        runtime, methods = await self._build(loop)
        if self._start.role == "successor":
            self._running().start_threads()
            await self._take_over()
        async with contextlib.AsyncExitStack() as serving:
            await self._serve_metrics(serving, runtime)
            self._server = server = Server(methods)
            await server.start(self._listener.dup())
            for client in self._clients:
                server.adopt(client)
            if self._start.role == "successor":
                self._running().claim(
                    {number for client in self._clients for number in client.captures},
                    [each.policy for each in self._clients if each.policy is not None],
                )
            await asyncio.sleep(0)  # lets the clients' event streams start again
            self._bus.emit(
                "worker", pid=os.getpid(), role=self._start.role, last=self._start.last or None
            )
            watching = loop.create_task(self._watch())
            recording = loop.create_task(self._record())
            self._up = True
            self.tell(keeper.TookOver() if self._start.role == "successor" else keeper.Ready())
            await self._stop.wait()
            # Clients stay connected until everything is closed: `vnic down` waits for that.
            loop.remove_reader(self._events)
            watching.cancel()
            recording.cancel()
        if self._handed_over:
            await server.close()
            self._running().let_go()
            self.tell(keeper.HandedOver())
            os._exit(0)  # an orderly shutdown would close resources that the successor uses
        try:
            runtime.close()
            await server.close()
        finally:
            self.tell(keeper.Stop())

    async def _build(self, loop: asyncio.AbstractEventLoop) -> tuple[Runtime, Methods]:
        """Makes and starts the runtime and its methods. A successor does so in short steps, since
        the running engines need the CPUs, and on a separate thread, so that the event loop answers
        meanwhile."""

        def build() -> tuple[Runtime, Methods]:
            self._runtime = runtime = self._make(self._config, loop, self._keeper, self._start)
            runtime.emit = self._bus.emit
            runtime.start()
            self._keeper.close()
            # Excludes objects that live as long as the worker from garbage collection: with a
            # thousand NICs a collection takes tens of ms, perhaps while an engine is halted.
            gc.freeze()
            return runtime, self._offer(runtime)

        def build_aside() -> tuple[Runtime, Methods]:
            with Pace(STEP_NS, PAUSE_NS):
                return build()

        if self._start.role != "successor":
            return build()
        with concurrent.futures.ThreadPoolExecutor(1) as aside:
            return await loop.run_in_executor(aside, build_aside)

    def _offer(self, runtime: Runtime) -> Methods:
        """The methods of all modules. A successor collects them before it takes over, so that
        conflicting names make the upgrade fail."""
        version = _version()
        instance = Instance(runtime, self._bus, version, self._supervisor_status(), self.upgrade)
        methods = Methods([instance], version, self._stop.set, self._config.clients)
        for module in list(runtime.modules):
            try:
                methods.add(module)
            except Exception as error:
                runtime.lose(module, error)
        return methods

    async def _serve_metrics(self, serving: contextlib.AsyncExitStack, runtime: Runtime) -> None:
        """Serves metrics. If that fails, the first worker does not start: its user sees the error.
        Later workers continue without metrics, since any user may bind the port between two workers
        and must not be able to end the network."""
        if (config := self._config.metrics) is None:
            return
        try:
            from vnic.api import metrics

            process = {"version": _version(), "supervisor": self._supervisor_status()}
            await serving.enter_async_context(
                metrics.serving(config, runtime, process, first=self._start.role == "first")
            )
        except Exception as error:
            if self._start.role == "first":
                raise
            why = (
                f"{one_line(error).removeprefix('metrics: ')}; "
                "or end what is there, and 'vnic upgrade' tries again"
            )
            self._running().losses.add("metrics", why, kept=False)

    # -- upgrade -----------------------------------------------------------------------------------

    async def upgrade(self, python: str) -> dict[str, Any]:
        """Hands over everything to a new worker that runs in `python` ("": this one's), and ends;
        returns the report. Raises VnicError, and then this worker continues as before."""
        from vnic.daemon import upgrade

        runtime, begin_ns = self._running(), time.monotonic_ns()
        runtime.check_open()
        await self._server.hold(os.geteuid())
        await runtime.nics.watching.returned()
        try:
            runtime.begin_upgrade()
        except VnicError:
            if not runtime.upgrading:  # else another client has begun an upgrade meanwhile
                self._server.release()
            raise
        try:
            self._joined = asyncio.get_running_loop().create_future()
            self.tell(keeper.Upgrade(python))
            # the new worker's start and brownout; it takes as long as this worker's start
            async with asyncio.timeout(BROWNOUT_S):
                joined = await self._joined
            with joined as other:
                brownout_ns = time.monotonic_ns() - begin_ns
                self._server.stop_accepting()
                self._server.pause()
                channel = upgrade.Channel(other)
                runtime.policy.scenario.pause()
                report = upgrade.give(runtime, channel)
                self._handed_over = True
                channel.send_clients(self._server.idle())
                self._server.let_go()
        except upgrade.Torn as error:
            log.error("upgrade torn, both workers end", why=str(error))
            self.tell(keeper.Failed(str(error)))
            os._exit(1)
        except TimeoutError:
            raise VnicError(
                f"the new worker was not ready within {BROWNOUT_S:g} s; this one goes on"
            ) from None
        finally:
            self._joined = None
            if not self._handed_over:
                self.tell(keeper.Abandon())
                runtime.end_upgrade()
                self._server.release()
                self._server.resume()
                self._server.stop_accepting()
                await self._server.start(self._listener.dup())
        asyncio.get_running_loop().call_soon(self._stop.set)  # after the reply to the client
        return {**report, "brownout_ms": round(brownout_ns / 1e6, 1), "pid": os.getpid()}

    def _running(self) -> Runtime:
        assert self._runtime is not None
        return self._runtime

    async def _take_over(self) -> None:
        from vnic.daemon import upgrade

        self._joined = asyncio.get_running_loop().create_future()
        self.tell(keeper.Ready())
        async with asyncio.timeout(BROWNOUT_S):
            joined = await self._joined
        with joined as other:
            channel = upgrade.Channel(other)
            upgrade.take(self._running(), channel, self._document)
            self._clients = channel.receive_clients()
        self._keeper.may_change = True
        self._joined = None

    async def _watch(self) -> None:
        """Emits events about changes without a call: engines that move or overrun, drops that
        begin. Polls for them only while a client listens."""
        before: dict[str, Any] = {}
        policy, loop = self._running().policy, asyncio.get_running_loop()
        policy.woken = lambda: loop.call_soon_threadsafe(self._look.set)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rest_s()):
                    await self._look.wait()
            self._look.clear()
            await self._end_policy()
            if not self._bus.heard:
                before = {}
                continue
            runtime = self._running()
            try:
                now = observe(runtime.status(), runtime.stats())
            except Exception as error:  # a user's element: this loop has to end policies, too
                log.error("changes without a call", error=error)
                continue
            for event, fields in differences(before, now) if before else ():
                self._bus.emit(event, **fields)
            before = now

    async def _record(self) -> None:
        """Records the network, whether anyone asks or not: what a question is about has happened
        before it. Each sample has its time, so that one which is late is none the worse."""
        recorder = self._running().recorder
        while True:
            try:
                if recorder.rest_ns(time.monotonic_ns()) <= 0:
                    recorder.take(time.monotonic_ns())
                await asyncio.sleep(
                    max(recorder.rest_ns(time.monotonic_ns()) / 1e9, RECORD_LEAST_S)
                )
            except Exception as error:  # a bug must not end the record, nor fill the log
                log.error("recording", error=error)
                await asyncio.sleep(RECORD_RETRY_S)

    def _rest_s(self) -> float:
        """Until the next look, or the end of the policy of shaping."""
        left_ns = self._running().policy.left_ns()
        if left_ns is None:
            return WATCH_S
        # at most 0: its end could not be made, and is tried again
        return min(left_ns / 1e9, WATCH_S) if left_ns > 0 else RETRY_S

    async def _end_policy(self) -> None:
        """Ends the policy of shaping when its end has come."""
        runtime = self._running()
        left_ns = runtime.policy.left_ns()
        if left_ns is None or left_ns > 0:
            return
        try:
            if (why := await runtime.aside(runtime.policy.end)) is not None:
                log.info("policy of shaping", why=why)
        except Exception as error:  # whatever it is: a policy must not stay for ever
            why = one_line(error)
            log.error("the policy of shaping cannot be ended; tried again", why=why)

    def _supervisor_status(self) -> dict[str, Any]:
        start = self._start
        return {
            "pid": start.supervisor,
            "version": self._first_version,
            "restarts": start.restarts,
            "last": start.last or None,
        }

    def _hear(self) -> None:
        data, descriptors = keeper.receive(self._events)
        if not data:
            self._stop.set()
            return
        waiting = self._joined if self._joined is not None and not self._joined.done() else None
        match keeper.decode_to_worker(data):
            case keeper.HandOver() if waiting is not None:
                waiting.set_result(socket.socket(fileno=descriptors.pop()))
            case keeper.Failed(error) if waiting is not None:
                waiting.set_exception(VnicError(f"{error}; this worker goes on"))
            case keeper.Ping():
                self.tell(keeper.Pong())
            case keeper.Quit():
                self._stop.set()
        close_all(descriptors)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("vnic")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(arguments: list[str], make: MakeRuntime = make_runtime) -> int:
    """Runs a worker. Exit status 0: ended on request; 1: failed, and the supervisor has the
    reason."""
    calls, events, listener, supervisor = map(int, arguments[:4])
    die_with(supervisor)
    # until the event loop handles it, the supervisor alone does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up()
    to_supervisor = socket.socket(fileno=events)

    async def run() -> None:
        await Worker(
            socket.socket(fileno=calls), to_supervisor, socket.socket(fileno=listener), make
        ).run()

    try:
        asyncio.run(run())
    except Exception as error:
        with contextlib.suppress(OSError):
            keeper.send(to_supervisor, failure(error))
        return 1
    return 0
