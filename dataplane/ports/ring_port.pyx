"""RingPort. The contract is in ring_port.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.engine cimport Engine
from dataplane.packet.pool cimport BURST, Batch, Context, Packet, packet_free, packet_return_cache
from dataplane.graph.offload cimport OFFLOAD_ALL
from dataplane.graph.port cimport TX_LINK_DOWN, TX_QUEUE_FULL, Port
from dataplane.packet.ring cimport Ring
from dataplane.vatomic cimport va_load_relaxed_u32, va_store_relaxed_u32, vnic_check

from dataplane.errors import ConfigError


cdef class RingPort(Port):
    """One side of a pair of rings between two engines of one pool: indices cross, frames stay in
    place.

    ring_in: the ring that this side consumes; ring_out: the ring that it fills; the other engine's
    RingPort has them swapped. An SpscRing has one RingPort at each end; an MpscRing may be
    `ring_out` of several RingPorts, so that many engines feed one. Either may be None: one
    direction only.

    Packets cross unchanged: GSO whole, records (class, hash, Parse's results) and ingress port
    kept, so that a switch after the crossing learns the right port. Hence `number` does not mark
    packets; it only identifies the port in a graph.

    enters: the packets that this side receives come from outside the graph, such as from a module,
    and get this port's number, and no class or hash. offloads: those that the other side accepts.
    `joined`: whether the other side exists. While it does not, transmitted packets are dropped
    (link_down), so that no packets wait in a ring that no engine reads.

    When a ring is full, packets stay with the sender (queue_full). The ring's release/acquire pair
    makes frame and record visible to the consumer; the producer accesses neither after the push.
    """

    def __init__(self, str name, uint32_t number=0, Ring ring_in=None, Ring ring_out=None, *,
                 uint32_t offloads=OFFLOAD_ALL, bint enters=False):
        super().__init__(name, number, 1, offloads)
        if ring_in is None and ring_out is None:
            raise ConfigError(f"port {name}: no ring; give ring_in, ring_out or both")
        if ring_in is ring_out:
            raise ConfigError(f"port {name}: ring_in and ring_out are the same ring; use "
                              f"LoopbackPort for that")
        self.ring_in, self.ring_out = ring_in, ring_out
        self.enters, self.is_joined = enters, 1
        self.needs_arm = self.wakes_only = True

    @property
    def joined(self):
        return bool(va_load_relaxed_u32(&self.is_joined))

    @joined.setter
    def joined(self, bint joined):
        va_store_relaxed_u32(&self.is_joined, joined)

    def descriptors(self):
        return [] if self.ring_in is None else [self.ring_in.doorbell]

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef uint32_t i, taken
        cdef Packet *p
        if self.ring_in is None:
            return 0
        taken = self.ring_in.pop(&batch.index[batch.count], limit)
        for i in range(batch.count, batch.count + taken):
            vnic_check(batch.index[i] < ctx.total_count, "rings carry packets of this pool")
            self.stats[0].rx_bytes += ctx.packets[batch.index[i]].length
            if self.enters:
                p = &ctx.packets[batch.index[i]]
                p.port, p.queue, p.mark, p.hash, p.timestamp_ns = self.number, 0, 0, 0, ctx.now_ns
        self.stats[0].rx_packets += taken
        batch.count += taken
        return taken

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i, taken = 0
        if self.ring_out is None or not va_load_relaxed_u32(&self.is_joined):
            for i in range(batch.count):
                ctx.packets[batch.index[i]].tx_status = TX_LINK_DOWN
        else:
            taken = push_batch(ctx, self.ring_out, batch,
                               <unsigned long long *>&self.stats[0].tx_bytes)
        self.stats[0].tx_packets += taken
        self.stats[0].tx_dropped += batch.count
        return taken

    cdef bint arm(self) noexcept nogil:
        return self.ring_in is not None and self.ring_in.arm()

    cdef void disarm(self) noexcept nogil:
        if self.ring_in is not None:
            self.ring_in.disarm()

    def drain(self, Engine engine not None):
        """Frees the packets in `ring_in`, on the thread of any engine of the pool; returns their
        number. Must be called only when no engine receives from this port any more."""
        if self.ring_in is None:
            return 0
        return engine.call(lambda: free_all(engine.ctx, self.ring_in))


cdef uint32_t push_batch(Context *ctx, Ring ring, Batch *batch,
                         unsigned long long *pushed_bytes) noexcept nogil:
    cdef uint32_t i, pushed, left
    cdef uint64_t total = 0
    # Lengths first: once pushed, a packet belongs to the consumer, which may have freed it.
    for i in range(batch.count):
        total += ctx.packets[batch.index[i]].length
    pushed = ring.push(&batch.index[0], batch.count)
    if pushed:
        ring.ring_doorbell()
    left = batch.count - pushed
    for i in range(left):
        batch.index[i] = batch.index[pushed + i]
        ctx.packets[batch.index[i]].tx_status = TX_QUEUE_FULL
        total -= ctx.packets[batch.index[i]].length
    batch.count = left
    pushed_bytes[0] += total
    return pushed


cdef uint32_t free_all(Context *ctx, Ring ring) noexcept nogil:
    cdef uint32_t values[BURST]
    cdef uint32_t i, got, total = 0
    while True:
        got = ring.pop(&values[0], BURST)
        for i in range(got):
            packet_free(ctx, values[i])
        total += got
        if got == 0:
            packet_return_cache(ctx)
            return total
