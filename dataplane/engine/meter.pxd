"""Meter: counts packets and measures their delays and their rate over time, in constant memory."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    STEPS = 32                   # buckets per power of two: a percentile is exact to 1/32
    BUCKETS = 1952               # 61 powers of two above the first 32 ns
    BINS = 2048                  # of the rate over time; pairs are merged when all are in use

cdef struct MeterState:
    uint64_t packets
    uint64_t bytes               # layer-2, as on the wire
    uint64_t first_ns, last_ns   # of departures
    uint64_t delay_max_ns
    uint64_t delay_sum_ns
    uint64_t bin_ns              # width of a bin
    uint64_t bins_start_ns
    uint64_t bin_end_ns          # of the current bin
    uint32_t bin
    uint64_t bins[BINS]          # bytes
    uint64_t delays[BUCKETS]


@cython.final
cdef class Meter:
    cdef MeterState *state
    cdef void note(self, uint64_t now_ns, uint64_t delay_ns, uint32_t bytes) noexcept nogil
    cdef void halve(self) noexcept nogil
