"""CoDel: drops or marks packets of a queue that has been too long for too long (RFC 8289).

The verdicts are those of the RFC's pseudocode (section 5), asked packet by packet: `codel_verdict`
for each packet that reaches the head of the queue, until one is kept, and `codel_empty` when none
is left. So the caller decides what a packet is (a segment of a GSO frame) and how it is dropped.
"""
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    CODEL_KEEP = 0
    CODEL_DROP = 1
    CODEL_MARK = 2               # set CE, and keep; the caller drops a packet that is not ECT
    # Intervals after which a queue that was good starts again with one drop (RFC 8289, 4.5).
    CODEL_MEMORY = 16

# Codel.pending: what the next packet decides after a drop
cdef enum:
    PENDING_NONE = 0
    PENDING_LAW = 1              # whether the next drop is due later, or the series ends
    PENDING_KEEP = 2             # nothing: the packet behind a first drop is kept

cdef struct CodelSetting:
    uint64_t target_ns           # sojourn that is accepted
    uint64_t interval_ns         # how long it may be exceeded
    bint ecn                     # marks ECN-capable packets in place of drops
    uint64_t long_ns             # of COBALT: the sojourn above which it is too long

cdef struct Codel:               # all zero: the queue is good
    uint64_t above_ns            # when the sojourn will have exceeded the target for an interval; 0
    uint64_t drop_ns             # when the next drop is due
    uint32_t count               # drops in this series
    uint32_t last_count          # count when the series began
    uint8_t dropping
    uint8_t pending

cdef inline uint64_t codel_law(const CodelSetting *setting, uint64_t from_ns,
                               uint32_t count) noexcept nogil:
    """Time of the next drop: intervals shrink with the square root of the number of drops."""
    return from_ns + <uint64_t>(<double>setting.interval_ns / sqrt(<double>count))

cdef inline bint codel_is_bad(Codel *codel, const CodelSetting *setting, uint64_t now_ns,
                              uint64_t sojourn_ns, bint short) noexcept nogil:
    """Whether the sojourn has exceeded the target for an interval. short: at most one packet of
    the MTU waits, which is no standing queue."""
    if sojourn_ns < setting.target_ns or short:
        codel.above_ns = 0
        return False
    if codel.above_ns == 0:
        codel.above_ns = now_ns + setting.interval_ns
        return False
    return now_ns >= codel.above_ns

cdef inline int codel_verdict(Codel *codel, const CodelSetting *setting, uint64_t now_ns,
                              uint64_t sojourn_ns, bint short, bint capable) noexcept nogil:
    """What to do with the packet at the head. capable: it is ECN-capable."""
    cdef bint bad = codel_is_bad(codel, setting, now_ns, sojourn_ns, short)
    cdef bint marks = setting.ecn and capable
    cdef uint8_t pending = codel.pending
    codel.pending = PENDING_NONE
    if pending == PENDING_KEEP:
        return CODEL_KEEP
    if codel.dropping:
        if not bad:
            codel.dropping = False
            return CODEL_KEEP
        if pending == PENDING_LAW:
            codel.drop_ns = codel_law(setting, codel.drop_ns, codel.count)
        if now_ns < codel.drop_ns:
            return CODEL_KEEP
        codel.count += 1
        if marks:
            codel.drop_ns = codel_law(setting, codel.drop_ns, codel.count)
            return CODEL_MARK
        codel.pending = PENDING_LAW
        return CODEL_DROP
    if not bad:
        return CODEL_KEEP
    # A queue that was bad shortly before continues at about the rate that controlled it then.
    codel.dropping = True
    if (codel.count > codel.last_count + 1
            and <int64_t>(now_ns - codel.drop_ns)
            < <int64_t>(CODEL_MEMORY * setting.interval_ns)):
        codel.count -= codel.last_count
    else:
        codel.count = 1
    codel.last_count = codel.count
    codel.drop_ns = codel_law(setting, now_ns, codel.count)
    if marks:
        return CODEL_MARK
    codel.pending = PENDING_KEEP
    return CODEL_DROP

cdef inline void codel_empty(Codel *codel) noexcept nogil:
    """The queue is empty."""
    codel.above_ns = 0
    if codel.pending == PENDING_LAW:
        codel.dropping = False
    codel.pending = PENDING_NONE
