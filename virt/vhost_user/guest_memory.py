"""A guest's memory for the front end of tests: a memfd, the regions that describe it, and places of
rings in it."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple, Self

from virt.vhost_user.messages import Area

_VGA_HOLE = range(0xA0000, 0xC0000)  # of a PC: QEMU has no region there
_QEMU_BASE = 0x7F00_0000_0000  # as if QEMU had mapped the guest there
_DPDK_BASE = 0x1_0000_0000
_UML_START = 0x6000_0000
_RINGS_START = 0x10_0000  # in the file: above the hole
_MOST_RING_BYTES = 1 << 16  # of a ring of up to 1024 entries, in all layouts


class RingPlace(NamedTuple):
    """Offsets of a ring's parts in the file."""

    descriptors: int
    used: int
    available: int


class GuestMemory:
    """Guest memory, all of which is `data`. Close it, or use it as a context manager.

    areas  what a front end tells of it; all lie in the file `descriptor`
    """

    def __init__(self, areas: list[Area]) -> None:
        self.areas = areas
        size = max(area.offset + area.size for area in areas)
        self.descriptor = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, size)
        self.data = mmap.mmap(self.descriptor, size)

    @classmethod
    def of_qemu(cls, size: int = 16 << 20) -> Self:
        """A PC: two regions of one file; guest physical and user addresses differ."""
        low, high = _VGA_HOLE.start, _VGA_HOLE.stop
        return cls([
            Area(0, low, _QEMU_BASE, 0),
            Area(high, size - high, _QEMU_BASE + high, high),
        ])  # fmt: skip

    @classmethod
    def of_uml(cls, size: int = 16 << 20) -> Self:
        """User-mode Linux: one region; its file begins where its addresses do."""
        return cls([Area(_UML_START, size, _UML_START, 0)])

    @classmethod
    def of_dpdk(cls, size: int = 16 << 20) -> Self:
        """DPDK: one region; guest physical are user addresses."""
        return cls([Area(_DPDK_BASE, size, _DPDK_BASE, 0)])

    def user_address(self, offset: int) -> int:
        """The front end's own address of a byte of the file."""
        return self._area(offset).user_address + offset - self._area(offset).offset

    def guest_address(self, offset: int) -> int:
        """The guest physical address of a byte of the file."""
        return self._area(offset).guest_address + offset - self._area(offset).offset

    def _area(self, offset: int) -> Area:
        return next(area for area in self.areas if area.offset <= offset < area.offset + area.size)

    def ring(self, index: int) -> RingPlace:
        """Where ring `index` of up to 1024 entries is: page-aligned parts that do not touch."""
        start = _RINGS_START + index * _MOST_RING_BYTES
        return RingPlace(start, start + 0x8000, start + 0x4000)

    def close(self) -> None:
        """Frees the memory, once the back end has, too."""
        self.data.close()
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
