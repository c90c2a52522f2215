"""A port of a switch, in all engines."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.graph.element import Element
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.ring import MpscRing
from dataplane.ports.ring_port import RingPort


class SwitchPort:
    """A port of a switch: in every engine, the target of frames that leave the switch by it.

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
        assert self.home is not None
        self.entries = ring_entries(entry, self.home, engines, self.ring, name, self.number)
        for index, each in enumerate(self.entries):
            if index != self.home:
                each.owner = owner


def ring_entries(
    entry: Element, home: int, engines: int, ring: MpscRing | None, name: str, number: int
) -> list[Element]:
    """The targets of packets for `entry`, by engine: in engine `home` the entry itself, and in the
    others a transmitter, NAME.ring.tx, to the ring that `home` reads. number: of the port."""
    found: list[Element] = []
    for index in range(engines):
        if index == home:
            found.append(entry)
            continue
        assert ring is not None
        port = RingPort(f"{name}.ring", number, None, ring)
        found.append(PortTx(port, name=f"{name}.ring.tx"))
    return found


def ring_source(ring: MpscRing, name: str, number: int) -> PortRx:
    """What reads, in the home engine, the ring that the transmitters of `ring_entries` fill."""
    return PortRx(RingPort(f"{name}.ring", number, ring, None), name=f"{name}.ring.rx")


def with_entry(entries: Iterable[Element], home: int | None, entry: Element) -> list[Element]:
    """`entries` with another one in the home engine."""
    return [entry if index == home else each for index, each in enumerate(entries)]
