"""A port of a switch, in all engines."""

from __future__ import annotations

from dataplane.graph.element import Element
from dataplane.graph.port import PortTx
from dataplane.packet.ring import MpscRing
from dataplane.ports.ring_port import RingPort


class SwitchPort:
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
            transmit = PortTx(
                RingPort(f"{name}.ring", self.number, None, self.ring), name=f"{name}.ring.tx"
            )
            transmit.owner = owner
            self.entries.append(transmit)
