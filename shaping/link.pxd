"""Link: a bottleneck line. A bounded queue, a rate with framing, and a propagation delay.

It is a Shaper whose packets leave when their last bit has been sent, and then take the delay: a
packet whose turn has come leaves the queue for the line, a list in the order of release times. The
order of a line never changes, so a plain list does; TimingWheel is for delays that differ.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport Batch, Context
from shaping.shaper cimport Setting, Shaper

cdef class Link(Shaper):
    cdef object _overhead        # shaping.overhead.Overhead, as configured
    cdef uint64_t delay_ns
    # the line, linked by Packet.next in the order of Packet.release_ns
    cdef uint32_t line_head
    cdef uint32_t line_tail
    cdef uint32_t line_small     # buffers of each size on the line
    cdef uint32_t line_large
    cdef uint64_t last_ns        # release time of the last packet that entered the line
    # the packet whose bits are being sent while the clock is not due: the last one on the line; may
    # be NO_PACKET or out of date at other times
    cdef uint32_t sending
    cdef uint64_t settled_ns     # release time of the packet before it
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void release_due(self, Context *ctx) noexcept nogil
    cdef void set_deadline(self, Context *ctx) noexcept nogil
    cdef void apply(self, const Setting *setting, Context *ctx) noexcept nogil
    # Overridden by TraceLink.
    cdef void start_due(self, Context *ctx) noexcept nogil

    @cython.final
    cdef void put(self, Context *ctx, uint32_t index) noexcept nogil

    @cython.final
    cdef void send_due(self, Context *ctx) noexcept nogil

    @cython.final
    cdef void leave(self, Context *ctx, Batch *out) noexcept nogil

    @cython.final
    cdef void note_lateness(self, uint64_t now_ns) noexcept nogil

    @cython.final
    cdef void count_line(self, Context *ctx, uint32_t index, int sign) noexcept nogil

    @cython.final
    cdef bint is_sending(self, uint64_t now_ns) noexcept nogil

    @cython.final
    cdef void retime(self, Context *ctx) noexcept nogil

    cdef void apply_delay(self, uint64_t delay_ns, Context *ctx) noexcept nogil

cdef class SetDelay(Work):
    # A change of delay as Work, which needs no GIL.
    cdef Link link
    cdef uint64_t delay_ns
    cdef void run(self, Context *ctx) noexcept nogil
