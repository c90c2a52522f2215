"""Link: an edge of the graph that ends here: a bounded queue, emptied in the same iteration (ARCHITECTURE.md).

Packets go forward by C calls. Where an edge would lead back to an element that is still at work, as
between two switches, it leads into a Link instead: the Link holds the batch, and the engine lets it go
when the call that brought it has returned. The time is charged to the source whose packets they are.
"""
from libc.stdint cimport uint16_t, uint32_t
from dataplane.graph.element cimport Source
from dataplane.packet.pool cimport Batch, Context

cdef enum:
    LINK_CAPACITY = 4096     # packets; more than a source's burst, flooded once, brings to one edge
    # Bound on the links emptied in one go: a graph that circulates packets must not stop the engine.
    # The rest is emptied in the next iteration.
    DRAINS_MOST = 1024

cdef class Link(Source):
    cdef readonly uint16_t port          # Packet.port of what leaves it
    cdef uint32_t head, tail             # of the queue, linked by Packet.next; NO_PACKET: empty
    # The engine's list of links that hold packets (Context.links).
    cdef Context *listed                 # NULL: this one is not in a list
    cdef void *next_listed
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t poll(self, Context *ctx) noexcept nogil
    cdef void take_up(self, Context *ctx) noexcept nogil
    cdef void enlist(self, Context *ctx) noexcept nogil
    cdef void unlist(self) noexcept nogil

cdef void drain_links(Context *ctx) noexcept nogil
