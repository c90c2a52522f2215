"""Link: a bounded queue in place of an edge that would close a cycle, emptied in the same
iteration.

Elements forward packets by C calls. An edge that could lead back to an element that is still
processing, as between two switches, leads into a Link instead: it holds the batch, and the engine
forwards it after the call has returned. The time is charged to the source of the packets.
"""
from libc.stdint cimport uint16_t, uint32_t
from dataplane.graph.element cimport Source
from dataplane.packet.pool cimport Batch, Context

cdef enum:
    LINK_CAPACITY = 4096     # packets; more than one flooded burst of a source puts on an edge
    # Bound on polls of links after one source: a graph that circulates packets must not stop the
    # engine. The remaining links are emptied in the next iteration.
    DRAINS_MOST = 1024

cdef class Link(Source):
    cdef readonly uint16_t port          # Packet.port of departing packets
    cdef uint32_t head, tail             # of the queue, linked by Packet.next; NO_PACKET: empty
    # The engine's list of links that hold packets (Context.links).
    cdef Context *listed                 # NULL: not in a list
    cdef void *next_listed
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t poll(self, Context *ctx) noexcept nogil
    cdef void take_up(self, Context *ctx) noexcept nogil
    cdef void enlist(self, Context *ctx) noexcept nogil
    cdef void unlist(self) noexcept nogil

cdef void drain_links(Context *ctx) noexcept nogil
