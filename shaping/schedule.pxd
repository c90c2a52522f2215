"""Schedule: when a time-varying line sends bits. Opportunities as Mahimahi's traces have them, or
steps of rates.

A Schedule never changes, so all lines with the same trace share one; what changes is a Position on
it, which belongs to a line.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    OPPORTUNITY_BYTES = 1504     # of Mahimahi's mm-link: a packet of 1500 bytes and a header of 4

cdef struct Position:
    uint64_t base_ns             # when the period of `index` began
    uint64_t time_ns             # when the next bit may be sent (whole nanoseconds); NEVER: never
    # Opportunities: bytes left of the opportunity, at least 1. RateSteps: the fraction of the
    # instant, in 1 / rate ns.
    uint64_t left
    uint32_t index               # of the opportunity or step; their number: after the end
    bint loop                    # begin again after the last one

cdef class Schedule:
    cdef readonly str digest     # of its content
    cdef readonly uint64_t mean_bps  # at least 1
    cdef readonly uint64_t period_ns
    cdef readonly uint32_t count
    cdef object _arrays          # the owner of the pointers of subclasses
    cdef object __weakref__
    cdef void begin(self, Position *at, uint64_t now_ns, bint loop) noexcept nogil
    cdef uint64_t ready_ns(self, Position *at, uint64_t arrived_ns) noexcept nogil
    cdef uint64_t charge(self, Position *at, uint32_t length) noexcept nogil
    cdef uint64_t unsent_bytes(self, const Position *at, uint64_t now_ns,
                               uint64_t sent_ns) noexcept nogil
    cdef bint is_possible(self, const Position *at) noexcept nogil

cdef class Opportunities(Schedule):
    cdef const uint32_t *at_ms   # of each opportunity since the period's begin, in order
    cdef void begin(self, Position *at, uint64_t now_ns, bint loop) noexcept nogil
    cdef uint64_t ready_ns(self, Position *at, uint64_t arrived_ns) noexcept nogil
    cdef uint64_t charge(self, Position *at, uint32_t length) noexcept nogil
    cdef uint64_t unsent_bytes(self, const Position *at, uint64_t now_ns,
                               uint64_t sent_ns) noexcept nogil
    cdef bint is_possible(self, const Position *at) noexcept nogil
    cdef uint32_t later(self, uint64_t since_ns) noexcept nogil
    cdef void forward(self, Position *at, uint64_t count) noexcept nogil

cdef class RateSteps(Schedule):
    cdef const uint64_t *until_ns    # end of each step since the period's begin
    cdef const uint64_t *rate_bps    # 0: no bit is sent
    cdef uint64_t period_cost    # bits x 10^9 of a period; 0: 2^64 or more
    cdef void begin(self, Position *at, uint64_t now_ns, bint loop) noexcept nogil
    cdef uint64_t ready_ns(self, Position *at, uint64_t arrived_ns) noexcept nogil
    cdef uint64_t charge(self, Position *at, uint32_t length) noexcept nogil
    cdef uint64_t unsent_bytes(self, const Position *at, uint64_t now_ns,
                               uint64_t sent_ns) noexcept nogil
    cdef bint is_possible(self, const Position *at) noexcept nogil
    cdef uint64_t end_ns(self, const Position *at) noexcept nogil
    cdef void next_step(self, Position *at) noexcept nogil
    cdef void seek(self, Position *at, uint64_t now_ns) noexcept nogil
    cdef void settle(self, Position *at) noexcept nogil
