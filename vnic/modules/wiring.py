"""One-way links in the running network, from NICs and elements of `nodes` to their targets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack

from dataplane.graph.element import Element
from vnic.config.schema import HopConfig, NodeConfig
from vnic.modules.chain import check_output
from vnic.modules.element_node import ElementNode
from vnic.modules.host import Host
from vnic.modules.nic_node import NicNode
from vnic.modules.switch_host import SwitchHost, Wires


class Wiring:
    """The one-way links of a network, and the nodes that are elements.

    A node is in its engine's graph while something leads to it. An output without a link, or whose
    link leads to a NIC that is not attached, drops and counts its packets: it is connected to the
    engine's `unused`.
    """

    def __init__(
        self, runtime: Host, homes: list[SwitchHost], attached: Mapping[str, NicNode]
    ) -> None:
        self._runtime, self._homes, self._attached = runtime, homes, attached
        self.nodes: dict[str, ElementNode] = {}
        self._hops: dict[tuple[str, int], str] = {}  # by source and output, the target
        self._closing: set[str] = set()  # nodes that no packets are sent to any more
        self._led: set[str] = set()  # NICs whose packets go elsewhere than to their switch
        self._any = False  # whether there were any at the last update

    def add(self, name: str, config: NodeConfig) -> None:
        """Makes the element of a node. Raises VnicError."""
        config.engine = self._runtime.config.engine_index(config.engine or 0)
        engines = len(self._homes)
        with ExitStack() as undo:
            ring = self._runtime.segments.ring(name, undo) if engines > 1 else None
            directory = self._runtime.config.directory or None
            node = ElementNode(name, config, engines, directory, ring)
            undo.pop_all()
        self.nodes[name] = self._closed(node)

    def replace(self, name: str, config: NodeConfig) -> None:
        """Makes the element of a node with other settings, in the same engine; `update` then
        replaces the old one by it. Raises VnicError, and then nothing has changed."""
        before, directory = self.nodes[name], self._runtime.config.directory or None
        engines = len(self._homes)
        node = ElementNode(name, config, engines, directory, before.ring, before)
        self.nodes[name] = node if node.element is before.element else self._closed(node)

    def _closed(self, node: ElementNode) -> ElementNode:
        """Connects all outputs of `node` to `unused`; returns `node`."""
        for output in range(len(node.element.outputs)):
            node.element.connect(output, self._homes[node.home].unused)
        return node

    def move(self, name: str, config: NodeConfig) -> None:
        """Makes the element of a node again in another engine. Packets for it are dropped and
        counted meanwhile. Raises VnicError, and then there is no such node."""
        if name in self.nodes:  # not where this undoes a move that has failed half way
            self.remove(name)
        self.add(name, config)
        self.update()

    def remove(self, name: str) -> None:
        """Removes a node, after it has processed the packets in its ring."""
        node = self.nodes[name]
        self._closing.add(name)
        self.update()
        self._homes[node.home].receive_all(node.ring)
        del self.nodes[name]
        self._closing.discard(name)
        self.update()
        if node.ring is not None:
            self._runtime.segments.drop_ring(name)

    def set(self, hops: Collection[HopConfig]) -> None:
        """Sets the one-way links, which `update` puts in place. Raises ConfigError for an output
        that an element does not have, and then nothing has changed."""
        for hop in hops:
            if (node := self.nodes.get(hop.source)) is not None:
                check_output(hop, node.element)
        self._hops = {(hop.source, hop.output): hop.target for hop in hops}

    def behind(self, nic: NicNode, without: Collection[str] = ()) -> Element:
        """The target of the packets that a NIC's container sends: its switch, unless a one-way link
        leads elsewhere."""
        target = self._hops.get((nic.config.name, 0))
        if target is None:
            return self._homes[nic.home].switches[nic.port.switch]
        return self._entry(target, nic.home, without)

    def _entry(self, target: str, engine: int, without: Collection[str]) -> Element:
        """The target of the packets in an engine for a node or NIC."""
        if (node := self.nodes.get(target)) is not None and target not in self._closing:
            return node.entries[engine]
        if target in self._attached and target not in without:
            return self._attached[target].port.entries[engine]
        host = self._homes[engine]
        found: Element = host.switches.get(target, host.unused)
        return found

    def update(self, without: Collection[str] = ()) -> None:
        """Brings every engine's graph in line with nodes and links, between two batches. without:
        NICs that are about to leave."""
        if not (self.nodes or self._hops or self._any):
            return
        for host, wires in zip(self._homes, self._wanted(without), strict=True):
            if wires != host.wires:
                _put(host, wires)
        self._led = {name for name, _ in self._hops if name in self._attached} - {*without}
        self._any = bool(self.nodes or self._hops)

    def _wanted(self, without: Collection[str]) -> list[Wires]:
        """The one-way links of each engine as they should be."""
        found = [Wires() for _ in self._homes]
        for name in dict.fromkeys((*(source for source, _ in self._hops), *self._led)):
            if name in self._attached and name not in without:
                nic = self._attached[name]
                found[nic.home].leads[nic.egress.shaper, 0] = self.behind(nic, without)
        for node in self._reached(without):
            wires = found[node.home]
            wires.elements |= dict.fromkeys((*node.sources, node.element))
            wires.sources += node.sources
            wires.leads |= {(source, 0): node.element for source in node.sources}
            for output in range(len(node.element.outputs)):
                target = self._hops.get((node.name, output), "")
                wires.leads[node.element, output] = self._entry(target, node.home, without)
        senders = {entry for node in self.nodes.values() for entry in node.senders}
        for wires in found:
            wires.elements |= dict.fromkeys(
                target for target in wires.leads.values() if target in senders
            )
        return found

    def _reached(self, without: Collection[str]) -> list[ElementNode]:
        """The nodes that are in a graph: those with a ring, and those that packets of attached NICs
        reach."""
        pending = [node.name for node in self.nodes.values() if node.ring is not None]
        for (source, _), target in self._hops.items():
            if source in self._attached and source not in without:
                pending.append(target)
        behind: dict[str, list[str]] = {}
        for (source, _), target in self._hops.items():
            behind.setdefault(source, []).append(target)
        found: dict[str, ElementNode] = {}
        for name in pending:
            if name in self.nodes and name not in found:
                found[name] = self.nodes[name]
                pending += behind.get(name, ())
        return list(found.values())


def _put(host: SwitchHost, wires: Wires) -> None:
    before = host.wires
    targets = (*wires.elements, *wires.leads.values())
    fresh = [each for each in dict.fromkeys(targets) if each.engine is None]
    leaving = [each for each in before.elements if each not in wires.elements]
    changes = [
        (element, output, target)
        for (element, output), target in wires.leads.items()
        if before.leads.get((element, output)) is not target
    ]

    def connect() -> None:
        for element, output, target in changes:
            element.connect(output, target)

    mine = set(before.sources)
    others = [source for source in host.sources if source not in mine]
    with host.at_once():
        host.load([*others, *wires.sources], fresh, leaving)
        host.do(connect, {element for element, _, _ in changes})
    host.wires = wires
