"""COBALT, CAKE's AQM: CoDel, whose count of drops also falls again, and BLUE for senders that do
not react (Hoeiland-Joergensen, Taht, Morton, "Piece of CAKE", LANMAN 2018; Linux' sch_cake).

CoDel's next drop is due at `drop_ns`. While the sojourn is too long, a packet is dropped or marked
at that time and the count rises; while it is not, the count falls at that time by the same law. So
a queue that was good for a while starts again at about the rate that controlled it.

BLUE is for queues that overflow nevertheless: each time, but once in a target at most, the chance
that a packet is dropped grows by 1/256. Each target for which the queue is empty it falls by
1/4096. BLUE does not mark, since marks have not helped.

Linux visits queues that are empty until both have decayed; here `cobalt_wake` works that out when a
packet comes. Its square roots are rounded to 32 bits, here they are exact.
"""
from libc.math cimport sqrt
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from dataplane.graph.random_stream cimport RandomStream, random_next
from shaping.codel cimport CODEL_DROP, CODEL_KEEP, CODEL_MARK, CodelSetting

cdef enum:
    COBALT_BLUE = 3              # a verdict, besides those of CoDel: BLUE drops it
    BLUE_UP = 16777216           # 1/256 of 2^32
    BLUE_DOWN = 1048576          # 1/4096 of 2^32
    DECAY_PART = 32

cdef struct Cobalt:              # all zero: at rest
    uint64_t drop_ns             # when the next drop is due, or the count falls
    uint64_t blue_ns             # when the chance changed
    uint32_t count
    uint32_t chance              # that BLUE drops a packet, in 1/2^32
    uint8_t dropping             # the sojourn is too long

cdef inline bint cobalt_rests(const Cobalt *cobalt) noexcept nogil:
    """Whether the past of the queue means nothing for its next packet."""
    return cobalt.count == 0 and cobalt.chance == 0

cdef inline uint64_t cobalt_law(const CodelSetting *setting, uint64_t from_ns, uint32_t count,
                                uint32_t steps) noexcept nogil:
    """Time after so many steps of the count from about `count`: CoDel's law; 0 is as 1."""
    return from_ns + <uint64_t>(<double>steps * <double>setting.interval_ns
                                / sqrt(<double>max(count, <uint32_t>1)))

cdef inline void cobalt_decay(Cobalt *cobalt, const CodelSetting *setting,
                              uint64_t now_ns) noexcept nogil:
    """Lets the count fall to what it is now, from 64 on in steps of a 32nd of it: after a long
    flood and a long pause there may be millions of steps, and one packet would wait for all."""
    cdef uint32_t steps
    while cobalt.count and now_ns >= cobalt.drop_ns:
        steps = cobalt.count // DECAY_PART if cobalt.count >= 2 * DECAY_PART else 1
        cobalt.count -= steps
        cobalt.drop_ns = cobalt_law(setting, cobalt.drop_ns, cobalt.count, steps)

cdef inline void cobalt_wake(Cobalt *cobalt, const CodelSetting *setting,
                             uint64_t now_ns) noexcept nogil:
    """A packet comes to the empty queue."""
    cdef uint64_t steps
    cobalt.dropping = False
    cobalt_decay(cobalt, setting, now_ns)
    if cobalt.count == 0:
        # Packets that found no queue at all passed unseen, as good ones.
        cobalt.drop_ns = now_ns + setting.interval_ns
    if cobalt.chance:
        steps = (now_ns - cobalt.blue_ns) // setting.target_ns
        cobalt.blue_ns += steps * setting.target_ns
        cobalt.chance -= <uint32_t>min(steps * BLUE_DOWN if steps < 4096 else <uint64_t>1 << 32,
                                       <uint64_t>cobalt.chance)

cdef inline void cobalt_emptied(Cobalt *cobalt, const CodelSetting *setting,
                                uint64_t now_ns) noexcept nogil:
    """The last packet of the queue has left."""
    if cobalt.chance and now_ns - cobalt.blue_ns > setting.target_ns:
        cobalt.chance -= min(cobalt.chance, <uint32_t>BLUE_DOWN)
        cobalt.blue_ns = now_ns

cdef inline void cobalt_overflowed(Cobalt *cobalt, const CodelSetting *setting,
                                   uint64_t now_ns) noexcept nogil:
    """Packets of the queue were dropped because there was no room."""
    if now_ns - cobalt.blue_ns > setting.target_ns:
        cobalt.chance = <uint32_t>min(<uint64_t>cobalt.chance + BLUE_UP, <uint64_t>0xFFFFFFFF)
        cobalt.blue_ns = now_ns
    cobalt.dropping = True
    cobalt.drop_ns = now_ns
    cobalt.count = max(cobalt.count, <uint32_t>1)

cdef inline int cobalt_verdict(Cobalt *cobalt, const CodelSetting *setting, uint64_t now_ns,
                               uint64_t sojourn_ns, bint capable,
                               RandomStream *random) noexcept nogil:
    """What to do with the packet at the head; a value of CODEL_* or COBALT_BLUE. capable: it is
    ECN-capable. The caller keeps a packet that is the queue's last, whatever the verdict."""
    cdef bint due = cobalt.count != 0 and now_ns >= cobalt.drop_ns
    cdef bint behind = now_ns > cobalt.drop_ns
    cdef int verdict = CODEL_KEEP
    if sojourn_ns <= setting.long_ns:
        cobalt.dropping = False
    else:
        if not cobalt.dropping:
            cobalt.dropping = True
            cobalt.drop_ns = cobalt_law(setting, now_ns, cobalt.count, 1)
        cobalt.count = max(cobalt.count, <uint32_t>1)
    if due and cobalt.dropping:
        verdict = CODEL_MARK if setting.ecn and capable else CODEL_DROP
        cobalt.count += cobalt.count != <uint32_t>0xFFFFFFFF
        cobalt.drop_ns = cobalt_law(setting, cobalt.drop_ns, cobalt.count, 1)
        behind = now_ns > cobalt.drop_ns
    elif due:
        cobalt_decay(cobalt, setting, now_ns)
        behind = False
    if (cobalt.chance and verdict != CODEL_DROP
            and <uint32_t>(random_next(random) >> 32) < cobalt.chance):
        verdict = COBALT_BLUE
    # Without a count, drop_ns says until when the queue was seen lately.
    if cobalt.count == 0:
        cobalt.drop_ns = now_ns + setting.interval_ns
    elif behind and verdict <= CODEL_MARK and verdict != CODEL_DROP:
        cobalt.drop_ns = now_ns              # drops that were missed are not made up for
    return verdict
