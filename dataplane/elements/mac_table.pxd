"""MacTable: the forwarding database that the switches of all engines share (IEEE 802.1Q, 8.8), VLAN by VLAN, without locks.

The segment (memfd): MacTableHeader, then slots x MacSlot, SLOT_WAYS of them a bucket. A slot's key is
    mac << 16 | vlan << 1 | 1        an entry
    SLOT_EMPTY, SLOT_BUSY            free, and being written
and its value is port << 48 | static << 47 | milliseconds when last seen.

Orders. A writer takes a slot by exchanging its key for SLOT_BUSY, then writes the value, then the key (release): only who holds the slot
changes port and counts. A reader loads key, value, key: when both keys are the one it looks for, the value belongs to it, since no
other value is written before the key was changed. A refresh changes the time of a value alone, by compare-and-exchange, so it cannot
undo a move. Two engines that learn one new address at the same instant may both insert it: the first in the bucket counts, the other ages.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    SLOT_WAYS = 8            # two cache lines a bucket
    SLOT_EMPTY = 0
    SLOT_BUSY = 2            # bit 0 is clear: no key looks like it
    MAX_PORTS = 1024

cdef enum:                   # what `learn` did
    LEARN_KNOWN = 0
    LEARN_NEW = 1
    LEARN_MOVED = 2
    LEARN_REFUSED = 3        # the table, the bucket or the port's share is full

cdef struct MacSlot:
    uint64_t key
    uint64_t value

cdef struct MacTableHeader:
    uint64_t magic
    uint32_t version
    uint32_t capacity        # entries it may hold
    uint32_t slots
    uint32_t per_port        # entries one port may have
    uint8_t pad0[40]
    uint32_t count
    uint32_t port_count[MAX_PORTS]
    uint8_t pad1[60]

cdef inline uint64_t mac_key(const uint8_t *mac, uint32_t vlan) noexcept nogil:
    """The key of an address (6 bytes, network order) in a VLAN (0 to 4095)."""
    return (<uint64_t>mac[0] << 56 | <uint64_t>mac[1] << 48 | <uint64_t>mac[2] << 40 | <uint64_t>mac[3] << 32
            | <uint64_t>mac[4] << 24 | <uint64_t>mac[5] << 16 | <uint64_t>vlan << 1 | 1)

cdef class MacTable:
    cdef readonly int fd
    cdef readonly uint64_t ageing_ns
    cdef MacTableHeader *header
    cdef MacSlot *slots
    cdef uint32_t bucket_mask
    cdef uint64_t secret[2]
    cdef object _map
    cdef MacSlot *bucket(self, uint64_t key) noexcept nogil
    cdef int lookup(self, uint64_t key) noexcept nogil
    cdef int learn(self, uint64_t key, uint32_t port, uint64_t now_ms) noexcept nogil
    cdef int refresh(self, MacSlot *slot, uint64_t key, uint32_t port, uint64_t now_ms) noexcept nogil
    cdef int insert(self, uint64_t key, uint32_t port, uint64_t flags_ms) noexcept nogil
    cdef bint admit(self, uint32_t port) noexcept nogil
    cdef void withdraw(self, uint32_t port) noexcept nogil
    cdef bint matches(self, uint64_t value, int only_port, uint64_t seen_before_ms) noexcept nogil
    cdef bint remove(self, MacSlot *slot, int only_port, uint64_t seen_before_ms) noexcept nogil
    cdef uint32_t expire(self, uint32_t first, uint32_t budget, uint64_t now_ms) noexcept nogil
