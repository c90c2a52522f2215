"""RingPort: passes packets from one engine to another."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port
from dataplane.packet.ring cimport Ring

cdef class RingPort(Port):
    cdef readonly Ring ring_in  # the ring that this side consumes; None: it receives nothing
    cdef readonly Ring ring_out          # the ring that this side fills; None: it transmits nothing
    # packets come from outside the graph: they get this port's number
    cdef bint enters
    cdef uint32_t is_joined              # written by control, read by the engine
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil

# Pushes a batch in order; packets that do not fit stay in it with TX_QUEUE_FULL. Adds the pushed
# frames' lengths to *pushed_bytes.
cdef uint32_t push_batch(Context *ctx, Ring ring, Batch *batch,
                         unsigned long long *pushed_bytes) noexcept nogil

# Frees all packets in a ring, with the Context of an engine that does not run; returns how many.
cdef uint32_t free_all(Context *ctx, Ring ring) noexcept nogil
