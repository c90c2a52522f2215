"""VirtualTime: runs engines without threads in virtual time.

The result does not depend on the number of engines. At each instant VirtualTime polls every source
in the order of the ports' numbers, then runs every timer in the order of the elements' names. All
effects of one of them, through rings between engines too, take place before the next one runs. So
the order of packets depends on the graph and the inputs alone.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.clock cimport Clock
from dataplane.graph.element cimport Element, Source
from dataplane.packet.pool cimport Context

cdef struct Polled:
    void *source                 # a Source, borrowed: the engines own it
    Context *ctx
    const uint64_t *deadline_ns  # the element's
    bint scheduled               # has packets at its deadlines only

cdef struct Timed:
    void *element
    Context *ctx
    const uint64_t *deadline_ns  # the element's
    bint deferrable


@cython.final
cdef class VirtualTime:
    cdef readonly list engines
    cdef readonly Clock clock
    cdef Context **contexts
    cdef uint32_t context_count
    cdef Polled *sources
    cdef uint32_t source_count
    cdef Polled *rings
    cdef uint32_t ring_count
    cdef Timed *timed
    cdef uint32_t timed_count
    cdef uint64_t timer_ns       # the next deadline of all timers, until one is set
    cdef list _references        # of the objects that the arrays borrow
    cdef void set_now(self) noexcept nogil
    cdef uint64_t cross(self) noexcept nogil
    cdef uint64_t instant(self) noexcept nogil
    cdef bint timers_changed(self) noexcept nogil
    cdef bint run_timers(self, uint64_t now_ns) noexcept nogil
    cdef uint64_t next_source(self) noexcept nogil
    cdef uint64_t next_timer(self, bint waking) noexcept nogil
