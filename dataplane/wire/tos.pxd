"""The DSCP and ECN fields of an IP header: IPv4's TOS, IPv6's traffic class (RFC 2474, 3168)."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy
from dataplane.packet.pool cimport PACKET_IPV4, PACKET_IPV6, Packet
from dataplane.wire.headers cimport load_be16, store_be16

cdef enum:
    ECN_BITS = 0x03
    ECN_CE = 0x03
    IPV4_CHECKSUM_AT = 10

cdef inline bint is_ecn_capable(const Packet *p) noexcept nogil:
    """Whether the sender's transport understands marks: ECT(0), ECT(1) or CE."""
    return (p.flags & (PACKET_IPV4 | PACKET_IPV6)) != 0 and (p.tos & ECN_BITS) != 0

cdef inline void set_tos(uint8_t *data, Packet *p, uint8_t tos) noexcept nogil:
    """Replaces the field of a frame in which Parse has found an IP header. The IPv4 checksum is
    updated by the difference (RFC 1624): a wrong one stays wrong."""
    cdef uint8_t *header = data + p.l3_offset
    cdef uint16_t sum
    cdef uint32_t running
    if p.flags & PACKET_IPV4:
        # RFC 1624, equation 3: HC' = ~(~HC + ~m + m'). The sum is the same in either byte order
        # (RFC 1071, 2.B), so no word is swapped; in this machine's, the TOS is the high byte of its
        # word, and only the difference of that byte counts.
        memcpy(&sum, header + IPV4_CHECKSUM_AT, 2)
        running = (sum ^ 0xFFFF) + 0xFFFF + (((<int32_t>tos) - header[1]) << 8)
        running = (running & 0xFFFF) + (running >> 16)
        sum = <uint16_t>~(running + (running >> 16))
        memcpy(header + IPV4_CHECKSUM_AT, &sum, 2)
        header[1] = tos
    else:
        store_be16(header, <uint16_t>((load_be16(header) & 0xF00F) | <uint32_t>tos << 4))
    p.tos = tos
