"""Drives one element the way an engine does, and takes the time of nothing else.

A Lane owns prepared packets in a first-in first-out list. One turn takes a batch from its front and pushes it into an element; the
Sink behind the element puts what arrives back at the end. So an element may hold packets (a shaper), and an element that frees
them is noticed: the lane runs dry.
"""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.element cimport Element
from dataplane.packet cimport Batch, Context, PacketPool
from dataplane.ring cimport Ring
from vnic.device.rss cimport Rss

cdef struct Fifo:                        # a circular list; the sink reaches it without the GIL, so it is no Python object
    uint32_t *indices                    # mask + 1 of them
    uint32_t mask
    uint32_t first                       # taken from here, free-running
    uint32_t last                        # put back here

cdef class Lane:
    cdef readonly PacketPool pool
    cdef Context *ctx
    cdef Fifo fifo
    cdef uint64_t turns(self, Element element, uint32_t count, uint32_t batch, uint64_t step_ns, uint64_t *packets) noexcept nogil
    cdef uint64_t ring_turns(self, Ring ring, uint32_t count, uint32_t batch, uint64_t *packets) noexcept nogil

cdef class Sink(Element):
    cdef readonly Lane lane
    cdef Fifo *fifo                      # the lane's
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Hop(Element):
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Steer(Element):
    cdef Rss rss
    cdef uint64_t chosen                 # sum of the queues: so that the compiler leaves nothing out
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
