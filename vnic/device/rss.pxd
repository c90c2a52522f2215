"""Rss: receive-side scaling. The Toeplitz hash of a packet's addresses and ports, and the indirection table that picks a queue by it.

Source: "RSS hashing functions" and "RSS hashing types" of the Windows network driver documentation, which every NIC follows.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from dataplane.packet cimport Context

cdef enum:
    RSS_INPUT = 36           # bytes hashed at most: two IPv6 addresses and two ports
    RSS_KEY = 40             # bytes of a key: one for each input byte, and the 32-bit window of the last
    RSS_KEY_LONG = 52        # what some NICs' tools hand over; the last 12 bytes would only be used by longer inputs
    RSS_TABLE_MAX = 512

cdef class Rss:
    cdef readonly uint32_t queues
    cdef readonly bytes key
    cdef uint32_t table_mask
    cdef uint16_t indirection[RSS_TABLE_MAX]
    # Toeplitz is linear in its input, so the hash is the exclusive or of one word a byte: contribution[position][byte's value].
    # 36 KiB; an IPv4 packet reads from the first 12.
    cdef uint32_t contribution[RSS_INPUT][256]
    cdef uint32_t hash_packet(self, Context *ctx, uint32_t index) noexcept nogil
    cdef uint32_t hash_bytes(self, uint32_t position, const uint8_t *data, uint32_t count) noexcept nogil

    cdef inline uint32_t queue_of(self, uint32_t hash) noexcept nogil:
        """The queue for a hash; always below `queues`."""
        return self.indirection[hash & self.table_mask]
