"""Which frames a virtio-net driver receives: by destination address and VLAN (virtio 1.3, 5.1.6.5.1
to 5.1.6.5.3)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    # Addresses of each table; a longer table means all. Beyond that, a table that is searched
    # costs more than the frames that it keeps from the guest.
    ADDRESSES_MOST = 64

# ReceiveFilter.takes
cdef enum:
    TAKES_OWN = 1            # unicast: the driver's address and those of its table
    TAKES_UNICAST = 2        # all
    TAKES_LISTED = 4         # multicast: those of its table
    TAKES_MULTICAST = 8      # all
    TAKES_BROADCAST = 16

cdef struct ReceiveFilter:
    bint filters             # by address; else all pass
    bint filters_vlans       # tagged frames by `vlans`
    uint32_t takes           # TAKES_*
    uint32_t unicasts
    uint32_t multicasts
    uint64_t own             # addresses: the first byte is the lowest
    uint64_t[ADDRESSES_MOST] unicast
    uint64_t[ADDRESSES_MOST] multicast
    uint8_t[512] vlans       # a bit per VLAN


cdef inline bint listed(const uint64_t *table, uint32_t count, uint64_t address) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if table[i] == address:
            return True
    return False


cdef inline bint takes_address(const ReceiveFilter *filter, uint64_t address) noexcept nogil:
    if address & 1 == 0:
        return (filter.takes & TAKES_UNICAST or filter.takes & TAKES_OWN
                and (address == filter.own or listed(filter.unicast, filter.unicasts, address)))
    if address == <uint64_t>0xFFFFFFFFFFFF:
        return filter.takes & TAKES_BROADCAST
    return (filter.takes & TAKES_MULTICAST or filter.takes & TAKES_LISTED
            and listed(filter.multicast, filter.multicasts, address))


cdef inline bint passes(const ReceiveFilter *filter, const uint8_t *frame,
                        uint32_t length) noexcept nogil:
    """Whether the driver gets the frame. A frame too short for a header is no Ethernet frame, which
    is for others to say. A tag of VLAN 0 has a priority only."""
    cdef uint64_t address
    cdef uint32_t vlan
    if length < 16:
        return True
    if filter.filters:
        # one load, and not six bytes by way of the stack, which took three times as long
        memcpy(&address, frame, 8)
        address &= <uint64_t>0xFFFFFFFFFFFF
        if not takes_address(filter, address):
            return False
    if filter.filters_vlans and frame[12] == 0x81 and frame[13] == 0:
        vlan = (<uint32_t>frame[14] & 15) << 8 | frame[15]
        return vlan == 0 or filter.vlans[vlan >> 3] >> (vlan & 7) & 1
    return True
