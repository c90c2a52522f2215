"""Counter and Discard: the two simplest elements."""
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context

cdef class Counter(Element):
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Discard(Element):
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
