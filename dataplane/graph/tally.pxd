"""Tally: sums of counters of elements and ports, which control reads while engines run.

Counters belong to their engine's thread. Each is 64 bits and aligned, so a load on another thread
finds a value that it had; the counters of one Tally may be some nanoseconds apart. No engine waits
for it, or notices it.
"""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.port cimport Port

cdef enum:
    TALLY_COLUMNS = 32

cdef struct Term:                # added to a column
    const uint64_t *counter
    uint32_t column

cdef class Tally:
    cdef readonly uint32_t columns
    cdef Term *terms
    cdef uint32_t count
    cdef uint32_t room
    cdef list owners             # of the counters: they stay in memory as long as the Tally
    cdef void load(self, uint64_t *sums) noexcept nogil
    cdef int append(self, uint32_t column, const uint64_t *counter) except -1

cdef class TallyTable:
    cdef list ids
    cdef list tallies
    cdef readonly uint32_t columns
    cdef uint32_t levels
    cdef uint64_t *sums          # by tally and column, when they were read last

cdef class Steps:
    cdef uint32_t count
    cdef uint32_t columns
    cdef uint32_t levels
    cdef uint64_t most
    cdef uint64_t room           # places in sums
    cdef frozenset ids
    cdef dict places             # by id
    cdef uint64_t *sums          # by place, step and column
    cdef uint64_t place_of(self, uint64_t which) except? 0xFFFFFFFFFFFFFFFF
