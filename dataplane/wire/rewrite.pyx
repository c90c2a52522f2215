"""Rewrite. The contract is in rewrite.pxd."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memmove
from dataplane.wire.checksum cimport checksum_add, checksum_fold
from dataplane.wire.headers cimport (ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6,
                                     ETHERTYPE_VLAN, IPV4_BYTES, IPV4_FRAGMENT_OFFSET, IPV6_BYTES,
                                     IPV6_FRAGMENT_OFFSET, PROTOCOL_AH, PROTOCOL_DESTINATION,
                                     PROTOCOL_FRAGMENT, PROTOCOL_HOP_BY_HOP, PROTOCOL_ICMPV6,
                                     PROTOCOL_ROUTING, PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM_AT,
                                     UDP_CHECKSUM_AT, VLAN_BYTES, VLAN_ID_MASK, is_vlan_ethertype,
                                     load_be16, store_be16)

from dataplane.errors import ConfigError

cdef enum:
    MAC_BYTES = 6
    ARP_BYTES = 28               # for IPv4 over Ethernet
    ICMPV6_CHECKSUM_AT = 2
    VLAN_IDS = 4096

VLAN_MODES = {"remove": VLAN_REMOVE, "set": VLAN_SET, "add": VLAN_ADD}
cdef uint8_t[6] NO_MAC = [0, 0, 0, 0, 0, 0]


cdef class Rewrite:
    """Replaces addresses and VLAN tags of frames.

    macs: (old, new), six bytes each. addresses: (old, new, prefix length), 4 or 16 bytes each; the
    first rule that fits an address decides, and the bits behind the prefix stay. vlan: ("remove",
    0), ("set", VID) or ("add", VID). vlan_map: (old VID, new VID) of the outermost tag.

    Source and destination addresses are replaced alike, and so are those in ARP. Addresses within
    payloads (ICMP errors, neighbour discovery, DNS) stay. Checksums of IPv4, TCP, UDP and ICMPv6
    are updated by the difference of the addresses: correct ones stay correct, wrong ones stay
    wrong. A UDP checksum of 0 (none) stays. Later fragments have no transport header. Fields that a
    capture cut off are skipped.
    """

    def __cinit__(self, *args, **kwargs):
        self.vlan_map = NULL
        self.macs = NULL
        self.addresses = NULL

    def __init__(self, macs=(), addresses=(), vlan=None, vlan_map=()):
        cdef const uint8_t[::1] old_bytes, new_bytes
        cdef uint32_t i, j, bits
        cdef AddressRule *rule
        self.macs = <uint64_t *>calloc(2 * len(macs) + 1, sizeof(uint64_t))
        self.addresses = <AddressRule *>calloc(len(addresses) + 1, sizeof(AddressRule))
        if self.macs == NULL or self.addresses == NULL:
            raise MemoryError("rewrite")
        for old, new in macs:
            if len(old) != MAC_BYTES or len(new) != MAC_BYTES:
                raise ConfigError(f"rewrite: a MAC address of {len(old)} and {len(new)} bytes: "
                                  "expected 6")
            self.macs[2 * self.mac_count] = int.from_bytes(old, "big")
            self.macs[2 * self.mac_count + 1] = int.from_bytes(new, "big")
            self.mac_count += 1
        for old, new, prefix in addresses:
            if len(old) != len(new) or len(old) not in (4, 16) or not 0 <= prefix <= 8 * len(old):
                raise ConfigError(f"rewrite: addresses of {len(old)} and {len(new)} bytes with a "
                                  f"prefix of {prefix} bits")
            rule = &self.addresses[self.address_count]
            old_bytes, new_bytes, bits = old, new, prefix
            rule.bytes = <uint32_t>len(old)
            for j in range(rule.bytes):
                i = min(<uint32_t>8, bits - min(bits, 8 * j))
                rule.mask[j] = <uint8_t>(0xFF00 >> i)
                rule.old[j], rule.new[j] = old_bytes[j] & rule.mask[j], new_bytes[j] & rule.mask[j]
            self.address_count += 1
        if vlan is not None:
            if vlan[0] not in VLAN_MODES or not 0 <= vlan[1] <= 4094:
                raise ConfigError(f"rewrite: vlan {vlan}")
            self.vlan_mode, self.vlan_id = VLAN_MODES[vlan[0]], vlan[1]
        if vlan_map:
            self.vlan_map = <uint16_t *>malloc(VLAN_IDS * sizeof(uint16_t))
            if self.vlan_map == NULL:
                raise MemoryError("rewrite")
            for i in range(VLAN_IDS):
                self.vlan_map[i] = <uint16_t>i
            for old, new in vlan_map:
                if not 0 <= old <= 4095 or not 0 <= new <= 4094:
                    raise ConfigError(f"rewrite: vlan {old} to {new}: expected numbers up to 4094")
                self.vlan_map[old] = new

    def __dealloc__(self):
        free(self.macs)
        free(self.addresses)
        free(self.vlan_map)

    def apply(self, bytes frame not None, bytes source=None, bytes destination=None):
        """A changed copy, for tests and tools. source, destination: MAC addresses that replace the
        frame's."""
        cdef bytearray room = bytearray(VLAN_BYTES) + frame
        cdef uint8_t[::1] view = room
        cdef uint32_t length = <uint32_t>len(frame)
        cdef int32_t moved = 0
        if length:
            moved = self.frame(&view[VLAN_BYTES], length,
                               NULL if source is None else <const uint8_t *>source,
                               NULL if destination is None else <const uint8_t *>destination)
        return bytes(room[VLAN_BYTES + moved:])

    cdef int32_t frame(self, uint8_t *data, uint32_t length, const uint8_t *source,
                       const uint8_t *destination) noexcept nogil:
        """Changes the frame; returns by how many bytes its start moved: -4 where a tag was added
        (the caller has 4 bytes before it), 4 where one was removed. source, destination: MAC
        addresses for this frame, or NULL; a group address stays."""
        cdef uint32_t at = ETHERNET_BYTES
        cdef uint16_t ethertype
        if length < ETHERNET_BYTES:
            return 0
        self.map_mac(data)
        self.map_mac(data + MAC_BYTES)
        if source != NULL:
            memcpy(data + MAC_BYTES, source, MAC_BYTES)
        if destination != NULL and not data[0] & 1:
            memcpy(data, destination, MAC_BYTES)
        ethertype = load_be16(data + 12)
        # ends: `at` grows with each tag
        while is_vlan_ethertype(ethertype) and at + VLAN_BYTES <= length:
            ethertype = load_be16(data + at + 2)
            at += VLAN_BYTES
        if ethertype == ETHERTYPE_IPV4:
            self.ipv4(data + at, length - at)
        elif ethertype == ETHERTYPE_IPV6:
            self.ipv6(data + at, length - at)
        elif ethertype == ETHERTYPE_ARP:
            self.arp(data + at, length - at, source, destination)
        return self.tag(data, length)

    cdef int32_t tag(self, uint8_t *data, uint32_t length) noexcept nogil:
        """Changes the outermost VLAN tag; returns how far the frame's start moved."""
        cdef bint tagged = (is_vlan_ethertype(load_be16(data + 12))
                            and length >= ETHERNET_BYTES + VLAN_BYTES)
        cdef uint16_t tci
        if tagged and self.vlan_map != NULL:
            tci = load_be16(data + 14)
            store_be16(data + 14,
                       (tci & <uint16_t>~VLAN_ID_MASK) | self.vlan_map[tci & VLAN_ID_MASK])
        if self.vlan_mode == VLAN_REMOVE and tagged:
            memmove(data + VLAN_BYTES, data, 2 * MAC_BYTES)
            return VLAN_BYTES
        if self.vlan_mode == VLAN_SET and tagged:
            tci = load_be16(data + 14)
            store_be16(data + 14, (tci & <uint16_t>~VLAN_ID_MASK) | self.vlan_id)
        elif self.vlan_mode == VLAN_ADD or self.vlan_mode == VLAN_SET:
            memmove(data - VLAN_BYTES, data, 2 * MAC_BYTES)
            store_be16(data + 8, ETHERTYPE_VLAN)
            store_be16(data + 10, self.vlan_id)
            return -VLAN_BYTES
        return 0

    cdef void map_mac(self, uint8_t *at) noexcept nogil:
        cdef uint64_t mac = 0
        cdef uint32_t i, j
        if self.mac_count == 0:
            return
        for i in range(MAC_BYTES):
            mac = mac << 8 | at[i]
        for i in range(self.mac_count):
            if self.macs[2 * i] == mac:
                for j in range(MAC_BYTES):
                    at[j] = <uint8_t>(self.macs[2 * i + 1] >> (40 - 8 * j))
                return

    cdef uint64_t map_address(self, uint8_t *at, uint32_t bytes) noexcept nogil:
        """Replaces an address; returns the increment of a checksum over it: the new words and the
        complements of the old ones (RFC 1624, 3)."""
        cdef uint8_t complement[16]
        cdef AddressRule *rule
        cdef uint32_t i, j
        for i in range(self.address_count):
            rule = &self.addresses[i]
            if rule.bytes != bytes:
                continue
            j = 0
            while j < bytes and (at[j] & rule.mask[j]) == rule.old[j]:
                j += 1
            if j < bytes:
                continue
            for j in range(bytes):
                complement[j] = ~at[j]
                at[j] = (at[j] & <uint8_t>~rule.mask[j]) | rule.new[j]
            return checksum_add(checksum_add(0, complement, bytes), at, bytes)
        return 0

    cdef void arp(self, uint8_t *header, uint32_t rest, const uint8_t *source,
                  const uint8_t *destination) noexcept nogil:
        if rest < ARP_BYTES or load_be16(header) != 1 or load_be16(header + 2) != ETHERTYPE_IPV4:
            return
        if header[4] != MAC_BYTES or header[5] != 4:
            return
        self.map_mac(header + 8)
        self.map_mac(header + 18)
        if source != NULL:
            memcpy(header + 8, source, MAC_BYTES)
        if destination != NULL and memcmp(header + 18, NO_MAC, MAC_BYTES) != 0:
            memcpy(header + 18, destination, MAC_BYTES)
        self.map_address(header + 14, 4)
        self.map_address(header + 24, 4)

    cdef void ipv4(self, uint8_t *header, uint32_t rest) noexcept nogil:
        cdef uint64_t added = 0
        cdef uint32_t header_bytes
        if self.address_count == 0 or rest < 1 or header[0] >> 4 != 4:
            return
        if rest >= 16:
            added += self.map_address(header + 12, 4)
        if rest >= IPV4_BYTES:
            added += self.map_address(header + 16, 4)
        if added == 0:
            return
        update(header + 10, added)
        header_bytes = (header[0] & 0x0F) * 4
        if (header_bytes < IPV4_BYTES or header_bytes > rest
                or load_be16(header + 6) & IPV4_FRAGMENT_OFFSET):
            return
        transport(header + header_bytes, rest - header_bytes, header[9], added)

    cdef void ipv6(self, uint8_t *header, uint32_t rest) noexcept nogil:
        cdef uint64_t of_source = 0, of_destination = 0
        cdef uint32_t at = IPV6_BYTES
        cdef uint8_t protocol
        if self.address_count == 0 or rest < 1 or header[0] >> 4 != 6:
            return
        if rest >= 24:
            of_source = self.map_address(header + 8, 16)
        if rest >= IPV6_BYTES:
            of_destination = self.map_address(header + 24, 16)
        if of_source == 0 and of_destination == 0:
            return
        protocol = header[6]
        # Each step advances by at least 8 bytes, so the frame's length bounds the loop.
        while at + 8 <= rest:
            if protocol == PROTOCOL_FRAGMENT:
                if load_be16(header + at + 2) & IPV6_FRAGMENT_OFFSET:
                    return
                protocol = header[at]
                at += 8
            elif protocol == PROTOCOL_AH:
                protocol = header[at]
                at += (header[at + 1] + 2) * 4
            elif (protocol == PROTOCOL_ROUTING or protocol == PROTOCOL_HOP_BY_HOP
                  or protocol == PROTOCOL_DESTINATION):
                # While segments are left, the pseudo-header has the final destination, which is in
                # the routing header (RFC 8200, 8.1).
                if protocol == PROTOCOL_ROUTING and header[at + 3] != 0:
                    of_destination = 0
                protocol = header[at]
                at += (header[at + 1] + 1) * 8
            else:
                break
        if at < rest:
            transport(header + at, rest - at, protocol, of_source + of_destination)


cdef void update(uint8_t *checksum, uint64_t added) noexcept nogil:
    """Checksum' = ~(~checksum + added) (RFC 1624, equation 3)."""
    cdef uint16_t value
    memcpy(&value, checksum, 2)
    value = <uint16_t>~checksum_fold(<uint64_t><uint16_t>~value + added)
    memcpy(checksum, &value, 2)


cdef void transport(uint8_t *header, uint32_t rest, uint8_t protocol,
                    uint64_t added) noexcept nogil:
    """Updates the checksum of a transport header whose pseudo-header changed, unless a capture cut
    it off."""
    cdef uint32_t at
    if added == 0:
        return
    if protocol == PROTOCOL_TCP:
        at = TCP_CHECKSUM_AT
    elif protocol == PROTOCOL_UDP:
        at = UDP_CHECKSUM_AT
    elif protocol == PROTOCOL_ICMPV6:
        at = ICMPV6_CHECKSUM_AT
    else:
        return
    if at + 2 > rest:
        return
    if protocol == PROTOCOL_UDP:
        if header[at] == 0 and header[at + 1] == 0:
            return                               # the sender computed none (RFC 768)
        update(header + at, added)
        if header[at] == 0 and header[at + 1] == 0:
            header[at] = header[at + 1] = 0xFF
        return
    update(header + at, added)
