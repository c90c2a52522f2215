"""Shares of capacities between NICs and classes, in a running instance (see shaping/shares): a
thread of control measures several times a second what they send, and sets the rates of the NICs'
lines and the ceilings of the classes. Engines know nothing of it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from dataplane.engine.clock import Clock
from dataplane.errors import VnicError
from shaping.link import Link
from shaping.policy.classes import SCHEDULER_NAME, class_name, names_of_classes, place_key
from shaping.policy.compile import LINE_NAME, Chain, class_chain
from shaping.policy.load import convert_policy
from shaping.policy.places import plan_of
from shaping.scheduler import Scheduler
from shaping.shares.allocator import Allocator, Sample
from shaping.shares.uplink import Uplink
from vnic.api.log import Log
from vnic.config.schema import Config
from vnic.config.shape import network_of
from vnic.modules.network import Network as Nics

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


class Enforcer(Protocol):
    """What limits a group of a share: the line of a NIC, or the ceiling of a class."""

    def sample(self) -> Sample | None:
        """What it says of the group; None: it does not run now."""

    def set_rate(self, rate_bps: int) -> None:
        """Returns when the rate holds. Raises VnicError where it does not run any more."""


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


class CeilingOfClass:
    """Enforces a rate on a class of a scheduler, as its ceiling. Packets that are dropped, or wait
    for the rates of classes around it, say nothing of whether it needs more."""

    def __init__(self, scheduler: Scheduler, path: str) -> None:
        self._scheduler, self._path = scheduler, path

    def sample(self) -> Sample | None:
        if self._scheduler.engine is None:
            return None
        found = self._scheduler.share_of(self._path)
        if found is None:
            return None
        rate_bps, sent_bytes, waits = found
        return Sample(rate_bps, sent_bytes, 0, waits)

    def set_rate(self, rate_bps: int) -> None:
        self._scheduler.set_ceiling(self._path, rate_bps)


class _Class(NamedTuple):
    """Where a class of a share is, and its path there."""

    chain: Chain
    path: str


class Shares:
    """The shares of the running policy. nics: the NICs and links that run. In virtual time there is
    no thread: call `step`."""

    def __init__(self, host: Host, nics: Nics) -> None:
        self._host, self._nics = host, nics
        self._classes: dict[str, _Class] = {}  # of shares, by the name there
        self._allocators: dict[str, Allocator] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def renew(self) -> None:
        """Takes over the shares of the policy that runs now; those that are as before go on. The
        caller holds the lock."""
        config = self._host.config
        uplinks: dict[str, Uplink] = {}
        self._classes = {}
        if config.shape is not None and config.shape.get("shares"):
            policy, network = convert_policy(config.shape), network_of(config)
            # also those of NICs that were detached since: the others' shares stay
            leaves = {leaf for share in policy.config.shares.values() for leaf in share.leaves}
            classes = {leaf for leaf in leaves if "/" in leaf}
            named = ((leaves - classes) | names_of_classes(classes)) - network.links.keys()
            whole = replace(network, nics={**dict.fromkeys(named, ""), **network.nics})
            uplinks = plan_of(policy, whole).uplinks
            chains = {place_key(each.key): class_chain(each, whole) for each in policy.classes}
            self._classes = {
                leaf: _Class(chains[each.place], each.path)
                for leaf in classes
                if (each := class_name(leaf)) is not None and each.place in chains
            }
        before, self._allocators = self._allocators, {}
        for name, uplink in uplinks.items():
            kept = before.get(name)
            same = kept is not None and kept.uplink == uplink
            self._allocators[name] = kept if kept is not None and same else Allocator(uplink)
        if self._allocators and self._thread is None and not self._host.clock.virtual:
            self._thread = threading.Thread(target=self._run, name="vnic-shares", daemon=True)
            self._thread.start()

    def step(self) -> None:
        """Measures, and sets the rates. The lock is free while they are computed."""
        with self._host.lock:
            now_ns, allocators = self._host.clock.now_ns, list(self._allocators.items())
            samples = [self._samples(allocator) for _, allocator in allocators]
        for (name, allocator), found in zip(allocators, samples, strict=True):
            changes = allocator.step(now_ns, found)
            with self._host.lock:
                if self._allocators.get(name) is allocator and self._may_change():
                    self._set(name, changes)

    def _may_change(self) -> bool:
        return self._host.runs and not (self._host.closed or self._host.upgrading)

    def _samples(self, allocator: Allocator) -> dict[str, Sample]:
        """What the lines of the groups say, of those that run."""
        found: dict[str, Sample] = {}
        for group in allocator.uplink.leaves if self._may_change() else ():
            enforcer = self._enforcer(group)
            if enforcer is not None and (sample := enforcer.sample()) is not None:
                found[group] = sample
        return found

    def _set(self, name: str, changes: list[tuple[str, int]]) -> None:
        """Sets rates, one after the other. What a NIC that is gone by now could have stays unused
        until the next step."""
        try:
            for group, rate_bps in changes:
                enforcer = self._enforcer(group)
                if enforcer is not None:
                    enforcer.set_rate(rate_bps)
        except VnicError as error:  # an engine that ends
            log.warning("a share was not set", share=name, why=str(error))

    def _enforcer(self, group: str) -> Enforcer | None:
        if (where := self._classes.get(group)) is not None:
            nodes = self._nics.links if where.chain.of_link else self._nics.attached
            node = nodes.get(where.chain.owner)
            chain = None if node is None else node.chains.get(str(where.chain))
            scheduler = None if chain is None else chain.of_policy.get(SCHEDULER_NAME)
            if isinstance(scheduler, Scheduler):
                return CeilingOfClass(scheduler, where.path)
            return None
        nic = self._nics.attached.get(group)
        line = None if nic is None else nic.egress.chain.of_policy.get(LINE_NAME)
        return LineOfNic(line) if isinstance(line, Link) else None

    def _run(self) -> None:
        rest_s = PERIOD_S
        while not self._stop.wait(rest_s):
            with self._host.lock:
                if not self._allocators:
                    self._thread = None
                    return
            begin = time.thread_time()
            self.step()
            # of many groups it takes longer: a twentieth of a CPU's time is enough
            rest_s = max(PERIOD_S, 20 * (time.thread_time() - begin))

    def status(self) -> list[dict[str, Any]]:
        """Of each share its capacity, and of its groups the rate, and the demand (None: all that
        they can get). The caller holds the lock."""
        found = []
        for name, allocator in self._allocators.items():
            groups = []
            for group in allocator.uplink.leaves:
                enforcer = self._enforcer(group)
                sample = None if enforcer is None else enforcer.sample()
                demand = allocator.demands.get(group)
                of = allocator.uplink.groups.get(group)
                groups.append({
                    "name": group,
                    **({} if of is None else {"group": of}),
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
        thread = self._thread
        if thread is not None:
            thread.join()
