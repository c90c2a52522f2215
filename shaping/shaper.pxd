"""Shaper: a virtual-clock token bucket with a bounded queue.

A packet departs at the first whole nanosecond at which its virtual clock lets it.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context, Packet
from dataplane.graph.work cimport Work
from shaping.framing cimport Framing, Load
from shaping.pool_share cimport Held, PoolShare
from shaping.virtual_clock cimport VirtualClock

cdef struct Setting:             # derived from a rate by control, in Python's unbounded integers
    uint64_t rate_bps            # 0: unlimited
    uint64_t limit_bytes         # of the queue
    uint64_t limit_segments      # of the queue, where framing counts them
    uint32_t quantum_bytes       # wire bytes of 1 ms: longer GSO frames are split

cdef class Shaper(Element):
    cdef Setting setting
    cdef Framing framing         # what a line adds; Shaper: nothing
    cdef VirtualClock clock
    cdef uint64_t emptied_ns     # when the last packet left the queue
    cdef uint64_t arrived_ns     # when the packet that left last had come
    cdef readonly uint64_t burst_ns      # how far T may lie behind a packet that finds no queue
    # the limit: int, or None; the others are None, and segments 2^62, where one is given
    cdef object _queue_ns
    cdef object _queue_bytes
    cdef uint64_t _queue_segments
    cdef uint32_t head           # of the queue, linked by Packet.next, oldest first
    cdef uint32_t tail
    cdef uint64_t queue_segments # in the queue, where framing counts them
    cdef uint32_t small_held     # buffers of each size in the queue
    cdef uint32_t large_held
    cdef uint32_t small_limit    # bounds on them
    cdef uint32_t large_limit
    cdef Held *share             # counts shared with other shapers; NULL: none
    cdef PoolShare _share        # the owner of `share`
    # the frame that is being split into the pieces at the head of the queue, because they did not
    # fit one batch; else NO_PACKET
    cdef uint32_t split_index
    cdef uint32_t split_done     # bytes of its payload already split off
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    # Overridden by Link.
    cdef void release_due(self, Context *ctx) noexcept nogil
    cdef void set_deadline(self, Context *ctx) noexcept nogil
    cdef void apply(self, const Setting *setting, Context *ctx) noexcept nogil

    # Not inlined into `process`, whose fast paths need few registers.
    cdef void enqueue_batch(self, Context *ctx, Batch *batch) noexcept nogil

    # Final, so that calls within this module are direct ones.
    @cython.final
    cdef bint pass_at_once(self, Context *ctx, Packet *p) noexcept nogil

    @cython.final
    cdef bint enqueue(self, Context *ctx, uint32_t index) noexcept nogil

    @cython.final
    cdef uint32_t segments_that_fit(self, const Packet *p) noexcept nogil

    @cython.final
    cdef void enqueue_part(self, Context *ctx, uint32_t index) noexcept nogil

    @cython.final
    cdef bint begin_queue(self, uint64_t now_ns, const Packet *p, Load load) noexcept nogil

    @cython.final
    cdef void end_idle(self, uint64_t now_ns) noexcept nogil

    @cython.final
    cdef void count_held(self, Context *ctx, uint32_t index, int sign) noexcept nogil

    @cython.final
    cdef void set_held(self, uint32_t small, uint32_t large) noexcept nogil

    @cython.final
    cdef uint32_t dequeue(self, Context *ctx, Load load) noexcept nogil

    @cython.final
    cdef uint32_t take_due(self, Context *ctx) noexcept nogil

    @cython.final
    cdef uint32_t segments_each(self, Context *ctx, uint32_t index,
                                uint32_t line_bytes) noexcept nogil

    @cython.final
    cdef bint split_head(self, Context *ctx, uint32_t segments_each, Load load) noexcept nogil

    cdef load_queue(self, dict state, uint64_t others)

cdef class SetRate(Work):
    # A change of rate as Work, which needs no GIL.
    cdef Shaper shaper
    cdef Setting setting
    cdef void run(self, Context *ctx) noexcept nogil

cdef int work_out(Shaper shaper, Setting *setting, rate_bps) except -1
