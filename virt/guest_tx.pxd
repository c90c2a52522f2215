"""GuestTx: transmits to a guest, steered as its driver wants (virtio 1.2, 5.1.6.5.6, 5.1.6.5.7)."""
from libc.stdint cimport uint32_t
from dataplane.elements.nic_tx cimport NicTx
from dataplane.elements.rss cimport Rss
from dataplane.packet.pool cimport Batch, Context
from virt.flow_memory cimport FlowMemory
from virt.virtio_port cimport VirtioPort

cdef class GuestTx(NicTx):
    cdef readonly VirtioPort guest
    cdef readonly FlowMemory flows       # or None: the port has one queue pair
    cdef readonly Rss driver             # the driver's key and table, or None
    cdef bint usual                      # steered as by NicTx, and no hash is reported
    cdef bint hashes                     # by `driver`
    cdef bint steers                     # by `driver`
    cdef bint by_flow                    # by `flows`
    cdef uint32_t types                  # of hashes
    cdef uint32_t unclassified           # the pair for frames without a hash
    cdef uint32_t pairs                  # in use
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef uint32_t pair_of(self, Context *ctx, uint32_t index) noexcept nogil
