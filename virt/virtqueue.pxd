"""The device's side of one virtqueue, split or packed (virtio 1.2, 2.7 and 2.8).

Buffers are completed in the order in which they were taken, since packets are copied: the position
of the next used entry is the position up to which the device has finished. A burst is

    take, complete, take, complete, ... publish, and if wants_notification: signal

`complete` prepares used entries, `publish` makes all of them visible by one store.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.vatomic cimport va_load_relaxed_u64, va_prefetch, va_prefetch_write
from virt.guest_memory cimport MemoryTable, PageLog, guest_at

cdef enum:
    QUEUE_MOST = 32768       # entries of a ring (virtio 1.2, 2.7 and 2.8.10.1)

cdef enum:
    # Buffers between the one that is taken and the one whose first lines are loaded. They are in
    # the cache of the driver's CPU: without that, each packet waits for one or two of them. Frames
    # of 60 bytes were measured at twice the rate from another CPU, and at three times the rate to
    # it, where the lines have to be loaded for writing: loaded for reading, they cost more than
    # none. Descriptors are loaded twice as far ahead, since the buffers' addresses are in them.
    PREFETCH_AHEAD = 4
    CACHE_LINE = 64

# Whether the driver is asked to notify the device of new buffers.
cdef enum:
    KICKS_UNKNOWN = 0        # after the start: as the driver or another device has left it
    KICKS_ON = 1
    KICKS_OFF = 2

cdef struct Virtqueue:
    const MemoryTable *memory
    # this process's addresses; split: descriptor table, available ring, used ring; packed:
    # descriptor ring, driver's and device's event suppression
    uint8_t *descriptors
    uint8_t *driver
    uint8_t *device
    uint32_t last_region     # for guest_at
    uint16_t size            # entries; of a split ring a power of two
    bint packed, event_index, indirect
    bint fills               # the device writes its buffers
    bint batches             # IN_ORDER: one used entry stands for all of a burst that were read
    # Positions. Split: they count all entries, modulo 2^16. Packed: slots of the ring.
    uint16_t next_available
    uint16_t next_used
    uint16_t seen            # split: the driver's index when it was read last
    bint available_wrap, used_wrap       # packed: wrap counters
    # prepared by `complete`, not yet visible
    uint16_t prepared        # used entries
    uint16_t prepared_at     # where the first of them is
    uint16_t prepared_flags  # packed: flags of the first one, stored last
    uint16_t last_id         # of the newest, if `batches`
    uint16_t signalled       # next_used when the driver was last notified or need not be
    bint has_signalled       # False: notify after the first burst, whatever the driver asks for
    uint32_t kicks           # KICKS_*
    # log of written pages
    PageLog log              # bits NULL: nothing is logged
    uint64_t log_address     # of the used ring, if `log_ring`
    bint log_ring
    uint64_t device_address  # guest physical, of `device`
    # Packed: what a successor after a crash needs and the guest's memory does not tell; a word in
    # the supervisor's memory, or NULL. See store_position of packed_ring.pxd.
    uint64_t *stored

# One buffer that the device has taken.
cdef struct Taken:
    uint16_t id              # split: its first descriptor; packed: the driver's name of it
    uint16_t slots           # packed: entries of the ring that it takes
    uint32_t room            # bytes that the device may write
    uint32_t written         # bytes that it has written

# Where `rewind` goes back to.
cdef struct Mark:
    uint16_t next_available
    bint available_wrap


cdef inline void prefetch_buffer(Virtqueue *q, const uint8_t *descriptor) noexcept nogil:
    """Loads the first lines of a descriptor's buffer: header and headers of a frame. Only a hint:
    the address that is read here is not used for anything else, and one that lies leads nowhere."""
    cdef const uint8_t *data = guest_at(q.memory, &q.last_region,
                                        va_load_relaxed_u64(<const uint64_t *>descriptor), 1)
    if data != NULL:
        if q.fills:
            va_prefetch_write(data)
            va_prefetch_write(data + CACHE_LINE)
        else:
            va_prefetch(data)
            va_prefetch(data + CACHE_LINE)
