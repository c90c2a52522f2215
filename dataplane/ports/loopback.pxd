"""LoopbackPort: receives what it transmits."""
from libc.stdint cimport uint32_t
from cpython.ref cimport PyObject
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port

cdef class LoopbackPort(Port):
    cdef readonly list rings             # one SpscRing per queue: owning references
    cdef PyObject **_rings               # the same, borrowed, for use without the GIL
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
