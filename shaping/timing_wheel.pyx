"""TimingWheel. The contract is in timing_wheel.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from dataplane.graph.element cimport NEVER
from dataplane.packet.pool cimport NO_PACKET, Context, Packet
from dataplane.packet.queue cimport queue_indices, queue_length, queue_packed
from dataplane.vatomic cimport vnic_check

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
    DIGIT_MASK = 255             # SLOTS - 1


cdef inline uint32_t level_of(uint64_t release_ns, uint64_t base_ns) noexcept nogil:
    """The number of the first digit, from the highest on, in which the times differ; 0 where they
    are equal."""
    return vnic_highest_bit((release_ns ^ base_ns) | 1) // DIGIT_BITS


@cython.final
cdef class TimingWheel:
    """See timing_wheel.pxd. An element has one and calls it on its engine's thread."""

    def __init__(self):
        self.clear()

    cdef void clear(self) noexcept nogil:
        """Forgets all packets, without a change of their records."""
        self.base_ns = 0
        self.levels = self.small = self.large = 0
        memset(self.occupied, 0, sizeof(self.occupied))

    cdef uint64_t due_ns(self) noexcept nogil:
        """The first packet's release time, or NEVER."""
        cdef uint32_t level
        if self.levels == 0:
            return NEVER
        level = vnic_lowest_bit(self.levels)
        return self.slots[level][self.first_of(level)].first_ns

    cdef void put(self, Context *ctx, uint32_t index, uint64_t release_ns) noexcept nogil:
        """Puts a packet behind those that are released at `release_ns` or before. `release_ns` must
        not be before that of the last packet taken; nor, since the wheel was empty, before both
        ctx.now_ns and the first packet put then."""
        if self.levels == 0:
            self.base_ns = min(ctx.now_ns, release_ns)
        vnic_check(release_ns >= self.base_ns, "a packet is not released before the last one")
        ctx.packets[index].release_ns = release_ns
        if index < ctx.small_count:
            self.small += 1
        else:
            self.large += 1
        self.link(ctx.packets, index)

    cdef uint32_t take(self, Context *ctx) noexcept nogil:
        """Removes and returns the first packet, which there must be, and which is due."""
        cdef uint32_t level, number, index
        cdef Slot *slot
        cdef Packet *p
        vnic_check(self.levels != 0, "the wheel has a packet")
        level = vnic_lowest_bit(self.levels)
        number = self.first_of(level)
        slot = &self.slots[level][number]
        # no packet is put before this one from now on, since it is due
        self.base_ns = slot.first_ns
        if level and slot.head != slot.tail:
            self.spread(ctx.packets, level, number)
            level, number = 0, <uint32_t>(self.base_ns & DIGIT_MASK)
            slot = &self.slots[0][number]
        index = slot.head
        p = &ctx.packets[index]
        if index == slot.tail:
            self.empty(level, number)
        slot.head = p.next
        p.next = NO_PACKET
        if index < ctx.small_count:
            self.small -= 1
        else:
            self.large -= 1
        return index

    cdef void spread(self, Packet *packets, uint32_t level, uint32_t number) noexcept nogil:
        """Moves the packets of the first slot, whose first time is base_ns, to lower levels."""
        cdef uint32_t index = self.slots[level][number].head, following
        self.empty(level, number)
        while index != NO_PACKET:
            following = packets[index].next
            self.link(packets, index)
            index = following

    cdef void link(self, Packet *packets, uint32_t index) noexcept nogil:
        """Appends a packet to the slot of its release time."""
        cdef Packet *p = &packets[index]
        cdef uint32_t level = level_of(p.release_ns, self.base_ns)
        cdef uint32_t number = <uint32_t>(p.release_ns >> (level * DIGIT_BITS)) & DIGIT_MASK
        cdef uint64_t *word = &self.occupied[level][number // 64]
        cdef uint64_t bit = <uint64_t>1 << number % 64
        cdef Slot *slot = &self.slots[level][number]
        p.next = NO_PACKET
        if word[0] & bit:
            packets[slot.tail].next = index
            slot.tail = index
            slot.first_ns = min(slot.first_ns, p.release_ns)
            return
        word[0] |= bit
        self.levels |= <uint32_t>1 << level
        slot.head = slot.tail = index
        slot.first_ns = p.release_ns

    cdef uint32_t first_of(self, uint32_t level) noexcept nogil:
        """The first occupied slot of a level that has one. It is the one with the lowest number,
        since all times of a level have the digits above in common."""
        cdef uint32_t word = 0
        while self.occupied[level][word] == 0:
            word += 1
        return word * 64 + vnic_lowest_bit(self.occupied[level][word])

    cdef void empty(self, uint32_t level, uint32_t number) noexcept nogil:
        """Notes that a slot has no packet."""
        cdef uint64_t *words = self.occupied[level]
        words[number // 64] &= ~(<uint64_t>1 << number % 64)
        if (words[0] | words[1] | words[2] | words[3]) == 0:
            self.levels &= ~(<uint32_t>1 << level)

    # -- state -------------------------------------------------------------------------------------

    cdef bytes packed(self, const Packet *packets):
        """The packets slot by slot, as 32-bit indices (see queue.pxd), for `adopt`."""
        cdef uint32_t level, number, index, count
        found = []
        for level in range(LEVELS):
            for number in range(SLOTS):
                if not self.occupied[level][number // 64] >> number % 64 & 1:
                    continue
                count, index = 1, self.slots[level][number].head
                while index != self.slots[level][number].tail:
                    count, index = count + 1, packets[index].next
                found.append(queue_packed(packets, self.slots[level][number].head, count))
        return b"".join(found)

    cdef bint adopt(self, const Packet *packets, uint32_t small_count, uint32_t total_count,
                    uint64_t base_ns, bytes packed) noexcept:
        """Takes the packets of another wheel as they are linked, without a write to their records:
        the engine that had them may still continue. The wheel must be empty. False, with nothing
        changed: `packed` and `base_ns` are not those of a wheel over these records."""
        cdef const uint32_t *indices = queue_indices(packed)
        cdef uint32_t i, index, level, number, count = queue_length(packed)
        cdef uint64_t bit
        cdef Slot *slot
        cdef Slot *before = NULL
        self.base_ns = base_ns
        for i in range(count):
            index = indices[i]
            if index >= total_count or packets[index].release_ns < base_ns:
                self.clear()
                return False
            level = level_of(packets[index].release_ns, base_ns)
            number = <uint32_t>(packets[index].release_ns >> (level * DIGIT_BITS)) & DIGIT_MASK
            slot, bit = &self.slots[level][number], <uint64_t>1 << number % 64
            if slot == before:
                if packets[indices[i - 1]].next != index:
                    self.clear()
                    return False
                slot.first_ns = min(slot.first_ns, packets[index].release_ns)
            else:
                if (self.occupied[level][number // 64] & bit
                        or (i and packets[indices[i - 1]].next != NO_PACKET)):
                    self.clear()
                    return False
                self.occupied[level][number // 64] |= bit
                self.levels |= <uint32_t>1 << level
                slot.head, slot.first_ns = index, packets[index].release_ns
            slot.tail, before = index, slot
            if index < small_count:
                self.small += 1
            else:
                self.large += 1
        if count and packets[indices[count - 1]].next != NO_PACKET:
            self.clear()
            return False
        return True
