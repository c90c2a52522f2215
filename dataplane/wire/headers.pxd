"""Headers of frames: layouts, big-endian loads, and the one function that reads a frame, `parse_packet`.

Frames come from guests and captures: every offset is compared with the frame's length before it is read, every walk has an end.
Sources: IEEE 802.3 and 802.1Q, RFC 791 (IPv4), 8200 (IPv6), 4302 (AH), 9293 (TCP), 768 (UDP), 9260 (SCTP), 792 and 4443 (ICMP);
virtio 1.2, 5.1.6 (virtio-net header).

Not checked here, since a NIC leaves it to the hosts: the IPv4 header checksum, the UDP length, checksums of payloads.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from dataplane.packet cimport (GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, PACKET_FRAGMENT, PACKET_IPV4, PACKET_IPV6,
                               PACKET_L4, PACKET_PARSED, PACKET_TRUNCATED, VNET_NEEDS_CSUM, Packet)

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

    TCP_CHECKSUM_AT = 16         # in the header; what csum_offset says for TCP
    UDP_CHECKSUM_AT = 6
    TCP_FIN = 0x01               # bits of the 14th byte of the TCP header
    TCP_PSH = 0x08
    TCP_CWR = 0x80

    MAX_VLAN_TAGS = 2
    # Real packets carry at most four or five; each step of a longer chain would be the sender's to choose and ours to pay.
    MAX_EXTENSION_HEADERS = 8

    # Limits on GSO frames: what one frame may cost whoever must segment it.
    #  - headers are copied into every segment: 512 bytes hold two tags, IPv6, 390 bytes of extensions, TCP with all options;
    #  - Linux' smallest MSS is 48 bytes, options included, so at least 8 bytes of payload (tcp_min_snd_mss);
    #  - 2048 segments hold a 64 KiB frame at that MSS with the timestamp option (65,535 / 36 = 1820);
    #  - Linux refuses a UDP frame of more than 128 segments (UDP_MAX_SEGMENTS).
    GSO_HEADERS_MAX = 512
    GSO_TCP_SIZE_MIN = 8
    GSO_TCP_SEGMENTS_MAX = 2048
    GSO_UDP_SEGMENTS_MAX = 128

# What parse_packet returns. Parse's DROP_REASONS are the same, less PARSE_OK, in this order.
cdef enum:
    PARSE_OK = 0
    PARSE_RUNT = 1               # shorter than its Ethernet header and VLAN tags
    PARSE_IPV4_HEADER = 2        # version, IHL, or cut
    PARSE_IPV4_LENGTH = 3        # total length shorter than the header or longer than the frame
    PARSE_IPV6_HEADER = 4        # version, cut, extension headers cut or too many
    PARSE_IPV6_LENGTH = 5
    PARSE_L4_HEADER = 6          # TCP, UDP, SCTP, ICMP cut; TCP data offset
    PARSE_BAD_GSO = 7
    PARSE_BAD_CSUM_OFFSET = 8

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
    return ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_PROVIDER or ethertype == ETHERTYPE_QINQ

cdef inline int unless_cut(const Packet *p, int reason) noexcept nogil:
    """`reason`, but PARSE_OK for a frame of which the capture kept only the beginning: what lacks was on the wire."""
    return PARSE_OK if p.flags & PACKET_TRUNCATED else reason

cdef inline int parse_link(const uint8_t *data, Packet *p) noexcept nogil:
    """Ethernet and up to two VLAN tags; a third stays in `ethertype`, and what is behind it is not looked at."""
    cdef uint32_t at = ETHERNET_BYTES
    if p.length < ETHERNET_BYTES:
        return PARSE_RUNT            # also where a capture cut it: without addresses nobody can do anything with it
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
    """Whether a length that an IP header says fits the bytes present. Less is fine (Ethernet padding), more is a lie.

    A GSO frame has no padding, and segmenting takes the frame's length for the packet's: they must agree. One longer than the
    field can say (Linux' BIG TCP) says 0.
    """
    if p.gso_type != GSO_NONE:
        return said == present or (said == 0 and present > 0xFFFF)
    return said <= present or p.flags & PACKET_TRUNCATED

cdef inline int parse_ipv4(const uint8_t *data, Packet *p, uint32_t *end) noexcept nogil:
    """The IPv4 header; *end becomes the frame offset behind the packet."""
    cdef const uint8_t *header = data + p.l3_offset
    cdef uint32_t rest = p.length - p.l3_offset, header_bytes, total
    cdef uint16_t fragment
    if rest < IPV4_BYTES:
        return unless_cut(p, PARSE_IPV4_HEADER)
    header_bytes = (header[0] & 0x0F) * 4
    if header[0] >> 4 != 4 or header_bytes < IPV4_BYTES:
        return PARSE_IPV4_HEADER
    if header_bytes > rest:
        return unless_cut(p, PARSE_IPV4_HEADER)
    total = load_be16(header + 2)
    if not length_is_true(p, total, rest):
        return PARSE_IPV4_LENGTH
    if p.gso_type != GSO_NONE or total > rest:
        total = rest
    if total < header_bytes:
        return PARSE_IPV4_LENGTH
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
    return PARSE_OK

cdef inline int parse_ipv6(const uint8_t *data, Packet *p, uint32_t *end) noexcept nogil:
    """The IPv6 header and its extension headers; *end becomes the frame offset behind the packet."""
    cdef const uint8_t *header = data + p.l3_offset
    cdef uint32_t rest = p.length - p.l3_offset, at = p.l3_offset + IPV6_BYTES, said, extensions, step
    cdef uint16_t fragment = 0
    cdef uint8_t protocol
    if rest < IPV6_BYTES:
        return unless_cut(p, PARSE_IPV6_HEADER)
    if header[0] >> 4 != 6:
        return PARSE_IPV6_HEADER
    said = load_be16(header + 4)
    protocol = header[6]
    if not length_is_true(p, said, rest - IPV6_BYTES):
        return PARSE_IPV6_LENGTH
    if p.gso_type != GSO_NONE and said == 0 and protocol == PROTOCOL_HOP_BY_HOP:
        return PARSE_IPV6_LENGTH     # a jumbo payload option (RFC 2675), which must not be repeated in segments
    end[0] = p.length
    if p.gso_type == GSO_NONE and said < rest - IPV6_BYTES:
        end[0] = at + said
    for extensions in range(MAX_EXTENSION_HEADERS + 1):
        if protocol == PROTOCOL_HOP_BY_HOP or protocol == PROTOCOL_ROUTING or protocol == PROTOCOL_DESTINATION:
            step = 8
        elif protocol == PROTOCOL_FRAGMENT or protocol == PROTOCOL_AH:
            step = 4
        else:
            break
        if extensions == MAX_EXTENSION_HEADERS:
            return PARSE_IPV6_HEADER
        if at + 8 > end[0]:          # every one of them has at least 8 bytes
            return unless_cut(p, PARSE_IPV6_HEADER)
        if protocol == PROTOCOL_FRAGMENT:
            p.flags |= PACKET_FRAGMENT
            fragment = load_be16(data + at + 2)
            step = 8
        else:                        # length in units of 8 bytes less the first, AH's of 4 bytes less two
            step = (data[at + 1] + 1) * 8 if step == 8 else (data[at + 1] + 2) * 4
            if at + step > end[0]:
                return unless_cut(p, PARSE_IPV6_HEADER)
        protocol = data[at]
        at += step
        if fragment & IPV6_FRAGMENT_OFFSET:
            break                    # behind the header is the middle of something
    p.flags |= PACKET_IPV6
    p.tos = <uint8_t>(load_be16(header) >> 4)
    p.ttl = header[7]
    p.ip_protocol = protocol
    memcpy(p.source_address, header + 8, 16)
    memcpy(p.destination_address, header + 24, 16)
    p.payload_offset = <uint16_t>at
    if not fragment & IPV6_FRAGMENT_OFFSET:
        p.l4_offset = <uint16_t>at
    return PARSE_OK

cdef inline int parse_transport(const uint8_t *data, Packet *p, uint32_t end) noexcept nogil:
    """TCP, UDP, SCTP and ICMP at l4_offset, in a packet that ends at frame offset `end`. Other protocols are payload."""
    cdef const uint8_t *header = data + p.l4_offset
    cdef uint32_t present = end - p.l4_offset, need
    cdef bint has_ports = True
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
            return PARSE_L4_HEADER
    if has_ports and present >= PORTS_BYTES:
        p.source_port = load_be16(header)
        p.destination_port = load_be16(header + 2)
        p.flags |= PACKET_L4
    if need > present:
        p.payload_offset = <uint16_t>end     # headers are short, so a cut one ends early in the frame
        return unless_cut(p, PARSE_L4_HEADER)
    p.payload_offset = <uint16_t>(p.l4_offset + need)
    return PARSE_OK

cdef inline void forget_network(Packet *p) noexcept nogil:
    """Makes a packet whose IP or transport header is malformed a plain Ethernet frame."""
    cdef char *start = <char *>&p.ip_protocol
    p.flags &= <uint16_t>~(PACKET_IPV4 | PACKET_IPV6 | PACKET_L4 | PACKET_FRAGMENT)
    p.l4_offset = 0
    p.payload_offset = p.l3_offset
    memset(start, 0, <size_t>(<char *>(p + 1) - start))

cdef inline int check_gso(Packet *p) noexcept nogil:
    """Whether the GSO fields fit the headers; sets header_length, which a guest may say wrong (for Linux it is a hint)."""
    cdef uint8_t kind = p.gso_type & <uint8_t>~GSO_ECN
    cdef bint tcp = kind == GSO_TCPV4 or kind == GSO_TCPV6
    cdef uint16_t version = PACKET_IPV4 | PACKET_IPV6
    cdef uint32_t payload
    if tcp:
        version = PACKET_IPV4 if kind == GSO_TCPV4 else PACKET_IPV6
    if not tcp and p.gso_type != GSO_UDP_L4:     # UFO was not negotiated; ECN is TCP's
        return PARSE_BAD_GSO
    if not p.flags & version or not p.flags & PACKET_L4 or p.flags & (PACKET_FRAGMENT | PACKET_TRUNCATED):
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
    if <uint32_t>p.payload_offset - p.l3_offset + p.gso_size > 0xFFFF:   # a segment's length must fit its IP header
        return PARSE_BAD_GSO
    p.header_length = p.payload_offset
    return PARSE_OK

cdef inline bint checksum_place_is_sound(const Packet *p) noexcept nogil:
    """Whether the checksum would be stored where one belongs. It is stored after switch and classifier have judged the frame: into a VLAN
    tag, an address or a port, it would make of it another frame than the one they let pass."""
    cdef uint32_t place = <uint32_t>p.csum_start + p.csum_offset     # the fields are the guest's and may be 65,535 each
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
    return not p.flags & PACKET_L4 or place >= p.payload_offset      # of what the packet carries: a tunnel's inner checksum

cdef inline int check_offloads(Packet *p) noexcept nogil:
    """Validates the virtio-net fields against what the headers were found to be; clears those that mean nothing."""
    if p.gso_type != GSO_NONE:
        return check_gso(p)                      # demands the protocol's own checksum
    if p.vnet_flags & VNET_NEEDS_CSUM and not checksum_place_is_sound(p):
        return PARSE_BAD_CSUM_OFFSET
    p.header_length = p.gso_size = 0
    return PARSE_OK

cdef inline int parse_headers(const uint8_t *data, Packet *p) noexcept nogil:
    cdef char *start = <char *>&p.l3_offset
    cdef uint32_t end = 0
    cdef int reason
    # Records are reused: nothing of the last packet may show through.
    memset(start, 0, <size_t>(<char *>(p + 1) - start))
    p.flags = (p.flags & <uint16_t>~(PACKET_IPV4 | PACKET_IPV6 | PACKET_L4 | PACKET_FRAGMENT)) | PACKET_PARSED
    reason = parse_link(data, p)
    if reason != PARSE_OK:
        return reason
    if p.ethertype == ETHERTYPE_IPV4:
        reason = parse_ipv4(data, p, &end)
    elif p.ethertype == ETHERTYPE_IPV6:
        reason = parse_ipv6(data, p, &end)
    else:
        return PARSE_OK
    if reason == PARSE_OK and p.l4_offset != 0:
        reason = parse_transport(data, p, end)
    if reason != PARSE_OK:
        forget_network(p)
    return reason

cdef inline int parse_packet(const uint8_t *data, Packet *p) noexcept nogil:
    """Reads the frame at `data` (p.length bytes) into the record's second cache line and validates its virtio-net fields.

    Returns PARSE_OK or the reason why the frame is malformed. After a reason from PARSE_IPV4_HEADER to PARSE_L4_HEADER the
    record describes a plain Ethernet frame whose virtio-net fields are still to be checked (check_offloads); after the others
    it is not to be used. l4_offset is set for every IP packet but later fragments; payload_offset is behind the last header
    that was understood.
    """
    cdef int reason = parse_headers(data, p)
    if reason != PARSE_OK:
        return reason
    return check_offloads(p)
