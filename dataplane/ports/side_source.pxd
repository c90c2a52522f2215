"""SideSource: one side of a capture as a port; Split: determines a frame's side."""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from dataplane.capture.reader cimport CaptureReader, Record
from dataplane.packet.pool cimport Batch, Context
from dataplane.ports.pcap_source cimport PcapSource
from dataplane.wire.rewrite cimport Rewrite

cdef struct PrefixRule:
    uint32_t bytes               # 4 or 16
    uint32_t bits
    int32_t side
    uint8_t address[16]

cdef class Split:
    cdef uint64_t *macs                  # sorted
    cdef int32_t *mac_sides
    cdef uint32_t mac_count
    cdef PrefixRule *prefixes            # the longest first
    cdef uint32_t prefix_count
    cdef int32_t *ports                  # side by port number; NULL: no port rules
    # sides of the lower and of the higher port; -1: rule not used
    cdef int32_t server, client
    cdef readonly int32_t other          # side of frames that match no rule; -1: none
    cdef int32_t side(self, const uint8_t *data, uint32_t length, bint destination) noexcept nogil
    cdef int32_t by_mac(self, const uint8_t *at) noexcept nogil
    cdef int32_t by_address(self, const uint8_t *at, uint32_t bytes) noexcept nogil

cdef class SharedCapture:
    cdef readonly CaptureReader reader
    cdef readonly Split split
    cdef Record record                   # the next packet
    cdef int32_t side                    # its side
    cdef uint64_t next_ns                # its due time
    cdef readonly uint64_t out_of_order, unassigned
    cdef void advance(self) noexcept nogil

cdef class SideSource(PcapSource):
    cdef readonly SharedCapture shared
    cdef readonly int side
    cdef readonly uint64_t taken         # packets of this side
    cdef readonly uint64_t cut           # of those, shorter than on the wire
    cdef Rewrite rewrite
    cdef Split split                     # determines a frame's destination side
    cdef uint8_t *macs                   # of the NICs, six bytes each, by side
    cdef uint32_t mac_count              # 0: MAC addresses are not changed
    cdef void advance(self) noexcept nogil
    cdef void edit(self, Context *ctx, uint32_t index) noexcept nogil
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
