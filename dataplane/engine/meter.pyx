"""Meter. The contract is in meter.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from * nogil:
    int __builtin_clzll(unsigned long long value)

BIN_FIRST_NS = 1_000_000         # initial width of a bin; it doubles


@cython.final
cdef class Meter:
    """Statistics of departures. Percentiles of the delay are up to 3.2 % too high; maximum and mean
    are exact."""

    def __cinit__(self):
        self.state = <MeterState *>calloc(1, sizeof(MeterState))
        if self.state == NULL:
            raise MemoryError("meter")
        self.state.bin_ns = BIN_FIRST_NS

    def __dealloc__(self):
        free(self.state)

    cdef void note(self, uint64_t now_ns, uint64_t delay_ns, uint32_t bytes) noexcept nogil:
        """Counts a packet of `bytes` that departed at `now_ns`, `delay_ns` after its arrival."""
        cdef MeterState *s = self.state
        if s.packets == 0:
            s.first_ns = s.bins_start_ns = now_ns
        if now_ns >= s.bin_end_ns:           # avoids a division for packets in the current bin
            while now_ns - s.bins_start_ns >= s.bin_ns * BINS:
                self.halve()
            s.bin = <uint32_t>((now_ns - s.bins_start_ns) // s.bin_ns)
            s.bin_end_ns = s.bins_start_ns + (s.bin + 1) * s.bin_ns
        s.bins[s.bin] += bytes
        s.delays[bucket(delay_ns)] += 1
        s.packets += 1
        s.bytes += bytes
        s.last_ns = now_ns
        s.delay_sum_ns += delay_ns
        if delay_ns > s.delay_max_ns:
            s.delay_max_ns = delay_ns

    cdef void halve(self) noexcept nogil:
        cdef uint32_t i
        for i in range(<uint32_t>BINS // 2):
            self.state.bins[i] = self.state.bins[2 * i] + self.state.bins[2 * i + 1]
        for i in range(<uint32_t>BINS // 2, <uint32_t>BINS):
            self.state.bins[i] = 0
        self.state.bin_ns *= 2

    def delay_ns(self, double fraction):
        """The quantile `fraction` (0 to 1) of the delay in nanoseconds; 0 without packets."""
        cdef uint64_t wanted = <uint64_t>(fraction * self.state.packets + 0.999999999), seen = 0
        cdef uint32_t i
        for i in range(<uint32_t>BUCKETS):
            seen += self.state.delays[i]
            if seen >= wanted and seen:
                return min(upper(i), self.state.delay_max_ns)
        return 0

    def summary(self):
        """packets, bytes, first_ns, last_ns, and the delay's mean, p50, p99, max in nanoseconds."""
        cdef MeterState *s = self.state
        return {"packets": s.packets, "bytes": s.bytes, "first_ns": s.first_ns,
                "last_ns": s.last_ns,
                "delay_ns": {"mean": s.delay_sum_ns // s.packets if s.packets else 0,
                             "p50": self.delay_ns(0.5),
                             "p99": self.delay_ns(0.99), "max": s.delay_max_ns}}

    def rate(self):
        """Bit/s over time: (start_ns, bin_ns, list of bit/s), up to the last departure."""
        cdef MeterState *s = self.state
        count = 0 if s.packets == 0 else (s.last_ns - s.bins_start_ns) // s.bin_ns + 1
        return s.bins_start_ns, s.bin_ns, [s.bins[i] * 8e9 / s.bin_ns for i in range(count)]


cdef inline uint32_t bucket(uint64_t delay_ns) noexcept nogil:
    """Index of a delay: the first 32 buckets are 1 ns wide, then each power of two has 32."""
    cdef int power
    if delay_ns < STEPS:
        return <uint32_t>delay_ns
    power = 63 - __builtin_clzll(delay_ns) - 5
    return min(<uint32_t>((power + 1) * STEPS + (delay_ns >> power) - STEPS), <uint32_t>BUCKETS - 1)


cdef uint64_t upper(uint32_t number) noexcept nogil:
    """The greatest delay of a bucket."""
    cdef uint32_t power
    if number < STEPS:
        return number
    power = number // STEPS - 1
    return ((<uint64_t>(number % STEPS + STEPS + 1)) << power) - 1
