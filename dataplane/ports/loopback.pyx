"""LoopbackPort. The contract is in loopback.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from dataplane.engine.engine cimport Engine
from dataplane.packet.pool cimport PACKET_IN_USE, PACKET_TRUNCATED, Batch, Context, Packet
from dataplane.graph.offload cimport OFFLOAD_ALL
from dataplane.graph.port cimport Port
from dataplane.ports.ring_port cimport free_all, push_batch
from dataplane.packet.ring cimport SpscRing

from dataplane.errors import ConfigError


cdef class LoopbackPort(Port):
    """A port connected to itself: it receives what is transmitted on a queue on the same queue, in
    order.

    queues: 1 to 64; capacity: packets in flight per queue (a power of two, 2 to 2^20), further
    packets stay with the sender (queue_full). Frame and offloads stay as they are (GSO whole);
    time, port, queue, class, hash and Parse's results are reset. Two engines of one pool may
    transmit and receive.
    """

    MOVABLE = False              # packets in flight are in its own rings

    def __init__(self, str name, uint32_t number=0, uint32_t queues=1, uint32_t capacity=1024):
        super().__init__(name, number, queues, OFFLOAD_ALL)
        try:
            self.rings = [SpscRing(capacity) for _ in range(queues)]
        except ValueError as error:
            raise ConfigError(f"port {name}: {error}") from None
        self.needs_arm = self.wakes_only = True
        free(self._rings)
        self._rings = <PyObject **>calloc(queues, sizeof(PyObject *))
        if self._rings == NULL:
            raise MemoryError(f"port {name}")
        for i in range(queues):
            self._rings[i] = <PyObject *>self.rings[i]

    def __dealloc__(self):
        free(self._rings)

    def descriptors(self):
        return [ring.doorbell for ring in self.rings]

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef uint32_t i, taken = (<SpscRing>self._rings[queue]).pop(
            &batch.index[batch.count], limit)
        cdef Packet *p
        for i in range(batch.count, batch.count + taken):
            p = &ctx.packets[batch.index[i]]
            p.timestamp_ns = ctx.now_ns
            p.port, p.queue = <unsigned short>self.number, <unsigned short>queue
            p.flags &= PACKET_IN_USE | PACKET_TRUNCATED
            p.mark = p.hash = 0
            self.stats[queue].rx_bytes += p.length
        self.stats[queue].rx_packets += taken
        batch.count += taken
        return taken

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t taken = push_batch(ctx, <SpscRing>self._rings[queue], batch,
                                         <unsigned long long *>&self.stats[queue].tx_bytes)
        self.stats[queue].tx_packets += taken
        self.stats[queue].tx_dropped += batch.count
        return taken

    cdef bint arm(self) noexcept nogil:
        cdef uint32_t queue
        cdef bint pending = False
        for queue in range(self.queues):           # no early exit: each ring has its own doorbell
            pending = (<SpscRing>self._rings[queue]).arm() or pending
        return pending

    cdef void disarm(self) noexcept nogil:
        cdef uint32_t queue
        for queue in range(self.queues):
            (<SpscRing>self._rings[queue]).disarm()

    def drain(self, Engine engine not None):
        """Frees the packets in flight, after no engine serves the port; returns how many."""
        cdef SpscRing ring
        if engine.running:
            raise ConfigError(f"port {self.name}: engine {engine.name} still runs; stop it first")
        total = 0
        for ring in self.rings:
            total += free_all(engine.ctx, ring)
        return total
