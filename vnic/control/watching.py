"""Watching over the containers of NICs: a NIC goes with its container, and comes back with it where that can be known.

A NIC goes when its container ends, when its network namespace loses its name, or when its interface is deleted inside the container. One
of the configuration whose namespace has a name (`netns: PATH`) waits then, with its settings, number and MAC address, and is attached
again when a namespace appears at that path. That it waits is part of the configuration, so the next worker knows it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from dataplane.errors import ConfigError, VnicError
from vnic.control.log import Log
from vnic.control.schema import NicConfig
from vnic.device.descriptors import system_error
from vnic.device.namespaces import ReturnWatch

if TYPE_CHECKING:
    from vnic.control.nics import Nics
    from vnic.control.parts import Attached

LOOK_S = 0.05  # after a sign that a namespace may have come back: more signs often follow at once
RETRY_S = 10.0  # while no descriptor is left to watch with

log = Log("vnic")


class Watching:
    """The watch over the containers of `nics`. Its callbacks run on the runtime's loop; without one nothing is watched."""

    def __init__(self, nics: Nics) -> None:
        self._nics, self._runtime = nics, nics.runtime
        self._gone: dict[Attached, str] = {}  # detached as soon as that can be kept
        self._refused: dict[
            str, str
        ] = {}  # by name: why a NIC that waits could not be attached though something is at its path
        self._returns: ReturnWatch | None = None
        self._later: asyncio.TimerHandle | None = None
        # Before a successor has taken over, nothing is its own to change.
        self._holds = self._runtime.role == "successor"

    @property
    def waiting(self) -> dict[str, NicConfig]:
        """NICs that wait for their namespaces, by name."""
        return {name: config for name, config in self._nics.config.nics.items() if config.waiting}

    def over(self, attached: Attached) -> None:
        """Watches over a NIC's container from here on."""
        if self._runtime.loop is not None:
            attached.watch.on_gone(self._runtime.loop, lambda: self._target_gone(attached))

    def over_all(self) -> None:
        """Watches over all containers from here on; on the loop's thread."""
        for attached in self._nics.attached.values():
            self.over(attached)

    def claim(self) -> None:
        """A successor has taken over. What happened meanwhile, the worker before may have seen and we not."""
        self._holds = False
        self.over_all()
        self.settle()
        self.look()

    # -- what goes ---------------------------------------------------------------------------------------------------------

    def _target_gone(self, attached: Attached) -> None:
        with self._runtime.lock:
            self._gone[attached] = attached.watch.why
            self.settle()

    def changed(self) -> None:
        """A change has been kept, so another one may be."""
        if self._gone and self._runtime.loop is not None:
            self._runtime.loop.call_soon_threadsafe(self.settle)

    def settle(self) -> None:
        """Detaches the NICs whose containers are gone. What cannot be kept now (an upgrade is under way, the supervisor has no room)
        stays on the list: until the upgrade's end, or the next change that is kept."""
        with self._runtime.lock:
            if self._holds or self._runtime.upgrading or self._runtime.closed:
                return
            for attached, why in list(self._gone.items()):
                name = attached.config.name
                now = self._nics.attached.get(name)  # it may have got other elements since, around the same interface
                if now is not None and now.watch is attached.watch:
                    try:
                        self._nics.detach(name, why, waits=now.config.returns and not now.watch.deleted)
                    except VnicError as error:
                        log.warning("container gone, but not detached", nic=name, why=str(error))
                        continue
                del self._gone[attached]

    # -- what comes back ---------------------------------------------------------------------------------------------------

    def attach_first(self, config: NicConfig) -> None:
        """Attaches a NIC of the configuration when this worker comes up. Where that fails, the error is raised: by the first worker
        unless it may come up in part, and by a successor. Any other goes on without it, for the sake of the others; only then is
        what was kept of it dropped, since a worker that fails for another reason leaves that to the next."""
        if config.waiting and self._runtime.role == "successor":
            return  # as in the worker before: both have the same graph
        why, config.waiting = config.waiting, ""
        try:
            self._nics.put_in(config)
        except VnicError as error:
            if self._runtime.role == "successor" or (self._runtime.role == "first" and not self._nics.config.partial):
                where = f" ({config.where})" if config.where else ""
                kind = ConfigError if isinstance(error, ConfigError) else VnicError
                raise kind(f"nic {config.name}{where}: {str(error).removeprefix(f'nic {config.name}: ')}") from None
            self._nics.forget(config)
            if config.returns:
                config.waiting = why or str(error)
                log.warning("nic waits", nic=config.name, why=config.waiting)
                self.look()
            else:
                self._runtime.losses.add(f"nic {config.name}", str(error))
                del self._nics.config.nics[config.name]

    def status(self) -> list[dict[str, Any]]:
        """NICs that wait, and why."""
        return [
            {
                "name": name,
                "owner": None if config.owner is None else int(config.owner),
                "netns": config.netns,
                "why": "; not attached again: ".join(dict.fromkeys((config.waiting, self._refused.get(name, config.waiting)))),
            }
            for name, config in self.waiting.items()
        ]

    def look(self) -> None:
        """Attaches the NICs whose namespaces are there, and watches for the others: soon, on the loop's thread."""
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
                self._watch_for([str(config.netns) for config in waiting.values()], loop)  # first: then nothing is missed
            except OSError as error:
                log.warning("nics that wait are not watched for", why=system_error(error))
                self._later = loop.call_later(RETRY_S, self._look)
            for name, config in waiting.items():
                # A link below /proc is no worker's to follow: the supervisor, which may, says where it leads nowhere.
                if os.path.lexists(str(config.netns)):
                    try:
                        self._nics.bring_back(config)
                    except VnicError as error:
                        if str(error) not in (config.waiting, self._refused.get(name)):
                            log.warning("nic waits", nic=name, why=str(error))
                        self._refused[name] = str(error)

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
        # Mounts come and go with every container of the machine: that must not keep the loop busy.
        loop.remove_reader(watch)
        self._later = loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Ends all of it, on the loop's thread."""
        if self._runtime.loop is not None:
            self._watch_for([], self._runtime.loop)
