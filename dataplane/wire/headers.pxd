"""Headers of frames: layouts, big-endian loads, and the one function that reads a frame,
`parse_packet`.

Frames come from guests and captures: every offset is compared with the frame's length before it is
read, and every loop is bounded.
Sources: IEEE 802.3 and 802.1Q, RFC 791 (IPv4), 8200 (IPv6), 4302 (AH), 9293 (TCP), 768 (UDP), 9260
(SCTP), 792 and 4443 (ICMP); virtio 1.2, 5.1.6 (virtio-net header).

Not checked here, since a NIC leaves it to the hosts: the IPv4 header checksum, the UDP length,
checksums of payloads.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from dataplane.packet.pool cimport (GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4,
                                    PACKET_FRAGMENT, PACKET_IPV4, PACKET_IPV6, PACKET_L4,
                                    PACKET_MALFORMED, PACKET_PARSED, PACKET_TRUNCATED,
                                    VNET_NEEDS_CSUM, Packet)

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t value)
    uint16_t htons(uint16_t value)
    uint32_t ntohl(uint32_t value)
    uint32_t htonl(uint32_t value)

cdef enum:
    ETHERNET_BYTES = 14
    VLAN_BYTES = 4
    VLAN_ID_MASK = 0x0FFF
    IPV4_BYTES = 20              # without options
    IPV6_BYTES = 40              # without extension headers
    TCP_BYTES = 20               # without options
    UDP_BYTES = 8
    SCTP_BYTES = 12
    ICMP_BYTES = 8
    ICMPV6_BYTES = 4
    PORTS_BYTES = 4              # source and destination port, first in TCP, UDP and SCTP

    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_ARP = 0x0806
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_PROVIDER = 0x88A8  # 802.1ad
    ETHERTYPE_QINQ = 0x9100      # before 802.1ad, still met

    PROTOCOL_HOP_BY_HOP = 0
    PROTOCOL_ICMP = 1
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_ROUTING = 43
    PROTOCOL_FRAGMENT = 44
    PROTOCOL_AH = 51
    PROTOCOL_ICMPV6 = 58
    PROTOCOL_DESTINATION = 60
    PROTOCOL_SCTP = 132

    IPV4_FRAGMENT_OFFSET = 0x1FFF
    IPV4_MORE_FRAGMENTS = 0x2000
    IPV6_FRAGMENT_OFFSET = 0xFFF8
    IPV6_MORE_FRAGMENTS = 0x0001

    TCP_CHECKSUM_AT = 16         # in the header; the csum_offset of TCP
    UDP_CHECKSUM_AT = 6
    TCP_FIN = 0x01               # bits of the 14th byte of the TCP header
    TCP_PSH = 0x08
    TCP_CWR = 0x80

    MAX_VLAN_TAGS = 2
    # Real packets carry at most four or five; the bound limits the work for a packet, which the
    # sender chooses. 24 of the longest (2048 bytes each) also end below 65,536, so that offsets fit
    # their 16 bits in every frame that a buffer holds.
    MAX_EXTENSION_HEADERS = 24

    # Limits on GSO frames, which bound the cost of segmenting one frame:
    #  - headers are copied into every segment: 512 bytes hold two tags, IPv6, 390 bytes of
    #    extensions, TCP with all options;
    #  - Linux' smallest MSS is 48 bytes, options included, so at least 8 bytes of payload
    #    (tcp_min_snd_mss);
    #  - 2048 segments hold a 64 KiB frame at that MSS with the timestamp option
    #    (65,535 / 36 = 1820);
    #  - Linux refuses a UDP frame of more than 128 segments (UDP_MAX_SEGMENTS).
    GSO_HEADERS_MAX = 512
    GSO_TCP_SIZE_MIN = 8
    GSO_TCP_SEGMENTS_MAX = 2048
    GSO_UDP_SEGMENTS_MAX = 128

# Results of parse_packet. Parse's DROP_REASONS are the same without PARSE_OK, in this order.
cdef enum:
    PARSE_OK = 0
    PARSE_RUNT = 1               # shorter than its Ethernet header and VLAN tags
    # The next five are errors above layer 2. Such a frame can be forwarded: see `parse_packet`.
    PARSE_IPV4_HEADER = 2        # version, IHL, or cut
    PARSE_IPV4_LENGTH = 3        # total length shorter than the header or longer than the frame
    # version, cut, extension headers cut or more than MAX_EXTENSION_HEADERS
    PARSE_IPV6_HEADER = 4
    PARSE_IPV6_LENGTH = 5
    PARSE_L4_HEADER = 6          # TCP, UDP, SCTP, ICMP cut; TCP data offset
    PARSE_BAD_GSO = 7
    PARSE_BAD_CSUM_OFFSET = 8

cdef inline bint is_above_link(int reason) noexcept nogil:
    """Whether a reason is about layer 3 or 4 only, which a layer-2 switch need not understand."""
    return PARSE_IPV4_HEADER <= reason <= PARSE_L4_HEADER

cdef inline uint16_t load_be16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)        # any alignment; one mov and one rol
    return ntohs(value)

cdef inline uint32_t load_be32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return ntohl(value)

cdef inline void store_be16(uint8_t *at, uint16_t value) noexcept nogil:
    value = htons(value)
    memcpy(at, &value, 2)

cdef inline void store_be32(uint8_t *at, uint32_t value) noexcept nogil:
    value = htonl(value)
    memcpy(at, &value, 4)

cdef inline bint is_vlan_ethertype(uint16_t ethertype) noexcept nogil:
    return (ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_PROVIDER
            or ethertype == ETHERTYPE_QINQ)

cdef inline int unless_cut(const Packet *p, int reason) noexcept nogil:
    """`reason`, but PARSE_OK for a frame of which the capture has only the beginning: the missing
    bytes were on the wire."""
    return PARSE_OK if p.flags & PACKET_TRUNCATED else reason

cdef inline int parse_link(const uint8_t *data, Packet *p) noexcept nogil:
    """Ethernet and up to two VLAN tags; a third tag stays in `ethertype`, and the bytes behind it
    are not read."""
    cdef uint32_t at = ETHERNET_BYTES
    if p.length < ETHERNET_BYTES:
        # also if a capture cut it: a frame without addresses cannot be switched
        return PARSE_RUNT
    p.ethertype = load_be16(data + 12)
    while is_vlan_ethertype(p.ethertype) and p.vlan_count < MAX_VLAN_TAGS:
        if at + VLAN_BYTES > p.length:
            p.l3_offset = p.payload_offset = <uint16_t>at
            return unless_cut(p, PARSE_RUNT)
        if p.vlan_count == 0:
            p.vlan_tci = load_be16(data + at)
        else:
            p.vlan_inner_tci = load_be16(data + at)
        p.vlan_count += 1
        p.ethertype = load_be16(data + at + 2)
        at += VLAN_BYTES
    p.l3_offset = p.payload_offset = <uint16_t>at
    return PARSE_OK

cdef inline bint length_is_true(const Packet *p, uint32_t said, uint32_t present) noexcept nogil:
    """Whether the length field of an IP header fits the bytes present. A smaller value is valid
    (Ethernet padding), a larger one is not.

    0 means the length of the frame. It occurs in frames that were captured before the NIC segmented
    them (TSO), and in those that are longer than the field can express (Linux' BIG TCP). A GSO
    frame has no padding, and segmenting takes the frame's length for the packet's: they must agree.
    """
    if said == 0:
        return True
    if p.gso_type != GSO_NONE:
        return said == present
    return said <= present or p.flags & PACKET_TRUNCATED

cdef inline int parse_ipv4(const uint8_t *data, Packet *p, uint32_t *end) noexcept nogil:
    """The IPv4 header; *end becomes the frame offset behind the packet. After PARSE_IPV4_LENGTH the
    header itself is valid."""
    cdef const uint8_t *header = data + p.l3_offset
    cdef uint32_t rest = p.length - p.l3_offset, header_bytes, total
    cdef uint16_t fragment
    cdef int reason = PARSE_OK
    if rest < IPV4_BYTES:
        return unless_cut(p, PARSE_IPV4_HEADER)
    header_bytes = (header[0] & 0x0F) * 4
    if header[0] >> 4 != 4 or header_bytes < IPV4_BYTES:
        return PARSE_IPV4_HEADER
    if header_bytes > rest:
        return unless_cut(p, PARSE_IPV4_HEADER)
    total = load_be16(header + 2)
    if not length_is_true(p, total, rest):
        reason = PARSE_IPV4_LENGTH
    if p.gso_type != GSO_NONE or total > rest or total == 0:
        total = rest
    if total < header_bytes:
        reason = PARSE_IPV4_LENGTH
        total = header_bytes         # the bytes behind the header belong to no packet
    fragment = load_be16(header + 6)
    p.flags |= PACKET_IPV4
    p.tos = header[1]
    p.ttl = header[8]
    p.ip_protocol = header[9]
    memcpy(p.source_address, header + 12, 4)
    memcpy(p.destination_address, header + 16, 4)
    p.payload_offset = <uint16_t>(p.l3_offset + header_bytes)
    if fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS):
        p.flags |= PACKET_FRAGMENT
    if not fragment & IPV4_FRAGMENT_OFFSET:
        p.l4_offset = p.payload_offset
    end[0] = p.l3_offset + total
    return reason

cdef inline int parse_ipv6(const uint8_t *data, Packet *p, uint32_t *end) noexcept nogil:
    """The IPv6 header and its extension headers; *end becomes the frame offset behind the packet.

    Once the fixed header is valid, a reason is about its length field or about an extension header.
    A packet whose chain was not followed to its end has no l4_offset; its ip_protocol and
    payload_offset are those of the header that was not followed.
    """
    cdef const uint8_t *header = data + p.l3_offset
    cdef uint32_t rest = p.length - p.l3_offset, at = p.l3_offset + IPV6_BYTES
    cdef uint32_t said, extensions = 0, step
    cdef uint16_t fragment = 0
    cdef uint8_t protocol
    cdef int reason = PARSE_OK
    if rest < IPV6_BYTES:
        return unless_cut(p, PARSE_IPV6_HEADER)
    if header[0] >> 4 != 6:
        return PARSE_IPV6_HEADER
    said = load_be16(header + 4)
    protocol = header[6]
    if not length_is_true(p, said, rest - IPV6_BYTES):
        reason = PARSE_IPV6_LENGTH
    if p.gso_type != GSO_NONE and said == 0 and protocol == PROTOCOL_HOP_BY_HOP:
        # a jumbo payload option (RFC 2675), which must not be repeated in segments
        reason = PARSE_IPV6_LENGTH
    end[0] = p.length
    if p.gso_type == GSO_NONE and said and said < rest - IPV6_BYTES:
        end[0] = at + said
    p.flags |= PACKET_IPV6
    p.tos = <uint8_t>(load_be16(header) >> 4)
    p.ttl = header[7]
    memcpy(p.source_address, header + 8, 16)
    memcpy(p.destination_address, header + 24, 16)
    while is_extension(protocol):
        # Each has at least 8 bytes. Only the fragment header has no length field; its length is 8.
        if extensions == MAX_EXTENSION_HEADERS:
            return stop_ipv6(p, protocol, at, PARSE_IPV6_HEADER, reason)
        if at + 8 > end[0]:
            return stop_ipv6(p, protocol, at, unless_cut(p, PARSE_IPV6_HEADER), reason)
        if protocol == PROTOCOL_FRAGMENT:
            p.flags |= PACKET_FRAGMENT
            fragment = load_be16(data + at + 2)
            step = 8
        elif protocol == PROTOCOL_AH:
            step = (data[at + 1] + 2) * 4
        else:
            step = (data[at + 1] + 1) * 8
        if at + step > end[0]:
            return stop_ipv6(p, protocol, at, unless_cut(p, PARSE_IPV6_HEADER), reason)
        extensions += 1
        protocol = data[at]
        at += step
        if fragment & IPV6_FRAGMENT_OFFSET:
            break                    # a later fragment: no header begins behind it
    p.ip_protocol = protocol
    p.payload_offset = <uint16_t>at
    if not fragment & IPV6_FRAGMENT_OFFSET:
        p.l4_offset = <uint16_t>at
    return reason

cdef inline bint is_extension(uint8_t protocol) noexcept nogil:
    return (protocol == PROTOCOL_HOP_BY_HOP or protocol == PROTOCOL_ROUTING
            or protocol == PROTOCOL_DESTINATION or protocol == PROTOCOL_FRAGMENT
            or protocol == PROTOCOL_AH)

cdef inline int stop_ipv6(Packet *p, uint8_t protocol, uint32_t at, int reason,
                          int earlier) noexcept nogil:
    """Records the extension header at which parsing ends early. Returns the first reason."""
    p.ip_protocol = protocol
    p.payload_offset = <uint16_t>at
    return reason if earlier == PARSE_OK else earlier

cdef inline int parse_transport(const uint8_t *data, Packet *p, uint32_t end) noexcept nogil:
    """TCP, UDP, SCTP and ICMP at l4_offset, in a packet that ends at frame offset `end`. Other
    protocols are payload."""
    cdef const uint8_t *header = data + p.l4_offset
    cdef uint32_t present = end - p.l4_offset, need
    cdef bint has_ports = True
    cdef int reason = PARSE_OK
    if p.ip_protocol == PROTOCOL_TCP:
        need = TCP_BYTES
    elif p.ip_protocol == PROTOCOL_UDP:
        need = UDP_BYTES
    elif p.ip_protocol == PROTOCOL_SCTP:
        need = SCTP_BYTES
    else:
        has_ports = False
        if p.ip_protocol == PROTOCOL_ICMP and p.flags & PACKET_IPV4:
            need = ICMP_BYTES
        elif p.ip_protocol == PROTOCOL_ICMPV6 and p.flags & PACKET_IPV6:
            need = ICMPV6_BYTES
        else:
            return PARSE_OK
    if p.ip_protocol == PROTOCOL_TCP and present >= TCP_BYTES:
        need = (header[12] >> 4) * 4
        if need < TCP_BYTES:
            need = TCP_BYTES         # the fixed part is present, and is not payload
            reason = PARSE_L4_HEADER
    if has_ports and present >= PORTS_BYTES:
        p.source_port = load_be16(header)
        p.destination_port = load_be16(header + 2)
        p.flags |= PACKET_L4
    if need > present:
        # headers are short, so a cut one ends early in the frame
        p.payload_offset = <uint16_t>end
        # The first of several IPv4 fragments may be as short as 8 bytes (RFC 791); over IPv6 it
        # holds all headers (RFC 8200, 4.5).
        if p.flags & (PACKET_FRAGMENT | PACKET_IPV4) == PACKET_FRAGMENT | PACKET_IPV4:
            return PARSE_OK
        return unless_cut(p, PARSE_L4_HEADER)
    p.payload_offset = <uint16_t>(p.l4_offset + need)
    return reason

cdef inline int check_gso(Packet *p) noexcept nogil:
    """Whether the GSO fields fit the headers; sets header_length, whose value from the guest may be
    wrong (for Linux it is a hint)."""
    cdef uint8_t kind = p.gso_type & <uint8_t>~GSO_ECN
    cdef bint tcp = kind == GSO_TCPV4 or kind == GSO_TCPV6
    cdef uint16_t version = PACKET_IPV4 | PACKET_IPV6
    cdef uint32_t payload
    if tcp:
        version = PACKET_IPV4 if kind == GSO_TCPV4 else PACKET_IPV6
    if not tcp and p.gso_type != GSO_UDP_L4:     # UFO was not negotiated; ECN is TCP's
        return PARSE_BAD_GSO
    # Segments repeat the headers, so all of them must have been parsed.
    if (not p.flags & version or not p.flags & PACKET_L4
            or p.flags & (PACKET_FRAGMENT | PACKET_TRUNCATED | PACKET_MALFORMED)):
        return PARSE_BAD_GSO
    if p.ip_protocol != (PROTOCOL_TCP if tcp else PROTOCOL_UDP):
        return PARSE_BAD_GSO
    if not p.vnet_flags & VNET_NEEDS_CSUM or p.csum_start != p.l4_offset:
        return PARSE_BAD_GSO
    if p.csum_offset != (TCP_CHECKSUM_AT if tcp else UDP_CHECKSUM_AT):
        return PARSE_BAD_GSO
    if p.gso_size < (GSO_TCP_SIZE_MIN if tcp else 1) or p.payload_offset > GSO_HEADERS_MAX:
        return PARSE_BAD_GSO
    payload = p.length - p.payload_offset
    if payload <= p.gso_size:                    # one segment: nothing to cut
        p.gso_type = GSO_NONE
        p.header_length = p.gso_size = 0
        return PARSE_OK
    if payload > p.gso_size * <uint32_t>(GSO_TCP_SEGMENTS_MAX if tcp else GSO_UDP_SEGMENTS_MAX):
        return PARSE_BAD_GSO
    # a segment's length must fit its IP header
    if <uint32_t>p.payload_offset - p.l3_offset + p.gso_size > 0xFFFF:
        return PARSE_BAD_GSO
    p.header_length = p.payload_offset
    return PARSE_OK

cdef inline bint checksum_place_is_sound(const Packet *p) noexcept nogil:
    """Whether the checksum would be stored in a checksum field. It is stored after switch and
    classifier have processed the frame: stored into a VLAN tag, an address or a port, it would turn
    the frame into one that they have not checked."""
    # the fields are the guest's and may be 65,535 each
    cdef uint32_t place = <uint32_t>p.csum_start + p.csum_offset
    if p.csum_start < p.l3_offset or place + 2 > p.length:
        return False
    if not p.flags & (PACKET_IPV4 | PACKET_IPV6):
        return True
    if p.l4_offset == 0 or place < p.l4_offset:
        return False
    if p.ip_protocol == PROTOCOL_TCP and place == <uint32_t>p.l4_offset + TCP_CHECKSUM_AT:
        return True
    if p.ip_protocol == PROTOCOL_UDP and place == <uint32_t>p.l4_offset + UDP_CHECKSUM_AT:
        return True
    # in the payload: a tunnel's inner checksum
    return not p.flags & PACKET_L4 or place >= p.payload_offset

cdef inline int check_offloads(Packet *p) noexcept nogil:
    """Validates the virtio-net fields against the parsed headers; clears the fields that are not in
    use."""
    if p.gso_type != GSO_NONE:
        return check_gso(p)                      # demands the protocol's own checksum
    if p.vnet_flags & VNET_NEEDS_CSUM and not checksum_place_is_sound(p):
        return PARSE_BAD_CSUM_OFFSET
    p.header_length = p.gso_size = 0
    return PARSE_OK

cdef inline int parse_headers(const uint8_t *data, Packet *p) noexcept nogil:
    cdef char *start = <char *>&p.l3_offset
    cdef uint32_t end = 0
    cdef int reason, second
    # Records are reused: clear all fields of the previous packet.
    memset(start, 0, <size_t>(<char *>(p + 1) - start))
    p.flags = (p.flags & <uint16_t>~(PACKET_IPV4 | PACKET_IPV6 | PACKET_L4 | PACKET_FRAGMENT
                                     | PACKET_MALFORMED)) | PACKET_PARSED
    reason = parse_link(data, p)
    if reason != PARSE_OK:
        return reason
    if p.ethertype == ETHERTYPE_IPV4:
        reason = parse_ipv4(data, p, &end)
    elif p.ethertype == ETHERTYPE_IPV6:
        reason = parse_ipv6(data, p, &end)
    else:
        return PARSE_OK
    if p.l4_offset != 0:
        second = parse_transport(data, p, end)
        if reason == PARSE_OK:
            reason = second
    if reason != PARSE_OK:
        p.flags |= PACKET_MALFORMED
    return reason

cdef inline int parse_packet(const uint8_t *data, Packet *p) noexcept nogil:
    """Reads the frame at `data` (p.length bytes) into the record's second cache line and validates
    its virtio-net fields.

    Returns PARSE_OK or the reason why the frame is malformed. After a reason above layer 2
    (`is_above_link`) the packet is marked PACKET_MALFORMED, the record has the fields that were
    valid up to there, and the virtio-net fields are still to be checked (check_offloads); after the
    other reasons the record must not be used. l4_offset is set for every IP packet but later
    fragments and those whose headers end before it; payload_offset is behind the last header that
    was parsed. Both lie within the frame.
    """
    cdef int reason = parse_headers(data, p)
    if reason != PARSE_OK:
        return reason
    return check_offloads(p)
