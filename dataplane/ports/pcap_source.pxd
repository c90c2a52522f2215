"""PcapSource: a port that receives a capture's packets when they are due by the engine's clock."""
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from dataplane.capture.reader cimport CaptureReader, Record
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port

cdef enum:
    RECORDED = 0                 # at the recorded times, faster by factor / divisor
    PACKETS_A_SECOND = 1         # factor / divisor packets a second
    BITS_A_SECOND = 2
    AT_ONCE = 3

# of packets; each time is computed from the beginning, so errors do not add up
cdef struct Schedule:
    uint32_t mode
    uint64_t factor
    uint64_t divisor

cdef class PcapSource(Port):
    cdef readonly CaptureReader reader
    cdef readonly uint64_t first_ns      # time stamp of the first packet; 0: no packet
    # packets older than the one before, delivered right after it
    cdef readonly uint64_t out_of_order
    cdef readonly uint64_t too_long      # longer than any buffer, truncated to its size
    cdef Record record                   # the next packet
    cdef int64_t shift_ns                # from the capture's time to the engine's
    cdef Schedule schedule
    cdef bint waiting                    # for `start`
    cdef uint64_t begin_ns               # time of this round's first packet, by the engine's clock
    # packets and layer-2 bits before the next packet, over all rounds
    cdef uint64_t sequence, sent_bits
    cdef uint64_t round_first_ns, round_packets
    cdef readonly uint32_t rounds        # rounds after this one
    cdef uint64_t finished_packets       # of earlier rounds
    cdef str failure                     # why a further round did not begin
    cdef void again(self) noexcept

    @cython.final
    cdef uint64_t instant(self) noexcept nogil
    cdef void advance(self) noexcept nogil
    cdef bint edits                      # `edit` is to be called
    cdef void edit(self, Context *ctx, uint32_t index) noexcept nogil

    @cython.final
    cdef void deliver(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil

    @cython.final
    cdef uint32_t take(self, Context *ctx, uint32_t queue) noexcept nogil
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
