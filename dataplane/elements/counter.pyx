"""Counter and Discard."""
from libc.stdint cimport uint32_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context, packet_wire_bytes


cdef class Counter(Element):
    """Counts packets and bytes.

    Synopsis:  a >> Counter(name="web") >> b
    Ports:     1 input, 1 output; every packet goes on.
    Config:    none
    Counters:  bytes: bytes of the frames as they are; a GSO frame counts once
               wire_bytes: bytes on the wire: each segment of a GSO frame counts with its own
                   headers
    Handlers:  counters
    Threads:   any one engine
    Cost:      see dataplane/README.md
    Example:   Count what the container sends before its rate limit drops any of it.
               nics:
                 web:
                   netns: /run/netns/web
                   egress: {rate: 10mbit, elements: [{element: Counter, name: offered}]}
                 db: {netns: /run/netns/db}
    """

    COUNTERS = ("bytes", "wire_bytes")

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i
        for i in range(batch.count):
            self.counters.extra[0] += ctx.packets[batch.index[i]].length
            self.counters.extra[1] += packet_wire_bytes(&ctx.packets[batch.index[i]])
        self.emit(ctx, 0, batch)


cdef class Discard(Element):
    """Drops every packet.

    Synopsis:  classifier[1] >> Discard()
    Ports:     1 input, no output; it ends an output whose packets are unwanted.
    Config:    none
    Drops:     discarded: every packet
    Handlers:  counters
    Threads:   any one engine
    Example:   A firewall of one rule: the container may send no UDP.
               nics:
                 web:
                   netns: /run/netns/web
                   egress:
                     elements:
                       - element: Classifier
                         rules: [{protocol: udp}]
                         branches: {0: [Discard]}
                 db: {netns: /run/netns/db}
    """

    OUTPUTS = 0
    DROP_REASONS = ("discarded",)

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        self.drop_batch(ctx, batch, 0)
