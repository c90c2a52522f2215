"""Ways: a set-associative table of eight ways, which gives a hash a number of its own while it is
in use (CAKE: Hoeiland-Joergensen, Taht, Morton, LANMAN 2018).

A hash may have any of the eight numbers of its set. So with four times the numbers that are in use,
one hash of seven thousand has to share; with one number each it would be one of five. A hash that
finds all eight in use shares one, always the same, and until that one is free, as packets of a flow
that went on elsewhere would overtake those that wait.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    WAYS = 8                     # words of a set: a cache line

# the state of a number: the last two bits of its word; the others are the hash's
cdef enum:
    WAY_FREE = 0
    WAY_KEPT = 1                 # free, and worth keeping for its hash
    WAY_USED = 2
    WAY_SHARED = 3               # in use, perhaps by several hashes
    WAY_STATE = 3

cdef struct Ways:
    uint64_t *words              # aligned to a cache line; NULL: no table
    uint32_t count               # a power of 2, at least WAYS

cdef inline uint32_t way_state(const Ways *ways, uint32_t number) noexcept nogil:
    return <uint32_t>ways.words[number] & WAY_STATE

cdef inline uint64_t way_hash(const Ways *ways, uint32_t number) noexcept nogil:
    return ways.words[number] & ~<uint64_t>WAY_STATE

cdef inline void way_set(Ways *ways, uint32_t number, uint64_t hash, uint32_t state) noexcept nogil:
    ways.words[number] = (hash & ~<uint64_t>WAY_STATE) | state

cdef inline uint32_t ways_claim(Ways *ways, uint64_t hash, uint32_t *was) noexcept nogil:
    """The number of a hash, which is in use from now on. was: its state before; WAY_KEPT: and it
    was the number of this hash."""
    cdef uint32_t own = <uint32_t>hash & (ways.count - 1), first = own & ~<uint32_t>(WAYS - 1)
    cdef uint32_t step, way, kept = WAYS
    for step in range(<uint32_t>WAYS):
        way = first + ((own + step) & (WAYS - 1))
        was[0] = way_state(ways, way)
        if (ways.words[way] ^ hash) <= WAY_STATE and was[0] != WAY_FREE:
            if was[0] == WAY_KEPT:
                way_set(ways, way, hash, WAY_USED)
            return way
    was[0] = WAY_SHARED
    if way_state(ways, own) == WAY_SHARED:
        return own
    for step in range(<uint32_t>WAYS):
        way = first + ((own + step) & (WAYS - 1))
        was[0] = way_state(ways, way)
        if was[0] == WAY_FREE:
            way_set(ways, way, hash, WAY_USED)
            return way
        if was[0] == WAY_KEPT and kept == WAYS:
            kept = step
    if kept == WAYS:
        ways.words[own] |= WAY_STATE         # shared
        was[0] = WAY_SHARED
        return own
    way = first + ((own + kept) & (WAYS - 1))
    way_set(ways, way, hash, WAY_USED)
    was[0] = WAY_FREE                        # to this hash
    return way
