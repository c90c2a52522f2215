"""TimingWheel: held packets in the order of their release times, in constant time for each,
whatever the times.

The timing wheel of Carousel (SIGCOMM'17, section 4), made hierarchical (Varghese and Lauck,
SOSP'87, scheme 7), with bitmaps of the occupied slots (Eiffel, NSDI'19). A slot is an index and
rounds nothing: a release time is a number of eight digits of eight bits, and a packet is in the
slot of its first digit that differs from `base_ns`, on the level of that digit. So the packets of a
slot of the lowest level have the same release time. Of a higher level, the first slot's packets are
compared where they are few, as nearly always, and else moved to lower levels, each at most once for
each level.

A slot is a list linked by Packet.next, in the order in which packets were put. Packets with the
same release time leave in that order.

A packet that is released after all others, as most are where all wait alike, goes into a list
beside the wheel instead. The first packet is that of the list or that of the wheel; of the same
release time, the list's, since a packet goes into the wheel only after a later one has gone into
the list.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet.pool cimport NO_PACKET, Context, Packet
from dataplane.vatomic cimport va_prefetch, vnic_check

cdef extern from *:
    """
    static inline unsigned int vnic_lowest_bit(unsigned long long word)
    {
        return (unsigned int)__builtin_ctzll(word);
    }
    static inline unsigned int vnic_highest_bit(unsigned long long word)
    {
        return 63U - (unsigned int)__builtin_clzll(word);
    }
    """
    uint32_t vnic_lowest_bit(uint64_t word) nogil
    uint32_t vnic_highest_bit(uint64_t word) nogil

cdef enum:
    DIGIT_BITS = 8
    DIGIT_MASK = 255             # SLOTS - 1
    SLOTS = 256                  # of a level: 2^DIGIT_BITS
    SLOT_WORDS = 4               # SLOTS / 64
    LEVELS = 8                   # 64 / DIGIT_BITS
    FEW = 4                      # packets of a slot that are compared

cdef struct Slot:                # valid where `occupied` says so
    uint64_t first_ns            # the earliest release time in it
    uint32_t head, tail

cdef class TimingWheel:
    cdef uint64_t due_ns         # the first packet's release time, or NEVER: there is none
    cdef uint64_t taken_ns       # the release time of the last packet taken
    cdef uint64_t last_ns        # the latest release time
    cdef uint32_t head, tail     # of the list, NO_PACKET: it is empty
    cdef uint32_t small, large   # packets by the size of their buffers
    # The wheel.
    cdef uint64_t first_ns       # its first packet's release time, or NEVER
    cdef uint32_t first_level    # of the slot with that packet
    cdef uint32_t first_number   # of that slot on its level
    cdef uint64_t base_ns        # none of its packets is released before
    cdef uint32_t levels         # bit n: level n has packets
    cdef uint64_t occupied[LEVELS][SLOT_WORDS]
    cdef Slot slots[LEVELS][SLOTS]
    cdef tuple packed(self, const Packet *packets)
    cdef bint adopt(self, const Packet *packets, uint32_t small_count, uint32_t total_count,
                    uint64_t now_ns, tuple packed) except -1
    cdef void clear(self) noexcept nogil

    # Final and here, so that elements have them inline.

    @cython.final
    cdef inline bint is_empty(self) noexcept nogil:
        return self.due_ns == <uint64_t>-1

    @cython.final
    cdef inline void put(self, Context *ctx, uint32_t index, uint64_t release_ns) noexcept nogil:
        """Puts a packet behind those that are released at `release_ns` or before. `release_ns` must
        not be before that of the last packet taken, but may be past: of packets that are due, each
        can be put back for a time after its own."""
        ctx.packets[index].release_ns = release_ns
        ctx.packets[index].next = NO_PACKET
        if index < ctx.small_count:
            self.small += 1
        else:
            self.large += 1
        if release_ns < self.last_ns and not self.is_empty():
            if self.levels == 0:
                self.base_ns = self.taken_ns
            vnic_check(release_ns >= self.base_ns, "a packet is not released before the last one")
            self.link(ctx.packets, index, release_ns)
            self.due_ns = min(self.due_ns, release_ns)
            return
        self.last_ns = release_ns
        if self.head == NO_PACKET:
            self.head = index
            self.due_ns = min(self.due_ns, release_ns)
        else:
            ctx.packets[self.tail].next = index
        self.tail = index

    @cython.final
    cdef inline void link(self, Packet *packets, uint32_t index,
                          uint64_t release_ns) noexcept nogil:
        """Appends a packet to the slot of its release time. Without a branch for whether the slot
        has one, which no CPU could predict."""
        cdef uint32_t level = level_of(release_ns, self.base_ns)
        cdef uint32_t number = number_of(release_ns, level)
        cdef uint64_t *word = &self.occupied[level][number // 64]
        cdef uint64_t bit = <uint64_t>1 << number % 64
        cdef Slot *slot = &self.slots[level][number]
        cdef uint32_t *end = &packets[slot.tail].next
        cdef uint64_t first_ns = slot.first_ns
        if not word[0] & bit:
            end, first_ns = &slot.head, release_ns
        end[0] = slot.tail = index
        slot.first_ns = min(first_ns, release_ns)
        word[0] |= bit
        self.levels |= <uint32_t>1 << level
        if release_ns < self.first_ns:
            self.first_ns, self.first_level, self.first_number = release_ns, level, number

    @cython.final
    cdef inline uint32_t take(self, Context *ctx) noexcept nogil:
        """Removes and returns the first packet, which there must be, and which is due."""
        cdef uint32_t index = self.head
        vnic_check(not self.is_empty(), "the wheel has a packet")
        self.taken_ns = self.due_ns
        if index != NO_PACKET and ctx.packets[index].release_ns == self.due_ns:
            self.head = ctx.packets[index].next
        else:
            index = self.take_of_wheel(ctx.packets)
        self.due_ns = self.first_ns
        if self.head != NO_PACKET:
            self.due_ns = min(self.first_ns, ctx.packets[self.head].release_ns)
        ctx.packets[index].next = NO_PACKET
        if index < ctx.small_count:
            self.small -= 1
        else:
            self.large -= 1
        return index

    @cython.final
    cdef inline uint32_t take_of_wheel(self, Packet *packets) noexcept nogil:
        cdef Slot *slot = &self.slots[self.first_level][self.first_number]
        cdef uint32_t index = slot.head
        if index == slot.tail:
            # none is put before this packet from now on, since it is due
            self.base_ns = self.first_ns
            self.empty_first()
            self.find_first()
        elif self.first_level == 0:
            self.base_ns = self.first_ns
            slot.head = packets[index].next
        else:
            index = self.take_of_several(packets)
        va_prefetch(&packets[self.slots[self.first_level][self.first_number].head])
        return index

    @cython.final
    cdef inline void empty_first(self) noexcept nogil:
        """Notes that the first slot has no packet."""
        cdef uint64_t *words = self.occupied[self.first_level]
        words[self.first_number // 64] &= ~(<uint64_t>1 << self.first_number % 64)
        if (words[0] | words[1] | words[2] | words[3]) == 0:
            self.levels &= ~(<uint32_t>1 << self.first_level)

    @cython.final
    cdef inline void find_first(self) noexcept nogil:
        """Finds the first slot: that with the lowest number on the lowest level, since all times of
        a level have the digits above in common with base_ns, and are after it."""
        cdef uint32_t level, word = 0
        if self.levels == 0:
            self.first_ns, self.first_level, self.first_number = <uint64_t>-1, 0, 0
            return
        level = vnic_lowest_bit(self.levels)
        while self.occupied[level][word] == 0:
            word += 1
        self.first_level = level
        self.first_number = word * 64 + vnic_lowest_bit(self.occupied[level][word])
        self.first_ns = self.slots[level][self.first_number].first_ns

    cdef uint32_t take_of_several(self, Packet *packets) noexcept nogil
    cdef void spread(self, Packet *packets) noexcept nogil
    cdef bint adopt_all(self, const Packet *packets, uint32_t small_count, uint32_t total_count,
                        const uint32_t *indices, uint32_t listed, uint32_t count) noexcept

cdef inline uint32_t level_of(uint64_t release_ns, uint64_t base_ns) noexcept nogil:
    """The number of the first digit, from the highest on, in which the times differ; 0 where they
    are equal."""
    return vnic_highest_bit((release_ns ^ base_ns) | 1) // DIGIT_BITS

cdef inline uint32_t number_of(uint64_t release_ns, uint32_t level) noexcept nogil:
    """A digit of a time."""
    return <uint32_t>(release_ns >> (level * DIGIT_BITS)) & DIGIT_MASK
