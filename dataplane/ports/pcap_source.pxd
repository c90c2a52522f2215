"""PcapSource: a capture as a port that receives; packets come when they are due by the engine's clock."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from dataplane.capture.reader cimport CaptureReader, Record
from dataplane.packet cimport Batch, Context
from dataplane.port cimport Port

cdef class PcapSource(Port):
    cdef readonly CaptureReader reader
    cdef readonly uint64_t first_ns      # time stamp of the first packet, 0 where there is none
    cdef readonly uint64_t out_of_order  # packets older than the one before: they come right after it
    cdef readonly uint64_t too_long      # longer than any buffer here
    cdef Record record                   # the next packet
    cdef int64_t shift_ns                # from the capture's time to the engine's
    cdef void advance(self) noexcept nogil
    cdef uint32_t take(self, Context *ctx, uint32_t queue) noexcept nogil
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch, uint32_t limit) noexcept nogil
