"""The virtual clock of a rate: the instant T at which a wire of that rate would have finished all
packets sent so far (the theoretical arrival time of ITU-T I.371, annex A).

T = next_ns + remainder / rate_bps is an exact fraction: nothing is rounded, so no rate drifts. A
packet is due once now >= T; then T grows by bits / rate.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef struct VirtualClock:
    uint64_t next_ns             # whole nanoseconds of T
    uint64_t remainder           # fraction of T, in 1 / rate_bps nanoseconds; below rate_bps

# 8 bits per byte, 10^9 ns per second: a packet of n bytes takes n * BYTE_COST / rate_bps ns. The
# largest n, of a GSO frame with segments of one byte, is below 1.21e9, so n * BYTE_COST + remainder
# stays below 2^64 for every permitted rate.
cdef extern from *:
    """
    #define VNIC_BYTE_COST 8000000000ULL
    #define VNIC_CATCH_UP_NS 100000000ULL
    """
    const uint64_t BYTE_COST "VNIC_BYTE_COST"
    # bound on an engine's lateness that later packets may make up
    const uint64_t CATCH_UP_NS "VNIC_CATCH_UP_NS"

cdef inline bint clock_is_due(const VirtualClock *clock, uint64_t now_ns) noexcept nogil:
    """Whether a packet may leave: never early, not by a fraction of a nanosecond."""
    return now_ns > clock.next_ns or (now_ns == clock.next_ns and clock.remainder == 0)

cdef inline void clock_charge(VirtualClock *clock, uint64_t rate_bps,
                              uint32_t wire_bytes) noexcept nogil:
    """A packet of this length leaves."""
    cdef uint64_t cost = wire_bytes * BYTE_COST + clock.remainder
    clock.next_ns += cost // rate_bps
    clock.remainder = cost % rate_bps

cdef inline void clock_limit_credit(VirtualClock *clock, uint64_t now_ns,
                                    uint64_t credit_ns) noexcept nogil:
    """Limits how far T lies behind now: the burst that a sender may catch up."""
    if now_ns > credit_ns and clock.next_ns < now_ns - credit_ns:
        clock.next_ns, clock.remainder = now_ns - credit_ns, 0

cdef inline uint64_t clock_due_ns(const VirtualClock *clock) noexcept nogil:
    """The first whole nanosecond at which a packet may leave."""
    return clock.next_ns + (1 if clock.remainder else 0)

cdef inline void clock_end_idle(VirtualClock *clock, uint64_t now_ns, uint64_t emptied_ns,
                                uint64_t burst_ns) noexcept nogil:
    """Called for a packet that finds nothing waiting, after the last one left at `emptied_ns`:
    limits the credit for the idle time to the burst.

    Except that a late engine may have sent that last one: the senders of its packets (TCP waits for
    acknowledgements) would have sent more in time. They get the lateness as credit, less the time
    that they let pass since.
    """
    cdef uint64_t credit_ns = burst_ns, due_ns = clock_due_ns(clock)
    cdef uint64_t late_ns, idle_ns = now_ns - emptied_ns
    if emptied_ns > due_ns:
        late_ns = min(emptied_ns - due_ns, CATCH_UP_NS)
        if late_ns > idle_ns and late_ns - idle_ns > credit_ns:
            credit_ns = late_ns - idle_ns
    clock_limit_credit(clock, now_ns, credit_ns)

cdef inline void clock_set_rate(VirtualClock *clock, uint64_t now_ns, uint64_t old_bps,
                                uint64_t new_bps, uint64_t credit_ns) noexcept nogil:
    """The rate changes now (0: none). The remaining bits of the last packet are sent at the new
    rate; a credit is time, and stays as long as `credit_ns` allows."""
    cdef uint64_t owed
    if old_bps == 0 or new_bps == 0:
        clock.next_ns, clock.remainder = now_ns, 0
    elif clock.next_ns >= now_ns:
        # in bits x 10^9; at most one frame's, see BYTE_COST
        owed = (clock.next_ns - now_ns) * old_bps + clock.remainder
        clock.next_ns = now_ns + owed // new_bps
        clock.remainder = owed % new_bps
    else:
        clock.remainder = 0
        if now_ns - clock.next_ns > credit_ns:
            clock.next_ns = now_ns - credit_ns

cdef inline bint clock_is_possible(uint64_t next_ns, uint64_t remainder, uint64_t rate_bps,
                                   uint64_t now_ns) noexcept nogil:
    """Whether a clock that was handed over can be one of this rate now."""
    # one frame takes below 2^64 / rate, see BYTE_COST
    if next_ns > now_ns and (rate_bps == 0
                             or next_ns - now_ns > <uint64_t>0xFFFFFFFFFFFFFFFF // rate_bps):
        return False
    return remainder < (rate_bps if rate_bps else 1)
