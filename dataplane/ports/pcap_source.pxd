"""PcapSource: a capture as a port that receives; packets come when they are due by the engine's clock."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from dataplane.capture.reader cimport CaptureReader, Record
from dataplane.packet cimport Batch, Context
from dataplane.port cimport Port

cdef enum:
    RECORDED = 0                 # at the recorded instants, faster by factor / divisor
    PACKETS_A_SECOND = 1         # factor / divisor of them
    BITS_A_SECOND = 2
    AT_ONCE = 3

cdef struct Schedule:            # packets' instants, each computed from the beginning: nothing adds up, nothing drifts
    uint32_t mode
    uint64_t factor
    uint64_t divisor

cdef class PcapSource(Port):
    cdef readonly CaptureReader reader
    cdef readonly uint64_t first_ns      # time stamp of the first packet, 0 where there is none
    cdef readonly uint64_t out_of_order  # packets older than the one before: they come right after it
    cdef readonly uint64_t too_long      # longer than any buffer, and cut to what it holds
    cdef readonly uint32_t mtu
    cdef Record record                   # the next packet
    cdef int64_t shift_ns                # from the capture's time to the engine's
    cdef Schedule schedule
    cdef bint waiting                    # for `start`
    cdef uint64_t begin_ns               # instant of this round's first packet, by the engine's clock
    cdef uint64_t sequence, sent_bits    # of the packet that is next: packets and layer-2 bits before it, over all rounds
    cdef uint64_t round_first_ns, round_packets
    cdef readonly uint32_t rounds        # still to come after this one
    cdef uint64_t finished_packets       # of earlier rounds
    cdef void again(self) noexcept
    cdef uint64_t instant(self) noexcept nogil
    cdef void advance(self) noexcept nogil
    cdef bint edits                      # `edit` is to be called
    cdef void edit(self, Context *ctx, uint32_t index) noexcept nogil
    cdef void deliver(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef uint32_t take(self, Context *ctx, uint32_t queue) noexcept nogil
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch, uint32_t limit) noexcept nogil
