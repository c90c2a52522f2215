"""Rss: receive-side scaling: the Toeplitz hash of addresses and ports, and the indirection table.

Source: "RSS hashing functions" and "RSS hashing types" of the Windows network driver documentation,
which NICs follow.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from dataplane.packet.pool cimport Context

cdef enum:
    RSS_INPUT = 36           # maximum input of the hash in bytes: two IPv6 addresses and two ports
    RSS_KEY = 40  # bytes: one for each input byte, and 4 for the 32-bit window at the last one
    # key length of some NICs' tools; the last 12 bytes are not used
    RSS_KEY_LONG = 52
    RSS_TABLE_MAX = 512

cdef class Rss:
    cdef readonly uint32_t queues
    cdef readonly bytes key
    cdef uint32_t table_mask
    cdef uint16_t indirection[RSS_TABLE_MAX]
    # Toeplitz is linear in its input, so the hash is the exclusive or of one word per byte:
    # contribution[position][byte's value]. 36 KiB; an IPv4 packet reads from the first 12.
    cdef uint32_t contribution[RSS_INPUT][256]
    cdef uint32_t hash_packet(self, Context *ctx, uint32_t index) noexcept nogil
    cdef uint32_t hash_bytes(self, uint32_t position, const uint8_t *data,
                             uint32_t count) noexcept nogil

    cdef inline uint32_t queue_of(self, uint32_t hash) noexcept nogil:
        """The queue for a hash; always below `queues`."""
        return self.indirection[hash & self.table_mask]
