"""Drives one element as an engine does, and measures only that.

A Lane holds prepared packets in a first-in first-out list. One turn takes a batch from its front
and pushes it into an element; the Sink after the element appends the packets to the list again. So
an element may hold packets (a shaper), and an element that frees packets is noticed: the lane runs
empty.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context, PacketPool
from dataplane.packet.ring cimport Ring
from dataplane.elements.rss cimport Rss
from virt.virtqueue cimport Virtqueue

cdef struct Fifo:  # a circular list in C, which the sink accesses without the GIL
    uint32_t *indices                    # mask + 1 of them
    uint32_t mask
    uint32_t first                       # position to take from, free-running
    uint32_t last                        # position to append at

cdef class Lane:
    cdef readonly PacketPool pool
    cdef Context *ctx
    cdef Fifo fifo
    cdef uint64_t turns(self, Element element, uint32_t count, uint32_t batch, uint64_t step_ns,
                        bint loses, uint64_t *packets) noexcept nogil
    cdef uint64_t ring_turns(self, Ring ring, uint32_t count, uint32_t batch,
                             uint64_t *packets) noexcept nogil

cdef class Sink(Element):
    cdef readonly Lane lane
    cdef Fifo *fifo                      # the lane's
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Hop(Element):
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Flows(Element):
    cdef uint32_t count
    cdef uint64_t number
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Steer(Element):
    cdef Rss rss
    cdef uint64_t chosen  # sum of the queues: so that the compiler cannot remove the lookup
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Driver:
    cdef Virtqueue *q                    # of the port, which has to live as long
    cdef uint64_t address
    cdef uint32_t stride, length
    cdef uint16_t flags
    cdef uint32_t position               # packed: a slot; split: free-running
    cdef uint32_t wraps                  # packed: how often position went back to 0
    cdef void write(self, uint32_t slot, uint16_t id, uint16_t third,
                    uint16_t fourth) noexcept nogil
    cdef void post(self, uint32_t count) noexcept nogil
