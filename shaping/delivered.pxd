"""What an element of a line delivers, as a wire would carry it: a GSO frame as its segments."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.offload cimport can_segment
from dataplane.packet.pool cimport (GSO_NONE, PACKET_TRUNCATED, Batch, Context, Packet,
                                    packet_wire_bytes)

cdef inline uint32_t wire_packets(const Packet *p) noexcept nogil:
    """Packets that this one is on a wire: the segments of a GSO frame."""
    if p.gso_type == GSO_NONE or p.gso_size == 0 or p.length <= p.header_length:
        return 1
    # without Parse the offload fields are not validated, so such a frame is not split
    if not can_segment(p):
        return 1
    return (p.length - p.header_length + p.gso_size - 1) // p.gso_size

cdef inline void count_delivered(const Context *ctx, const Batch *batch, uint64_t *packets,
                                 uint64_t *octets) noexcept nogil:
    """Adds the packets and bytes of a batch that leaves."""
    cdef uint64_t some = 0, sum = 0
    cdef const Packet *p
    cdef uint32_t i
    for i in range(batch.count):
        p = &ctx.packets[batch.index[i]]
        if p.gso_type == GSO_NONE and not p.flags & PACKET_TRUNCATED:    # as most are
            some += 1
            sum += p.length
        else:
            some += wire_packets(p)
            sum += packet_wire_bytes(p)
    packets[0] += some
    octets[0] += sum
