"""Parse: reads every packet's headers once, where packets enter a graph."""
from libc.stdint cimport uint32_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port, QueueStats

cdef class Parse(Element):
    cdef bint forwards                   # malformed="forward"
    # the port of these packets, whose segments are counted here; or None
    cdef Port port
    cdef QueueStats *stats               # the port's
    cdef uint32_t queues
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef bint keep_malformed(self, Context *ctx, uint32_t index, int reason) noexcept nogil
