"""TapPort: the queues of a TAP device as a Port (Linux Documentation/networking/tuntap.rst; virtio 1.2, 5.1.6 for the header)."""
from libc.stdint cimport uint8_t, uint32_t
from dataplane.packet cimport Batch, Context
from dataplane.port cimport Port

cdef enum:
    VNET_HEADER = 10         # struct virtio_net_hdr without num_buffers: what TUNSETVNETHDRSZ was told
    READ_BUDGET = 1048576    # bytes a burst may read: reading many large frames before writing them beats one by one; more leaves the cache

cdef class TapPort(Port):
    cdef int *_fds                       # one a queue, non-blocking
    cdef list _descriptors
    cdef readonly uint32_t mtu
    cdef uint8_t *_sink                  # where frames go that no packet could be had for
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch, uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
