"""Compactor: all engines on one thread while they keep their latency objective, more threads when they do not (Snap, section 2.4).

Loads and delays are read from variables that the engines' threads write all the time; a move is one store into the engine's
`destination`, which its thread finds between two turns. Nobody waits for anybody.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.balancer cimport Balancer
from dataplane.engine_thread cimport ENGINES_MOST, EngineThread

cdef struct Member:
    PyObject *engine
    uint64_t busy_ns         # at the last look
    double load              # share of a CPU, smoothed
    uint32_t late            # looks in a row at which its delay was beyond the objective
    uint64_t late_at_ns      # the last look at which that was so LATE_LOOKS times
    uint32_t place           # number of its thread, as of this look
    uint32_t goal            # number of the thread that it is to go to
    bint moving              # between two threads

cdef class Compactor(Balancer):
    cdef public uint64_t slo_ns          # queueing delay that is too much
    cdef readonly uint64_t period_ns     # between two looks
    cdef readonly uint64_t scaled_out, migrated_back, compacted
    cdef list _threads, _engines         # owning
    cdef PyObject *threads[ENGINES_MOST]
    cdef uint32_t thread_count
    cdef Member members[ENGINES_MOST]
    cdef uint32_t member_count
    cdef uint32_t held                   # shared: 1 while somebody looks or control changes the lists
    cdef uint64_t looked_at_ns, moved_at_ns
    cdef uint64_t late_at_ns             # the last look at which an engine was late that shares its thread
    cdef double loads[ENGINES_MOST]      # of the threads
    cdef uint32_t counts[ENGINES_MOST]   # engines of the threads
    cdef int watch(self) except -1
    cdef void balance(self, uint64_t now_ns) noexcept nogil
    cdef bint measure(self, uint64_t now_ns) noexcept nogil
    cdef void judge(self, Member *member, bint late, uint64_t now_ns) noexcept nogil
    cdef void sum_up(self) noexcept nogil
    cdef void decide(self, uint64_t now_ns) noexcept nogil
    cdef void move(self, uint32_t member, uint32_t thread) noexcept nogil
    cdef bint scale_out(self, uint32_t late) noexcept nogil
    cdef void compact(self, uint64_t now_ns) noexcept nogil
