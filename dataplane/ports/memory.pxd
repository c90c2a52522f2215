"""MemoryPort: a port whose peer is Python code, which injects and takes frames (tests, tools)."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port

cdef class MemoryPort(Port):
    cdef object _lock
    cdef list _incoming
    cdef uint32_t waiting
    cdef int _doorbell
    cdef list transmitted
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef bint arm(self) noexcept nogil
