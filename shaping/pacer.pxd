"""Pacer: gives each packet the time at which its policies let it leave, and keeps it until then."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport Batch, Context, Packet
from shaping.flow_clocks cimport FlowClocks
from shaping.flow_hash cimport FlowKeys
from shaping.mark_table cimport MarkTable, Policy
from shaping.pool_share cimport Held, PoolShare
from shaping.timing_wheel cimport TimingWheel
from shaping.virtual_clock cimport VirtualClock

cdef enum:                       # `per`
    PER_ALL = 0
    PER_MARK = 1
    PER_FLOW = 2

# A packet passes at most two policies, the narrower one first: its flow's before its mark's, its
# mark's before that of all packets.
cdef enum:
    FIRST = 0
    SECOND = 1
    STAGES = 2

# Packet.held_word of a packet in the wheel: whether it waits for SECOND, whether it is a GSO frame
# that is being cut, into pieces of how many segments, and how many bytes of its payload are cut
# off. Packet.held_ns of such a frame: when its last byte will have been sent.
cdef enum:
    HELD_SECOND = 0x80000000
    HELD_CUT = 0x40000000
    HELD_EACH_SHIFT = 17
    HELD_EACH_MOST = 0x1FFF
    HELD_BYTES = 0x1FFFF         # more than a large buffer has

cdef class Pacer(Element):
    cdef uint32_t per
    cdef bint at_horizon         # what lies beyond the horizon leaves there
    cdef uint64_t horizon_ns
    cdef Policy whole            # PER_ALL: of all packets
    cdef uint64_t flow_bps       # PER_MARK, PER_FLOW: rate of each mark or flow; 0: no limit
    cdef FlowClocks flows        # their clocks
    cdef FlowKeys keys
    cdef MarkTable marks
    cdef TimingWheel wheel
    cdef uint32_t small_limit, large_limit       # buffers in the wheel, by size
    cdef Held *share             # counts shared with other shapers; NULL: none
    cdef PoolShare _share        # the owner of `share`
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef void collect_due(self, Context *ctx, Batch *out) noexcept nogil
    cdef void cut(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil
    cdef void finish(self, Context *ctx, Batch *out) noexcept nogil

cdef class SetPacerRate(Work):
    cdef Pacer pacer
    cdef uint64_t rate_bps
    cdef void run(self, Context *ctx) noexcept nogil

cdef class SetMarkRates(Work):
    cdef Pacer pacer
    cdef MarkTable marks         # the new table; after `run` the old one
    cdef void run(self, Context *ctx) noexcept nogil
