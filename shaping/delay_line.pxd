"""DelayLine: packets in the order of their release times, for elements that delay.

The packets are one list, linked by Packet.next and sorted by Packet.release_ns; packets with the
same release time leave in the order in which they came. A packet that is released after all others,
as nearly all are, is appended. For the others, an index of SLOTS slots, each a power of two ns
wide, holds the last packet of each slot, and a bitmap tells which slots have packets (as the
buckets of Eiffel, NSDI'19); only the packets of one slot are compared. A slot is an index and
rounds nothing: packets leave at their exact release times. The slots are as wide as the first and
the last packet demand: one that is released long after the others makes them wide, and `put` slow,
while it is on the line.
"""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet.pool cimport Context, Packet

cdef enum:
    SLOTS = 1024
    SLOT_WORDS = 16              # SLOTS / 64

cdef class DelayLine:
    cdef uint32_t head, tail             # NO_PACKET: empty
    cdef uint32_t small, large           # packets by the size of their buffers
    # log2 of a slot's width in ns; the times of all packets lie within SLOTS - 1 slots
    cdef uint32_t shift
    cdef uint32_t taken                  # packets since the slots were last made narrower
    cdef uint64_t occupied[SLOT_WORDS]
    cdef uint32_t last[SLOTS]            # of an occupied slot: its last packet
    cdef void put(self, Context *ctx, uint32_t index, uint64_t release_ns) noexcept nogil
    cdef uint32_t take(self, Context *ctx) noexcept nogil
    cdef uint64_t due_ns(self, const Context *ctx) noexcept nogil
    cdef bint adopt(self, const Packet *packets, uint32_t small_count, const uint32_t *indices,
                    uint32_t count) noexcept nogil
    cdef void clear(self) noexcept nogil
    cdef void index_all(self, const Packet *packets, uint64_t first_ns,
                        uint64_t last_ns) noexcept nogil
    cdef void note_last(self, uint32_t index, uint64_t release_ns) noexcept nogil
    cdef uint32_t before(self, const Context *ctx, uint64_t release_ns) noexcept nogil
    cdef uint32_t last_below(self, uint32_t slot) noexcept nogil
    cdef void narrow(self, const Packet *packets) noexcept nogil
