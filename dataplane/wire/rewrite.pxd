"""Rewrite: replaces addresses and tags of a frame in place, and updates its checksums incrementally
(RFC 1624)."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    VLAN_KEEP = 0
    VLAN_REMOVE = 1              # the outermost tag, where there is one
    VLAN_SET = 2                 # the outermost tag's number; a tag is added where there is none
    VLAN_ADD = 3                 # a further tag, outside

cdef struct AddressRule:
    uint32_t bytes               # 4 or 16
    uint8_t old[16]
    uint8_t new[16]
    uint8_t mask[16]             # bits that are compared and replaced

cdef class Rewrite:
    cdef readonly int vlan_mode
    cdef uint16_t vlan_id
    cdef uint16_t *vlan_map              # by number; NULL: no tag is mapped
    cdef uint64_t *macs                  # pairs old, new
    cdef uint32_t mac_count
    cdef AddressRule *addresses
    cdef uint32_t address_count
    cdef int32_t frame(self, uint8_t *data, uint32_t length, const uint8_t *source,
                       const uint8_t *destination) noexcept nogil
    cdef int32_t tag(self, uint8_t *data, uint32_t length) noexcept nogil
    cdef void map_mac(self, uint8_t *at) noexcept nogil
    cdef uint64_t map_address(self, uint8_t *at, uint32_t bytes) noexcept nogil
    cdef void arp(self, uint8_t *header, uint32_t rest, const uint8_t *source,
                  const uint8_t *destination) noexcept nogil
    cdef void ipv4(self, uint8_t *header, uint32_t rest) noexcept nogil
    cdef void ipv6(self, uint8_t *header, uint32_t rest) noexcept nogil
