"""PoolShare: bounds the packets of a pool that several shapers hold together, also in different
engines.

Each shaper may always hold one packet, so that none starves, and the frame that it is segmenting.
Engines that check at the same moment may find the same room, so the share may be exceeded by one
batch per further engine.
"""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport BATCH_MAX
from dataplane.vatomic cimport va_add_u32, va_load_relaxed_u32

# held packets of each size, counted by all engines, and their limits, which never change
cdef struct Held:
    uint32_t small
    uint32_t large
    uint32_t small_limit
    uint32_t large_limit

cdef class PoolShare:
    cdef Held held

# Nothing else depends on the counts, so relaxed loads suffice.

cdef inline bint share_is_full(const Held *share, bint large) noexcept nogil:
    if large:
        return va_load_relaxed_u32(&share.large) >= share.large_limit
    return va_load_relaxed_u32(&share.small) >= share.small_limit

cdef inline uint32_t share_room(const Held *share) noexcept nogil:
    """Packets of either size for which there is room: at least 1, at most a batch."""
    cdef uint32_t small = va_load_relaxed_u32(&share.small), large = va_load_relaxed_u32(
        &share.large)
    cdef uint32_t room = min(share.small_limit - small if small < share.small_limit else 0,
                             share.large_limit - large if large < share.large_limit else 0)
    return min(max(room, <uint32_t>1), <uint32_t>BATCH_MAX)

cdef inline void share_count(Held *share, uint32_t small, uint32_t large) noexcept nogil:
    """Adds to the counts, modulo 2^32: negative numbers subtract."""
    if small:
        va_add_u32(&share.small, small)
    if large:
        va_add_u32(&share.large, large)
