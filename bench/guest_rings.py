"""Frames from one guest to another through parser and switch, all on one CPU, both drivers included:
what VirtioPort costs in instructions. `bench virt` has what cache lines cost that move between CPUs.
"""

from __future__ import annotations

from typing import NamedTuple

from bench import frames
from bench.micro import Driver, measure_guests
from dataplane.elements.parse import Parse
from dataplane.engine.clock import Clock
from dataplane.engine.engine import Engine
from dataplane.graph.port import PortRx, PortTx
from dataplane.packet.pool import PacketPool
from switching.l2_switch import L2Switch
from switching.mac_table import MacTable
from virt.driver import GuestRam, PackedRing, SplitRing
from virt.guest_memory import GuestMemory
from virt.virtio_port import VirtioPort

FEATURES = 1 << 32 | 1 << 15  # VERSION_1, MRG_RXBUF
PACKED = 1 << 34
HEADER = 12  # bytes
RING = 256
BUFFER = 2048
STRIDE = 2048 + 5 * 64  # not a power of two, which would let few sets of the cache hold all buffers
BATCH = 32


class Guests(NamedTuple):
    """Two guests on a switch."""

    engine: Engine
    sending: list[Driver]  # of each guest's transmit ring
    receiving: list[Driver]
    ports: list[VirtioPort]
    rams: list[GuestRam]

    def measure(self, turns: int) -> float:
        """Frames from the first guest to the second; ns per frame."""
        return measure_guests(self.engine, self.sending[0], self.receiving[1], turns, BATCH)

    def close(self) -> None:
        for port in self.ports:
            port.close()
        for ram in self.rams:
            ram.close()


def make(*, packed: bool, length: int) -> Guests:
    """Guests that know each other, with frames of so many bytes."""
    pool = PacketPool(small=1024, large=32)
    engine, switch = Engine("guests", pool, clock=Clock(virtual=True)), L2Switch(MacTable(), 2)
    found = Guests(engine, [], [], [], [])
    sources = []
    for number in range(2):
        ram, port = GuestRam(1 << 21), VirtioPort(f"vm{number}", number=number)
        port.set_features(FEATURES | (PACKED if packed else 0))
        port.set_memory(GuestMemory([ram.region]))
        frame = frames.frame(frames.UDP, length, destination=11 - number, source=10 + number)
        for ring, drivers, filled in ((0, found.receiving, BUFFER), (1, found.sending, HEADER + length)):
            places = (PackedRing if packed else SplitRing)(ram, RING).places
            descriptors, available, used = (places[part] for part in ("descriptors", "available", "used"))
            base = 0x80008000 if packed else 0
            port.start(ring, size=RING, descriptors=descriptors, available=available, used=used, base=base)
            port.enable(ring, True)
            address = ram.allocate(RING * STRIDE, 64)
            for buffer in range(RING):
                ram.write(address + buffer * STRIDE, bytes(HEADER) + frame)
            drivers.append(Driver(port, ring, address, STRIDE, filled))
        found.ports.append(port)
        found.rams.append(ram)
        sources.append(PortRx(port))
        sources[-1] >> Parse(name=f"parse{number}") >> switch
        switch[number] >> PortTx(port)
        switch.activate(number)
    engine.load(sources)
    for number in range(2):  # the switch learns both addresses
        measure_guests(engine, found.sending[number], found.receiving[1 - number], 1, BATCH)
    return found


def measure(repetitions: int, packets: int) -> list[tuple[str, int, list[float]]]:
    """Rings, bytes of the frames, and ns per frame of each repetition; the cases in turns."""
    kinds = [(rings, length) for rings in ("split", "packed") for length in (60, 1514)]
    made = [make(packed=rings == "packed", length=length) for rings, length in kinds]
    times: list[list[float]] = [[] for _ in kinds]
    for _ in range(repetitions):
        for guests, row in zip(made, times, strict=True):
            row.append(guests.measure(max(packets // BATCH, 1)))
    for guests in made:
        guests.engine.load([])
        guests.close()
    return [(*kind, row) for kind, row in zip(kinds, times, strict=True)]
