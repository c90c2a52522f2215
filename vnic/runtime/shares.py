"""Shares of capacities between NICs, in a running instance (see shaping/shares): a thread of
control measures several times a second what the NICs send, and sets the rates of their lines.
Engines know nothing of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from dataplane.engine.clock import Clock
from dataplane.errors import VnicError
from shaping.link import Link
from shaping.policy.compile import LINE_NAME
from shaping.policy.load import convert_policy
from shaping.policy.places import plan_of
from shaping.shares.allocator import Allocator, Sample, allocate
from shaping.shares.uplink import Uplink
from vnic.api.log import Log
from vnic.config.schema import Config
from vnic.config.shape import network_of
from vnic.modules.nic_node import NicNode

PERIOD_S = 0.1

log = Log("vnic.shares")


class Host(Protocol):
    """What Shares needs of the runtime."""

    config: Config
    clock: Clock
    lock: threading.RLock
    closed: bool
    upgrading: bool

    @property
    def runs(self) -> bool: ...


class LineOfNic:
    """Enforces a rate on all that a NIC sends: the Link of its line `NIC -> any`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def sample(self) -> Sample | None:
        if self._link.engine is None:
            return None
        counts = self._link.statistics()
        return Sample(
            self._link.rate_bps,
            counts["counters"]["sent_bytes"],
            counts["dropped"]["queue_full"],
            counts["counters"]["queue_bytes"] > 0,
        )

    def set_rate(self, rate_bps: int) -> None:
        self._link.set_rate(rate_bps)


class Shares:
    """The shares of the running policy. attached: the NICs that run. In virtual time there is no
    thread: call `step`."""

    def __init__(self, host: Host, attached: Mapping[str, NicNode]) -> None:
        self._host, self._attached = host, attached
        self._allocators: dict[str, Allocator] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def renew(self) -> None:
        """Takes over the shares of the policy that runs now; those that are as before go on. The
        caller holds the lock."""
        config = self._host.config
        uplinks: dict[str, Uplink] = {}
        if config.shape is not None and config.shape.get("shares"):
            policy, network = convert_policy(config.shape), network_of(config)
            # also those of NICs that were detached since: the others' shares stay
            named = {group for share in policy.config.shares.values() for group in share.groups}
            nics = {**dict.fromkeys(named, ""), **network.nics}
            uplinks = plan_of(policy, replace(network, nics=nics)).uplinks
        before, self._allocators = self._allocators, {}
        for name, uplink in uplinks.items():
            kept = before.get(name)
            same = kept is not None and kept.uplink == uplink
            self._allocators[name] = kept if kept is not None and same else Allocator(uplink)
        if self._allocators and self._thread is None and not self._host.clock.virtual:
            self._thread = threading.Thread(target=self._run, name="vnic-shares", daemon=True)
            self._thread.start()

    def step(self) -> None:
        """Measures, and sets the rates."""
        with self._host.lock:
            if self._host.closed or self._host.upgrading or not self._host.runs:
                return
            for name, allocator in self._allocators.items():
                lines = {group: self._line(group) for group in allocator.uplink.functions}
                enforcers = {group: line for group, line in lines.items() if line is not None}
                try:
                    allocate(allocator, self._host.clock.now_ns, enforcers)
                except VnicError as error:  # an engine that ends; the next step finds what is left
                    log.warning("a share was not set", share=name, why=str(error))

    def _line(self, nic: str) -> LineOfNic | None:
        node = self._attached.get(nic)
        for element in () if node is None else node.egress.chain.elements:
            if isinstance(element, Link) and element.name.endswith(f".{LINE_NAME}"):
                return LineOfNic(element)
        return None

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            if self._allocators:
                self.step()

    def status(self) -> list[dict[str, Any]]:
        """Of each share its capacity, and of its groups the rate, and the demand (None: all that
        they can get). The caller holds the lock."""
        found = []
        for name, allocator in self._allocators.items():
            groups = []
            for group in allocator.uplink.functions:
                line = self._line(group)
                sample = None if line is None else line.sample()
                demand = allocator.demands.get(group)
                groups.append({
                    "name": group,
                    "rate_bps": None if sample is None else sample.rate_bps,
                    "demand_bps": None if demand is None or math.isinf(demand) else int(demand),
                })  # fmt: skip
            found.append(
                {"name": name, "capacity_bps": allocator.uplink.capacity_bps, "groups": groups}
            )
        return found

    def close(self) -> None:
        """Ends the thread. The caller does not hold the lock."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
