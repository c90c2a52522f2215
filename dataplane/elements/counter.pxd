"""Counter and Discard: the two simplest elements."""
from dataplane.element cimport Element
from dataplane.packet cimport Batch, Context

cdef class Counter(Element):
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Discard(Element):
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
