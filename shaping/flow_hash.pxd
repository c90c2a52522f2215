"""Hashes of flows, keyed so that a sender cannot choose flows that fall together.

Each step is the product of two keyed words, its halves combined (as in wyhash); a flow of IPv4
takes one step for the addresses and one for the rest.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from dataplane.graph.random_stream cimport vnic_high_product
from dataplane.packet.pool cimport (PACKET_FRAGMENT, PACKET_IPV4, PACKET_IPV6, PACKET_L4, Packet)

cdef struct FlowKeys:
    uint64_t first, second       # random, the same for the life of an instance

cdef inline uint64_t flow_step(uint64_t a, uint64_t b) noexcept nogil:
    return vnic_high_product(a, b) ^ (a * b)

cdef inline uint64_t flow_hash(const Packet *p, const FlowKeys *keys) noexcept nogil:
    """The hash of the packet's 5-tuple. Fragments of IP packets have no ports, since only the first
    one carries them; all that is not IP is one flow."""
    cdef uint64_t[2] source, destination
    cdef uint64_t rest = p.ip_protocol, hash
    # Only Parse sets these flags: without it the second cache line is not read.
    if p.flags & PACKET_IPV4:
        memcpy(&source[0], p.source_address, 4)
        memcpy(<char *>&source[0] + 4, p.destination_address, 4)
        hash = flow_step(source[0] ^ keys.first, keys.second)
    elif p.flags & PACKET_IPV6:
        memcpy(source, p.source_address, 16)
        memcpy(destination, p.destination_address, 16)
        hash = (flow_step(source[0] ^ keys.first, source[1] ^ keys.second)
                + flow_step(destination[0] ^ keys.second, destination[1] ^ keys.first))
    else:
        return keys.first
    if p.flags & (PACKET_L4 | PACKET_FRAGMENT) == PACKET_L4:
        rest |= <uint64_t>p.source_port << 16 | <uint64_t>p.destination_port << 32
    return flow_step(hash ^ keys.first, rest ^ keys.second)

cdef inline uint64_t host_hash(const Packet *p, bint destination,
                               const FlowKeys *keys) noexcept nogil:
    """The hash of the address that sends the packet, or to which it goes; one as a source is
    another host than as a destination. All that is not IP has one host."""
    cdef uint64_t first = keys.second if destination else keys.first
    cdef uint64_t second = keys.first if destination else keys.second
    cdef uint64_t[2] words
    cdef uint32_t word = 0
    # The end of an IPv4 address is 0, but a load of 8 bytes would wait for Parse's store of 4.
    if p.flags & PACKET_IPV4:
        if destination:
            memcpy(&word, p.destination_address, 4)
        else:
            memcpy(&word, p.source_address, 4)
        words[0], words[1] = word, 0
    elif not p.flags & PACKET_IPV6:
        return first
    elif destination:
        memcpy(words, p.destination_address, 16)
    else:
        memcpy(words, p.source_address, 16)
    return flow_step(flow_step(words[0] ^ first, words[1] ^ second) ^ first, second)

cdef inline uint64_t number_hash(uint64_t number, const FlowKeys *keys) noexcept nogil:
    """The hash of a number, such as a packet's mark."""
    return flow_step(flow_step(number ^ keys.first, keys.second) ^ keys.first, keys.second)
