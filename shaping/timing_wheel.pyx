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
        self.due_ns, self.taken_ns, self.last_ns, self.base_ns = <uint64_t>-1, 0, 0, 0
        self.head = self.tail = NO_PACKET
        self.levels = self.small = self.large = 0
        memset(self.occupied, 0, sizeof(self.occupied))
        self.find_first()

    cdef uint32_t take_of_several(self, Packet *packets) noexcept nogil:
        """Removes and returns the first packet of the wheel's first slot, which has several, and of
        different times."""
        cdef Slot *slot = &self.slots[self.first_level][self.first_number]
        cdef uint32_t index = slot.head, previous = NO_PACKET
        cdef uint32_t first = NO_PACKET, before = NO_PACKET, _i
        cdef uint64_t rest_ns = <uint64_t>-1
        for _i in range(<uint32_t>FEW):
            if first == NO_PACKET and packets[index].release_ns == self.first_ns:
                first, before = index, previous
            elif packets[index].release_ns < rest_ns:
                rest_ns = packets[index].release_ns
            previous, index = index, packets[index].next
            if index == NO_PACKET:
                break
        else:
            self.base_ns = self.first_ns     # the first packet is due, so none is put before it
            self.spread(packets)
            return self.take_of_wheel(packets)
        # base_ns stays in front of the slot
        if before == NO_PACKET:
            slot.head = packets[first].next
        else:
            packets[before].next = packets[first].next
        if slot.tail == first:
            slot.tail = before
        self.first_ns = slot.first_ns = rest_ns
        return first

    cdef void spread(self, Packet *packets) noexcept nogil:
        """Moves the packets of the wheel's first slot to the levels below; its first ones are then
        on the lowest level."""
        cdef uint32_t index = self.slots[self.first_level][self.first_number].head, following
        self.empty_first()
        self.first_ns = <uint64_t>-1
        while index != NO_PACKET:
            following = packets[index].next
            packets[index].next = NO_PACKET
            self.link(packets, index, packets[index].release_ns)
            index = following

    # -- state -------------------------------------------------------------------------------------

    cdef tuple packed(self, const Packet *packets):
        """[packets of the list, base_ns], and the packets, those of the list and then slot by slot,
        as 32-bit indices (see queue.pxd)."""
        cdef uint32_t level, number, count = 0, index = self.head
        while index != NO_PACKET:
            count, index = count + 1, packets[index].next
        listed = count
        found = [queue_packed(packets, self.head, count)]
        for level in range(<uint32_t>LEVELS):
            for number in range(<uint32_t>SLOTS):
                if not self.occupied[level][number // 64] >> number % 64 & 1:
                    continue
                count, index = 1, self.slots[level][number].head
                while index != self.slots[level][number].tail:
                    count, index = count + 1, packets[index].next
                found.append(queue_packed(packets, self.slots[level][number].head, count))
        return [listed, self.base_ns], b"".join(found)

    cdef bint adopt(self, const Packet *packets, uint32_t small_count, uint32_t total_count,
                    uint64_t now_ns, tuple packed) except -1:
        """Takes the packets of another wheel, `packed`, as they are linked, without a write to
        their records: the engine that had them may still continue. The wheel must be empty. Raises
        ValueError, TypeError or OverflowError, with nothing changed, where they are not those of a
        wheel over these records at this time."""
        cdef bytes indices
        cdef uint32_t listed, count
        cdef uint64_t base_ns
        (listed, base_ns), indices = packed
        count = queue_length(indices)
        if len(indices) % sizeof(uint32_t) or listed > count or (listed < count
                                                                 and base_ns > now_ns):
            raise ValueError(f"{len(indices)} bytes are no wheel at {base_ns} ns")
        self.base_ns = base_ns
        if not self.adopt_all(packets, small_count, total_count, queue_indices(indices), listed,
                              count):
            self.clear()
            raise ValueError("packets are not linked as in a wheel")
        return True

    cdef bint adopt_all(self, const Packet *packets, uint32_t small_count, uint32_t total_count,
                        const uint32_t *indices, uint32_t listed, uint32_t count) noexcept:
        cdef uint32_t i, index, level, number
        cdef uint64_t release_ns
        cdef bint begins
        cdef Slot *slot
        cdef Slot *before = NULL
        for i in range(count):
            index = indices[i]
            if index >= total_count:
                return False
            release_ns = packets[index].release_ns
            begins = i == 0 or i == listed
            if i < listed:
                if release_ns < self.last_ns:
                    return False
                if begins:
                    self.head = index
                self.tail = index
            else:
                if release_ns < self.base_ns:
                    return False
                level = level_of(release_ns, self.base_ns)
                number = number_of(release_ns, level)
                slot = &self.slots[level][number]
                begins = slot != before
                if begins:
                    if self.occupied[level][number // 64] >> number % 64 & 1:
                        return False
                    self.occupied[level][number // 64] |= <uint64_t>1 << number % 64
                    self.levels |= <uint32_t>1 << level
                    slot.head, slot.first_ns = index, release_ns
                slot.first_ns = min(slot.first_ns, release_ns)
                slot.tail, before = index, slot
            # each follows the one before it, or begins a list behind the end of another
            if i and packets[indices[i - 1]].next != (NO_PACKET if begins else index):
                return False
            self.last_ns = max(self.last_ns, release_ns)
            if index < small_count:
                self.small += 1
            else:
                self.large += 1
        if count and packets[indices[count - 1]].next != NO_PACKET:
            return False
        self.find_first()
        self.due_ns = self.first_ns
        if self.head != NO_PACKET:
            self.due_ns = min(self.due_ns, packets[self.head].release_ns)
        return True
