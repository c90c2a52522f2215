"""NicTx: transmits to the container; RSS selects the NIC's queues."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport PortTx
from dataplane.elements.rss cimport Rss

cdef class NicTx(PortTx):
    cdef readonly Rss rss
    cdef Batch *shares                   # one per queue
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
