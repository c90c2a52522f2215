"""Ways: a set-associative table of eight ways, which gives a hash a number of its own while it is
in use (CAKE: Hoeiland-Joergensen, Taht, Morton, LANMAN 2018).

A hash may have any of the eight numbers of its set. So with four times the numbers that are in use,
one hash of seven thousand has to share; with one number each it would be one of five. A hash that
finds all eight in use shares one, always the same, and until that one is free, as packets of a flow
that went on elsewhere would overtake those that wait.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    WAYS = 8

# Ways.states
cdef enum:
    WAY_FREE = 0
    WAY_KEPT = 1                 # free, and worth keeping for its hash
    WAY_USED = 2
    WAY_SHARED = 3               # in use, perhaps by several hashes

cdef struct Ways:
    uint64_t *tags               # the hash of each number, also of a kept one; NULL: no table
    uint8_t *states
    uint32_t count               # a power of 2, at least WAYS

cdef inline uint32_t ways_claim(Ways *ways, uint64_t hash, bint *known) noexcept nogil:
    """The number of a hash. Where that is free, the caller sets its state. known: it was the
    number of this hash before."""
    cdef uint32_t own = <uint32_t>hash & (ways.count - 1), first = own & ~<uint32_t>(WAYS - 1)
    cdef uint32_t step, way, kept = WAYS
    known[0] = True
    for step in range(<uint32_t>WAYS):
        way = first + ((own + step) & (WAYS - 1))
        if ways.tags[way] == hash and ways.states[way] != WAY_FREE:
            return way
    known[0] = False
    if ways.states[own] == WAY_SHARED:
        return own
    for step in range(<uint32_t>WAYS):
        way = first + ((own + step) & (WAYS - 1))
        if ways.states[way] == WAY_FREE:
            ways.tags[way] = hash
            return way
        if ways.states[way] == WAY_KEPT and kept == WAYS:
            kept = step
    if kept == WAYS:
        ways.states[own] = WAY_SHARED
        return own
    way = first + ((own + kept) & (WAYS - 1))
    ways.tags[way] = hash
    return way
