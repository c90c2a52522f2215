"""The split virtqueue, device's side (virtio 1.2, 2.7).

    table of descriptors   16 bytes each, written by the driver
    available ring         u16 flags, u16 index, u16 entry[size], u16 used_event: by the driver
    used ring              u16 flags, u16 index, {u32 id, u32 length}[size], u16 available_event: by
                           the device
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.vatomic cimport (va_fence, va_load_acquire_u16, va_load_relaxed_u16, va_prefetch,
                                va_store_relaxed_u16, va_store_release_u16)
from virt.chain cimport (BROKEN_COUNT, BROKEN_INDEX, BROKEN_LOOP, BROKEN_TABLE, CHAIN_NONE,
                         CHAIN_OK, DESCRIPTOR_BYTES, DESCRIPTOR_INDIRECT, DESCRIPTOR_NEXT,
                         DESCRIPTOR_WRITE, SEGMENTS_MOST, Chain, Descriptor, Segment, chain_add,
                         copy_descriptor, whole_chain)
from virt.guest_memory cimport guest_at, log_write
from virt.virtqueue cimport PREFETCH_AHEAD, Taken, Virtqueue, prefetch_buffer

cdef enum:
    SPLIT_NO_NOTIFY = 1      # used.flags, and available.flags of the driver
    SPLIT_ENTRIES_AT = 4     # of both rings
    SPLIT_USED_BYTES = 8     # of an entry of the used ring


cdef inline uint16_t *split_index(uint8_t *ring) noexcept nogil:
    return <uint16_t *>(ring + 2)


cdef inline uint16_t *used_event(const Virtqueue *q) noexcept nogil:
    return <uint16_t *>(q.driver + SPLIT_ENTRIES_AT + 2 * <uint32_t>q.size)


cdef inline uint16_t *available_event(const Virtqueue *q) noexcept nogil:
    return <uint16_t *>(q.device + SPLIT_ENTRIES_AT + SPLIT_USED_BYTES * <uint32_t>q.size)


cdef inline bint split_has(const Virtqueue *q) noexcept nogil:
    """Whether the driver has made buffers available."""
    # relaxed: only `take` reads what the index promises
    return va_load_relaxed_u16(split_index(q.driver)) != q.next_available


cdef inline uint32_t split_look(Virtqueue *q) noexcept nogil:
    """CHAIN_OK if there is a chain to take, CHAIN_NONE or BROKEN_COUNT."""
    # The index is read again only when all chains seen are taken: each read may fetch the driver's
    # cache line.
    cdef uint16_t index
    if q.next_available == q.seen:
        # Acquire: entries and descriptors are read after the index that promises them.
        index = va_load_acquire_u16(split_index(q.driver))
        if index == q.next_available:
            return CHAIN_NONE
        # a driver cannot have more buffers out than the ring has entries
        if <uint16_t>(index - q.next_available) > q.size:
            return BROKEN_COUNT
        q.seen = index
    return CHAIN_OK


cdef inline bint split_single(Virtqueue *q, uint32_t least, uint32_t most, Segment *segment,
                              Taken *taken) noexcept nogil:
    """See take_single of rings.pxd."""
    cdef uint16_t *entries = <uint16_t *>(q.driver + SPLIT_ENTRIES_AT)
    cdef uint16_t head
    cdef Descriptor d
    if split_look(q) != CHAIN_OK:
        return False
    head = va_load_relaxed_u16(&entries[q.next_available & (q.size - 1)])
    if head >= q.size:
        return False
    copy_descriptor(&d, q.descriptors + <uint32_t>head * DESCRIPTOR_BYTES)
    if not whole_chain(&d, d.third, DESCRIPTOR_WRITE if q.fills else 0, least, most, q.memory,
                       &q.last_region, segment):
        return False
    taken.id, taken.slots = head, 1
    q.next_available += 1
    return True


cdef inline uint32_t split_take(Virtqueue *q, Chain *chain, Taken *taken) noexcept nogil:
    """Appends the next available chain's segments; CHAIN_*."""
    cdef uint16_t *entries = <uint16_t *>(q.driver + SPLIT_ENTRIES_AT)
    cdef uint32_t status = split_look(q)
    if status != CHAIN_OK:
        return status
    taken.id = va_load_relaxed_u16(&entries[q.next_available & (q.size - 1)])
    taken.slots = 1
    q.next_available += 1
    return split_walk(q, chain, taken.id)


cdef inline void split_prefetch(Virtqueue *q) noexcept nogil:
    """See PREFETCH_AHEAD."""
    cdef const uint16_t *entries = <const uint16_t *>(q.driver + SPLIT_ENTRIES_AT)
    cdef uint16_t left = q.seen - q.next_available, head
    if left > 2 * PREFETCH_AHEAD:
        head = va_load_relaxed_u16(&entries[(q.next_available + 2 * PREFETCH_AHEAD) & (q.size - 1)])
        va_prefetch(q.descriptors + <uint32_t>head * DESCRIPTOR_BYTES)
    if left > PREFETCH_AHEAD:
        head = va_load_relaxed_u16(&entries[(q.next_available + PREFETCH_AHEAD) & (q.size - 1)])
        if head < q.size:
            prefetch_buffer(q, q.descriptors + <uint32_t>head * DESCRIPTOR_BYTES)


cdef inline uint32_t split_walk(Virtqueue *q, Chain *chain, uint16_t head) noexcept nogil:
    """Appends the segments of the chain that begins at a descriptor. Each step is counted, so that
    a loop ends."""
    cdef const uint8_t *table = q.descriptors
    cdef uint32_t entries = q.size, index = head, left = min(entries, <uint32_t>SEGMENTS_MOST)
    cdef uint32_t status
    cdef uint16_t flags
    cdef bint in_table = False
    cdef Descriptor d
    while True:
        if index >= entries:
            return BROKEN_INDEX
        if left == 0:
            return BROKEN_LOOP
        left -= 1
        copy_descriptor(&d, table + <uint64_t>index * DESCRIPTOR_BYTES)
        flags = d.third
        if flags & DESCRIPTOR_INDIRECT:
            # One table, at the end of the chain; whether the reference is writable is ignored.
            if (in_table or not q.indirect or flags & DESCRIPTOR_NEXT
                    or d.length == 0 or d.length % DESCRIPTOR_BYTES):
                return BROKEN_TABLE
            table = guest_at(q.memory, &q.last_region, d.address, d.length)
            if table == NULL:
                return BROKEN_TABLE
            # Linux fills tables of more entries than the ring has.
            entries = d.length // DESCRIPTOR_BYTES
            left, index, in_table = min(entries, <uint32_t>SEGMENTS_MOST), 0, True
            continue
        status = chain_add(chain, q.memory, &q.last_region, d.address, d.length,
                           flags & DESCRIPTOR_WRITE)
        if status != CHAIN_OK or not flags & DESCRIPTOR_NEXT:
            return status
        index = d.fourth


cdef inline void split_store(Virtqueue *q, uint16_t position, uint32_t id,
                             uint32_t length) noexcept nogil:
    """Writes an entry of the used ring; plain stores, since `publish` orders them."""
    cdef uint32_t at = SPLIT_ENTRIES_AT + SPLIT_USED_BYTES * <uint32_t>(position & (q.size - 1))
    cdef uint32_t *entry = <uint32_t *>(q.device + at)
    entry[0], entry[1] = id, length
    if q.log_ring:
        log_write(&q.log, q.log_address + at, SPLIT_USED_BYTES)


cdef inline void split_complete(Virtqueue *q, const Taken *taken) noexcept nogil:
    if q.batches:
        q.last_id = taken.id
    else:
        split_store(q, q.next_used, taken.id, taken.written)
    q.next_used += 1
    q.prepared += 1


cdef inline void split_publish(Virtqueue *q) noexcept nogil:
    if q.batches:
        # In order: the entry of the first buffer names the last one of the batch (2.7.9).
        split_store(q, q.prepared_at, q.last_id, 0)
    # Release: data and entries are written before the index that tells of them.
    va_store_release_u16(split_index(q.device), q.next_used)
    q.prepared, q.prepared_at = 0, q.next_used
    if q.log_ring:
        log_write(&q.log, q.log_address, SPLIT_ENTRIES_AT)


cdef inline bint split_wants(Virtqueue *q) noexcept nogil:
    """Whether to notify the driver of what was published (2.7.7)."""
    cdef uint16_t before = q.signalled, event
    # Full fence: the index was stored, the driver's wish is loaded. Otherwise the driver may see
    # the old index before it sleeps, and this device the old wish.
    va_fence()
    if not q.event_index:
        return not va_load_relaxed_u16(<uint16_t *>q.driver) & SPLIT_NO_NOTIFY
    q.signalled = q.next_used
    if not q.has_signalled:
        q.has_signalled = True
        return True
    event = va_load_relaxed_u16(used_event(q))
    return <uint16_t>(q.next_used - event - 1) < <uint16_t>(q.next_used - before)


cdef inline void split_ask(Virtqueue *q, bint ask) noexcept nogil:
    """Asks the driver to notify the device of new buffers, or not to (2.7.10)."""
    if not q.event_index:
        va_store_relaxed_u16(<uint16_t *>q.device, 0 if ask else SPLIT_NO_NOTIFY)
        if q.log_ring:
            log_write(&q.log, q.log_address, 2)
    elif ask:
        # The wish is for one index, hence written again for each sleep; not written, it lies behind
        # the driver's index and does not ask.
        va_store_relaxed_u16(available_event(q), q.next_available)
        if q.log_ring:
            log_write(&q.log, q.log_address + SPLIT_ENTRIES_AT
                      + SPLIT_USED_BYTES * <uint32_t>q.size, 2)
