"""Mirror: writes a copy of passing packets to a capture file."""
from libc.stdint cimport uint32_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context
from dataplane.ports.pcap_writer cimport CaptureFile

cdef class Mirror(Element):
    cdef readonly object file
    cdef readonly uint32_t snaplen
    cdef readonly object buffer
    cdef readonly CaptureFile capture    # None before initialize and after cleanup
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
