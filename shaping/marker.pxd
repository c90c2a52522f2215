"""Marker: sets DSCP, ECN and VLAN priority of packets, and their class."""
from libc.stdint cimport int64_t, uint8_t, uint32_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context, Packet

cdef class Marker(Element):
    cdef uint8_t keep_tos        # bits of the TOS byte (IPv6: traffic class) that stay
    cdef uint8_t set_tos         # the other bits
    cdef bint marks_tos
    cdef bint capable_only       # CE is set on ECN-capable packets only
    cdef int pcp                 # of the outer VLAN tag; -1: stays
    cdef int64_t mark            # Packet.mark; -1: stays
    cdef object _settings
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t mark_tos(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t mark_all(self, Context *ctx, Batch *batch) noexcept nogil
    cdef bint set_tos_of(self, uint8_t *data, Packet *p) noexcept nogil
    cdef bint set_pcp_of(self, uint8_t *data, Packet *p) noexcept nogil
