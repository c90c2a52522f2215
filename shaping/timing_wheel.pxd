"""TimingWheel: held packets in the order of their release times, in constant time for each, whatever
the times.

The timing wheel of Carousel (SIGCOMM'17, section 4), made hierarchical (Varghese and Lauck, SOSP'87,
scheme 7), with a bitmap of the occupied slots (Eiffel, NSDI'19). A slot is an index and rounds
nothing: a release time is a number of eight digits of eight bits, and a packet is in the slot of its
first digit that differs from `base_ns`, on the level of that digit. So packets of the lowest level
have the same release time in a slot, and those of higher levels are spread over lower ones once they
are next. A packet is moved at most once for each level, and nearly all are moved once or not at all,
because a packet that is alone in its slot is taken from there.

A slot is a list linked by Packet.next. Packets with the same release time leave in the order in which
they were put.
"""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet.pool cimport Context, Packet

cdef enum:
    DIGIT_BITS = 8
    SLOTS = 256                  # of a level: 2^DIGIT_BITS
    SLOT_WORDS = 4               # SLOTS / 64
    LEVELS = 8                   # 64 / DIGIT_BITS

cdef struct Slot:                # valid where `occupied` says so
    uint64_t first_ns            # the earliest release time in it
    uint32_t head, tail

cdef class TimingWheel:
    cdef uint64_t base_ns        # no packet is released before
    cdef uint32_t levels         # bit n: level n has packets
    cdef uint32_t small, large   # packets by the size of their buffers
    cdef uint64_t occupied[LEVELS][SLOT_WORDS]
    cdef Slot slots[LEVELS][SLOTS]
    cdef void put(self, Context *ctx, uint32_t index, uint64_t release_ns) noexcept nogil
    cdef uint32_t take(self, Context *ctx) noexcept nogil
    cdef uint64_t due_ns(self) noexcept nogil
    cdef bytes packed(self, const Packet *packets)
    cdef bint adopt(self, const Packet *packets, uint32_t small_count, uint32_t total_count,
                    uint64_t base_ns, bytes packed) noexcept
    cdef void clear(self) noexcept nogil
    cdef void link(self, Packet *packets, uint32_t index) noexcept nogil
    cdef void spread(self, Packet *packets, uint32_t level, uint32_t number) noexcept nogil
    cdef uint32_t first_of(self, uint32_t level) noexcept nogil
    cdef void empty(self, uint32_t level, uint32_t number) noexcept nogil
