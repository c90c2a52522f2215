"""L2Switch: a learning, VLAN-aware switch (IEEE 802.1Q, 8.6 to 8.8); gate i leads to port i. Engines have an instance each and share a
MacTable."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.graph.element cimport Element
from switching.mac_table cimport MAX_PORTS, MacTable, Place
from dataplane.packet.pool cimport Batch, Context

cdef extern from *:
    """
    #define vnic_prefetch(address) __builtin_prefetch(address)
    """
    void vnic_prefetch(const void *address) nogil

cdef enum:
    # Packets ahead whose records are fetched: one that another CPU wrote is a miss of some 100 ns, a packet's work is some 10.
    PREFETCH_AHEAD = 4
    FLOWS = 16                   # a power of two
    PLACES = 64                  # addresses whose places are kept: a power of two, 2 KiB
    STAGED_MOST = 512            # packets put aside before they are let go: copies must not pile up while the pool runs dry
    # Packets of an ingress port that may wait to be flooded: a burst of broadcasts
    FLOODS_MOST = 64
    # of all ports together, if that is less than a quarter of the pool's large buffers
    FLOODS_OF_ALL = 256
    AGEING_SLICE = 512           # slots that one tick looks at: 8 KiB, about a microsecond

cdef struct SwitchPort:
    uint16_t access              # the VLAN of an access port, 0 for a trunk
    uint16_t native              # the VLAN of a trunk's untagged frames, 0 for none
    bint plain                   # frames pass as they are: a trunk of all VLANs without a native one, or a port without tags
    bint one_vlan                # of the port's whole: an access port, or one of VLAN 0. Its frames may not bring a tag along
    uint64_t source              # the only address that its frames may come from, 0 for any
    uint8_t carries[512]         # bit per VLAN; VLAN 0 is the untagged frames of plain ports

cdef struct Verdict:             # what is to be done with a packet
    int32_t out                  # gate, or FLOOD, or -1 - drop reason
    uint16_t vlan                # that it belongs to
    uint16_t retag               # whether its tag may have to change on the way out

cdef struct Flow:                # headers, and the verdict on them
    uint64_t words[2]            # the first 16 bytes: addresses, type, and a tag's VLAN where the type is a tag's
    uint16_t port
    bint refused                 # the source could not be learned
    Verdict verdict

cdef struct Flows:               # of this batch: most bursts are of a few flows, and what was found for one packet holds for the next
    uint32_t valid               # bit per entry; all cleared when the table changes, so that the outcome is as without
    Flow flow[FLOWS]
    uint64_t source_key          # the source learned last, 0 for none
    uint32_t source_port

cdef struct KnownPlace:          # where the table may have an address: it depends on address and VLAN alone, so it never changes
    uint64_t key                 # 0: none
    Place place

cdef struct Floods:              # of one ingress port: packets that are still to be sent to some ports
    uint32_t head                # by Packet.next; each has the port to go on with, and its VLAN, in Packet.release_ns
    uint32_t tail
    uint32_t count

cdef class L2Switch(Element):
    cdef readonly MacTable table
    cdef SwitchPort *ports[MAX_PORTS]            # NULL: not active
    cdef uint16_t active[MAX_PORTS]              # numbers of the active ports, for flooding
    cdef uint32_t active_count
    cdef uint16_t touched[MAX_PORTS]             # gates with staged packets: a burst touches few of many
    cdef uint32_t touched_count
    cdef uint32_t staged_count
    cdef Floods *floods                          # by ingress port; NULL until one waits
    cdef uint16_t flooding[MAX_PORTS]            # ports with packets that wait, in the order of their turns
    cdef uint32_t flooding_count
    cdef uint32_t floods_most                    # packets that may wait in all
    cdef uint64_t tick_ns                        # between two slices of ageing
    cdef KnownPlace places[PLACES]
    cpdef int set_gates(self, uint32_t count) except -1
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef void flush(self, Context *ctx) noexcept nogil
    cdef Verdict judge(self, Context *ctx, uint32_t index, Flows *flows) noexcept nogil
    cdef Verdict judge_alone(self, Context *ctx, uint32_t index) noexcept nogil
    cdef Verdict decide(self, Context *ctx, const uint8_t *data, uint32_t ingress, Flows *flows, bint *refused) noexcept nogil
    cdef bint takes(self, uint32_t out, uint32_t vlan) noexcept nogil
    cdef void carry_out(self, Context *ctx, uint32_t index, Verdict verdict) noexcept nogil
    cdef void flood(self, Context *ctx, uint32_t index, Verdict verdict) noexcept nogil
    cdef void resume(self, Context *ctx) noexcept nogil
    cdef void take_up(self, Context *ctx) noexcept nogil
    cdef bint make_floods(self) noexcept nogil
    cdef void await_turn(self, Context *ctx, uint32_t index, uint32_t ingress, uint32_t vlan, uint32_t at) noexcept nogil
    cdef uint32_t first_active(self, uint32_t number) noexcept nogil
    cdef uint32_t next_taker(self, uint32_t place, uint32_t ingress, uint32_t vlan) noexcept nogil
    cdef uint32_t copy_out(self, Context *ctx, uint32_t index, uint32_t ingress, uint32_t vlan, uint32_t at) noexcept nogil
    cdef void send(self, Context *ctx, uint32_t index, uint32_t out, Verdict verdict) noexcept nogil
