"""Schedule. The contract is in schedule.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport NEVER
from shaping.virtual_clock cimport BYTE_COST

cdef enum:
    MS = 1000000
# Bound on the time that one packet takes, 104 days: later instants would not fit into the state of
# a Link, and a trace of a day that sends one packet would overflow 64 bits with a large GSO frame.
cdef uint64_t PACKET_MOST_NS = <uint64_t>1 << 53
cdef uint64_t PERIODS_MOST_NS = <uint64_t>1 << 62


cdef class Schedule:
    """The instants at which a line sends bits. Base of Opportunities and RateSteps."""

    cdef void begin(self, Position *at, uint64_t now_ns, bint loop) noexcept nogil:
        """The first instant of a schedule that begins now."""
        at.base_ns, at.index, at.left, at.loop = now_ns, 0, 0, loop
        at.time_ns = NEVER

    cdef uint64_t ready_ns(self, Position *at, uint64_t arrived_ns) noexcept nogil:
        """The first whole nanosecond at which a packet can begin that is the first in the queue and
        arrived at `arrived_ns`; NEVER: it cannot. What the line could have sent until then is
        lost."""
        return at.time_ns

    cdef uint64_t charge(self, Position *at, uint32_t length) noexcept nogil:
        """Sends `length` bytes, at least 1, from the position on; returns the whole nanosecond at
        which the last one has been sent. NEVER: the schedule ends before, and now has ended."""
        return NEVER

    cdef uint64_t unsent_bytes(self, const Position *at, uint64_t now_ns,
                               uint64_t sent_ns) noexcept nogil:
        """How many bytes of the packet that `charge` returned `sent_ns` for last, and of which some
        were sent by now, are sent later."""
        return 0

    cdef bint is_possible(self, const Position *at) noexcept nogil:
        """Whether a position that was handed over can be one of this schedule."""
        return False


@cython.final
cdef class Opportunities(Schedule):
    """Opportunities of OPPORTUNITY_BYTES each at whole milliseconds, as of Mahimahi's mm-link.

    Bytes of several packets share an opportunity, and a packet may need several. What no packet
    uses is lost; a packet that arrives at the instant of an opportunity misses it. The last
    opportunity ends the period.

    at_ms: an array of uint32, in order, the last one not 0. Raises ValueError.
    """

    def __init__(self, str digest not None, const uint32_t[::1] at_ms not None):
        if len(at_ms) == 0 or at_ms[len(at_ms) - 1] == 0:
            raise ValueError("no opportunity after 0 ms")
        self.digest, self._arrays = digest, at_ms
        self.at_ms, self.count = &at_ms[0], <uint32_t>len(at_ms)
        self.period_ns = <uint64_t>self.at_ms[self.count - 1] * MS
        self.mean_bps = max(int(self.count) * OPPORTUNITY_BYTES * 8 * 10**9 // self.period_ns, 1)

    cdef void begin(self, Position *at, uint64_t now_ns, bint loop) noexcept nogil:
        at.base_ns, at.index, at.left, at.loop = now_ns, 0, OPPORTUNITY_BYTES, loop
        at.time_ns = now_ns + <uint64_t>self.at_ms[0] * MS

    cdef uint32_t later(self, uint64_t since_ns) noexcept nogil:
        """The first opportunity of a period that is later than `since_ns` after its begin; `count`:
        none."""
        cdef uint64_t since_ms = since_ns // MS
        cdef uint32_t low = 0, high = self.count, middle
        while low < high:
            middle = low + (high - low) // 2
            if self.at_ms[middle] > since_ms:
                high = middle
            else:
                low = middle + 1
        return low

    cdef void forward(self, Position *at, uint64_t count) noexcept nogil:
        """`count` opportunities on, with all of its bytes."""
        cdef uint64_t index = at.index + count
        at.left = OPPORTUNITY_BYTES
        if index >= self.count and at.loop:
            if index // self.count > PERIODS_MOST_NS // self.period_ns:
                index, at.loop = self.count, False
            else:
                at.base_ns += index // self.count * self.period_ns
                index %= self.count
        if index >= self.count:
            at.index, at.time_ns = self.count, NEVER
            return
        at.index = <uint32_t>index
        at.time_ns = at.base_ns + <uint64_t>self.at_ms[index] * MS

    cdef uint64_t ready_ns(self, Position *at, uint64_t arrived_ns) noexcept nogil:
        cdef uint64_t since_ns
        if at.time_ns > arrived_ns:
            return at.time_ns
        since_ns = arrived_ns - at.base_ns
        if at.loop and since_ns >= self.period_ns:
            at.base_ns += since_ns // self.period_ns * self.period_ns
            since_ns %= self.period_ns
        at.index = self.later(since_ns)
        self.forward(at, 0)
        return at.time_ns

    cdef uint64_t charge(self, Position *at, uint32_t length) noexcept nogil:
        cdef uint64_t begin_ns = at.time_ns, sent_ns, others
        if length > at.left:
            others = (length - at.left - 1) // OPPORTUNITY_BYTES
            length -= <uint32_t>(at.left + others * OPPORTUNITY_BYTES)
            self.forward(at, others + 1)
        sent_ns = at.time_ns
        if sent_ns == NEVER or sent_ns - begin_ns > PACKET_MOST_NS:
            at.index, at.loop, at.time_ns = self.count, False, NEVER
            return NEVER
        at.left -= length
        if at.left == 0:
            self.forward(at, 1)
        return sent_ns

    cdef uint64_t unsent_bytes(self, const Position *at, uint64_t now_ns,
                               uint64_t sent_ns) noexcept nogil:
        # Opportunities from the begin of the position's period on; the arithmetic is modulo 2^64.
        cdef uint64_t base_ns = at.base_ns, passed = 0, periods
        if now_ns < base_ns:
            periods = (base_ns - now_ns - 1) // self.period_ns + 1
            base_ns -= periods * self.period_ns
            passed -= periods * self.count
        passed += self.later(now_ns - base_ns)
        return (at.index - passed) * OPPORTUNITY_BYTES + OPPORTUNITY_BYTES - at.left

    cdef bint is_possible(self, const Position *at) noexcept nogil:
        if at.left == 0 or at.left > OPPORTUNITY_BYTES or at.base_ns > PERIODS_MOST_NS:
            return False
        if at.index == self.count:
            return at.time_ns == NEVER
        return (at.index < self.count
                and at.time_ns == at.base_ns + <uint64_t>self.at_ms[at.index] * MS)


@cython.final
cdef class RateSteps(Schedule):
    """Rates that each hold for a time, one after the other. Bits are sent at exact fractions of
    nanoseconds. Without a loop the last rate stays.

    until_ns, rate_bps: arrays of uint64; the ends of the steps increase, rates are at most 10^13
    and not all 0. Raises ValueError.
    """

    def __init__(self, str digest not None, const uint64_t[::1] until_ns not None,
                 const uint64_t[::1] rate_bps not None):
        cost = 0                         # in Python's unbounded integers
        cdef uint64_t before_ns = 0
        cdef uint32_t i
        if len(until_ns) == 0 or len(until_ns) != len(rate_bps):
            raise ValueError("expected as many rates as ends")
        self.digest, self._arrays = digest, (until_ns, rate_bps)
        self.until_ns, self.rate_bps = &until_ns[0], &rate_bps[0]
        self.count = <uint32_t>len(until_ns)
        for i in range(self.count):
            if self.until_ns[i] <= before_ns or self.until_ns[i] > PACKET_MOST_NS:
                raise ValueError("ends do not increase")
            if self.rate_bps[i] > 10**13:
                raise ValueError("a rate is above 10 Tbit/s")
            cost += int(self.until_ns[i] - before_ns) * int(self.rate_bps[i])
            before_ns = self.until_ns[i]
        if cost == 0:
            raise ValueError("all rates are 0")
        self.period_ns = before_ns
        self.mean_bps = max(cost // before_ns, 1)
        self.period_cost = cost if cost < 1 << 64 else 0

    cdef void begin(self, Position *at, uint64_t now_ns, bint loop) noexcept nogil:
        at.base_ns, at.index, at.left, at.loop, at.time_ns = now_ns, 0, 0, loop, now_ns
        self.settle(at)

    cdef uint64_t end_ns(self, const Position *at) noexcept nogil:
        """The end of the position's step; NEVER: it has none."""
        if not at.loop and at.index + 1 == self.count:
            return NEVER
        return at.base_ns + self.until_ns[at.index]

    cdef void next_step(self, Position *at) noexcept nogil:
        """From the end of a step, which has one, to the next step."""
        at.index += 1
        if at.index == self.count:
            at.index = 0
            at.base_ns += self.period_ns

    cdef void settle(self, Position *at) noexcept nogil:
        """On from the end of a step, and from a step without a rate."""
        cdef uint64_t end_ns = self.end_ns(at)
        # Ends, because a rate is not 0; a step without one has no length where it is the last one.
        while at.time_ns >= end_ns or self.rate_bps[at.index] == 0:
            at.time_ns, at.left = end_ns, 0
            if end_ns == NEVER:
                return
            self.next_step(at)
            end_ns = self.end_ns(at)

    cdef void seek(self, Position *at, uint64_t now_ns) noexcept nogil:
        """To `now_ns`, which is not before the begin of the position's period."""
        cdef uint64_t since_ns = now_ns - at.base_ns
        cdef uint32_t low = 0, high = self.count - 1, middle
        if at.loop and since_ns >= self.period_ns:
            at.base_ns += since_ns // self.period_ns * self.period_ns
            since_ns %= self.period_ns
        while low < high:                # the first step that ends later; the last one in any case
            middle = low + (high - low) // 2
            if self.until_ns[middle] > since_ns:
                high = middle
            else:
                low = middle + 1
        at.index, at.time_ns, at.left = low, now_ns, 0
        self.settle(at)

    cdef uint64_t ready_ns(self, Position *at, uint64_t arrived_ns) noexcept nogil:
        if at.time_ns < arrived_ns and at.time_ns + (at.left != 0) < arrived_ns:
            self.seek(at, arrived_ns)
        return at.time_ns + (at.left != 0)

    cdef uint64_t charge(self, Position *at, uint32_t length) noexcept nogil:
        cdef uint64_t cost = length * BYTE_COST + at.left
        cdef uint64_t begin_ns = at.time_ns, end_ns, rate, periods, sent_ns
        if begin_ns == NEVER:
            return NEVER
        if at.loop and self.period_cost and cost >= self.period_cost:
            # whole periods at once, so that a large frame costs a step each of one period at most
            periods = cost // self.period_cost
            if periods > PACKET_MOST_NS // self.period_ns:
                at.time_ns, at.left = NEVER, 0
                return NEVER
            at.base_ns += periods * self.period_ns
            at.time_ns += periods * self.period_ns
            cost -= periods * self.period_cost
        while True:
            end_ns, rate = self.end_ns(at), self.rate_bps[at.index]
            if rate:
                if (cost // rate < end_ns - at.time_ns
                        or (cost // rate == end_ns - at.time_ns and cost % rate == 0)):
                    break
                cost -= (end_ns - at.time_ns) * rate     # less than cost, so it fits 64 bits
            at.time_ns, at.left = end_ns, 0
            if end_ns == NEVER:
                return NEVER
            self.next_step(at)
        at.time_ns += cost // rate
        at.left = cost % rate
        sent_ns = at.time_ns + (at.left != 0)
        if sent_ns - begin_ns > PACKET_MOST_NS:
            at.time_ns, at.left = NEVER, 0
            return NEVER
        self.settle(at)
        return sent_ns

    cdef uint64_t unsent_bytes(self, const Position *at, uint64_t now_ns,
                               uint64_t sent_ns) noexcept nogil:
        cdef Position from_now = at[0]
        cdef uint64_t bits = 0, until_ns        # bits x 10^9
        if now_ns < at.base_ns:
            from_now.base_ns -= ((at.base_ns - now_ns - 1) // self.period_ns + 1) * self.period_ns
        self.seek(&from_now, now_ns)
        while from_now.time_ns < sent_ns:
            until_ns = min(self.end_ns(&from_now), sent_ns)
            bits += (until_ns - from_now.time_ns) * self.rate_bps[from_now.index]
            from_now.time_ns = until_ns
            self.settle(&from_now)
        return bits // BYTE_COST

    cdef bint is_possible(self, const Position *at) noexcept nogil:
        if at.index >= self.count or at.base_ns > PERIODS_MOST_NS:
            return False
        if at.time_ns == NEVER:
            return at.left == 0
        return (at.left < self.rate_bps[at.index] and at.time_ns >= at.base_ns
                and at.time_ns < self.end_ns(at) and at.time_ns <= PERIODS_MOST_NS)
