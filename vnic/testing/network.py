"""A configuration's network in virtual time: tests send packets, advance time, read received
ones."""

from __future__ import annotations

import heapq
from typing import Any

from dataplane.engine.clock import Clock
from dataplane.ports.memory import Frame
from vnic.device.kinds.memory import MemoryKind
from vnic.modules.devices import OneKind
from vnic.runtime.runtime import Runtime
from vnic.runtime.stepped_time import SteppedTime
from vnic.testing.frames import Received, nanoseconds
from vnic.testing.kit import (
    UNACCOUNTED,
    AnyNetwork,
    Configuration,
    Shaping,
    config_of,
    policy_of,
)

START_NS = 10**9  # start of virtual time: greater than 0, so that earlier times exist


class VirtualNetwork(AnyNetwork):
    """The network of `config` (YAML text, the path of a YAML file, or a Config); the test takes the
    place of all containers.

        net = VirtualNetwork("nics: {a: {egress: {rate: 10mbit}}, b: {}}")
        net.send("a", Ether(...) / IP(...) / UDP(...), at="1ms")
        net.run()
        net.assert_received("b", Ether(...) / IP(...) / UDP(...), at="1ms")

    Times are virtual, from 0, as "1ms" or nanoseconds. `close` checks that every packet is
    accounted for.
    """

    live = False

    def __init__(self, config: Configuration, *, seed: int = 0) -> None:
        super().__init__(config_of(config))
        self._devices = OneKind(MemoryKind())
        self._clock = Clock(virtual=True, start_ns=START_NS)
        self._runtime = Runtime(self.config, devices=self._devices, clock=self._clock, seed=seed)
        self._runtime.start()
        self._time = SteppedTime(self._runtime)

    def apply(self, config: Configuration) -> list[str]:
        """Changes the network to `config`, as `vnic apply` does; returns the changes, such as "add
        nic web". Unchanged parts keep their queues, tables and counters. All or nothing. Raises
        ConfigError, VnicError."""
        self._collect()
        wanted = config_of(config)
        try:
            changes = self._runtime.apply(wanted)
        finally:
            self._time = SteppedTime(self._runtime)
        self._changed(wanted)
        return [str(change) for change in changes]

    def shape(self, policy: Shaping) -> list[str]:
        """Makes `policy` (YAML text, the path of a YAML file, or plain data; None: none) the policy
        of shaping, as `vnic shape apply` does; returns the changes. Raises ConfigError,
        VnicError."""
        self._collect()
        try:
            data = policy_of(policy)
            changes = self._runtime.policy.apply(data)
        finally:
            self._time = SteppedTime(self._runtime)
        self._shaped(data)
        return [str(change) for change in changes]

    @property
    def now_ns(self) -> int:
        """Virtual time since the start."""
        return self._clock.now_ns - START_NS

    def _check(self, nic: str, frames: list[Frame]) -> None:
        """Any frame can be sent."""

    def advance(self, time: str | int) -> None:
        """Advances virtual time by `time`."""
        self._run_until(self.now_ns + nanoseconds(time))

    def run(self) -> None:
        """Advances time until every packet was sent and none is in flight."""
        while self._sending:
            self._run_until(self._sending[0][0])
        while self._time.run(1 << 62):
            pass
        self._collect()

    def _run_until(self, until_ns: int) -> None:
        while self._sending and self._sending[0][0] <= until_ns:
            instant = self._sending[0][0]
            if instant > self.now_ns:
                self._time.advance(START_NS + instant - 1)
                self._clock.set(START_NS + instant)
            while self._sending and self._sending[0][0] == instant:
                _, _, nic, frame = heapq.heappop(self._sending)
                self._journal.note(instant, nic, frame)
                self._devices.nics[nic].port.inject([frame])
            self._time.advance(START_NS + instant)
        self._time.advance(START_NS + until_ns)
        self._collect()

    def _collect(self) -> None:
        for name, nic in self._devices.nics.items():
            self._received[name] += [
                Received(frame.time_ns - START_NS, frame.data, frame.queue)
                for frame in nic.port.take()
            ]

    def _stats(self) -> dict[str, Any]:
        return self._runtime.stats()

    def close(self) -> None:
        """Closes the network. Raises AssertionError where packets are unaccounted for. May be
        called twice."""
        if self._closed:
            return
        self._closed = True
        conserved = self._runtime.status()["conserved"]
        self._runtime.close()
        assert conserved, UNACCOUNTED
