"""Serves the peers of NICs behind a socket (kinds vhost-user, memif and stream) on control's event
loop: accepts them, and has their messages handled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from vnic.api.log import Log
from vnic.device.kinds.sockets import SocketNic
from vnic.modules.host import Host
from vnic.modules.loop import on_loop
from vnic.modules.nic_node import NicNode

SEEK_S = 0.25  # between two looks for the socket of a front end that listens
# A front end whose messages have taken this long at a stretch is left alone for four times as long,
# so that one that floods takes a fifth of control's time at most.
LONG_TURN_S, PAUSE = 0.005, 4

log = Log("vnic")


class Served(Protocol):
    """The part of vnic.modules.network.Network that is used here."""

    @property
    def attached(self) -> Mapping[str, NicNode]: ...
    def call_at(self, name: str, function: Callable[[], object]) -> None: ...


class Guests:
    """The front ends of `nics`. Nothing is read while the instance is being upgraded: what a front
    end sends meanwhile waits in its socket, and the successor reads it."""

    def __init__(self, host: Host, nics: Served) -> None:
        self._host, self._nics = host, nics
        self._inputs: dict[SocketNic, list[int]] = {}
        self._seeking: asyncio.TimerHandle | None = None
        self._again: set[SocketNic] = set()  # that `_look` is called for

    def over(self, attached: NicNode) -> None:
        """Serves a NIC from now on, if it is a guest's."""
        if isinstance(attached.nic, SocketNic):
            attached.nic.serve(partial(self._nics.call_at, attached.config.name))
            on_loop(self._host.loop, partial(self._begin, attached.nic))

    def over_all(self) -> None:
        """Serves all NICs."""
        for attached in self._nics.attached.values():
            self.over(attached)

    def end(self, attached: NicNode) -> None:
        """Ends the service for a NIC that is about to leave its engine."""
        if isinstance(attached.nic, SocketNic):
            on_loop(self._host.loop, partial(self._forget, attached.nic))
            attached.nic.end()

    def let_go(self) -> None:
        """The successor serves them all."""
        for nic in list(self._inputs):
            self._forget(nic)

    def _begin(self, nic: SocketNic) -> None:
        if nic not in self._inputs and self._is_here(nic):
            self._inputs[nic] = []
            self._ready(nic)

    def _is_here(self, nic: SocketNic) -> bool:
        now = self._nics.attached.get(nic.settings.name)
        return now is not None and now.nic is nic

    def _forget(self, nic: SocketNic) -> None:
        if nic in self._inputs:
            self._watch(nic, [])
            del self._inputs[nic]

    def _ready(self, nic: SocketNic) -> None:
        """Something has arrived for a NIC."""
        with self._host.lock:
            if nic not in self._inputs or not self._is_here(nic):
                return
            loop, was = self._host.loop, nic.met
            assert loop is not None
            began_s = loop.time()
            if not self._host.upgrading:
                nic.ready()
            took_s = loop.time() - began_s
            pauses = took_s > LONG_TURN_S
            self._watch(nic, [] if self._host.upgrading or pauses else nic.inputs)
        if nic.met is not was:
            self._tell(nic)
        if nic.seeks and self._seeking is None:
            self._seek_later()
        again_s = PAUSE * took_s if pauses else nic.again_s
        if again_s is not None and not self._host.upgrading:
            self._look_again(nic, again_s)

    def _look_again(self, nic: SocketNic, after_s: float) -> None:
        """For a NIC whose guest pauses, or has more commands than are handled at once."""
        loop = self._host.loop
        assert loop is not None
        if nic not in self._again:
            self._again.add(nic)
            loop.call_later(after_s, self._look, nic)

    def _look(self, nic: SocketNic) -> None:
        self._again.discard(nic)
        self._ready(nic)

    def _watch(self, nic: SocketNic, inputs: list[int]) -> None:
        """Waits for these descriptors, in place of those before. For duplicates of them: another
        thread may close a NIC, and its numbers be given to other files, before the loop is told."""
        loop, before = self._host.loop, self._inputs[nic]
        assert loop is not None
        for descriptor in before:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._inputs[nic] = [os.dup(each) for each in inputs]
        for descriptor in self._inputs[nic]:
            loop.add_reader(descriptor, self._ready, nic)

    def _tell(self, nic: SocketNic) -> None:
        name, connected = nic.settings.name, nic.met is not None
        self._host.emit("guest", nic=name, state="connected" if connected else "gone")
        if connected:
            log.info("guest connected", nic=name, socket=nic.path)
        else:
            log.info("guest is gone", nic=name, socket=nic.path, why=nic.problem or "it closed")

    def resume(self) -> None:
        """An upgrade has failed: reads again."""
        for nic in list(self._inputs):
            self._ready(nic)

    # -- front ends that listen --------------------------------------------------------------------

    def _seek_later(self) -> None:
        loop = self._host.loop
        assert loop is not None
        self._seeking = loop.call_later(SEEK_S, self._seek)

    def _seek(self) -> None:
        self._seeking = None
        for nic in [nic for nic in self._inputs if nic.seeks]:
            self._ready(nic)

    def close(self) -> None:
        """Ends all service."""
        if self._seeking is not None:
            self._seeking.cancel()
        self.let_go()
