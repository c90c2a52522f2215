"""Queues of packets that are linked by Packet.next, as an element saves them: 32-bit indices, little endian."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport Context, Packet, PacketPool

# The records of a pool, for an element that looks at its packets outside a turn: no cache, no clock.
cdef void pool_records(PacketPool pool, Context *records) noexcept

cdef bytes queue_packed(const Packet *packets, uint32_t head, uint32_t count)

# The first packet of a queue that was packed (NO_PACKET: it is empty). Checks that it stands in the pool as it
# says, and writes nothing there: another engine may have to go on with it. Raises ValueError.
cdef uint32_t queue_head(const Packet *packets, uint32_t total_count, bytes packed) except? 0

cdef inline uint32_t queue_length(bytes packed) noexcept:
    return <uint32_t>(len(packed) // sizeof(uint32_t))

cdef inline const uint32_t *queue_indices(bytes packed) noexcept:
    return <const uint32_t *><const char *>packed
