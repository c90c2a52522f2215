"""Compactor: balances a group's engines over threads (Snap, section 2.4).

All engines run on one thread while they meet their latency objective, on more threads when they do
not. Loads and delays are read from variables that the engines' threads update; a move is one store
into the engine's `destination`, which its thread reads between two iterations. Neither blocks.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.balancer cimport Balancer
from dataplane.engine.thread cimport ENGINES_MOST, EngineThread

cdef struct Member:
    PyObject *engine
    uint64_t busy_ns         # the engine's counter at the last check
    double load              # share of a CPU, smoothed
    uint32_t late            # consecutive checks at which its delay exceeded the objective
    uint64_t late_at_ns      # the last check with `late` of at least LATE_LOOKS
    uint32_t place           # number of its thread at this check
    uint32_t goal            # number of the thread to move it to
    bint moving              # between two threads

cdef class Compactor(Balancer):
    cdef public uint64_t slo_ns          # upper bound of the queueing delay
    cdef readonly uint64_t period_ns     # between two checks
    cdef readonly uint64_t scaled_out, migrated_back, compacted
    cdef list _threads, _engines         # owning references
    cdef PyObject *threads[ENGINES_MOST]
    cdef uint32_t thread_count
    cdef Member members[ENGINES_MOST]
    cdef uint32_t member_count
    cdef uint32_t held                   # shared: a lock, 1 during a check or a change by control
    cdef uint64_t looked_at_ns, moved_at_ns
    # the last check at which an engine was late on a thread that it shares
    cdef uint64_t late_at_ns
    cdef double loads[ENGINES_MOST]      # by thread
    cdef uint32_t counts[ENGINES_MOST]   # engines by thread
    cdef int watch(self) except -1
    cdef void balance(self, uint64_t now_ns) noexcept nogil
    cdef bint measure(self, uint64_t now_ns) noexcept nogil
    cdef void note_lateness(self, Member *member, bint late, uint64_t now_ns) noexcept nogil
    cdef void sum_up(self) noexcept nogil
    cdef void decide(self, uint64_t now_ns) noexcept nogil
    cdef void move(self, uint32_t member, uint32_t thread) noexcept nogil
    cdef bint scale_out(self, uint32_t late) noexcept nogil
    cdef void compact(self, uint64_t now_ns) noexcept nogil
