"""Hashes of frames for a guest: by its driver's types, and of the frames that answer them."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from dataplane.elements.rss cimport Rss
from dataplane.packet.pool cimport (PACKET_FRAGMENT, PACKET_IPV4, PACKET_IPV6, PACKET_L4, Context,
                                    Packet)

cdef enum:
    TCP = 6
    UDP = 17

# The header's hash_report; the type of report n is bit n - 1 of a mask (virtio 1.2, 5.1.6.4.4).
# Reports of IPv6 are IPV6_REPORTS higher than those of IPv4.
cdef enum:
    REPORT_NONE = 0
    REPORT_IP = 1
    REPORT_TCP = 2
    REPORT_UDP = 3
    IPV6_REPORTS = 3


cdef inline uint32_t address_bytes(const Packet *p) noexcept nogil:
    """Of each address; 0 for what is no IP packet or was not parsed."""
    if p.flags & PACKET_IPV4:
        return 4
    return 16 if p.flags & PACKET_IPV6 else 0


cdef inline uint32_t hash_of_ports(Rss rss, uint32_t position, uint16_t first,
                                   uint16_t second) noexcept nogil:
    cdef uint8_t[4] ports
    ports[0], ports[1] = <uint8_t>(first >> 8), <uint8_t>first
    ports[2], ports[3] = <uint8_t>(second >> 8), <uint8_t>second
    return rss.hash_bytes(position, ports, 4)


cdef inline uint32_t report_of(const Packet *p, uint32_t types) noexcept nogil:
    """The most special of these types that a frame is of (5.1.6.4.3), as a REPORT_*. A fragment has
    no ports, as with other NICs: all fragments of a packet have one hash."""
    cdef uint32_t count = address_bytes(p), report
    if count == 0:
        return REPORT_NONE
    report = REPORT_IP
    if p.flags & (PACKET_L4 | PACKET_FRAGMENT) == PACKET_L4:
        if p.ip_protocol == TCP:
            report = REPORT_TCP
        elif p.ip_protocol == UDP:
            report = REPORT_UDP
    if count == 16:
        types >>= IPV6_REPORTS
    if not types >> (report - 1) & 1:
        report = REPORT_IP
    if not types >> (report - 1) & 1:
        return REPORT_NONE
    return report + IPV6_REPORTS if count == 16 else report


cdef inline uint32_t hash_by_types(Rss rss, Context *ctx, uint32_t index,
                                   uint32_t types) noexcept nogil:
    """Sets a frame's hash by a mask of types, and returns what of it the hash is of."""
    cdef Packet *p = &ctx.packets[index]
    cdef uint32_t report = report_of(p, types), count = address_bytes(p)
    if report == REPORT_NONE:
        p.hash = 0
        return report
    p.hash = (rss.hash_bytes(0, p.source_address, count)
              ^ rss.hash_bytes(count, p.destination_address, count))
    if report != REPORT_IP and report != REPORT_IP + IPV6_REPORTS:
        p.hash ^= hash_of_ports(rss, 2 * count, p.source_port, p.destination_port)
    return report


cdef inline uint32_t hash_of_answer(Rss rss, const Packet *p) noexcept nogil:
    """What Rss.hash_packet finds for the frames that answer this one; 0 for no IP packet."""
    cdef uint32_t count = address_bytes(p), hash
    if count == 0:
        return 0
    hash = (rss.hash_bytes(0, p.destination_address, count)
            ^ rss.hash_bytes(count, p.source_address, count))
    if p.flags & (PACKET_L4 | PACKET_FRAGMENT) == PACKET_L4:
        hash ^= hash_of_ports(rss, 2 * count, p.destination_port, p.source_port)
    return hash
