"""An engine of the network, with its instances of the switches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dataplane.elements.counter import Discard
from dataplane.engine.engine import Engine
from dataplane.graph.element import Element, Source
from switching.l2_switch import L2Switch
from vnic.config.schema import LinkVlanConfig, VlanConfig
from vnic.modules.engine_host import EngineHost


@dataclass
class Wires:
    """One-way links in an engine.

    leads: the targets, by element and output.
    elements, sources: those of nodes.
    """

    leads: dict[tuple[Element, int], Element] = field(default_factory=dict)
    elements: dict[Element, None] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)


class SwitchHost(EngineHost):
    """An engine of the network, with its instances of the switches and its one-way links.

    unused: the target of unconnected outputs; it drops and counts packets.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.switches: dict[str, L2Switch] = {}
        self.wires = Wires()
        self.unused = Discard(name=f"{engine.name}.unused")

    def connect(self, switch: str, number: int, target: Element) -> None:
        """Connects output `number` of a switch to `target`, between two batches."""
        found = self.switches[switch]

        def work() -> None:
            if len(found.outputs) <= number:
                first = len(found.outputs)
                found.set_gates(number + 1)
                for gate in range(first, number):
                    found.connect(gate, self.unused)
            found.connect(number, target)

        self.do(work, [found])

    def disconnect(self, switch: str, number: int) -> None:
        """Disconnects output `number` of a switch, between two batches. Unconnected outputs at the
        end are removed: a new worker has outputs up to the last connected one, and an upgrade needs
        the same elements in both workers."""
        found = self.switches[switch]

        def work() -> None:
            count = len(found.outputs)
            if number < count:  # else the engine rejected the graph with that output
                found.connect(number, self.unused)
            while count and found.outputs[count - 1] is self.unused:
                count -= 1
            found.set_gates(count)

        self.do(work, [found])

    def add(self, sources: list[Source], fresh: Iterable[Element]) -> None:
        """As EngineHost.add. `unused` is in the graph while an output leads there, as in a new
        worker's."""
        leads = any(
            each is self.unused for switch in self.switches.values() for each in switch.outputs
        ) or any(each is self.unused for each in self.wires.leads.values())
        if leads == (self.unused.engine is not None):
            super().add(sources, fresh)
        else:
            self.load(self.sources + sources, fresh)

    def add_ahead(self, sources: list[Source], fresh: Iterable[Element]) -> None:
        """As `add`, of elements that packets reach once `add` has added other sources; the engine
        has them until then, too."""
        fresh = list(fresh)
        super().add(sources, fresh)
        if any(element.engine is None for element in fresh):
            self._retire(self.engine.load(self.sources, fresh))

    def activate(
        self,
        switch: str,
        number: int,
        vlan: VlanConfig | LinkVlanConfig | None,
        source: str | None = None,
    ) -> None:
        """Opens port `number` of a switch, or changes it, between two batches. source: the one MAC
        address that frames may come from."""
        found = self.switches[switch]
        settings: dict[str, Any] = {} if vlan is None else msgspec.structs.asdict(vlan)
        self.do(lambda: found.activate(number, **settings, source=source))

    def deactivate(self, switch: str, number: int) -> None:
        """Closes port `number` of a switch, between two batches."""
        found = self.switches[switch]
        self.do(lambda: found.deactivate(number))
