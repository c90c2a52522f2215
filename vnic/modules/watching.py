"""Watches the containers of NICs: detaches a NIC when its container is gone, and attaches it again
when the namespace returns.

A NIC is detached when its container ends, when its network namespace loses its name, or when its
interface is deleted inside the container. A NIC of the configuration whose namespace has a name
(`netns: PATH`) then waits, with its settings, number and MAC address, and is attached again when a
namespace appears at that path. Waiting is part of the configuration, so the next worker knows it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from dataplane.descriptors import system_error
from dataplane.errors import ConfigError, VnicError
from vnic.api.log import Log
from vnic.config.schema import NicConfig
from vnic.device.namespaces import ReturnWatch
from vnic.modules.host import Host
from vnic.modules.loop import on_loop
from vnic.modules.nic_node import NicNode

LOOK_S = 0.05  # from an event to the check for namespaces: more events often follow at once
RETRY_S = 10.0  # to try again while no descriptor is available for a watch

log = Log("vnic")


class Watched(Protocol):
    """The part of vnic.modules.network.Network that the watch uses."""

    @property
    def attached(self) -> Mapping[str, NicNode]: ...
    def put_in(self, config: NicConfig) -> object: ...
    def bring_back(self, config: NicConfig) -> None: ...
    def forget(self, config: NicConfig) -> None: ...
    def detach(self, name: str, why: str, *, waits: bool) -> None: ...


class Watching:
    """Watches the containers of `nics`. Callbacks run on the runtime's loop; without a loop nothing
    is watched."""

    def __init__(self, host: Host, nics: Watched) -> None:
        self._nics, self._runtime = nics, host
        self._gone: dict[NicNode, str] = {}  # to detach once the change can be stored
        # by name: why a waiting NIC could not be attached although its path exists
        self._refused: dict[str, str] = {}
        self._returning: dict[str, asyncio.Task[None]] = {}  # NICs that are being attached again
        self._returns: ReturnWatch | None = None
        self._later: asyncio.TimerHandle | None = None
        # a successor changes nothing before it has taken over
        self._holds = self._runtime.role == "successor"

    @property
    def waiting(self) -> dict[str, NicConfig]:
        """NICs that wait for their namespaces, by name."""
        return {
            name: config for name, config in self._runtime.config.nics.items() if config.waiting
        }

    def over(self, attached: NicNode) -> None:
        """Watches a NIC's container from now on."""
        if (loop := self._runtime.loop) is not None:
            on_loop(loop, partial(self._watch, attached, loop))

    def _watch(self, attached: NicNode, loop: asyncio.AbstractEventLoop) -> None:
        now = self._nics.attached.get(attached.config.name)
        if now is not None and now.watch is attached.watch:  # else it is detached already
            attached.watch.on_gone(loop, lambda: self._target_gone(attached))

    def end(self, attached: NicNode) -> None:
        """Ends the watch over a NIC's container."""
        on_loop(self._runtime.loop, attached.watch.close)

    def over_all(self) -> None:
        """Watches all containers from now on; on the loop's thread."""
        for attached in self._nics.attached.values():
            self.over(attached)

    def claim(self) -> None:
        """A successor has taken over: checks everything, since earlier events may have been read by
        the previous worker only."""
        self._holds = False
        self.over_all()
        self.settle()
        self.look()

    # -- containers that end -----------------------------------------------------------------------

    def _target_gone(self, attached: NicNode) -> None:
        with self._runtime.lock:
            self._gone[attached] = attached.watch.why
            self.settle()

    def changed(self) -> None:
        """A change was stored, so that pending ones may be possible, too."""
        if self._gone and self._runtime.loop is not None:
            self._runtime.loop.call_soon_threadsafe(self.settle)

    def settle(self) -> None:
        """Detaches the NICs whose containers are gone. A change that cannot be stored now (during
        an upgrade, or if the supervisor has no room) stays on the list until the upgrade's end or
        the next stored change."""
        with self._runtime.lock:
            if self._holds or self._runtime.upgrading or self._runtime.closed:
                return
            for attached, why in list(self._gone.items()):
                name = attached.config.name
                # it may have got other elements since, around the same interface
                now = self._nics.attached.get(name)
                if now is not None and now.watch is attached.watch:
                    try:
                        self._nics.detach(
                            name, why, waits=now.config.returns and not now.watch.deleted
                        )
                    except VnicError as error:
                        log.warning("container gone, but not detached", nic=name, why=str(error))
                        continue
                del self._gone[attached]

    # -- namespaces that return --------------------------------------------------------------------

    def attach_first(self, config: NicConfig) -> None:
        """Attaches a NIC of the configuration when this worker comes up. Raises an error in the
        first worker (unless `--partial`) and in a successor. Any other worker continues without the
        NIC. Only then is its stored state deleted: a worker that fails for another reason leaves it
        to the next."""
        if config.waiting and self._runtime.role == "successor":
            return  # as in the previous worker: both have the same graph
        why, config.waiting = config.waiting, ""
        try:
            self._nics.put_in(config)
        except VnicError as error:
            if self._runtime.role == "successor" or (
                self._runtime.role == "first" and not self._runtime.config.partial
            ):
                where = f" ({config.where})" if config.where else ""
                kind = ConfigError if isinstance(error, ConfigError) else VnicError
                raise kind(
                    f"nic {config.name}{where}: {str(error).removeprefix(f'nic {config.name}: ')}"
                ) from None
            self._nics.forget(config)
            if config.returns:
                config.waiting = why or str(error)
                log.warning("nic waits", nic=config.name, why=config.waiting)
                self.look()
            else:
                self._runtime.losses.add(f"nic {config.name}", str(error))
                del self._runtime.config.nics[config.name]

    def status(self) -> list[dict[str, Any]]:
        """Waiting NICs, with the reasons."""
        return [
            {
                "name": name,
                "owner": None if config.owner is None else int(config.owner),
                "netns": config.netns,
                "why": "; not attached again: ".join(
                    dict.fromkeys((config.waiting, self._refused.get(name, config.waiting)))
                ),
            }
            for name, config in self.waiting.items()
        ]

    def look(self) -> None:
        """Attaches waiting NICs whose namespaces exist, and watches for the others; soon, on the
        loop's thread."""
        if self._runtime.loop is not None and not self._holds:
            self._runtime.loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        loop = self._runtime.loop
        assert loop is not None
        with self._runtime.lock:
            self._watch_for([], loop)
            waiting = self.waiting
            self._refused = {name: why for name, why in self._refused.items() if name in waiting}
            if self._runtime.upgrading or self._runtime.closed or not waiting:
                return
            try:
                # before the check, so no event is missed
                self._watch_for([str(config.netns) for config in waiting.values()], loop)
            except OSError as error:
                log.warning("nics that wait are not watched for", why=system_error(error))
                self._later = loop.call_later(RETRY_S, self._look)
            for name, config in waiting.items():
                # lexists: only the supervisor may follow a link below /proc.
                if name not in self._returning and os.path.lexists(str(config.netns)):
                    self._returning[name] = loop.create_task(self._bring_back(name, config))

    async def _bring_back(self, name: str, config: NicConfig) -> None:
        try:
            await self._runtime.aside(partial(self._nics.bring_back, config))
        except VnicError as error:
            if name in self.waiting and not self._runtime.closed:
                if str(error) not in (config.waiting, self._refused.get(name)):
                    log.warning("nic waits", nic=name, why=str(error))
                self._refused[name] = str(error)
        except Exception as error:  # a bug must not end the watch
            log.error("nic waits", nic=name, error=error)
        finally:
            del self._returning[name]

    async def returned(self) -> None:
        """Waits for the NICs that are being attached again."""
        while self._returning:
            await asyncio.wait(list(self._returning.values()))

    def _watch_for(self, paths: list[str], loop: asyncio.AbstractEventLoop) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._returns is not None:
            loop.remove_reader(self._returns)
            self._returns.close()
            self._returns = None
        if paths:
            self._returns = ReturnWatch(paths)
            loop.add_reader(self._returns, self._told, self._returns, loop)

    def _told(self, watch: ReturnWatch, loop: asyncio.AbstractEventLoop) -> None:
        # Every container of the machine changes mounts: LOOK_S bounds the CPU time that this costs.
        loop.remove_reader(watch)
        self._later = loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Ends the watch for returning namespaces; on the loop's thread."""
        if self._runtime.loop is not None:
            self._watch_for([], self._runtime.loop)
