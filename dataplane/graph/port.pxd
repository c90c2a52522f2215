"""The Port contract: ports receive and transmit packets. A port may wrap another."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element, Source
from dataplane.graph.offload cimport LINK_HEADERS
from dataplane.packet.pool cimport GSO_NONE, Batch, Context, Packet

# Packet.tx_status: index into TX_REASONS
cdef enum:
    TX_QUEUE_FULL = 0        # the peer's queue is full
    TX_LINK_DOWN = 1
    TX_REJECTED = 2          # the kernel refused the virtio-net header or the frame (EINVAL)
    TX_IO_ERROR = 3
    TX_NO_BUFFER = 4         # no free packet for a segment or a copy
    TX_TOO_LONG = 5          # the frame, or a GSO frame's segments, exceed the port's MTU
    TX_FILTERED = 6          # the NIC's driver does not want frames for this address or VLAN

cdef enum:
    NO_MTU = 1048576         # for ports without an MTU: more than any buffer holds

cdef struct QueueStats:      # private to the engine that serves the queue
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t rx_dropped      # no buffer, or a frame that the port could not read
    uint64_t rx_unreadable   # the part of rx_dropped that the port could not read
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t tx_dropped      # left in the batch by tx_burst
    # Packets and bytes that a wire would carry in addition: a GSO frame's segments after the first,
    # with their repeated headers; the bytes that a capture cut off. Ports between engines (ring,
    # loopback) leave them 0.
    uint64_t rx_more_packets
    uint64_t rx_more_bytes
    uint64_t tx_more_packets
    uint64_t tx_more_bytes

cdef inline void count_segments(const Packet *p, uint64_t *more_packets,
                                uint64_t *more_bytes) noexcept nogil:
    """Counts the segments of a valid GSO frame, without the first; no others."""
    cdef uint32_t more
    if p.gso_type != GSO_NONE and p.gso_size and p.length > p.header_length:
        more = (p.length - p.header_length - 1) // p.gso_size
        more_packets[0] += more
        more_bytes[0] += <uint64_t>more * p.header_length

cdef class Port:
    cdef readonly str name
    # Packet.port of its packets; unique in a graph, below 65535
    cdef readonly uint32_t number
    cdef readonly uint32_t queues        # queue pairs
    cdef readonly uint32_t offloads      # OFFLOAD_*
    cdef readonly uint32_t mtu           # of packets that it transmits; NO_MTU: any
    cdef readonly bint needs_arm         # call arm and disarm before and after every sleep
    # its descriptors are doorbells, signalled only while the consumer sleeps: poll it in every
    # iteration
    cdef readonly bint wakes_only
    # packets come at given times, not by a descriptor; next_ns is the next one's
    cdef readonly bint scheduled
    # wake this much before next_ns and poll until then, since sleeps end late
    cdef readonly uint64_t lead_ns
    cdef uint64_t next_ns                # time of the next packet; NEVER: unknown
    cdef QueueStats *stats               # one per queue pair
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil

cdef inline bint fits_mtu(const Packet *p, uint32_t mtu) noexcept nogil:
    """Whether a NIC of that MTU would receive the frame or its segments, live or in virtual
    time."""
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
