"""L2Switch: a learning, VLAN-aware switch (IEEE 802.1Q, 8.6 to 8.8). Output i is port i. Each
engine has its own instance; all share a MacTable."""
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
    # Records prefetched ahead: one that another CPU wrote is a miss of some 100 ns, while switching
    # a packet takes some 10 ns.
    PREFETCH_AHEAD = 4
    FLOWS = 16                   # a power of two
    PLACES = 64                  # addresses with cached buckets: a power of two, 2 KiB
    # staged packets before a flush, so that copies do not drain the pool
    STAGED_MOST = 512
    # packets of one ingress port that may wait to be flooded: a burst of broadcasts
    FLOODS_MOST = 64
    # packets of all ports that may wait, but at most a quarter of the pool's large buffers
    FLOODS_OF_ALL = 256
    AGEING_SLICE = 512           # slots checked per tick: 8 KiB, about a microsecond

cdef struct SwitchPort:
    uint16_t access              # the VLAN of an access port, 0 for a trunk
    uint16_t native              # the VLAN of a trunk's untagged frames, 0 for none
    # frames pass unchanged: a trunk of all VLANs without a native one, or a port without tags
    bint plain
    bint one_vlan                # an access port, or one of VLAN 0; tagged frames are filtered
    uint64_t source              # the only permitted source address, 0 for any
    uint8_t carries[512]         # bit per VLAN; VLAN 0 is the untagged frames of plain ports

cdef struct Verdict:             # the forwarding decision for a packet
    int32_t out                  # output, or FLOOD, or -1 - drop reason
    uint16_t vlan                # the packet's VLAN
    uint16_t retag               # the tag may have to change at the output

cdef struct Flow:                # headers, and their verdict
    uint64_t words[2]            # the frame's first 16 bytes: addresses, type, perhaps a tag's VLAN
    uint16_t port
    bint refused                 # the source could not be learned
    Verdict verdict

# A batch's cache of verdicts: most bursts consist of few flows.
cdef struct Flows:
    # bit per entry; all cleared when the table changes, so that the cache never changes a result
    uint32_t valid
    Flow flow[FLOWS]
    uint64_t source_key          # the source learned last, 0 for none
    uint32_t source_port

# A cached hash: an address's buckets depend only on address and VLAN, so they never change.
cdef struct KnownPlace:
    uint64_t key                 # 0: none
    Place place

# Packets of one ingress port that are not flooded to all ports yet.
cdef struct Floods:
    # linked by Packet.next; Packet.release_ns has the VLAN and the port to continue with
    uint32_t head
    uint32_t tail
    uint32_t count

cdef class L2Switch(Element):
    cdef readonly MacTable table
    cdef SwitchPort *ports[MAX_PORTS]            # NULL: not active
    cdef uint16_t active[MAX_PORTS]              # numbers of the active ports, for flooding
    cdef uint32_t active_count
    cdef uint16_t touched[MAX_PORTS]             # outputs with staged packets: few of many
    cdef uint32_t touched_count
    cdef uint32_t staged_count
    cdef Floods *floods                          # by ingress port; NULL until a packet waits
    cdef uint16_t flooding[MAX_PORTS]            # ports with waiting packets, in round-robin order
    cdef uint32_t flooding_count
    cdef uint32_t floods_most                    # bound on waiting packets of all ports
    cdef uint64_t tick_ns                        # between two slices of ageing
    cdef KnownPlace places[PLACES]
    cpdef int set_gates(self, uint32_t count) except -1
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef void flush(self, Context *ctx) noexcept nogil
    cdef Verdict judge(self, Context *ctx, uint32_t index, Flows *flows) noexcept nogil
    cdef Verdict judge_alone(self, Context *ctx, uint32_t index) noexcept nogil
    cdef Verdict decide(self, Context *ctx, const uint8_t *data, uint32_t ingress, Flows *flows,
                        bint *refused) noexcept nogil
    cdef bint takes(self, uint32_t out, uint32_t vlan) noexcept nogil
    cdef void carry_out(self, Context *ctx, uint32_t index, Verdict verdict) noexcept nogil
    cdef void flood(self, Context *ctx, uint32_t index, Verdict verdict) noexcept nogil
    cdef void resume(self, Context *ctx) noexcept nogil
    cdef void take_up(self, Context *ctx) noexcept nogil
    cdef bint make_floods(self) noexcept nogil
    cdef void queue_flood(self, Context *ctx, uint32_t index, uint32_t ingress, uint32_t vlan,
                          uint32_t at) noexcept nogil
    cdef uint32_t first_active(self, uint32_t number) noexcept nogil
    cdef uint32_t next_taker(self, uint32_t place, uint32_t ingress, uint32_t vlan) noexcept nogil
    cdef uint32_t copy_out(self, Context *ctx, uint32_t index, uint32_t ingress, uint32_t vlan,
                           uint32_t at) noexcept nogil
    cdef void send(self, Context *ctx, uint32_t index, uint32_t out, Verdict verdict) noexcept nogil
