"""TimingWheel. The contract, and what is inline, are in timing_wheel.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from dataplane.packet.pool cimport NO_PACKET, Packet
from dataplane.packet.queue cimport queue_indices, queue_length, queue_packed


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
        self.find_first()

    cdef uint32_t take_of_several(self, Packet *packets) noexcept nogil:
        """Removes and returns the first packet of the first slot, which has several, of different
        times."""
        cdef Slot *slot = &self.slots[self.first_level][self.first_number]
        cdef uint32_t index = slot.head, before = NO_PACKET, previous = NO_PACKET, first, _i
        cdef uint64_t rest_ns = <uint64_t>-1
        first = NO_PACKET
        for _i in range(<uint32_t>FEW):
            if packets[index].release_ns == self.due_ns and first == NO_PACKET:
                first, before = index, previous
            elif packets[index].release_ns < rest_ns:
                rest_ns = packets[index].release_ns
            previous, index = index, packets[index].next
            if index == NO_PACKET:
                break
        else:
            self.base_ns = self.due_ns       # the first packet is due, so none is put before it
            self.spread(packets)
            slot = &self.slots[self.first_level][self.first_number]
            first = slot.head
            if first != slot.tail:
                slot.head = packets[first].next
            else:
                self.empty_first()
                self.find_first()
            return first
        # base_ns stays: in front of this slot
        if before == NO_PACKET:
            slot.head = packets[first].next
        else:
            packets[before].next = packets[first].next
        if slot.tail == first:
            slot.tail = before
        self.due_ns = slot.first_ns = rest_ns
        return first

    cdef void spread(self, Packet *packets) noexcept nogil:
        """Moves the packets of the first slot to the levels below; the first ones are then on the
        lowest level."""
        cdef uint32_t index = self.slots[self.first_level][self.first_number].head, following
        self.empty_first()
        self.due_ns = <uint64_t>-1
        while index != NO_PACKET:
            following = packets[index].next
            self.link(packets, index, packets[index].release_ns)
            index = following

    # -- state -------------------------------------------------------------------------------------

    cdef bytes packed(self, const Packet *packets):
        """The packets slot by slot, as 32-bit indices (see queue.pxd), for `adopt`."""
        cdef uint32_t level, number, index, count
        found = []
        for level in range(<uint32_t>LEVELS):
            for number in range(<uint32_t>SLOTS):
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
        cdef bint sound = True
        cdef uint64_t bit
        cdef Slot *slot
        cdef Slot *before = NULL
        self.base_ns = base_ns
        for i in range(count):
            index = indices[i]
            sound = index < total_count and packets[index].release_ns >= base_ns
            if not sound:
                break
            level = level_of(packets[index].release_ns, base_ns)
            number = <uint32_t>(packets[index].release_ns >> (level * DIGIT_BITS)) & DIGIT_MASK
            slot, bit = &self.slots[level][number], <uint64_t>1 << number % 64
            if slot == before:
                sound = packets[slot.tail].next == index
                slot.first_ns = min(slot.first_ns, packets[index].release_ns)
            else:
                sound = (not self.occupied[level][number // 64] & bit
                         and (before == NULL or packets[before.tail].next == NO_PACKET))
                self.occupied[level][number // 64] |= bit
                self.levels |= <uint32_t>1 << level
                slot.head, slot.first_ns = index, packets[index].release_ns
            if not sound:
                break
            slot.tail, before = index, slot
            if index < small_count:
                self.small += 1
            else:
                self.large += 1
        if not sound or (before != NULL and packets[before.tail].next != NO_PACKET):
            self.clear()
            return False
        self.find_first()
        return True
