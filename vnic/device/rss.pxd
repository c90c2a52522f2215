"""Rss: receive-side scaling as NICs do it, the Toeplitz hash and an indirection table (Microsoft "RSS hashing"; virtio 1.2, 5.1.6.4.3)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from dataplane.packet cimport Context

cdef enum:
    INPUT_MAX = 36               # bytes hashed at most: two IPv6 addresses and two ports
    TABLE_MAX = 512

cdef class Rss:
    cdef readonly uint32_t queues
    cdef bytes _key
    cdef uint32_t parts[INPUT_MAX][256]          # what each value of each input byte adds (xor) to the hash
    cdef uint16_t entries[TABLE_MAX]
    cdef uint32_t entry_mask
    cdef uint32_t hash_bytes(self, const uint8_t *data, uint32_t count, uint32_t first, uint32_t hash) noexcept nogil
    cdef uint32_t hash_packet(self, Context *ctx, uint32_t index) noexcept nogil
    cdef uint32_t queue_of(self, uint32_t hash) noexcept nogil
