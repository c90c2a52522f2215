"""A chain of descriptors as segments of this process's memory (virtio 1.2, 2.7.5 and 2.8.5).

What a driver writes may change at any time. So each descriptor is copied once, by
`copy_descriptor`, and only the copy is checked and used; nothing is read from shared memory twice.
The rings' walkers (split_ring.pxd, packed_ring.pxd) serve every queue of the device.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from dataplane.vatomic cimport va_copied, vnic_check
from virt.guest_memory cimport MemoryTable, PageLog, guest_at, log_write

cdef enum:
    # Segments of a chain, or of all chains that a packet takes, and descriptors that are walked for
    # them. As many as QEMU's largest queue has; Linux uses 19 for a packet. A longer chain breaks
    # the ring, since otherwise a driver of a large ring could have 32,768 descriptors walked for
    # each of 32,768 chains.
    SEGMENTS_MOST = 1024
    DESCRIPTOR_BYTES = 16

# Descriptor.flags
cdef enum:
    DESCRIPTOR_NEXT = 1
    DESCRIPTOR_WRITE = 2     # the device writes it
    DESCRIPTOR_INDIRECT = 4  # refers to a table of descriptors

# What became of a chain; indexes FAULTS of queue_setup.pyx.
cdef enum:
    CHAIN_OK = 0
    CHAIN_NONE = 1           # the driver has made none available
    # The chain is given back unused and counted; the ring goes on.
    CHAIN_EMPTY = 2          # a descriptor of no bytes
    CHAIN_DIRECTION = 3      # for the other direction, or readable after writable
    CHAIN_SHORT = 4          # no room for a header, or a header without a frame
    CHAIN_LONG = 5           # a frame longer than any packet
    # The ring is stopped, since what follows cannot be told from it.
    CHAIN_BROKEN = 6
    BROKEN_INDEX = 6         # a descriptor's number that the ring or table does not have
    BROKEN_COUNT = 7         # more chains than the ring has entries
    BROKEN_LOOP = 8          # more descriptors than the ring has, or than SEGMENTS_MOST
    BROKEN_ADDRESS = 9       # not in one region of the guest's memory
    BROKEN_TABLE = 10        # an indirect table that may not be there, or of a wrong size
    BROKEN_MEMORY = 11       # the memory's file was truncated
    BROKEN_LAYOUT = 12       # the ring itself is not in the guest's memory
    FAULTS_COUNT = 13

cdef struct Descriptor:
    uint64_t address         # guest physical
    uint32_t length
    uint16_t third           # split: flags; packed: the buffer's id
    uint16_t fourth          # split: the next descriptor; packed: flags

cdef struct Segment:
    uint8_t *data
    uint64_t guest           # its guest physical address, for the log of written pages
    uint32_t length          # at least 1
    uint32_t unused

cdef struct Chain:
    uint32_t count           # segments; readable ones precede writable ones
    uint32_t fault           # the first CHAIN_* for which it is not used
    uint64_t readable        # bytes; no overflow: at most SEGMENTS_MOST of 2^32 each
    uint64_t writable
    Segment[SEGMENTS_MOST] segments

# A position in a chain's bytes.
cdef struct Cursor:
    uint32_t segment
    uint32_t offset


cdef inline void copy_descriptor(Descriptor *copy, const uint8_t *at) noexcept nogil:
    """Reads a descriptor's 16 bytes once."""
    memcpy(copy, at, DESCRIPTOR_BYTES)
    va_copied()


cdef inline void chain_clear(Chain *chain) noexcept nogil:
    chain.count = chain.fault = 0
    chain.readable = chain.writable = 0


cdef inline uint32_t chain_add(Chain *chain, const MemoryTable *memory, uint32_t *last,
                               uint64_t address, uint32_t length, bint writable) noexcept nogil:
    """Appends what a descriptor refers to; CHAIN_OK or why the ring is broken. A fault that costs
    only this chain is stored in it."""
    cdef uint8_t *data = guest_at(memory, last, address, length)
    cdef Segment *segment
    if data == NULL:
        return BROKEN_ADDRESS
    if length == 0:
        chain.fault = CHAIN_EMPTY
        return CHAIN_OK
    if chain.count == SEGMENTS_MOST:
        return BROKEN_LOOP
    segment = &chain.segments[chain.count]
    segment.data, segment.guest, segment.length = data, address, length
    chain.count += 1
    if writable:
        chain.writable += length
    elif chain.writable:
        chain.fault = CHAIN_DIRECTION
    else:
        chain.readable += length
    return CHAIN_OK


cdef inline bint whole_chain(const Descriptor *d, uint16_t flags, uint16_t direction,
                             uint32_t least, uint32_t most, const MemoryTable *memory,
                             uint32_t *last, Segment *segment) noexcept nogil:
    """Whether this descriptor alone is a chain of `least` to `most` bytes, least at least 1, in the
    given direction, 0 or DESCRIPTOR_WRITE; then sets the segment."""
    if (flags & (DESCRIPTOR_NEXT | DESCRIPTOR_WRITE | DESCRIPTOR_INDIRECT) != direction
            or d.length < least or d.length > most):
        return False
    segment.data = guest_at(memory, last, d.address, d.length)
    segment.guest, segment.length = d.address, d.length
    return segment.data != NULL


cdef inline void copy_frame(uint8_t *to, const uint8_t *data, uint32_t count) noexcept nogil:
    """memcpy, without a call for short frames: two copies of a fixed size, which overlap."""
    if count > 128 or count < 32:
        memcpy(to, data, count)
    elif count <= 64:
        memcpy(to, data, 32)
        memcpy(to + count - 32, data + count - 32, 32)
    else:
        memcpy(to, data, 64)
        memcpy(to + count - 64, data + count - 64, 64)
    va_copied()


cdef inline void chain_read(const Chain *chain, Cursor *cursor, uint8_t *to,
                            uint32_t count) noexcept nogil:
    """Copies the next `count` bytes out of the segments. The caller has checked that there are as
    many: framing is the driver's choice, a header may share a segment with data or take several
    (virtio 1.2, 2.7.4)."""
    cdef const Segment *segment
    cdef uint32_t part
    while count:
        vnic_check(cursor.segment < chain.count, "bytes left in the chain")
        segment = &chain.segments[cursor.segment]
        part = min(count, segment.length - cursor.offset)
        memcpy(to, segment.data + cursor.offset, part)
        to += part
        count -= part
        cursor.offset += part
        if cursor.offset == segment.length:
            cursor.segment += 1
            cursor.offset = 0
    va_copied()


cdef inline void chain_write(const Chain *chain, Cursor *cursor, const uint8_t *data,
                             uint32_t count, const PageLog *log) noexcept nogil:
    """Copies `count` bytes into the segments, which have room for them as the caller has checked,
    and logs the pages."""
    cdef const Segment *segment
    cdef uint32_t part
    while count:
        vnic_check(cursor.segment < chain.count, "room left in the chain")
        segment = &chain.segments[cursor.segment]
        part = min(count, segment.length - cursor.offset)
        memcpy(segment.data + cursor.offset, data, part)
        log_write(log, segment.guest + cursor.offset, part)
        data += part
        count -= part
        cursor.offset += part
        if cursor.offset == segment.length:
            cursor.segment += 1
            cursor.offset = 0
