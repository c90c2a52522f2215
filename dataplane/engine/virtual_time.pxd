"""VirtualTime: runs engines without threads in virtual time.

The result does not depend on the number of engines. At each instant VirtualTime polls every source
in the order of the ports' numbers, then runs every timer in the order of the elements' names. All
effects of one of them, through rings between engines too, take place before the next one runs. So
the order of packets depends on the graph and the inputs alone.
"""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.clock cimport Clock
from dataplane.graph.element cimport Element, Source
from dataplane.packet.pool cimport Context

cdef struct Polled:
    void *source                 # a Source, borrowed: the engines own it
    Context *ctx
    bint scheduled               # its deadline tells when it has packets

cdef struct Timed:
    void *element
    Context *ctx
    bint deferrable

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
    cdef list _kept              # owns what the arrays borrow
    cdef void set_now(self) noexcept nogil
    cdef uint64_t cross(self) noexcept nogil
    cdef uint64_t instant(self) noexcept nogil
    cdef uint64_t next_deadline(self, bint waking) noexcept nogil
