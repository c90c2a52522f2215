"""FlowMemory. The contract is in flow_memory.pxd."""
from libc.stdint cimport uint32_t
from libc.string cimport memset
from dataplane.elements.rss cimport Rss
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context, Packet
from virt.guest_hash cimport hash_of_answer


cdef class FlowMemory(Element):
    """Remembers of each flow that a guest transmits the queue pair, so that GuestTx returns the
    answers on the same one.

    Synopsis:  PortRx(guest) >> Parse() >> FlowMemory(rss) >> ...
    Ports:     1 in, 1 out
    Config:    rss: the one of the guest's GuestTx
    Counters:  none
    Handlers:  counters
    Threads:   the engine that serves the port
    Cost:      see bench/elements.py; while it does not learn, a call per batch

    A flow is told by the hash of its answers: two flows of one hash are one. What a guest transmits
    changes only how its own frames are steered. Flows are not handed over: a successor knows one
    again with the guest's next packet of it.
    """

    def __init__(self, Rss rss not None, *, name=None):
        self.rss = rss
        self.name = name or "flows"

    def companions(self):
        return (self.rss,)

    def learn(self, bint learns):
        """Whether flows are remembered from now on; if not, all are forgotten. On the engine's
        thread."""
        if not learns:
            memset(self.flows, 0, sizeof(self.flows))
        self.learns = learns

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, hash
        cdef Packet *p
        if self.learns:
            for i in range(batch.count):
                p = &ctx.packets[batch.index[i]]
                hash = hash_of_answer(self.rss, p)
                # 0: what is no IP packet has no flow
                if hash:
                    self.flows[hash & (FLOWS_MOST - 1)] = flow_entry(hash, p.queue)
        self.emit(ctx, 0, batch)
