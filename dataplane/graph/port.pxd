"""The Port contract: ports receive and transmit packets. A port may wrap another."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element, Source
from dataplane.graph.offload cimport LINK_HEADERS
from dataplane.packet.pool cimport GSO_NONE, Batch, Context, Packet

# Packet.tx_status: index into TX_REASONS
cdef enum:
    TX_QUEUE_FULL = 0        # the other side accepts no more now
    TX_LINK_DOWN = 1
    TX_REJECTED = 2          # the kernel found the virtio-net header or the frame wrong (EINVAL)
    TX_IO_ERROR = 3
    TX_NO_BUFFER = 4         # no packet for a segment or a copy
    TX_TOO_LONG = 5          # longer than the port's MTU allows, or a GSO frame whose segments are

cdef enum:
    NO_MTU = 1048576         # of a port without an MTU: more than any buffer holds

cdef struct QueueStats:      # private to the engine that serves the queue
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t rx_dropped      # no buffer, or a frame that the port could not read
    uint64_t rx_unreadable   # of them, those that could not be read
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t tx_dropped      # left in the batch by tx_burst
    # What the segments of GSO frames are more on a wire: all but the first of each, and the headers
    # that they repeat; of a packet that a capture cut, what was left out. Ports between engines
    # (ring, loopback) leave them 0.
    uint64_t rx_more_packets
    uint64_t rx_more_bytes
    uint64_t tx_more_packets
    uint64_t tx_more_bytes

cdef inline void count_segments(const Packet *p, uint64_t *more_packets, uint64_t *more_bytes) noexcept nogil:
    """Of a GSO frame that Parse found sound: counts its segments but the first. Others add
    nothing."""
    cdef uint32_t more
    if p.gso_type != GSO_NONE and p.gso_size and p.length > p.header_length:
        more = (p.length - p.header_length - 1) // p.gso_size
        more_packets[0] += more
        more_bytes[0] += <uint64_t>more * p.header_length

cdef class Port:
    cdef readonly str name
    cdef readonly uint32_t number  # Packet.port of what it receives; unique in a graph, below 65535
    cdef readonly uint32_t queues        # queue pairs
    cdef readonly uint32_t offloads      # OFFLOAD_*
    cdef readonly uint32_t mtu           # of packets that it transmits; NO_MTU: any
    cdef readonly bint needs_arm         # arm and disarm are needed before and after every sleep
    # descriptors are doorbells, not rung while the consumer is awake: poll it whatever ppoll
    # reports
    cdef readonly bint wakes_only
    # next_ns has the time of the next packet: for a port whose packets come by the clock, not by a
    # descriptor
    cdef readonly bint scheduled
    # wake this much earlier and poll until then: a sleep ends later than a packet may be
    cdef readonly uint64_t lead_ns
    cdef uint64_t next_ns                # when it will have the next packet; NEVER: unknown
    cdef QueueStats *stats               # one per queue pair
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch, uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil

cdef inline bint fits_mtu(const Packet *p, uint32_t mtu) noexcept nogil:
    """Whether a NIC of that MTU would receive the frame, or the segments of it: the one rule, live and in virtual time."""
    cdef uint32_t most = mtu + LINK_HEADERS
    if p.gso_type != GSO_NONE:
        return <uint32_t>p.header_length + p.gso_size <= most
    return p.length <= most

cdef class PortRx(Source):
    cdef readonly Port port
    cdef uint64_t ready                  # bit q: queue q may have packets
    cdef uint32_t poll(self, Context *ctx) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil

cdef class PortTx(Element):
    cdef readonly Port port
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

    @cython.final
    cdef void send(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil

    @cython.final
    cdef void transmit(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
