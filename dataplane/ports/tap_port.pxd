"""TapPort: the queues of a TAP device as a Port (Linux Documentation/networking/tuntap.rst; header:
virtio 1.2, 5.1.6)."""
from libc.stdint cimport uint8_t, uint32_t
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port

cdef enum:
    # bytes that a burst may read: many large frames at once are faster than one by one; more do not
    # fit the cache
    READ_BUDGET = 1048576

cdef class TapPort(Port):
    cdef int *_fds                       # one per queue, non-blocking
    cdef list _descriptors
    cdef uint8_t *_sink                  # for frames for which the pool had no packet
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
