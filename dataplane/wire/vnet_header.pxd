"""The virtio-net header without num_buffers, as TAPs and packet sockets have it before a frame
(virtio 1.2, 5.1.6), in native byte order: the legacy header."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from dataplane.packet.pool cimport Context, Packet

cdef enum:
    VNET_HEADER = 10         # in bytes

cdef struct VnetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t header_length
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset


cdef inline void receive(Context *ctx, uint32_t index, const VnetHeader *header, uint32_t number,
                         uint32_t queue) noexcept nogil:
    """Fills the record of a frame. The header's fields come from the guest and are untrusted until
    Parse has checked them."""
    cdef Packet *p = &ctx.packets[index]
    p.timestamp_ns = ctx.now_ns
    p.port = <uint16_t>number
    p.queue = <uint16_t>queue
    p.vnet_flags = header.flags
    p.gso_type = header.gso_type
    p.header_length = header.header_length
    p.gso_size = header.gso_size
    p.csum_start = header.csum_start
    p.csum_offset = header.csum_offset


cdef inline void write_header(VnetHeader *header, const Packet *p,
                              uint16_t header_length) noexcept nogil:
    header.flags = p.vnet_flags
    header.gso_type = p.gso_type
    header.header_length = header_length
    header.gso_size = p.gso_size
    header.csum_start = p.csum_start
    header.csum_offset = p.csum_offset
