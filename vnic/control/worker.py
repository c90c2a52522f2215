"""The worker: the process that runs an instance's engines and answers its clients, started and watched by the supervisor.

    python -m vnic.control.worker CALLS EVENTS LISTENER SUPERVISOR     (three descriptors, a pid)

It begins with what the supervisor kept (keeper.py): nothing but the configuration, or all that a worker before it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dataplane.errors import ConfigError, VnicError
from vnic.control import keeper
from vnic.control.convert import decode_config
from vnic.control.server import Server

if TYPE_CHECKING:
    from typing import Protocol

    from vnic.control.schema import Config
    from vnic.control.server import Controllable

    class RunnableRuntime(Controllable, Protocol):
        def start(self) -> None: ...
        def close(self) -> None: ...

    MakeRuntime = Callable[[Config, asyncio.AbstractEventLoop, keeper.Keeper, keeper.Start], RunnableRuntime]

PR_SET_PDEATHSIG = 1

log = logging.getLogger("vnic")


def die_with(supervisor: int) -> None:
    """Has the kernel end this process when the supervisor ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it ended before that
        os._exit(1)


def _inherit(events: socket.socket) -> tuple[dict[str, list[int]], keeper.Start]:
    """What the supervisor kept, and how to begin."""
    kept: dict[str, list[int]] = {}
    while True:
        data, descriptors = keeper.receive(events)
        if not data:
            raise VnicError("the supervisor is gone")
        message = keeper.decode_to_worker(data)
        if isinstance(message, keeper.Start):
            return kept, message
        assert isinstance(message, keeper.Item)
        kept[message.key] = descriptors


def make_runtime(
    config: Config, loop: asyncio.AbstractEventLoop, keeping: keeper.Keeper, start: keeper.Start
) -> RunnableRuntime:
    """The real one."""
    from vnic.control.devices import KeptTapDevices
    from vnic.control.runtime import Runtime

    return Runtime(config, loop=loop, devices=KeptTapDevices(keeping), keeping=keeping, role=start.role)


class Worker:
    """Serves a runtime until the supervisor or a client ends it."""

    def __init__(self, calls: socket.socket, events: socket.socket, listener: socket.socket, make: MakeRuntime) -> None:
        self._events, self._listener, self._make = events, listener, make
        kept, self._start = _inherit(events)
        (document,) = kept.pop("config")
        self._config = decode_config(keeper.read_document(document))
        os.close(document)
        self._keeper = keeper.Keeper(calls, kept)
        self._stop = asyncio.Event()
        self._shut_down = False  # by a client

    def tell(self, message: keeper.FromWorker) -> None:
        """A word to the supervisor; where it is gone, the kernel ends us."""
        with contextlib.suppress(OSError):
            keeper.send(self._events, message)

    async def run(self) -> None:
        """Comes up, says so, and returns when everything is taken down."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        runtime = self._make(self._config, loop, self._keeper, self._start)
        try:
            runtime.start()
            self._keeper.close()
            server = Server(runtime, self._on_shutdown, _version(), self._supervisor_status())
            await server.start(self._listener)
            try:
                loop.add_reader(self._events, self._hear)
                self.tell(keeper.Ready())
                await self._stop.wait()
            finally:
                # Clients hang on until everything is gone: that is how `vnic down` knows.
                loop.remove_reader(self._events)
                runtime.close()
                await server.close()
        finally:
            runtime.close()
        self.tell(keeper.Stop())

    def _supervisor_status(self) -> dict[str, Any]:
        start = self._start
        return {"pid": start.supervisor, "restarts": start.restarts, "last": start.last or None}

    def _on_shutdown(self) -> None:
        self._shut_down = True
        self._stop.set()

    def _hear(self) -> None:
        data, descriptors = keeper.receive(self._events)
        keeper.close_all(descriptors)
        if not data or isinstance(keeper.decode_to_worker(data), keeper.Quit):
            self._stop.set()


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("vnic")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(arguments: list[str], make: MakeRuntime = make_runtime) -> int:
    """Exit status 0: as asked; 1: it failed, and the supervisor knows why."""
    calls, events, listener, supervisor = map(int, arguments)
    die_with(supervisor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until there is a loop to take it: the supervisor decides
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    says = socket.socket(fileno=events)

    async def run() -> None:
        await Worker(socket.socket(fileno=calls), says, socket.socket(fileno=listener), make).run()

    try:
        asyncio.run(run())
    except VnicError as error:
        with contextlib.suppress(OSError):
            keeper.send(says, keeper.Failed(" ".join(str(error).split())[:4000], isinstance(error, ConfigError)))
        return 1
    except Exception as error:  # a bug
        if os.environ.get("VNIC_DEBUG", "0") not in ("", "0"):
            log.exception("the worker failed")
        with contextlib.suppress(OSError):
            keeper.send(says, keeper.Failed(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:1000]}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
