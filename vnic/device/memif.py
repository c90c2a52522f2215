"""The port of a NIC of kind memif: what a session asks of it, done to a MemifPort."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Mapping, Sequence

from dataplane.elements.rss import Rss
from dataplane.errors import ConfigError
from virt.guest_memory import GuestMemory, MemoryRegion
from virt.memif.protocol import COOKIE
from virt.memif.session import BUFFER_BYTES, Books, Ring
from virt.memif_port import MemifPort

REGION_SHIFT = 40  # as in memif_port.pxd


class MemifDevice:
    """A device of `virt.memif.session`.

    call  runs a function on the thread of the port's engine, between two batches; while no engine
          serves the port, on this one
    """

    def __init__(self, port: MemifPort, rss: Rss) -> None:
        self.port = port
        self.call: Callable[[Callable[[], object]], object] = lambda function: function()
        self._rss, self._table = rss, rss.table  # as configured
        self._memory: GuestMemory | None = None

    def start(self, books: Books, descriptors: Mapping[str, int], *, resumed: bool) -> None:
        """Maps the regions and starts the rings, in place of those before."""
        if not books.s2m and not books.m2s:
            raise ConfigError("no rings: expected one at least")
        self.stop()
        self._memory = memory = GuestMemory(
            MemoryRegion(
                guest=index << REGION_SHIFT,
                size=region.size,
                user=index << REGION_SHIFT,
                offset=0,
                fd=descriptors[region.descriptor],
            )
            for index, region in enumerate(books.regions)
        )
        to_peer, from_peer = (books.s2m, books.m2s) if self.port.client else (books.m2s, books.s2m)
        numbered = [(2 * queue, ring) for queue, ring in enumerate(to_peer)]
        numbered += [(2 * queue + 1, ring) for queue, ring in enumerate(from_peer)]
        # a frame for another queue would be lost
        table = [queue % max(1, len(to_peer)) for queue in self._table]

        def apply() -> None:
            self.port.set_memory(memory)
            for number, ring in numbered:
                self._start(number, ring, descriptors[ring.descriptor], resumed)
            self._rss.set_table(table)

        try:
            self.call(apply)
        except ConfigError:
            self.stop()
            raise

    def _start(self, number: int, ring: Ring, descriptor: int, resumed: bool) -> None:
        self.port.start(
            number,
            size=1 << ring.size_log2,
            address=ring.region << REGION_SHIFT | ring.offset,
            wake_fd=descriptor,
            resumed=resumed,
            buffers=ring.buffers,
            buffer_bytes=BUFFER_BYTES,
        )

    def stop(self) -> None:
        """Stops all rings, and unmaps the regions."""

        def apply() -> None:
            for ring in range(2 * self.port.queues):
                self.port.stop(ring)
            self.port.set_memory(None)

        if self._memory is not None:
            self.call(apply)
            self._memory.close()
            self._memory = None

    def make_memory(self, size: int, headers: Sequence[int]) -> int:
        """A memfd that can neither shrink nor grow: the server holds it, too."""
        made = os.memfd_create("vnic-memif", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(made, size)
            for at in headers:
                os.pwrite(made, struct.pack("=I", COOKIE), at)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(made)
            raise
        return made

    def make_interrupt(self) -> int:
        """An eventfd."""
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
