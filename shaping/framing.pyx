"""Framing. The contract is in framing.pxd."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport PACKET_TRUNCATED, Packet, packet_wire_bytes


cdef Load segments_load(const Framing *framing, const Packet *p) noexcept nogil:
    """The load of a GSO frame where framing counts."""
    cdef Load load
    cdef uint32_t payload, others
    if p.flags & PACKET_TRUNCATED or p.gso_size == 0 or p.length <= p.header_length:
        load.bytes, load.segments = <uint32_t>framed_bytes(framing, packet_wire_bytes(p)), 1
        return load
    payload = p.length - p.header_length
    others = (payload - 1) // p.gso_size         # segments before the last one
    load.segments = others + 1
    load.bytes = <uint32_t>(
        others * framed_bytes(framing, <uint32_t>p.header_length + p.gso_size)
        + framed_bytes(framing, p.header_length + payload - others * p.gso_size))
    return load
