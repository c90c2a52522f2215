"""MacTable: the forwarding database (IEEE 802.1Q, 8.8) of all VLANs, shared without locks.

The switches of all engines share the table. Layout of the segment (memfd; integers little endian,
accessed with vatomic): MacTableHeader, then `slots` x MacSlot. A bucket is MAC_WAYS slots, one
cache line. An address may be in any slot of the two buckets that its hash selects: two choices keep
the buckets evenly filled, so that a table with twice as many slots as entries almost never rejects
one for want of room. A lookup reads at most two cache lines.

    key    mac << 16 | vlan << 1 | 1, or MAC_FREE
    value  0 (no entry), or port << 52 | static << 51 | present << 50 | check << 36
           | time last seen, ms modulo 2^36; check: 14 bits of the key's hash

Memory ordering. The value is the entry, the key tells its address. An entry changes only by
compare-and-exchange of its value, so every change (refresh, move, removal) is one atomic step. A
slot with a key and the value 0 belongs to the thread that is inserting or removing; others leave it
alone.
 - Insert: exchange the key MAC_FREE for the address, then store the value (release: a reader that
   sees the value sees the key).
 - Remove: exchange the value for 0, then store MAC_FREE (release: a thread that takes the slot sees
   the 0). Only the thread that wrote the 0 frees the slot.
 - Read: key, value (acquire), key again. Even with the same key twice, the value may be that of
   another entry that was there meanwhile; its check differs then. So a reader never returns another
   entry's port.
 - A delayed writer has an old value; its exchange fails, since by now the slot's value is 0 or
   another entry's.
Two engines may insert the same new address at the same time. Each searches again after its insert,
with a full fence between (store, then load), so at least one of them sees both entries and removes
the one in the later slot. All this holds between processes, too. A process killed within an insert
or a removal leaves a slot that no thread may use and counts that are too high by one; `repair`
corrects both while nothing else uses the table.

Hostile input: guests choose addresses. The hash is SipHash-1-3 with a random 128-bit key, so a
guest cannot aim at a bucket, even by observing which frames are flooded. A port may have at most as
many entries as the table has free places: one port that invents addresses gets half the table, n
such ports leave 1/(n+1) to the others.
"""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint64_t be64toh(uint64_t value)

cdef enum:
    MAC_WAYS = 4             # slots of a bucket
    MAC_FREE = 0             # never an address' key: bit 0 is clear
    MAX_PORTS = 1024

cdef enum:                   # results of `learn`
    LEARN_KNOWN = 0
    LEARN_NEW = 1
    LEARN_MOVED = 2
    LEARN_AGED = 3           # the entry was there but aged: treated as removed and new
    # no room in the table, in the address' buckets or in the port's share; or the address is static
    # at another port
    LEARN_REFUSED = 4

cdef struct MacSlot:
    uint64_t key
    uint64_t value

cdef struct MacTableHeader:
    uint64_t magic
    uint32_t version
    uint32_t capacity        # maximum number of entries
    uint32_t slots           # a power of two
    uint32_t per_port        # maximum number of entries of one port
    uint64_t ageing_ns
    uint64_t secret[2]       # key of the hash
    uint8_t pad0[16]
    uint32_t count           # entries; changes only with the table
    uint32_t cursor          # next slot to check for ageing, advanced by all engines
    uint8_t pad1[56]
    uint32_t port_count[MAX_PORTS]

cdef inline uint64_t mac_key(const uint8_t *at, uint32_t vlan) noexcept nogil:
    """The key of the address at `at` (8 bytes must be readable) in a VLAN, 0 to 4095."""
    cdef uint64_t word
    memcpy(&word, at, 8)
    return (be64toh(word) & <uint64_t>0xFFFFFFFFFFFF0000) | vlan << 1 | 1

cdef inline uint64_t rotate(uint64_t x, int bits) noexcept nogil:
    return x << bits | x >> (64 - bits)

cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = rotate(v[2], 32)

cdef inline uint64_t siphash13(const uint64_t *secret, uint64_t word) noexcept nogil:
    """SipHash-1-3 of one 64-bit word (Aumasson and Bernstein, "SipHash: a fast short-input PRF"; as
    in Linux' hash tables)."""
    cdef uint64_t v[4]
    # the last block: no remaining bytes, and the input's length
    cdef uint64_t length = <uint64_t>8 << 56
    v[0] = secret[0] ^ <uint64_t>0x736f6d6570736575
    v[1] = secret[1] ^ <uint64_t>0x646f72616e646f6d
    v[2] = secret[0] ^ <uint64_t>0x6c7967656e657261
    v[3] = secret[1] ^ <uint64_t>0x7465646279746573 ^ word
    sip_round(v)
    v[0] ^= word
    v[3] ^= length
    sip_round(v)
    v[0] ^= length
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]

cdef struct Place:               # the buckets of an address
    MacSlot *bucket[2]
    uint64_t check               # check bits of its value, shifted


@cython.final
cdef class MacTable:
    cdef readonly int fd                 # the memfd
    cdef MacTableHeader *header
    cdef MacSlot *slots
    cdef uint32_t slot_count
    cdef uint32_t bucket_mask
    cdef uint64_t secret[2]
    cdef uint64_t ageing_ms
    cdef uint64_t refresh_ms             # minimum age of an entry's time before it is updated
    cdef object _map
    cdef int map_existing(self, descriptor) except -1
    cdef void take_settings(self, const MacTableHeader *header) noexcept nogil
    cdef MacSlot *find(self, const Place *place, uint64_t key, uint64_t *value) noexcept nogil
    cdef int lookup(self, const Place *place, uint64_t key, uint64_t now_ms) noexcept nogil
    cdef int learn(self, const Place *place, uint64_t key, uint32_t port,
                   uint64_t now_ms) noexcept nogil
    cdef int update(self, MacSlot *slot, uint64_t seen, uint64_t value,
                    uint64_t now_ms) noexcept nogil
    cdef int insert(self, const Place *place, uint64_t key, uint64_t value) noexcept nogil
    cdef bint settle(self, const Place *place, uint64_t key, MacSlot *mine) noexcept nogil
    cdef uint64_t entry_of(self, const Place *place, uint64_t key, MacSlot *slot) noexcept nogil
    cdef bint admit(self, uint32_t port, uint32_t entries, bint static) noexcept nogil
    cdef void withdraw(self, uint32_t port, uint32_t entries) noexcept nogil
    cdef bint remove(self, MacSlot *slot, uint64_t value) noexcept nogil
    cdef bint aged(self, uint64_t value, uint64_t now_ms) noexcept nogil
    cdef uint32_t forget_where(self, int64_t port, bint static) noexcept
    cdef uint32_t expire(self, uint32_t budget, uint64_t now_ms) noexcept nogil

cdef inline Place mac_place(MacTable table, uint64_t key) noexcept nogil:
    """The buckets of an address. Separate from the lookup, so that the CPU hashes source and
    destination in parallel."""
    cdef uint64_t hash = siphash13(table.secret, key)
    cdef uint32_t first = <uint32_t>hash & table.bucket_mask
    cdef Place place
    place.bucket[0] = &table.slots[<size_t>first * MAC_WAYS]
    # exclusive or with an odd number, so the two always differ
    place.bucket[1] = &table.slots[<size_t>(first ^ ((<uint32_t>(hash >> 24) & table.bucket_mask)
                                                     | 1)) * MAC_WAYS]
    place.check = (hash >> 50) << 36
    return place
