"""Classifier: sends each packet to the output of the first rule that it matches."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport PACKET_IPV4, PACKET_IPV6, PACKET_L4, Batch, Context, Packet
from dataplane.wire.headers cimport VLAN_ID_MASK
from dataplane.graph.work cimport Work

cdef enum:
    # Bits of the key's flags besides the record's PACKET_IPV4, PACKET_IPV6 and PACKET_L4.
    KEY_IP = 0x01                        # IPv4 or IPv6

cdef struct Match:  # a compiled rule: masks and ranges of absent conditions match everything
    uint64_t key_mask                    # over packet_key
    uint64_t key_value
    uint16_t source_port_low
    uint16_t source_port_span  # high - low: one subtraction and one comparison test both ends
    uint16_t destination_port_low
    uint16_t destination_port_span
    uint64_t source_mask[2]              # over the record's addresses, as they are in memory
    uint64_t source_value[2]
    uint64_t destination_mask[2]
    uint64_t destination_value[2]
    uint64_t mac_mask                    # over the source MAC address, see source_mac
    uint64_t mac_value
    uint64_t hits
    uint32_t mark_mask                   # bits of Packet.mark to keep
    uint32_t mark_value
    uint32_t gate

cdef inline uint64_t packet_key(const Packet *p) noexcept nogil:
    """The fields that rules compare with masks, in one word: flags (16 bits), protocol (8), DSCP
    (8), VLAN id (16), ingress port (16)."""
    cdef uint64_t flags = p.flags & (PACKET_IPV4 | PACKET_IPV6 | PACKET_L4)
    cdef uint64_t vlan = p.vlan_tci & VLAN_ID_MASK if p.vlan_count else 0
    if p.flags & (PACKET_IPV4 | PACKET_IPV6):
        flags |= KEY_IP
    return (flags << 48 | <uint64_t>p.ip_protocol << 40 | <uint64_t>(p.tos >> 2) << 32
            | vlan << 16 | p.port)

cdef inline uint64_t source_mac(const uint8_t *frame) noexcept nogil:
    """The source MAC address, as it is in memory."""
    cdef uint64_t mac = 0
    memcpy(&mac, frame + 6, 6)
    return mac

cdef class RuleTable:
    # Rules as configured, and compiled. Only the hits change; a classifier's table is replaced
    # whole.
    cdef readonly list settings          # the rules as the configuration gives them, copied
    cdef readonly list rules             # the same as classifier_rules.Rule
    cdef readonly uint32_t gates         # number of outputs that the rules and the default need
    cdef uint32_t default_gate
    cdef Match *matches                  # one per rule
    cdef uint32_t match_count
    cdef bint has_macs                   # whether a rule has a MAC address

cdef class Classifier(Element):
    # Fields of `table` for the packets' path: private to the engine's thread.
    cdef Match *matches
    cdef uint32_t match_count
    cdef uint32_t default_gate
    cdef bint has_macs
    cdef PyObject *table  # shared: the RuleTable, an owned reference, written by `install` only
    cdef readonly object default         # as configured
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t classify(self, Context *ctx, uint32_t index) noexcept nogil
    cdef PyObject *install(self, PyObject *table) noexcept nogil
    cdef RuleTable current(self)

cdef class SetRules(Work):
    # Posts another table to the engine's mailbox: needs no GIL there.
    cdef Classifier classifier
    # an owned reference: to the new table before `run`, to the old one after it
    cdef PyObject *table
    cdef void run(self, Context *ctx) noexcept nogil
