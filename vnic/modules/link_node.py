"""A link between two switches in the running network."""

from __future__ import annotations

from collections.abc import Callable

from dataplane.graph.element import Element, Source
from dataplane.graph.link import Link
from dataplane.packet.ring import MpscRing
from vnic.config.schema import LinkConfig
from vnic.modules.chain import Chain
from vnic.modules.switch_host import SwitchHost
from vnic.modules.switch_port import SwitchPort, ring_source, with_entry
from vnic.modules.way import Way


class LinkNode:
    """A link in the running network: a port on each of its switches. Packets that leave a switch by
    its port enter the other switch through a dataplane.graph.link.Link.

    A plain link exists in each engine. A link with elements or rates runs in one engine, its home,
    which has the queues; packets of other engines reach it over rings, one for each direction.
    before: the running link, in the same home; unchanged elements are taken over from it.
    """

    is_up = True
    source = None  # frames may have any source address

    def __init__(
        self,
        config: LinkConfig,
        homes: list[SwitchHost],
        directory: str | None,
        make_ring: Callable[[str], MpscRing],
        before: LinkNode | None = None,
    ) -> None:
        self.config, self._before = config, before
        self.name = str(config.name)
        first, second = config.ends
        home = None if config.plain else int(config.engine or 0)
        self.ports = [
            SwitchPort(first, config.numbers[0], home),
            SwitchPort(second, config.numbers[1], home),
        ]
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

    def _directions(self) -> list[tuple[SwitchPort, SwitchPort]]:
        """Pairs of the port by which frames leave a switch, and the one by which they enter the
        other."""
        return [(self.ports[0], self.ports[1]), (self.ports[1], self.ports[0])]

    def _lead(
        self,
        number: int,
        port: SwitchPort,
        other: SwitchPort,
        homes: list[SwitchHost],
        directory: str | None,
        make_ring: Callable[[str], MpscRing],
    ) -> None:
        """Builds one direction in its home: elements, shaper, and the Link to the other switch."""
        name, before, home = f"{self.name}.{other.switch}", self._before, port.home
        assert home is not None
        way = Way(
            self.config.to[other.switch],
            name,
            directory,
            None if before is None else before.ways[other.switch],
        )
        self.ways[other.switch] = way
        sources: list[Source] = []
        if before is not None:
            port.ring = before.ports[number].ring
            sources = [
                each
                for each in before.sources_in(home)
                if each.name in (f"{name}.link", f"{name}.ring.rx")
            ]
        else:
            link = Link(other.number, name=f"{name}.link")
            link.connect(0, homes[home].switches[other.switch])
            sources.append(link)
            if len(homes) > 1:
                port.ring = make_ring(f"{self.name}/{other.switch}")
                sources.append(ring_source(port.ring, name, port.number))
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
            port.entries = with_entry(before.ports[number].entries, home, way.head)
        for index, entry in enumerate(port.entries):
            if index != home:
                self._elements[index].append(entry)

    @property
    def chains(self) -> dict[str, Chain]:
        """The chains of its directions, by the names that their elements' begin with."""
        return {f"{self.name}.{end}": way.chain for end, way in self.ways.items()}

    def connect(self) -> None:
        """Makes all connections, on the engine's thread."""
        for element, target in self._edges:
            element.connect(0, target)
        for way in self.ways.values():
            way.chain.connect()

    def settle(self) -> None:
        """Gives elements that were taken over the settings of the configuration."""
        for way in self.ways.values():
            way.settle()

    def elements_in(self, engine: int) -> list[Element]:
        """Its elements in the graph of an engine."""
        return self._elements[engine]

    def holders_in(self, engine: int) -> list[Element]:
        """Those that may hold packets, in the order in which packets pass them: the sources of a
        link are behind its chains."""
        sources = self._sources[engine]
        return [*(each for each in self._elements[engine] if each not in sources), *sources]

    def sources_in(self, engine: int) -> list[Source]:
        """Those of its elements that the graph of an engine begins with."""
        return self._sources[engine]
