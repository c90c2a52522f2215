"""The Internet checksum (RFC 1071), its pseudo-headers (RFC 9293, 768, 8200 section 8.1) and its
updates (RFC 1624).

Sums are over 16-bit words in the machine's byte order: the ones' complement sum does not depend on
it (RFC 1071, 2.B). So a folded sum is stored in a frame as it is (memcpy), and a value that is not
from a frame is converted to network order before it is added.

A running sum is a uint64_t, folded only at the end. It sums 32-bit words: 2^32 of them would
overflow it.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from dataplane.packet.pool cimport PACKET_IPV4, Packet
from dataplane.wire.headers cimport htonl

cdef inline uint64_t checksum_add(uint64_t running, const uint8_t *data,
                                  size_t length) noexcept nogil:
    """Adds `length` bytes at any address. Only the last piece of a sum may have an odd length."""
    cdef size_t i, words = length >> 2
    cdef uint32_t word
    cdef uint16_t half
    # Four bytes at a time into 64 bits: no carry to add back, so the compiler can vectorise it.
    for i in range(words):
        memcpy(&word, data + 4 * i, 4)
        running += word
    data += 4 * words
    if length & 2:
        memcpy(&half, data, 2)
        running += half
        data += 2
    if length & 1:
        half = 0
        memcpy(&half, data, 1)       # the byte, then a zero, in the order of the frame
        running += half
    return running

cdef inline uint16_t checksum_fold(uint64_t running) noexcept nogil:
    """The running sum folded to 16 bits; not complemented."""
    running = <uint32_t>running + (running >> 32)
    running = <uint32_t>running + (running >> 32)        # at most 2^32
    running = (running & 0xFFFF) + (running >> 16)       # at most 0x1FFFE
    return <uint16_t>((running & 0xFFFF) + (running >> 16))

cdef inline uint64_t checksum_pseudo(const Packet *p, uint32_t transport_bytes) noexcept nogil:
    """Running sum of the pseudo-header of a parsed IPv4 or IPv6 packet. With an IPv6 routing header
    it uses the addresses of the IPv6 header, not the final destination."""
    cdef uint64_t running = checksum_add(0, p.source_address, 4 if p.flags & PACKET_IPV4 else 16)
    running = checksum_add(running, p.destination_address, 4 if p.flags & PACKET_IPV4 else 16)
    return running + htonl(p.ip_protocol) + htonl(transport_bytes)

cdef inline uint16_t checksum_shift_length(uint16_t partial, uint32_t old_bytes,
                                           uint32_t new_bytes) noexcept nogil:
    """Adjusts a folded pseudo-header sum to another length: subtracting the old length is adding
    its complement (RFC 1624)."""
    return checksum_fold(<uint64_t>partial + <uint32_t>~htonl(old_bytes) + htonl(new_bytes))
