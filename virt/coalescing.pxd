"""Postponed notifications of a ring's driver (virtio 1.3, Notifications Coalescing)."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from virt.virtqueue cimport Virtqueue

cdef struct Coalescing:
    # as the driver has set it
    uint32_t most_packets    # notified with this one at the latest; 0: after each burst
    uint64_t delay_ns        # and so long after the first one
    # since the last notification
    uint32_t packets
    uint32_t slots           # of the ring that were published; 0: nothing is postponed
    uint64_t began_ns        # when the first of them was


cdef inline uint32_t prepared_slots(const Virtqueue *q) noexcept nogil:
    """Slots of the ring that `publish` is about to make visible."""
    cdef uint32_t slots
    if not q.packed:
        return q.prepared
    slots = <uint32_t>q.next_used + q.size - q.prepared_at
    return slots if slots <= q.size else slots - q.size


cdef inline bint is_due(const Coalescing *held, uint16_t size, uint64_t now_ns) noexcept nogil:
    """Half of the ring is the most: beyond, a driver that waits for the notification would have no
    buffers left, and the ring's positions would come round."""
    return (held.packets >= held.most_packets or held.slots >= <uint32_t>size // 2
            or now_ns >= held.began_ns + held.delay_ns)
