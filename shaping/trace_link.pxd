"""TraceLink: a line whose rate varies with time, as a trace has recorded it.

It is a Link of which a Schedule says when bits are sent. The clock of its base classes has no rate:
it is the instant at which the last bit of what has left the queue is sent.
"""
cimport cython
from libc.stdint cimport uint64_t
from dataplane.packet.pool cimport Batch, Context
from shaping.link cimport Link
from shaping.schedule cimport Position, Schedule

cdef class TraceLink(Link):
    cdef readonly Schedule schedule
    cdef Position position       # where the next bit is sent
    cdef str label               # of the trace, for people: the name of its file
    cdef bint default_overhead
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void start_due(self, Context *ctx) noexcept nogil
    cdef void set_deadline(self, Context *ctx) noexcept nogil

    @cython.final
    cdef uint64_t ready_ns(self, const Context *ctx) noexcept nogil

    @cython.final
    cdef bint is_to_split(self, const Context *ctx) noexcept nogil
