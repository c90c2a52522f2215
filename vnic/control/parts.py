"""Parts of a runtime: an engine with its graph, one with its switch, and a NIC with its elements."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from dataplane.cgroup import Cgroup
from dataplane.crew import Mode
from dataplane.element import Element, Source
from dataplane.elements.counter import Discard
from dataplane.elements.l2_switch import L2Switch
from dataplane.elements.parse import Parse
from dataplane.engine import Engine
from dataplane.errors import GraphError
from dataplane.group import EngineGroup
from dataplane.guarantee import Guarantee
from dataplane.port import PortRx
from dataplane.ports.ring_port import RingPort
from dataplane.ring import MpscRing
from shaping.pool_share import PoolShare
from shaping.shaper import Shaper
from vnic.control.accounts import NOBODY
from vnic.control.chain import Chain, build_chain
from vnic.control.devices import Device
from vnic.control.module import is_owner
from vnic.control.schema import Config, ElementConfig, GroupConfig, NicConfig, VlanConfig


def own_config(config: Config) -> Config:
    """A copy that follows what runs."""
    config = copy.copy(config)
    config.nics = {name: own_nic(nic) for name, nic in config.nics.items()}
    config.groups = {name: copy.copy(group) for name, group in config.groups.items()}
    config.modules = [copy.copy(module) for module in config.modules]
    return config


def own_nic(config: NicConfig) -> NicConfig:
    """A copy whose settings may change while the NIC runs."""
    config = copy.copy(config)
    config.egress, config.ingress = copy.copy(config.egress), copy.copy(config.ingress)
    for direction in (config.egress, config.ingress):
        direction.elements = _own_elements(direction.elements)
    return config


def _own_elements(configs: list[ElementConfig]) -> list[ElementConfig]:
    own = [copy.copy(config) for config in configs]
    for config in own:
        config.branches = {gate: _own_elements(branch) for gate, branch in config.branches.items()}
    return own


class _Pending:
    """What `Hosted.at_once` postpones: changes of the graph, and whether to load it. prepared: new elements by name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names = {element.name for element in engine.elements}
        self.changes: list[Callable[[], object]] = []
        self.load = False
        self.prepared: dict[str, Element] = {}

    def prepare(self, fresh: Iterable[Element]) -> None:
        fresh = list(fresh)
        for element in fresh:
            if element.name in self._names:
                raise GraphError(f"{element.name}: two elements of engine {self._engine.name} have this name")
        self._engine.prepare(fresh)
        for element in fresh:
            self._names.add(element.name)
            self.prepared[element.name] = element

    def abandon(self, fresh: Iterable[Element]) -> None:
        mine = [element for element in fresh if self.prepared.get(element.name) is element]
        self._engine.abandon(mine)
        for element in mine:
            self._names.discard(element.name)
            del self.prepared[element.name]


class Hosted:
    """An engine that a module has built, with the counts of what it no longer runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sources: list[Source] = []
        self._pending: _Pending | None = None  # within at_once
        self.charged: dict[str, int] = {}  # by owner: CPU time of elements that are gone, until the accounts take it
        self.retired = {"received": 0, "generated": 0, "transmitted": 0, "dropped": 0}

    def load(self, sources: list[Source], fresh: Iterable[Element] = ()) -> None:
        """Makes the engine run what hangs on `sources`; keeps the counts of what it no longer runs. fresh: elements
        that are new with it. Raises VnicError, OSError, and then nothing has changed."""
        before = self.sources
        if self._pending is not None:
            self._pending.prepare(fresh)
            self.sources, self._pending.load = sources, True
            return
        self.sources = sources
        try:
            left = self.engine.load(sources)
        except BaseException:
            self.sources = before
            raise
        for element, statistics in left:
            owner = element.owner or NOBODY
            self.charged[owner] = self.charged.get(owner, 0) + statistics["charged_ns"]
            for term in ("received", "generated", "transmitted"):
                self.retired[term] += statistics[term]
            self.retired["dropped"] += sum(statistics["dropped"].values())

    def abandon(self, fresh: Iterable[Element]) -> None:
        """Takes back that `fresh` were prepared by a `load` that is postponed."""
        if self._pending is not None:
            self._pending.abandon(fresh)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Postpones what is done to the graph to the end of a `with`: first all changes, in one call on
        the engine's thread, then one load. A load visits every element of the engine, so that one for
        each NIC would make the start with many NICs quadratic. New elements are bound and initialized
        at once, so that an error is that of the NIC whose they are."""
        before, pending = self.sources, _Pending(self.engine)
        self._pending = pending
        try:
            yield
        finally:
            self._pending = None
            if pending.changes:
                self._do(lambda: [change() for change in pending.changes])
            if pending.load:
                after, self.sources = self.sources, before
                try:
                    self.load(after)
                except BaseException:
                    pending.abandon(list(pending.prepared.values()))
                    raise

    def _do(self, change: Callable[[], object]) -> None:
        """Makes a change on the engine's thread between two batches."""
        if self._pending is None:
            self.engine.call(change)
        else:
            self._pending.changes.append(change)

    def conservation(self) -> dict[str, Any]:
        """The terms of the law, from the engine's first packet on."""
        terms = self.engine.conservation()
        for term, value in self.retired.items():
            terms[term] += value
        into = terms["received"] + terms["generated"]
        terms["conserved"] = into == terms["transmitted"] + terms["dropped"] + terms["held"]
        return terms


class Home(Hosted):
    """An engine with its instance of the switch."""

    def __init__(self, engine: Engine, switch: L2Switch) -> None:
        super().__init__(engine)
        self.switch = switch
        self.unused = Discard(name=f"{engine.name}.unused")

    def connect(self, number: int, target: Element) -> None:
        """Leads the switch's gate `number` to `target`, between two batches."""

        def work() -> None:
            if len(self.switch.outputs) <= number:
                first = len(self.switch.outputs)
                self.switch.set_gates(number + 1)
                for gate in range(first, number):
                    self.switch.connect(gate, self.unused)
            self.switch.connect(number, target)

        self._do(work)

    def disconnect(self, number: int) -> None:
        """Leads the switch's gate `number` nowhere, between two batches. The last gates go, when none of them leads anywhere: a new worker
        has gates up to the last NIC's, and must find the same elements for an upgrade."""

        def work() -> None:
            self.switch.connect(number, self.unused)
            count = len(self.switch.outputs)
            while count and self.switch.outputs[count - 1] is self.unused:
                count -= 1
            self.switch.set_gates(count)

        self._do(work)

    def activate(self, number: int, vlan: VlanConfig | None, source: str | None = None) -> None:
        """Opens the switch's gate `number`, or changes it, between two batches. source: the one address that it may send from."""
        settings: dict[str, Any] = {} if vlan is None else msgspec.structs.asdict(vlan)
        self._do(lambda: self.switch.activate(number, **settings, source=source))

    def deactivate(self, number: int) -> None:
        """Closes the switch's gate `number`, between two batches."""
        self._do(lambda: self.switch.deactivate(number))


def _group_settings(config: GroupConfig) -> dict[str, tuple[str, Any]]:
    """By the configuration's words: names and values of dataplane.crew.Settings."""
    guarantee = config.guarantee
    return {
        "mode": ("mode", Mode(config.mode)),
        "cpus": ("cpus", config.cpus),
        "spin": ("spin_ns", int(config.spin or 0)),
        "slo": ("slo_ns", int(config.slo)),
        "guarantee": ("guarantee", guarantee and Guarantee(int(guarantee.runtime), int(guarantee.period))),
        "cgroup": ("cgroups", tuple(Cgroup(path) for path in config.cgroup)),
    }


def make_group(name: str, config: GroupConfig, *, tolerant: bool = False) -> EngineGroup:
    """An engine group as its configuration says. tolerant: a cgroup that is gone does not matter, see EngineGroup. Raises ConfigError."""
    return EngineGroup(name, **dict(_group_settings(config).values()), tolerant=tolerant)


def change_group(group: EngineGroup, config: GroupConfig, words: Iterable[str]) -> None:
    """Makes a group what its configuration says under `words`. Raises what EngineGroup.change does, and then nothing has changed."""
    settings = _group_settings(config)
    if changes := dict(settings[word] for word in words if word in settings):
        group.change(**changes)
    for engine in group.engines:
        engine.budget_ns = int(config.budget)


class Attached:
    """A NIC in the running whole: the device, its home and its elements."""

    def __init__(
        self, config: NicConfig, number: int, home: int, nic: Device, ring: MpscRing | None, directory: str | None
    ) -> None:
        self.config, self.number, self.home, self.nic, self.ring = config, number, home, nic, ring
        self.watch = nic.watch()
        name = config.name
        self.rx = PortRx(nic.port, name=f"{name}.rx")
        self.egress_shaper = Shaper(config.egress.rate, int(config.egress.queue), name=f"{name}.egress.rate")
        self.ingress_shaper = Shaper(config.ingress.rate, int(config.ingress.queue), name=f"{name}.ingress.rate")
        self.ingress: Chain = build_chain(config.ingress.elements, f"{name}.ingress", directory)
        self.ingress.append(self.ingress_shaper)
        self.ingress.join(nic.tx)
        self.egress: Chain = build_chain(config.egress.elements, f"{name}.egress", directory)
        self.egress.append(self.egress_shaper)
        assert self.egress.head is not None
        self.rx >> Parse(config.malformed, port=nic.port, name=f"{name}.parse") >> self.egress.head
        self.sources: list[Source] = [self.rx]
        if ring is not None:
            ring_rx = PortRx(RingPort(f"{name}.ring", number, ring, None), name=f"{name}.ring.rx")
            ring_rx >> self.entry
            self.sources.append(ring_rx)
        self.elements = self._own()

    def _own(self) -> list[Element]:
        """Marks every element as the NIC's, before its chain is joined to the switch, which has no owner."""
        found: list[Element] = []
        pending: list[Element | None] = [*self.sources, self.entry]
        while pending:
            element = pending.pop()
            if element is not None and element.owner is None:
                element.owner = self.config.name
                found.append(element)
                pending += element.outputs
        return found

    def join(self, share: PoolShare) -> None:
        """Before it runs: its shapers hold no more packets than the others of the share leave."""
        for element in (*self.egress.elements, *self.ingress.elements):
            if isinstance(element, Shaper):
                element.join(share)

    @property
    def source(self) -> str | None:
        """The one MAC address that the container may send from; None: any."""
        checked = self.config.spoof_check
        if checked is None:
            checked = not is_owner(self.config.owner)
        return str(self.config.mac) if checked else None

    @property
    def entry(self) -> Element:
        """Where a frame for this NIC enters."""
        assert self.ingress.head is not None
        return self.ingress.head
