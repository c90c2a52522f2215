"""The packed virtqueue, device's side (virtio 1.2, 2.8).

    ring     {u64 address, u32 length, u16 id, u16 flags}[size]: the driver writes available
             descriptors, the device used ones over them
    events   {u16 position, u16 flags}: one by each side, what it wants to be notified of
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.vatomic cimport (va_fence, va_load_acquire_u16, va_load_relaxed_u16,
                                va_prefetch_write, va_store_relaxed_u16, va_store_relaxed_u64,
                                va_store_release_u16, va_store_release_u64)
from virt.chain cimport (BROKEN_LOOP, BROKEN_TABLE, CHAIN_NONE, CHAIN_OK, DESCRIPTOR_BYTES,
                         DESCRIPTOR_INDIRECT, DESCRIPTOR_NEXT, DESCRIPTOR_WRITE, SEGMENTS_MOST,
                         Chain, Descriptor, Segment, chain_add, copy_descriptor, whole_chain)
from virt.guest_memory cimport guest_at, log_write
from virt.virtqueue cimport PREFETCH_AHEAD, Taken, Virtqueue, prefetch_buffer

cdef enum:
    PACKED_AVAILABLE = 0x80  # flags: equal to the driver's wrap counter if available
    PACKED_USED = 0x8000     # flags: unequal if available, equal if used
    PACKED_ID_AT = 12
    PACKED_FLAGS_AT = 14

# An event structure's flags (2.8.14)
cdef enum:
    EVENT_ENABLE = 0
    EVENT_DISABLE = 1
    EVENT_POSITION = 2       # at one position; only with EVENT_IDX
    EVENT_MASK = 3


cdef inline uint8_t *packed_at(const Virtqueue *q, uint16_t slot) noexcept nogil:
    return q.descriptors + <uint32_t>slot * DESCRIPTOR_BYTES


cdef inline bint packed_has(const Virtqueue *q) noexcept nogil:
    """Whether the driver has made the next descriptor available."""
    # Acquire: `take` reads the rest of the descriptor after it.
    cdef uint16_t flags = va_load_acquire_u16(<uint16_t *>(packed_at(q, q.next_available)
                                                           + PACKED_FLAGS_AT))
    if q.available_wrap:
        return flags & (PACKED_AVAILABLE | PACKED_USED) == PACKED_AVAILABLE
    return flags & (PACKED_AVAILABLE | PACKED_USED) == PACKED_USED


cdef inline void packed_prefetch(Virtqueue *q) noexcept nogil:
    """See PREFETCH_AHEAD. A descriptor that is not available yet may be loaded, too. Its line is
    loaded for writing, since the used descriptor goes there."""
    cdef uint32_t slot = <uint32_t>q.next_available + PREFETCH_AHEAD
    if slot + PREFETCH_AHEAD < q.size:
        va_prefetch_write(packed_at(q, <uint16_t>(slot + PREFETCH_AHEAD)))
        prefetch_buffer(q, packed_at(q, <uint16_t>slot))


cdef inline bint packed_single(Virtqueue *q, uint32_t least, uint32_t most, Segment *segment,
                               Taken *taken) noexcept nogil:
    """See take_single of rings.pxd."""
    cdef Descriptor d
    if not packed_has(q):
        return False
    copy_descriptor(&d, packed_at(q, q.next_available))
    if not whole_chain(&d, d.fourth, DESCRIPTOR_WRITE if q.fills else 0, least, most, q.memory,
                       &q.last_region, segment):
        return False
    taken.id, taken.slots = d.third, 1
    packed_advance(q)
    return True


cdef inline void packed_advance(Virtqueue *q) noexcept nogil:
    q.next_available += 1
    if q.next_available == q.size:
        q.next_available, q.available_wrap = 0, not q.available_wrap


cdef inline uint32_t packed_take(Virtqueue *q, Chain *chain, Taken *taken) noexcept nogil:
    """Appends the next available chain's segments; CHAIN_*. Only the first descriptor's flags tell
    that a chain is available, as the driver writes them last. Each step is counted."""
    cdef uint32_t left = min(<uint32_t>q.size, <uint32_t>SEGMENTS_MOST), status
    cdef Descriptor d
    if not packed_has(q):
        return CHAIN_NONE
    taken.slots = 0
    while True:
        if left == 0:
            return BROKEN_LOOP
        left -= 1
        copy_descriptor(&d, packed_at(q, q.next_available))
        taken.slots += 1
        packed_advance(q)
        if d.fourth & DESCRIPTOR_INDIRECT:
            # A chain has either direct descriptors or one table.
            if taken.slots > 1 or d.fourth & DESCRIPTOR_NEXT:
                return BROKEN_TABLE
            status = packed_table(q, chain, &d)
        else:
            status = chain_add(chain, q.memory, &q.last_region, d.address, d.length,
                               d.fourth & DESCRIPTOR_WRITE)
        if status != CHAIN_OK or not d.fourth & DESCRIPTOR_NEXT:
            # The last descriptor has the id. It is given back, never used as an index.
            taken.id = d.third
            return status


cdef inline uint32_t packed_table(Virtqueue *q, Chain *chain, const Descriptor *d) noexcept nogil:
    """Appends the segments of an indirect table: all its entries, of whose flags only WRITE
    counts (2.8.8)."""
    cdef const uint8_t *table
    cdef uint32_t i, status
    cdef Descriptor each
    if not q.indirect or d.length == 0 or d.length % DESCRIPTOR_BYTES:
        return BROKEN_TABLE
    if d.length // DESCRIPTOR_BYTES > SEGMENTS_MOST:
        return BROKEN_LOOP
    table = guest_at(q.memory, &q.last_region, d.address, d.length)
    if table == NULL:
        return BROKEN_TABLE
    for i in range(d.length // DESCRIPTOR_BYTES):
        copy_descriptor(&each, table + <uint64_t>i * DESCRIPTOR_BYTES)
        status = chain_add(chain, q.memory, &q.last_region, each.address, each.length,
                           each.fourth & DESCRIPTOR_WRITE)
        if status != CHAIN_OK:
            return status
    return CHAIN_OK


cdef inline void packed_store(Virtqueue *q, uint16_t slot, uint16_t id,
                              uint32_t length) noexcept nogil:
    cdef uint8_t *at = packed_at(q, slot)
    (<uint32_t *>(at + 8))[0] = length
    (<uint16_t *>(at + PACKED_ID_AT))[0] = id
    if q.log_ring:
        log_write(&q.log, q.log_address + <uint32_t>slot * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES)


cdef inline void packed_complete(Virtqueue *q, const Taken *taken) noexcept nogil:
    """Writes the used descriptor over the first of the chain, and skips the rest of it (2.8.7). The
    flags of a burst's first one are stored last, by `publish`: the driver, which looks at that one
    alone, then finds all of them."""
    cdef uint16_t flags = PACKED_AVAILABLE | PACKED_USED if q.used_wrap else 0
    if taken.written:
        flags |= DESCRIPTOR_WRITE
    q.last_id = taken.id
    if q.prepared == 0:
        q.prepared_at, q.prepared_flags = q.next_used, flags
        if not q.batches:
            packed_store(q, q.next_used, taken.id, taken.written)
    elif not q.batches:
        packed_store(q, q.next_used, taken.id, taken.written)
        # relaxed: visible with the first one's flags
        va_store_relaxed_u16(<uint16_t *>(packed_at(q, q.next_used) + PACKED_FLAGS_AT), flags)
    q.prepared += 1
    # in 32 bits: the sum of two positions may exceed 16
    if <uint32_t>q.next_used + taken.slots >= q.size:
        q.next_used, q.used_wrap = <uint16_t>(<uint32_t>q.next_used + taken.slots - q.size), \
            not q.used_wrap
    else:
        q.next_used += taken.slots


cdef inline void packed_publish(Virtqueue *q) noexcept nogil:
    if q.batches:
        # In order: one used descriptor names the last buffer of the batch (2.8.9).
        packed_store(q, q.prepared_at, q.last_id, 0)
    store_position(q, False)
    # Release: data, and the other used descriptors, are written before these flags.
    va_store_release_u16(<uint16_t *>(packed_at(q, q.prepared_at) + PACKED_FLAGS_AT),
                         q.prepared_flags)
    store_position(q, True)
    q.prepared = 0


cdef inline uint32_t packed_word(const Virtqueue *q) noexcept nogil:
    """The position as vhost-user has it: 15 bits of a slot and a wrap counter, twice."""
    return (<uint32_t>q.next_available | <uint32_t>q.available_wrap << 15
            | <uint32_t>q.next_used << 16 | <uint32_t>q.used_wrap << 31)


cdef inline void store_position(const Virtqueue *q, bint published) noexcept nogil:
    """Before a burst is published, the position after it is stored beside the one before it, then
    alone. A successor finds in the ring which of the two holds (`recovered` in queue_setup.pyx)."""
    cdef uint64_t after
    if q.stored == NULL:
        return
    after = packed_word(q)
    if published:
        va_store_relaxed_u64(q.stored, after << 32 | after)
    else:
        # Release is enough: a process that dies does not lose stores, only later ones are missing.
        va_store_release_u64(q.stored, after << 32 | (q.stored[0] & <uint64_t>0xFFFFFFFF))


cdef inline bint packed_wants(Virtqueue *q) noexcept nogil:
    """Whether to notify the driver of what was published (2.8.14)."""
    cdef uint16_t before = q.signalled, new = q.next_used, flags, position, event
    # Full fence: used flags were stored, the driver's wish is loaded; see split_wants.
    va_fence()
    # Acquire: the position is read after the flags that say whether it is valid.
    flags = va_load_acquire_u16(<uint16_t *>(q.driver + 2)) & EVENT_MASK
    q.signalled = new
    if flags == EVENT_DISABLE:
        return False
    if flags != EVENT_POSITION or not q.event_index or not q.has_signalled:
        q.has_signalled = True
        return True
    position = va_load_relaxed_u16(<uint16_t *>q.driver)
    event = position & 0x7FFF
    # Positions of the ring's other round are one size less, all modulo 2^16.
    if q.used_wrap != (position >> 15):
        event -= q.size
    if new <= before:
        before -= q.size
    return <uint16_t>(new - event - 1) < <uint16_t>(new - before)


cdef inline void packed_ask(Virtqueue *q, bint ask) noexcept nogil:
    """Asks the driver to notify the device of new buffers, or not to."""
    cdef uint16_t *event = <uint16_t *>q.device
    if ask and q.event_index:
        va_store_relaxed_u16(event, q.next_available | <uint16_t>(q.available_wrap << 15))
        # Release: the position before the flags that make it valid.
        va_store_release_u16(event + 1, EVENT_POSITION)
    else:
        va_store_relaxed_u16(event + 1, EVENT_ENABLE if ask else EVENT_DISABLE)
    if q.log_ring:
        log_write(&q.log, q.device_address, 4)
