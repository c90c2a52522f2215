"""Counter and Discard."""
from libc.stdint cimport uint32_t
from dataplane.element cimport Element
from dataplane.packet cimport Batch, Context, packet_wire_bytes


cdef class Counter(Element):
    """Counts what passes.

    Synopsis:  a >> Counter(name="web") >> b
    Ports:     1 in, 1 out; every packet goes on.
    Config:    name
    Counters:  packets; bytes (of frames as they are), wire_bytes (layer 2, each GSO segment with its headers)
    Handlers:  counters
    Threads:   any one engine
    Cost:      see dataplane/README.md
    """

    COUNTERS = ("bytes", "wire_bytes")

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i
        for i in range(batch.count):
            self.counters.extra[0] += ctx.packets[batch.index[i]].length
            self.counters.extra[1] += packet_wire_bytes(&ctx.packets[batch.index[i]])
        self.emit(ctx, 0, batch)


cdef class Discard(Element):
    """Drops every packet: where a gate that is of no interest ends.

    Synopsis:  classifier[1] >> Discard()
    Ports:     1 in, 0 out
    Counters:  drops: discarded
    Handlers:  counters
    Threads:   any one engine
    """

    OUTPUTS = 0
    DROP_REASONS = ("discarded",)

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        self.drop_batch(ctx, batch, 0)
