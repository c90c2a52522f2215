"""VirtualTime: engines without threads, run together through virtual time; the outcome does not depend on how many they are.

At each instant: every source in the order of its port's number, then every timer in the order of its element's name. Whatever one of them
sets off is done before the next, rings between engines included. So packets meet in an order that only the graph and the inputs decide.
"""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.clock cimport Clock
from dataplane.element cimport Element, Source
from dataplane.packet cimport Context

cdef struct Polled:
    void *source                 # Source, borrowed: the engines own it
    Context *ctx
    bint scheduled               # its deadline says when it has something

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
    cdef list _kept              # what the arrays borrow
    cdef void set_now(self) noexcept nogil
    cdef uint64_t cross(self) noexcept nogil
    cdef uint64_t instant(self) noexcept nogil
    cdef uint64_t next_deadline(self, bint waking) noexcept nogil
