"""Lock-free rings of packet indices in shared memory, with a doorbell for a sleeping consumer.

Layout of a segment (integers little endian, accessed with vatomic):
    RingHeader, then capacity x RingCell (MPSC) or capacity x uint32 (SPSC)
Capacity is a power of two.
Producers and consumer may be threads or processes; the doorbell works across both. A producer that
is killed between claiming a cell of an MPSC ring and filling it blocks the ring at that cell: then
all users must end, and the next user resets the ring.
`head` counts all values consumed, `tail` all values produced; they wrap at 2^32, and their
difference is the number of values in the ring.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct RingHeader:
    uint64_t magic
    uint32_t version
    uint32_t capacity
    uint32_t kind              # 1 SPSC, 2 MPSC
    uint8_t pad0[44]
    uint32_t tail              # producer's cache line
    uint8_t pad1[60]
    uint32_t head              # consumer's cache line
    uint8_t pad2[60]
    uint32_t sleeping          # 1: the consumer wants a doorbell; rarely written, by both sides
    uint8_t pad3[60]

cdef struct RingCell:
    uint32_t sequence          # position that this cell is ready for (Vyukov's bounded queue)
    uint32_t value

cdef class Ring:
    cdef readonly int fd               # memfd of the segment
    cdef readonly int doorbell         # eventfd
    cdef readonly uint32_t capacity
    cdef RingHeader *header
    cdef uint8_t *cells
    cdef uint32_t mask
    cdef object _map
    cdef int map_existing(self, descriptor, doorbell) except -1
    cdef int take_views(self, uint32_t capacity) except -1
    cdef int check_positions(self) except -1
    cdef int clear(self, uint32_t start) except -1
    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil
    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil
    cdef bint empty(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
    cdef void ring_doorbell(self) noexcept nogil

cdef class SpscRing(Ring):
    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil
    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil
    cdef bint empty(self) noexcept nogil

cdef class MpscRing(Ring):
    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil
    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil
    cdef bint empty(self) noexcept nogil
