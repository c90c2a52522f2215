"""L2Switch: a learning, VLAN-aware switch; gate i leads to port i. Engines have an instance each and share a MacTable."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.element cimport Element
from dataplane.elements.mac_table cimport MAX_PORTS, MacTable
from dataplane.packet cimport Batch, Context, Packet

cdef enum:
    NO_VLAN = 0xFFFF             # not on this port
    AGEING_SLICE = 4096          # slots that one tick looks at: some microseconds

cdef struct SwitchPort:
    uint16_t access              # the VLAN of an access port, 0 for a trunk
    uint16_t native              # the VLAN of a trunk's untagged frames, 0 for none
    uint8_t all_vlans            # a trunk of every VLAN, untagged frames being "VLAN 0"
    uint8_t allowed[512]         # bit per VLAN, where not all

cdef class L2Switch(Element):
    cdef readonly MacTable table
    cdef SwitchPort *ports[MAX_PORTS]            # NULL: not active
    cdef uint32_t active[MAX_PORTS]              # numbers of the active ports, for flooding
    cdef uint32_t active_count
    cdef uint32_t ageing_cursor
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef int ingress_vlan(self, Context *ctx, uint32_t index, const SwitchPort *port) noexcept nogil
    cdef void flood(self, Context *ctx, uint32_t index, uint32_t vlan) noexcept nogil
    cdef void send(self, Context *ctx, uint32_t index, uint32_t out, uint32_t vlan) noexcept nogil
    cdef void note(self, Context *ctx, int learned) noexcept nogil
