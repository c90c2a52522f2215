"""Memory that outlives a worker: pool, MAC table and rings, created, or taken over from the
previous worker."""

from __future__ import annotations

from contextlib import ExitStack

from dataplane.descriptors import close_all
from dataplane.packet.pool import PacketPool
from dataplane.packet.ring import MpscRing
from switching.mac_table import MacTable
from vnic.store.keeper import Keeper

# packets in flight between two engines; more than a NIC's burst from every other engine
RING_CAPACITY = 4096
RING_BYTES = RING_CAPACITY * MpscRing.cell_bytes


class Segments:
    """Segments of which the supervisor stores duplicates. keeping=None: they are private to this
    process.

    reset: the previous worker died, and no process uses them: frees all packets and empties the
    rings; the MAC table's entries stay.
    """

    def __init__(self, keeping: Keeper | None, *, reset: bool) -> None:
        self._keeping, self._reset = keeping, reset

    def _take(self, key: str) -> list[int] | None:
        return None if self._keeping is None else self._keeping.take(key)

    def _put(self, key: str, *descriptors: int) -> None:
        if self._keeping is not None:
            self._keeping.put(key, descriptors)

    def pool(self, small: int, large: int) -> PacketPool:
        """The packet pool."""
        if (found := self._take("segment/pool")) is not None:
            try:
                return PacketPool.from_descriptor(found[0], reset=self._reset)
            finally:
                close_all(found)
        pool = PacketPool(small, large)
        self._put("segment/pool", pool.fd)
        return pool

    def table(self, switch: str, capacity: int, ageing_ns: int) -> MacTable:
        """The table of a switch, by the switch's name."""
        if (found := self._take(f"segment/table/{switch}")) is not None:
            try:
                return MacTable.from_descriptor(found[0], reset=self._reset)
            finally:
                close_all(found)
        return self.new_table(switch, capacity, ageing_ns)

    def new_table(self, switch: str, capacity: int, ageing_ns: int) -> MacTable:
        """An empty table for a switch, in the place of the one that is stored, if there is one."""
        table = MacTable(capacity, ageing_ns=ageing_ns)
        self._put(f"segment/table/{switch}", table.fd)
        return table

    def drop_table(self, switch: str) -> None:
        """Removes the table of a switch that is gone from the supervisor's store."""
        if self._keeping is not None:
            self._keeping.drop(f"segment/table/{switch}")

    def ring(self, target: str, undo: ExitStack) -> MpscRing:
        """The ring through which other engines send to a NIC, or to LINK/SWITCH, a direction of a
        link."""
        if (found := self._take(f"ring/{target}")) is not None:
            try:
                return MpscRing.from_descriptor(*found, reset=self._reset)
            finally:
                close_all(found)
        ring = MpscRing(RING_CAPACITY)
        self._put(f"ring/{target}", ring.fd, ring.doorbell)
        undo.callback(self.drop_ring, target)
        return ring

    def drop_ring(self, target: str) -> None:
        """Removes the ring of a NIC or link that is gone from the supervisor's store."""
        if self._keeping is not None:
            self._keeping.drop(f"ring/{target}")
