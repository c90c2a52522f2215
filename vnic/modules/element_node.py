"""A node of the network that is an element."""

from __future__ import annotations

from dataplane.errors import ConfigError
from dataplane.graph.element import Element, Source
from dataplane.packet.ring import MpscRing
from vnic.config.schema import NodeConfig
from vnic.modules.chain import make_element, node_element
from vnic.modules.switch_port import ring_entries, ring_source, with_entry


class ElementNode:
    """An element of the configuration's nodes. It runs in one engine, its home, since its state
    exists once; packets of other engines reach it over a ring.

    entries: by engine, the element that packets for this node are sent to.
    before: the running node, in the same home; its ring is taken over, and its element too if class
    and arguments are the same. Raises ConfigError.
    """

    def __init__(
        self,
        name: str,
        config: NodeConfig,
        engines: int,
        directory: str | None,
        ring: MpscRing | None,
        before: ElementNode | None = None,
    ) -> None:
        self.name, self.config, self.home, self.ring = name, config, int(config.engine or 0), ring
        if before is not None and _same(before.config, config):
            self.element: Element = before.element
        else:
            self.element = make_element(node_element(config), name, directory)
            if isinstance(self.element, Source):
                raise ConfigError(
                    f"{config.where or name}: {config.element} is a source: expected an element "
                    "that packets pass"
                )
        self.sources: list[Source] = []  # in its home
        self.entries: list[Element]
        if before is not None:
            self.sources = before.sources
            self.entries = with_entry(before.entries, self.home, self.element)
            return
        if ring is not None:
            self.sources.append(ring_source(ring, name, 0))
            self.sources[0].connect(0, self.element)
        self.entries = ring_entries(self.element, self.home, engines, ring, name, 0)

    @property
    def senders(self) -> list[Element]:
        """Its entries in other engines."""
        return [entry for index, entry in enumerate(self.entries) if index != self.home]


def _same(before: NodeConfig, after: NodeConfig) -> bool:
    """Whether `before`, whose arguments are updated by writes to handlers, describes the same
    element as `after`."""
    return (before.element, before.arguments) == (after.element, after.arguments)
