"""Parse: reads every packet's headers once, where packets enter a graph."""
from libc.stdint cimport uint32_t
from dataplane.element cimport Element
from dataplane.packet cimport Batch, Context

cdef class Parse(Element):
    cdef bint tolerant                   # malformed="pass"
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef bint keep_malformed(self, Context *ctx, uint32_t index, int reason) noexcept nogil
