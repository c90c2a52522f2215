"""PoolShare: what several shapers may hold of a pool between them, whichever engines run them.

Each shaper holds one packet all the same, so that none stands still, and besides the frame that it is cutting. Engines that look at the
same moment may find the same room: the share is exceeded by a batch for each engine more at most.
"""
from libc.stdint cimport uint32_t
from dataplane.packet cimport BATCH_MAX
from dataplane.vatomic cimport va_add_u32, va_load_relaxed_u32

cdef struct Held:                # packets of either size that wait, counted by all engines; and how many may, which never changes
    uint32_t small
    uint32_t large
    uint32_t small_limit
    uint32_t large_limit

cdef class PoolShare:
    cdef Held held

# The counts are numbers from which nothing else follows: no order is needed.

cdef inline bint share_is_full(const Held *share, bint large) noexcept nogil:
    if large:
        return va_load_relaxed_u32(&share.large) >= share.large_limit
    return va_load_relaxed_u32(&share.small) >= share.small_limit

cdef inline uint32_t share_room(const Held *share) noexcept nogil:
    """Packets, of whatever size, for which there is room: 1 at least, a batch at most."""
    cdef uint32_t small = va_load_relaxed_u32(&share.small), large = va_load_relaxed_u32(&share.large)
    cdef uint32_t room = min(share.small_limit - small if small < share.small_limit else 0,
                             share.large_limit - large if large < share.large_limit else 0)
    return min(max(room, <uint32_t>1), <uint32_t>BATCH_MAX)

cdef inline void share_count(Held *share, uint32_t small, uint32_t large) noexcept nogil:
    """So many more wait, modulo 2^32: also fewer."""
    if small:
        va_add_u32(&share.small, small)
    if large:
        va_add_u32(&share.large, large)
