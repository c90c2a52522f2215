"""The rings of a session: which of them the device runs, and the messages that change one.

A ring runs if it is started (SET_VRING_KICK) and enabled, and if its size, addresses and the memory
fit. Whatever changes a ring stops it first, so that its position is in the books; `settle` starts
again what may run. Thus a worker may end at any instant: the books are stored between the two, and
the device is never ahead of them.

A ring that is started but not enabled is left alone. The specification would have a device discard
what the guest transmits there; but User-mode Linux frees rings after it has disabled them, without
stopping them, and a late write would land in other data of the guest. DPDK leaves them alone, too.
"""

from __future__ import annotations

from dataplane.descriptors import system_error
from virt.vhost_user import memory
from virt.vhost_user.books import Books, Ring, RingAddresses
from virt.vhost_user.descriptors import Descriptors, check_event
from virt.vhost_user.device import Device, RingDescriptors
from virt.vhost_user.features import Feature
from virt.vhost_user.messages import Message, addresses, ring_descriptor, state
from virt.vhost_user.protocol import MOST_RING_SIZE, RING_LOG, ProtocolError, Refused, Request

_HALF = 0xFFFF  # of a base: all of a split ring's; a packed ring's available index


class Rings:
    """The rings of the books, and which of them the device runs."""

    def __init__(self, books: Books, descriptors: Descriptors, device: Device) -> None:
        self._books, self._descriptors, self._device = books, descriptors, device
        self._running: set[int] = set()

    @property
    def running(self) -> frozenset[int]:
        """The rings that the device runs."""
        return frozenset(self._running)

    def settle(self, *, resumed: bool = False) -> None:
        """Starts the rings that may run and do not."""
        for index, ring in enumerate(self._books.rings):
            if index not in self._running and not self.hindrance(index):
                try:
                    self._device.start_ring(index, ring, self._of(ring), resumed=resumed)
                except OSError as error:
                    raise ProtocolError(f"ring {index}: {system_error(error)}") from None
                self._running.add(index)

    def stop(self, index: int) -> None:
        """Stops a ring if it runs; its position is in the books afterwards."""
        if index in self._running:
            self._books.rings[index].base = self._device.stop_ring(index)
            self._running.discard(index)

    def stop_all(self) -> None:
        """Stops all rings that run."""
        for index in sorted(self._running):
            self.stop(index)

    def hindrance(self, index: int) -> str:
        """Why the ring cannot run; "": it can."""
        ring = self._books.rings[index]
        if not ring.started:
            return "not started"
        if not ring.enabled:
            return "not enabled"
        if ring.addresses is None or not ring.size:
            return "no addresses" if ring.size else "no size"
        packed = bool(self._books.features & Feature.RING_PACKED)
        if not packed and ring.size & (ring.size - 1):
            return f"size {ring.size} of a split ring is not a power of two"
        return _misplaced(self._books, ring.size, ring.addresses, packed)

    def _of(self, ring: Ring) -> RingDescriptors:
        get = self._descriptors.get
        return RingDescriptors(get(ring.kick), get(ring.call), get(ring.error))

    def find(self, request: Request, index: int) -> Ring:
        """The ring of this index, as it arrived: before anything narrows it."""
        if index >= len(self._books.rings):
            last = len(self._books.rings) - 1
            raise Refused(f"{request.name}: ring {index}: expected 0 to {last}")
        return self._books.rings[index]

    def end(self, index: int) -> None:
        """Stops a ring for good: it runs again after the next SET_VRING_KICK."""
        self.stop(index)
        ring = self._books.rings[index]
        ring.started = False
        self._descriptors.close(ring.kick)
        ring.kick = ""

    # The messages. SET_VRING_NUM and SET_VRING_BASE end a ring that is started: User-mode Linux
    # sets rings up anew without asking for their positions.

    def set_size(self, message: Message) -> None:
        index, size = state(message)
        ring = self.find(message.request, index)
        if not 1 <= size <= MOST_RING_SIZE:
            raise Refused(
                f"SET_VRING_NUM: ring {index}: size {size}: expected 1 to {MOST_RING_SIZE}"
            )
        self.end(index)
        ring.size = size

    def set_base(self, message: Message) -> None:
        index, base = state(message)
        ring = self.find(message.request, index)
        self.end(index)
        available = base & _HALF
        if not self._books.features & Feature.RING_PACKED:
            ring.base = available
        elif base == available:  # DPDK's virtio-user leaves the used index out
            ring.base = available << 16 | available
        else:
            ring.base = base

    def get_base(self, message: Message) -> int:
        index, _ = state(message)
        ring = self.find(message.request, index)
        self.end(index)
        return ring.base

    def set_addresses(self, message: Message) -> None:
        """While the ring runs, too: a migration begins (the log's flag), or memory has moved."""
        found = addresses(message)
        ring = self.find(message.request, found.ring)
        logged = bool(found.flags & RING_LOG)
        self.stop(found.ring)
        ring.addresses = RingAddresses(
            found.descriptors, found.used, found.available, found.log if logged else 0, logged
        )

    def set_kick(self, message: Message, descriptors: list[int]) -> None:
        ring = self._set_event(message, "kick", descriptors)
        ring.started = True
        ring.generation += 1

    def set_call(self, message: Message, descriptors: list[int]) -> None:
        self._set_event(message, "call", descriptors)

    def set_error(self, message: Message, descriptors: list[int]) -> None:
        self._set_event(message, "error", descriptors)

    def _set_event(self, message: Message, kind: str, descriptors: list[int]) -> Ring:
        index, has_descriptor = ring_descriptor(message)
        ring = self.find(message.request, index)
        if has_descriptor:
            check_event(f"{message.request.name}: ring {index}", descriptors[0])
        self.stop(index)
        setattr(ring, kind, self._replace(getattr(ring, kind), f"{kind}{index}", descriptors))
        return ring

    def _replace(self, former: str, role: str, descriptors: list[int]) -> str:
        """Gives a role the descriptor that came; closes the role's former one if none came."""
        if descriptors:
            return self._descriptors.put(role, descriptors.pop())
        self._descriptors.close(former)
        return ""

    def set_enabled(self, message: Message) -> None:
        index, enabled = state(message)
        ring = self.find(message.request, index)
        if enabled > 1:
            raise Refused(f"SET_VRING_ENABLE: ring {index}: {enabled}: expected 0 or 1")
        if not enabled:
            self.stop(index)
        ring.enabled = bool(enabled)


def _misplaced(books: Books, size: int, places: RingAddresses, packed: bool) -> str:
    """What of a ring is not in guest memory, or ""."""
    if packed:
        parts = (("descriptor ring", places.descriptors, 16 * size),
                 ("driver event area", places.available, 4),
                 ("device event area", places.used, 4))  # fmt: skip
        if places.available % 4:
            return f"driver event area at {places.available:#x} is not a multiple of 4"
    else:  # with the event index behind either ring, which costs a driver without it nothing
        parts = (("descriptor table", places.descriptors, 16 * size),
                 ("available ring", places.available, 6 + 2 * size),
                 ("used ring", places.used, 6 + 8 * size))  # fmt: skip
    for part, address, length in parts:
        if not memory.holds(books.memory, address, length):
            return f"{part} at {address:#x} is not in guest memory"
    return ""
