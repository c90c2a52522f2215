"""DelayLine. The contract is in delay_line.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from dataplane.graph.element cimport NEVER
from dataplane.packet.pool cimport NO_PACKET, Context, Packet
from dataplane.vatomic cimport vnic_check

cdef extern from *:
    """
    static inline unsigned int vnic_highest_bit(unsigned long long word)
    {
        return 63U - (unsigned int)__builtin_clzll(word);
    }
    """
    uint32_t vnic_highest_bit(uint64_t word) nogil

cdef enum:
    SHIFT_LEAST = 10             # 1 us: narrower slots would be widened at once


@cython.final
cdef class DelayLine:
    """See delay_line.pxd. An element holds one and calls it on its engine's thread."""

    def __cinit__(self):
        self.clear()

    cdef void clear(self) noexcept nogil:
        """Forgets all packets, without a change of their records."""
        self.head = self.tail = NO_PACKET
        self.small = self.large = 0
        self.shift = SHIFT_LEAST
        self.taken = 0
        memset(self.occupied, 0, sizeof(self.occupied))

    cdef uint64_t due_ns(self, const Context *ctx) noexcept nogil:
        """The first packet's release time, or NEVER."""
        return NEVER if self.head == NO_PACKET else ctx.packets[self.head].release_ns

    cdef void put(self, Context *ctx, uint32_t index, uint64_t release_ns) noexcept nogil:
        """Inserts a packet behind those that are released at `release_ns` or before."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint64_t first_ns, last_ns
        cdef uint32_t previous
        p.release_ns = release_ns
        p.next = NO_PACKET
        if index < ctx.small_count:
            self.small += 1
        else:
            self.large += 1
        if self.head == NO_PACKET:
            self.head = self.tail = index
            self.note_last(index, release_ns)
            return
        first_ns = min(ctx.packets[self.head].release_ns, release_ns)
        last_ns = max(ctx.packets[self.tail].release_ns, release_ns)
        if (last_ns >> self.shift) - (first_ns >> self.shift) >= SLOTS - 1:
            self.index_all(ctx.packets, first_ns, last_ns)
        if release_ns >= ctx.packets[self.tail].release_ns:
            ctx.packets[self.tail].next = index
            self.tail = index
            self.note_last(index, release_ns)
            return
        previous = self.before(ctx, release_ns)
        if previous == NO_PACKET:
            p.next = self.head
            self.head = index
        else:
            p.next = ctx.packets[previous].next
            ctx.packets[previous].next = index
        # not the tail, so a packet follows
        if ctx.packets[p.next].release_ns >> self.shift != release_ns >> self.shift:
            self.note_last(index, release_ns)

    cdef uint32_t take(self, Context *ctx) noexcept nogil:
        """Removes and returns the first packet; there must be one."""
        cdef uint32_t index = self.head, slot
        cdef Packet *p = &ctx.packets[index]
        vnic_check(index != NO_PACKET, "the delay line has a packet")
        slot = <uint32_t>(p.release_ns >> self.shift) % SLOTS
        if self.last[slot] == index:
            self.occupied[slot // 64] &= ~(<uint64_t>1 << slot % 64)
        self.head = p.next
        p.next = NO_PACKET
        if index < ctx.small_count:
            self.small -= 1
        else:
            self.large -= 1
        if self.head == NO_PACKET:
            self.tail = NO_PACKET
            self.shift = SHIFT_LEAST             # the next packets may lie closer together
            self.taken = 0
        elif self.shift > SHIFT_LEAST:
            self.taken += 1
            if self.taken > self.small + self.large:
                self.narrow(ctx.packets)
        return index

    cdef bint adopt(self, const Packet *packets, uint32_t small_count, const uint32_t *indices,
                    uint32_t count) noexcept nogil:
        """Takes packets that are linked and sorted already, without a write to their records: the
        engine that had them may still continue. The line must be empty. False, with nothing
        changed: they are not sorted."""
        cdef uint32_t i
        if count == 0:
            return True
        for i in range(1, count):
            if packets[indices[i]].release_ns < packets[indices[i - 1]].release_ns:
                return False
        self.head, self.tail = indices[0], indices[count - 1]
        for i in range(count):
            if indices[i] < small_count:
                self.small += 1
            else:
                self.large += 1
        self.index_all(packets, packets[self.head].release_ns, packets[self.tail].release_ns)
        return True

    cdef void index_all(self, const Packet *packets, uint64_t first_ns,
                        uint64_t last_ns) noexcept nogil:
        """Indexes all packets anew, with slots at least so wide that both times lie within
        SLOTS - 1."""
        cdef uint32_t index = self.head
        while (last_ns >> self.shift) - (first_ns >> self.shift) >= SLOTS - 1:
            self.shift += 1
        memset(self.occupied, 0, sizeof(self.occupied))
        while index != NO_PACKET:
            self.note_last(index, packets[index].release_ns)
            index = packets[index].next

    cdef void narrow(self, const Packet *packets) noexcept nogil:
        """Makes the slots narrower where the packets fit half of them; called at most once for as
        many packets taken as are left, so that it costs each a few steps."""
        cdef uint64_t first_ns = packets[self.head].release_ns
        cdef uint64_t last_ns = packets[self.tail].release_ns
        cdef uint32_t shift = self.shift
        self.taken = 0
        while shift > SHIFT_LEAST and (last_ns - first_ns) >> (shift - 1) < SLOTS // 2:
            shift -= 1
        if shift < self.shift:
            self.shift = shift
            self.index_all(packets, first_ns, last_ns)

    cdef void note_last(self, uint32_t index, uint64_t release_ns) noexcept nogil:
        cdef uint32_t slot = <uint32_t>(release_ns >> self.shift) % SLOTS
        self.last[slot] = index
        self.occupied[slot // 64] |= <uint64_t>1 << slot % 64

    cdef uint32_t before(self, const Context *ctx, uint64_t release_ns) noexcept nogil:
        """The packet that one released at `release_ns`, before the tail, follows; NO_PACKET: it
        becomes the first."""
        cdef uint64_t head_ns = ctx.packets[self.head].release_ns
        cdef uint32_t first = <uint32_t>(head_ns >> self.shift) % SLOTS
        cdef uint32_t slot = <uint32_t>(release_ns >> self.shift) % SLOTS, previous, following
        if release_ns < head_ns:
            return NO_PACKET
        previous = NO_PACKET if slot == first else self.last[self.last_below(slot)]
        following = self.head if previous == NO_PACKET else ctx.packets[previous].next
        while ctx.packets[following].release_ns <= release_ns:
            previous, following = following, ctx.packets[following].next
        return previous

    cdef uint32_t last_below(self, uint32_t slot) noexcept nogil:
        """The last occupied slot before `slot` in the circle of slots; there must be one, such as
        the first packet's."""
        cdef uint32_t at = (slot + SLOTS - 1) % SLOTS, word = at // 64
        cdef uint64_t bits = self.occupied[word] & (<uint64_t>-1 >> (63 - at % 64))
        while bits == 0:
            word = (word + SLOT_WORDS - 1) % SLOT_WORDS
            bits = self.occupied[word]
        return word * 64 + vnic_highest_bit(bits)
