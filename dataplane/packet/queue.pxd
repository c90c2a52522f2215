"""Packed queues: saved packet queues (linked by Packet.next) as 32-bit indices, little endian."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport Context, Packet, PacketPool

# Gives access to a pool's records between two batches: a Context without cache and clock.
cdef void pool_records(PacketPool pool, Context *records) noexcept

cdef bytes queue_packed(const Packet *packets, uint32_t head, uint32_t count)

# The first packet of a packed queue; NO_PACKET: it is empty. Checks that the pool's records have
# the same links, and does not write there, since another engine may continue with the queue. Raises
# ValueError.
cdef uint32_t queue_head(const Packet *packets, uint32_t total_count, bytes packed) except? 0

cdef inline uint32_t queue_length(bytes packed) noexcept:
    return <uint32_t>(len(packed) // sizeof(uint32_t))

cdef inline const uint32_t *queue_indices(bytes packed) noexcept:
    return <const uint32_t *><const char *>packed
