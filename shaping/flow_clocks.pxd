"""FlowClocks: a virtual clock for each of many flows, by the flow's hash.

A flow whose clock is not ahead of now is as one that was never seen, so only flows that are being
paced need a clock. The clocks are a set-associative table of eight ways, as CAKE's: a flow gets the
first clock of its set that is not ahead of now, so that nearly all are in the set's first cache
line. Where all eight are, the flow shares one of them, always the same one, so that its packets
stay in order; and until that one is idle, for it may have packets of this flow. With clocks for
four times the flows that are paced at once, one flow of ten thousand has to share.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.vatomic cimport va_prefetch
from shaping.virtual_clock cimport VirtualClock

cdef enum:
    WAYS = 8                     # clocks in a set: two cache lines
    # A clock's second word: tag << 45 | shared << 44 | remainder. A remainder is below the rate,
    # and RATE_MOST_BPS, 10^13, is below 2^44.
    REMAINDER_BITS = 44
    TAG_SHIFT = 45
    WAY_SHIFT = 42               # three bits of the hash that neither the tag nor the set has

cdef struct FlowClock:
    uint64_t next_ns             # as VirtualClock's; 0, 0: free
    uint64_t word

cdef class FlowClocks:
    cdef readonly uint32_t count         # clocks
    cdef uint64_t set_mask
    cdef FlowClock *clocks               # aligned to a huge page, so to a set's two cache lines
    cdef void *_memory
    cdef size_t _bytes
    cdef void unmap(self) noexcept nogil
    cdef void touch(self) noexcept nogil
    cdef FlowClock *claim(self, uint64_t hash, uint64_t now_ns, bint *shared) noexcept nogil
    cdef uint32_t busy_of(self, uint32_t first, uint32_t end, uint64_t now_ns) noexcept nogil
    cdef bytes packed(self, uint64_t now_ns)
    cdef bint adopt(self, bytes packed, uint64_t most_ns) noexcept
    cdef void clear(self) noexcept nogil

    @cython.final
    cdef inline FlowClock *find(self, uint64_t hash, uint64_t now_ns, bint *shared) noexcept nogil:
        """The clock of the flow with this hash. Packets that were due by `now_ns` must have left.
        shared: set to whether another flow may have the clock, too, for want of a free one."""
        cdef FlowClock *flows = &self.clocks[(hash & self.set_mask) * WAYS]
        cdef uint32_t way
        shared[0] = False
        for way in range(<uint32_t>WAYS // 2):
            if flows[way].word >> TAG_SHIFT == hash >> TAG_SHIFT:
                return &flows[way]
        return self.claim(hash, now_ns, shared)

cdef inline uint64_t flow_remainder(const FlowClock *flow) noexcept nogil:
    return flow.word & ((<uint64_t>1 << REMAINDER_BITS) - 1)

cdef inline bint flow_is_idle(const FlowClock *flow, uint64_t now_ns) noexcept nogil:
    """Whether a packet of the flow may leave at once."""
    return flow.next_ns < now_ns or (flow.next_ns == now_ns and flow_remainder(flow) == 0)

cdef inline VirtualClock flow_load(const FlowClock *flow, uint64_t rate_bps) noexcept nogil:
    cdef VirtualClock clock
    clock.next_ns, clock.remainder = flow.next_ns, flow_remainder(flow)
    if clock.remainder >= rate_bps:      # of a higher rate, before a change: less than 1 ns
        clock.next_ns, clock.remainder = clock.next_ns + 1, 0
    return clock

cdef inline void flow_store(FlowClock *flow, const VirtualClock *clock) noexcept nogil:
    flow.next_ns = clock.next_ns
    flow.word = flow.word >> REMAINDER_BITS << REMAINDER_BITS | clock.remainder

cdef inline void flow_prefetch(FlowClocks clocks, uint64_t hash) noexcept nogil:
    va_prefetch(&clocks.clocks[(hash & clocks.set_mask) * WAYS])
    va_prefetch(&clocks.clocks[(hash & clocks.set_mask) * WAYS + WAYS // 2])
