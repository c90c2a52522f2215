"""What an element of a line delivers, as a wire would carry it: a GSO frame as its segments."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.offload cimport can_segment
from dataplane.packet.pool cimport (GSO_NONE, PACKET_TRUNCATED, Batch, Context, Packet,
                                    packet_wire_bytes)

cdef struct Delivered:
    uint64_t packets
    uint64_t bytes

cdef inline uint32_t wire_packets(const Packet *p) noexcept nogil:
    """Packets that this one is on a wire: the segments of a GSO frame."""
    if p.gso_type == GSO_NONE or p.gso_size == 0 or p.length <= p.header_length:
        return 1
    # without Parse the offload fields are not validated, so such a frame is not split
    if not can_segment(p):
        return 1
    return (p.length - p.header_length + p.gso_size - 1) // p.gso_size

cdef inline Delivered batch_on_wire(const Context *ctx, const Batch *batch) noexcept nogil:
    """Packets and bytes of a batch on a wire."""
    cdef Delivered found
    cdef const Packet *p
    cdef uint32_t i
    found.packets = found.bytes = 0
    for i in range(batch.count):
        p = &ctx.packets[batch.index[i]]
        if p.gso_type == GSO_NONE and not p.flags & PACKET_TRUNCATED:    # as most are
            found.packets += 1
            found.bytes += p.length
        else:
            found.packets += wire_packets(p)
            found.bytes += packet_wire_bytes(p)
    return found
