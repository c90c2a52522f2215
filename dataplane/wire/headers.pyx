"""The header parser for Python: for tests and tools. The parser itself is in headers.pxd."""
from libc.stdint cimport uint8_t
from libc.string cimport memset
from dataplane.packet.pool cimport LARGE_FRAME, Packet

PARSE_REASONS = ("runt", "ipv4_header", "ipv4_length", "ipv6_header", "ipv6_length", "l4_header",
                 "bad_gso", "bad_csum_offset")


def parse_frame(const uint8_t[::1] frame, *, bint truncated=False, int vnet_flags=0,
                int gso_type=0, int gso_size=0, int csum_start=0, int csum_offset=0):
    """Parses one frame; returns (reason or None, record as a dict, with "forwarded": whether Parse
    forwards it). Raises ValueError for a frame longer than 69,504 bytes.

    truncated: the capture has only the beginning. The other arguments are the fields of the
    virtio-net header.
    """
    cdef Packet p
    cdef const uint8_t *data = b""
    if frame.shape[0] > LARGE_FRAME:
        raise ValueError(f"a frame of {frame.shape[0]} bytes; the longest is {LARGE_FRAME}")
    memset(&p, 0xA5, sizeof(p))                # a record as it is after another packet
    p.length = <unsigned int>frame.shape[0]
    p.flags = PACKET_TRUNCATED if truncated else 0
    p.vnet_flags, p.gso_type, p.gso_size = vnet_flags, gso_type, gso_size
    p.csum_start, p.csum_offset = csum_start, csum_offset
    if p.length:
        data = &frame[0]
    reason = parse_packet(data, &p)
    forwarded = (check_offloads(&p) if is_above_link(reason) else reason) == PARSE_OK
    return None if reason == PARSE_OK else PARSE_REASONS[reason - 1], {
        "parsed": bool(p.flags & PACKET_PARSED),
        "ipv4": bool(p.flags & PACKET_IPV4), "ipv6": bool(p.flags & PACKET_IPV6),
        "l4": bool(p.flags & PACKET_L4), "fragment": bool(p.flags & PACKET_FRAGMENT),
        "malformed": bool(p.flags & PACKET_MALFORMED), "ethertype": p.ethertype,
        "vlan_count": p.vlan_count, "vlan_tci": p.vlan_tci, "vlan_inner_tci": p.vlan_inner_tci,
        "l3_offset": p.l3_offset, "l4_offset": p.l4_offset, "payload_offset": p.payload_offset,
        "ip_protocol": p.ip_protocol, "tos": p.tos, "ttl": p.ttl,
        "source_port": p.source_port, "destination_port": p.destination_port,
        "source_address": <bytes>p.source_address[:16],
        "destination_address": <bytes>p.destination_address[:16],
        "forwarded": forwarded, "gso_type": p.gso_type, "gso_size": p.gso_size,
        "header_length": p.header_length,
    }
