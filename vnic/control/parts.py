"""Parts of a runtime: an engine with its graph, one with its switches, a NIC or link with its elements."""

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
from dataplane.link import Link
from dataplane.port import PortRx, PortTx
from dataplane.ports.ring_port import RingPort
from dataplane.ring import MpscRing
from shaping.pool_share import PoolShare
from shaping.shaper import Shaper
from vnic.control.accounts import NOBODY
from vnic.control.chain import Chain, build_chain
from vnic.control.devices import Device, Watch
from vnic.control.module import is_owner
from vnic.control.schema import (
    Config,
    DirectionConfig,
    ElementConfig,
    GroupConfig,
    LinkConfig,
    LinkVlanConfig,
    NicConfig,
    VlanConfig,
)


def own_config(config: Config) -> Config:
    """A copy that follows what runs."""
    config = copy.copy(config)
    config.nics = {name: own_nic(nic) for name, nic in config.nics.items()}
    config.groups = {name: copy.copy(group) for name, group in config.groups.items()}
    config.modules = [copy.copy(module) for module in config.modules]
    config.nodes = dict(config.nodes)
    config.links = [own_link(link) for link in config.links]
    return config


def own_link(config: LinkConfig) -> LinkConfig:
    """A copy whose settings may change while the link runs."""
    config = copy.copy(config)
    config.to = {end: copy.copy(way) for end, way in config.to.items()}
    for way in config.to.values():
        way.elements = _own_elements(way.elements)
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
        fresh = [element for element in fresh if element.engine is None]
        for element in fresh:
            if element.name in self._names:
                raise GraphError(f"{element.name}: two elements of engine {self._engine.name} have this name")
        self._engine.prepare(fresh)
        for element in fresh:
            self._names.add(element.name)
            self.prepared[element.name] = element

    def leave(self, elements: Iterable[Element]) -> None:
        self._names.difference_update(element.name for element in elements)

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

    def load(self, sources: list[Source], fresh: Iterable[Element] = (), leaving: Iterable[Element] = ()) -> None:
        """Makes the engine run what hangs on `sources`; keeps the counts of what it no longer runs. fresh: elements
        that are new with it. leaving: elements that are no longer in the graph then, and whose names may be used
        again. Raises VnicError, OSError, and then nothing has changed."""
        before = self.sources
        if self._pending is not None:
            self._pending.leave(leaving)
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
        if self._pending is not None:
            yield
            return
        before, pending = self.sources, _Pending(self.engine)
        self._pending = pending
        try:
            yield
        finally:
            self._pending = None
            if pending.changes:
                self.do(lambda: [change() for change in pending.changes])
            if pending.load:
                after, self.sources = self.sources, before
                try:
                    self.load(after)
                except BaseException:
                    pending.abandon(list(pending.prepared.values()))
                    raise

    def do(self, change: Callable[[], object]) -> None:
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
    """An engine of the network, with its instances of the switches."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.switches: dict[str, L2Switch] = {}
        self.unused = Discard(name=f"{engine.name}.unused")

    def connect(self, switch: str, number: int, target: Element) -> None:
        """Leads output `number` of a switch to `target`, between two batches."""
        found = self.switches[switch]

        def work() -> None:
            if len(found.outputs) <= number:
                first = len(found.outputs)
                found.set_gates(number + 1)
                for gate in range(first, number):
                    found.connect(gate, self.unused)
            found.connect(number, target)

        self.do(work)

    def disconnect(self, switch: str, number: int) -> None:
        """Leads output `number` of a switch nowhere, between two batches. The last outputs go, when none of them leads anywhere: a new
        worker has outputs up to the last that is used, and must find the same elements for an upgrade."""
        found = self.switches[switch]

        def work() -> None:
            found.connect(number, self.unused)
            count = len(found.outputs)
            while count and found.outputs[count - 1] is self.unused:
                count -= 1
            found.set_gates(count)

        self.do(work)

    def activate(self, switch: str, number: int, vlan: VlanConfig | LinkVlanConfig | None, source: str | None = None) -> None:
        """Opens port `number` of a switch, or changes it, between two batches. source: the one address that it may send from."""
        found = self.switches[switch]
        settings: dict[str, Any] = {} if vlan is None else msgspec.structs.asdict(vlan)
        self.do(lambda: found.activate(number, **settings, source=source))

    def deactivate(self, switch: str, number: int) -> None:
        """Closes port `number` of a switch, between two batches."""
        found = self.switches[switch]
        self.do(lambda: found.deactivate(number))


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


class Way:
    """One direction of a NIC or link: the elements of its configuration, a shaper, and what follows.

    before: the same direction as it runs; elements that stay the same are taken over from it.
    """

    def __init__(self, config: DirectionConfig, prefix: str, directory: str | None, before: Way | None = None) -> None:
        self.config = config
        self.chain: Chain = build_chain(config.elements, prefix, directory, None if before is None else before.chain)
        if before is not None and before.config.queue == config.queue:
            self.shaper: Shaper = before.shaper
        else:
            self.shaper = Shaper(config.rate, int(config.queue), name=f"{prefix}.rate")
        self.chain.append(self.shaper)

    def set_rate(self) -> None:
        """Gives a shaper that was taken over the rate of the configuration."""
        if self.shaper.rate_bps != int(self.config.rate or 0):
            self.shaper.set_rate(self.config.rate)

    @property
    def head(self) -> Element:
        """The first element."""
        assert self.chain.head is not None
        return self.chain.head


class Port:
    """A port of a switch, in every engine: where frames go that leave the switch by it.

    switch, number: which port. home: the number of the engine that has `entry`; frames of other
    engines reach it by a ring. home None: `entries` has an element for each engine.
    """

    def __init__(self, switch: str, number: int, home: int | None) -> None:
        self.switch, self.number, self.home = switch, number, home
        self.ring: MpscRing | None = None
        self.entries: list[Element] = []

    def lead(self, entry: Element, engines: int, name: str, owner: str | None) -> None:
        """Makes `entries` of an element in the home engine, and of transmitters to its ring in the
        others. name: of the elements around the ring, NAME.ring."""
        for index in range(engines):
            if index == self.home:
                self.entries.append(entry)
                continue
            assert self.ring is not None
            transmit = PortTx(RingPort(f"{name}.ring", self.number, None, self.ring), name=f"{name}.ring.tx")
            transmit.owner = owner
            self.entries.append(transmit)


class Attached:
    """A NIC in the running network: the device and its elements. before: the same NIC as it runs, whose
    device, ring and unchanged elements are taken over. watch: over its container, where there is one already."""

    def __init__(
        self,
        config: NicConfig,
        port: Port,
        nic: Device,
        directory: str | None,
        *,
        engines: int,
        before: Attached | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.config, self.port, self.nic = config, port, nic
        self.watch: Watch = watch or (nic.watch() if before is None else before.watch)
        name = config.name
        self.rx: PortRx = PortRx(nic.port, name=f"{name}.rx") if before is None else before.rx
        egress, ingress = (None, None) if before is None else (before.egress, before.ingress)
        self.egress: Way = Way(config.egress, f"{name}.egress", directory, egress)
        self.ingress: Way = Way(config.ingress, f"{name}.ingress", directory, ingress)
        self.ingress.chain.join(nic.tx)
        if before is not None and before.config.malformed == config.malformed:
            self.parse: Parse = before.parse
        else:
            self.parse = Parse(config.malformed, port=nic.port, name=f"{name}.parse")
        self.sources: list[Source] = [self.rx]
        # Connections besides those of the chains.
        self.edges: list[tuple[Element, Element]] = [(self.rx, self.parse), (self.parse, self.egress.head)]
        if port.ring is not None:
            if before is not None:
                self.sources.append(before.sources[1])
            else:
                self.sources.append(PortRx(RingPort(f"{name}.ring", port.number, port.ring, None), name=f"{name}.ring.rx"))
            self.edges.append((self.sources[1], self.ingress.head))
        for element, target in self.edges:
            if element.engine is None:
                element.connect(0, target)
        self.elements = [*self.sources, self.parse, *self.egress.chain.elements, *self.ingress.chain.elements, nic.tx]
        for element in self.elements:
            element.owner = name
        if before is None:
            port.lead(self.ingress.head, engines, name, name)
        else:
            port.entries = [
                self.ingress.head if index == port.home else entry for index, entry in enumerate(before.port.entries)
            ]

    @property
    def ports(self) -> list[Port]:
        """Its port, as of a link."""
        return [self.port]

    @property
    def is_up(self) -> bool:
        """Whether its port is open."""
        return self.config.link_up

    def elements_in(self, engine: int) -> list[Element]:
        """Its elements in the graph of an engine."""
        return self.elements if engine == self.home else [self.port.entries[engine]]

    def sources_in(self, engine: int) -> list[Source]:
        """Of them, those that the graph begins with."""
        return self.sources if engine == self.home else []

    def connect(self) -> None:
        """Makes all connections, on the engine's thread."""
        for element, target in self.edges:
            element.connect(0, target)
        for way in (self.egress, self.ingress):
            way.chain.connect()

    @property
    def number(self) -> int:
        """Of its port; also what its packets have in Packet.port."""
        return self.port.number

    @property
    def home(self) -> int:
        """The number of the engine that serves it."""
        assert self.port.home is not None
        return self.port.home

    def join(self, share: PoolShare) -> None:
        """Before it runs: its shapers hold no more packets than the others of the share leave."""
        for element in self.elements:
            if isinstance(element, Shaper) and element.engine is None:
                element.join(share)

    @property
    def source(self) -> str | None:
        """The one MAC address that the container may send from; None: any."""
        checked = self.config.spoof_check
        if checked is None:
            checked = not is_owner(self.config.owner)
        return str(self.config.mac) if checked else None


class AttachedLink:
    """A link in the running network: a port on each of its switches. What leaves a switch by one of them
    enters the other switch by a dataplane.link.Link.

    A plain link is in each engine. One with elements or rates is in one engine, its home, which has the
    queues; rings then lead from the other engines to it, one for each direction.
    before: the same link as it runs in the same home; elements that stay the same are taken over.
    """

    is_up = True
    source = None  # frames may have any source address

    def __init__(
        self,
        config: LinkConfig,
        homes: list[Home],
        directory: str | None,
        make_ring: Callable[[str], MpscRing],
        before: AttachedLink | None = None,
    ) -> None:
        self.config, self._before = config, before
        self.name = str(config.name)
        first, second = config.ends
        home = None if config.plain else int(config.engine or 0)
        self.ports = [Port(first, config.numbers[0], home), Port(second, config.numbers[1], home)]
        self.ways: dict[str, Way] = {}  # by the switch that it leads to
        self._sources: list[list[Source]] = [[] for _ in homes]  # by engine
        self._elements: list[list[Element]] = [[] for _ in homes]
        self._edges: list[tuple[Element, Element]] = []
        if home is None:
            for index, each in enumerate(homes):
                for port, other in self._directions():
                    link = Link(other.number, name=f"{self.name}.{other.switch}")
                    link.connect(0, each.switches[other.switch])
                    port.entries.append(link)
                    self._sources[index].append(link)
                    self._elements[index].append(link)
        else:
            for number, (port, other) in enumerate(self._directions()):
                self._lead(number, port, other, homes, directory, make_ring)
        self._before = None

    def _directions(self) -> list[tuple[Port, Port]]:
        """Pairs of the port by which frames leave a switch, and the one by which they enter the other."""
        return [(self.ports[0], self.ports[1]), (self.ports[1], self.ports[0])]

    def _lead(
        self,
        number: int,
        port: Port,
        other: Port,
        homes: list[Home],
        directory: str | None,
        make_ring: Callable[[str], MpscRing],
    ) -> None:
        """One direction, in its home: elements, shaper, and the Link to the other switch."""
        name, before, home = f"{self.name}.{other.switch}", self._before, port.home
        assert home is not None
        way = Way(self.config.to[other.switch], name, directory, None if before is None else before.ways[other.switch])
        self.ways[other.switch] = way
        sources: list[Source] = []
        if before is not None:
            port.ring = before.ports[number].ring
            sources = [each for each in before.sources_in(home) if each.name in (f"{name}.link", f"{name}.ring.rx")]
        else:
            link = Link(other.number, name=f"{name}.link")
            link.connect(0, homes[home].switches[other.switch])
            sources.append(link)
            if len(homes) > 1:
                port.ring = make_ring(f"{self.name}/{other.switch}")
                sources.append(PortRx(RingPort(f"{name}.ring", port.number, port.ring, None), name=f"{name}.ring.rx"))
        way.chain.join(sources[0])
        for rx in sources[1:]:
            self._edges.append((rx, way.head))
            if rx.engine is None:
                rx.connect(0, way.head)
        self._sources[home] += sources
        self._elements[home] += [*sources, *way.chain.elements]
        if before is None:
            port.lead(way.head, len(homes), name, None)
        else:
            entries = before.ports[number].entries
            port.entries = [way.head if index == home else entry for index, entry in enumerate(entries)]
        for index, entry in enumerate(port.entries):
            if index != home:
                self._elements[index].append(entry)

    def connect(self) -> None:
        """Makes all connections, on the engine's thread."""
        for element, target in self._edges:
            element.connect(0, target)
        for way in self.ways.values():
            way.chain.connect()

    def elements_in(self, engine: int) -> list[Element]:
        """Its elements in the graph of an engine."""
        return self._elements[engine]

    def sources_in(self, engine: int) -> list[Source]:
        """Of them, those that the graph begins with."""
        return self._sources[engine]
