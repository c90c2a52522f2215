"""Setting up a virtqueue. The contract is in queue_setup.pxd; sources: virtio 1.2, 2.7 and 2.8."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from dataplane.vatomic cimport (va_load_acquire_u16, va_load_relaxed_u16,
                                va_store_release_u64)
from virt.chain cimport DESCRIPTOR_BYTES, FAULTS_COUNT
from virt.guest_memory cimport MemoryTable, guest_of, user_at
from virt.packed_ring cimport (PACKED_AVAILABLE, PACKED_FLAGS_AT, PACKED_USED, packed_at,
                               packed_word)
from virt.split_ring cimport SPLIT_ENTRIES_AT, SPLIT_USED_BYTES, split_index
from virt.virtqueue cimport KICKS_UNKNOWN, QUEUE_MOST, Virtqueue

from dataplane.errors import ConfigError

cdef uint64_t NO_GENERATION = <uint64_t>-1

# By CHAIN_*: what happened to a chain, or why a ring was stopped.
FAULTS = (
    "", "",
    "a descriptor of no bytes",
    "a buffer for the other direction",
    "a buffer too short",
    "a frame or a command too long",
    "a descriptor's index that the ring does not have",
    "more buffers than the ring has entries",
    "a chain of more descriptors than the ring has, or more than 1024",
    "a buffer outside the guest's memory",
    "an invalid table of indirect descriptors",
    "the guest's memory was truncated",
    "the ring is not in the guest's memory",
)
assert len(FAULTS) == FAULTS_COUNT


def check_shape(str what, size, bint packed):
    """Raises ConfigError for a number of entries that a ring cannot have. Called with the number as
    it came from the front end, before it is stored in 16 bits."""
    if not 1 <= size <= QUEUE_MOST:
        raise ConfigError(f"{what}: {size} entries; expected 1 to {QUEUE_MOST}")
    if not packed and size & (size - 1):
        raise ConfigError(f"{what}: {size} entries; a split ring has a power of two")


def check_places(str what, bint packed, descriptors, available, used):
    """Raises ConfigError for addresses that are not aligned as virtio demands: 16-bit loads and
    stores of the ring would not be atomic."""
    for part, address, align in (("descriptors", descriptors, 16),
                                 ("available ring", available, 4 if packed else 2),
                                 ("used ring", used, 4)):
        if not 0 <= address < 1 << 64 or address % align:
            raise ConfigError(f"{what}: {part} at {address:#x}; expected a multiple of {align}")


def check_position(str what, size, bint packed, position):
    """Raises ConfigError for positions that a packed ring of this size does not have."""
    if not 0 <= position < 1 << 32:
        raise ConfigError(f"{what}: position {position:#x} exceeds 32 bits")
    if packed and max(position & 0x7FFF, position >> 16 & 0x7FFF) >= size:
        raise ConfigError(f"{what}: position {position:#x} in a ring of {size} entries")


cdef bint place(Virtqueue *q, const MemoryTable *memory, uint64_t descriptors, uint64_t driver,
                uint64_t device) noexcept:
    cdef uint64_t entries = q.size
    # all of each part is in one region, events of EVENT_IDX included
    cdef uint64_t driver_bytes = SPLIT_ENTRIES_AT + 2 * entries + 2
    cdef uint64_t device_bytes = SPLIT_ENTRIES_AT + SPLIT_USED_BYTES * entries + 2
    if q.packed:
        driver_bytes = device_bytes = 4
    q.memory, q.last_region = memory, 0
    q.descriptors = user_at(memory, descriptors, entries * DESCRIPTOR_BYTES)
    q.driver = user_at(memory, driver, driver_bytes)
    q.device = user_at(memory, device, device_bytes)
    q.device_address = guest_of(memory, device)
    return q.descriptors != NULL and q.driver != NULL and q.device != NULL


cdef uint32_t position_of(const Virtqueue *q) noexcept:
    if q.packed:
        return packed_word(q)
    return <uint32_t>q.next_available | <uint32_t>q.next_used << 16


cdef void set_position(Virtqueue *q, uint32_t position) noexcept:
    if q.packed:
        q.next_available, q.available_wrap = position & 0x7FFF, position >> 15 & 1
        q.next_used, q.used_wrap = position >> 16 & 0x7FFF, position >> 31
    else:
        q.next_available, q.next_used = <uint16_t>position, <uint16_t>(position >> 16)
    q.seen = q.next_available
    q.prepared, q.prepared_at = 0, q.next_used
    # When the driver was last notified is not known: it is notified after the first burst.
    q.signalled, q.has_signalled = q.next_used, False
    q.kicks = KICKS_UNKNOWN


cdef uint32_t recovered(const Virtqueue *q, uint64_t stored) noexcept:
    """The position of a packed ring after a crash. `stored` is what store_position has written: the
    position before the newest burst, and in the upper half the one after it. If the first used
    descriptor of that burst is in the ring, the burst was published."""
    cdef uint32_t before = <uint32_t>stored, after = <uint32_t>(stored >> 32)
    cdef uint16_t slot = before >> 16 & 0x7FFF, flags
    cdef uint16_t used = PACKED_AVAILABLE | PACKED_USED if before >> 31 else 0
    if before == after or slot >= q.size:
        return before
    flags = va_load_relaxed_u16(<uint16_t *>(packed_at(q, slot) + PACKED_FLAGS_AT))
    return after if flags & (PACKED_AVAILABLE | PACKED_USED) == used else before


cdef uint32_t first_position(const Virtqueue *q, uint32_t base, bint resumed,
                             const uint64_t *stored, uint64_t generation) noexcept:
    cdef uint32_t index
    if not q.packed:
        # What was used before is in the guest's memory, and this device uses buffers in the order
        # in which it takes them: none is in flight. DPDK sends 0 also for a ring that was in use
        # before its back end was killed.
        index = va_load_acquire_u16(split_index(q.device))
        return index << 16 | index
    if resumed and stored != NULL and stored[1] == generation:
        return recovered(q, stored[0])
    # Drivers of DPDK and SPDK send the available half only. No buffer is in flight when a device
    # stops that copies packets, so the other half is the same.
    base &= 0xFFFF
    if base == 0 and is_fresh(q):
        base = 0x8000
    return base << 16 | base


cdef void begin_storing(Virtqueue *q, uint64_t *words, uint64_t generation) noexcept:
    """A process that dies in between leaves a generation that no ring has."""
    cdef uint64_t position = position_of(q)
    q.stored = words
    va_store_release_u64(words + 1, NO_GENERATION)
    va_store_release_u64(words, position << 32 | position)
    va_store_release_u64(words + 1, generation)


cdef bint is_fresh(const Virtqueue *q) noexcept:
    """Whether no descriptor of a packed ring was ever marked used. Then its wrap counters are 1
    (virtio 1.2, 2.8.1), also if the front end says that they are 0: User-mode Linux begins every
    ring at position 0. The first descriptor alone does not tell: it may have been the middle of a
    chain, whose used descriptor is another one."""
    cdef uint32_t slot
    cdef uint16_t flags
    for slot in range(q.size):
        flags = va_load_relaxed_u16(<uint16_t *>(packed_at(q, <uint16_t>slot) + PACKED_FLAGS_AT))
        if flags & PACKED_USED:
            return False
    return True


cdef bint contradicts(const Virtqueue *q, bint resumed) noexcept:
    """Whether descriptors of a packed ring say that its position is not the one that is set: from
    there on, none can be marked used in the lap of the position, and before it none in the lap
    before. A front end that lost its back end does not know the position (QEMU: "we don't have a
    reference like avail idx in shared memory") and sends one of long ago. Receive rings seldom
    tell, since drivers fill them again at once.

    A process that was killed may have marked descriptors behind the position, but not the first
    one (`recovered`)."""
    cdef uint32_t slot
    cdef uint16_t flags, used
    if not q.packed:
        return False
    for slot in range(q.next_available if resumed else 0,
                      <uint32_t>q.next_available + 1 if resumed else q.size):
        used = PACKED_AVAILABLE | PACKED_USED
        if q.available_wrap != (slot >= q.next_available):
            used = 0
        flags = va_load_relaxed_u16(<uint16_t *>(packed_at(q, <uint16_t>slot) + PACKED_FLAGS_AT))
        if flags & (PACKED_AVAILABLE | PACKED_USED) == used:
            return True
    return False
