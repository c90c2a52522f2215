"""Packets: the pool in shared memory, the packet record, and the batch.

A packet is a 32-bit index into a `PacketPool`. Indices below `small_count` have a 2 KiB buffer, the
others a 68 KiB one (a GSO frame of 64 KiB stays one packet). The record of a packet is the C struct
`Packet` below and the numpy dtype `dataplane.packet.pool.PACKET_DTYPE`, which is checked against
the struct when it is made.

Several threads and processes may use one pool at the same time: they share only the two stacks of
free packets, whose tops change by compare-and-exchange. A process that is killed damages neither
stack; the packets that it held and cached are lost until
`PacketPool.from_descriptor(fd, reset=True)`.

The element that holds an index owns the packet. There is no reference count: a packet that goes to
two places is copied.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.vatomic cimport vnic_check

cdef enum:
    BATCH_MAX = 256          # packets that a Batch can hold
    BURST = 32               # packets to ask a port for at once
    NO_PACKET = 0xFFFFFFFF   # not an index: pool exhausted, or end of a list
    # bytes before a received frame, for virtio-net header, pushed VLAN tags, overlays
    HEADROOM = 128
    SMALL_BYTES = 2048       # stride of a small buffer, headroom included
    # stride of a large buffer: 128 + 65,535 + Ethernet and VLAN headers, rounded up to pages
    LARGE_BYTES = 69632
    SMALL_FRAME = 1920       # SMALL_BYTES - HEADROOM: the longest frame of a small buffer
    LARGE_FRAME = 69504      # LARGE_BYTES - HEADROOM
    # free indices that a Context caches, so that most allocations access no shared cache line
    SMALL_CACHE = 128
    LARGE_CACHE = 16

# Packet.flags
cdef enum:
    PACKET_PARSED = 0x01     # Parse has filled the second cache line
    PACKET_IPV4 = 0x02
    PACKET_IPV6 = 0x04
    PACKET_L4 = 0x08         # both ports are valid (TCP, UDP, SCTP; not a later fragment)
    PACKET_FRAGMENT = 0x10   # IPv4/IPv6 fragment, first or later
    PACKET_TRUNCATED = 0x20  # a capture has fewer bytes than there were on the wire
    PACKET_MALFORMED = 0x40  # a malformed IP or transport header; the record has what precedes it
    PACKET_IN_USE = 0x8000   # set while allocated; the debug build aborts on a double free

# struct virtio_net_hdr (virtio 1.2, 5.1.6), field values
cdef enum:
    # flags: the checksum from csum_start to the end is to be stored at csum_start + csum_offset
    VNET_NEEDS_CSUM = 1
    VNET_DATA_VALID = 2      # flags: checksums were verified
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_UDP = 3              # UFO: never negotiated here
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5           # USO
    GSO_ECN = 0x80           # bit: TCP with ECN (CWR set)

cdef struct Packet:
    # First cache line: where the frame is, where it came from, its offloads.
    uint64_t timestamp_ns    # when rx_burst received it (engine's clock)
    uint64_t release_ns      # when a shaper releases it
    uint32_t length          # bytes of the frame with Ethernet header, without FCS
    uint32_t next            # link in a free list, or in the queue of the element that holds it
    uint32_t mark            # class, set by a classifier
    uint32_t hash            # RSS (Toeplitz) hash, 0 until computed
    uint16_t offset          # of the frame in its buffer
    uint16_t port            # ingress port number
    uint16_t queue           # ingress queue of that port
    uint16_t flags           # PACKET_*
    # The virtio-net header, host byte order.
    uint8_t vnet_flags       # VNET_*
    uint8_t gso_type         # GSO_*
    uint16_t header_length   # bytes of all headers, which every segment repeats; 0 unless GSO
    uint16_t gso_size        # payload bytes of a segment
    uint16_t csum_start
    uint16_t csum_offset
    uint16_t tx_status       # why a port did not transmit it: index into TX_REASONS
    uint32_t original_length # bytes on the wire, with PACKET_TRUNCATED
    # bytes at the end of the buffer with pcapng options of the packet's capture; usually 0
    uint16_t trailer_bytes
    uint16_t reserved0
    uint32_t held_word       # for the element that holds the packet, as held_ns
    # Second cache line: results of Parse.
    uint16_t l3_offset       # of the network header, from the frame's start
    uint16_t l4_offset       # of the transport header; 0 where there is none
    uint16_t payload_offset  # after the transport header
    uint16_t ethertype       # after all VLAN tags, host byte order
    uint16_t vlan_tci        # outer tag, host byte order; valid where vlan_count > 0
    uint16_t vlan_inner_tci  # second tag; valid where vlan_count > 1
    uint8_t vlan_count       # tags skipped: 0, 1 or 2
    uint8_t ip_protocol      # after IPv6 extension headers
    uint8_t tos              # IPv4 TOS / IPv6 traffic class: DSCP << 2 | ECN
    uint8_t ttl
    uint16_t source_port     # host byte order
    uint16_t destination_port
    uint32_t reserved2
    uint8_t source_address[16]       # network byte order; IPv4 in the first 4 bytes, the rest 0
    uint8_t destination_address[16]
    uint64_t held_ns

cdef struct Batch:
    uint32_t count
    uint32_t index[BATCH_MAX]

cdef struct PoolHeader:          # at the start of the segment; one cache line per writer
    uint64_t magic
    uint32_t version
    uint32_t small_count
    uint32_t large_count
    uint32_t record_bytes
    uint8_t pad0[40]
    uint64_t small_free          # Treiber stack: change tag << 32 | index of the top
    uint8_t pad1[56]
    uint64_t large_free
    uint8_t pad2[56]

ctypedef void (*drop_hook)(void *who, Context *ctx, void *element, uint32_t index,
                           uint32_t reason) noexcept nogil

cdef struct Context:
    # The state that elements use while they run; private to one engine's thread.
    uint64_t now_ns              # read once per batch
    Packet *packets              # records, by index
    uint8_t *small_base
    uint8_t *large_base
    PoolHeader *pool
    uint32_t small_count
    uint32_t total_count         # small and large
    uint32_t small_cached
    uint32_t large_cached
    uint32_t small_cache[SMALL_CACHE]
    uint32_t large_cache[LARGE_CACHE]
    # called for every packet that an element drops, before it is freed; NULL: none
    drop_hook on_drop
    void *on_drop_who
    # packets that a source asks a port for: BURST, or 1 in the first iteration after a sleep
    uint32_t burst
    void *timers                 # of the engine: struct Timers of timers.pxd; NULL: none
    uint32_t backlog             # set by a source when a queue delivered a full burst
    void *links                  # the first Link that holds packets, see link.pxd; NULL: none
    void *last_link
    void *unfinished             # the first Element with postponed work, see Element.postpone
    void *last_unfinished
    uint64_t flood_budget        # bytes for copies of flooded packets, see flood_credit.pxd

cdef class PacketPool:
    cdef readonly int fd                 # the memfd
    cdef readonly uint32_t small_count
    cdef readonly uint32_t large_count
    cdef object _records                 # numpy array of PACKET_DTYPE over the segment, or None
    cdef object _map
    cdef uint8_t *_base
    cdef int map_existing(self, descriptor) except -1
    cdef int take_views(self) except -1
    cdef void free_all(self) noexcept nogil
    cdef void attach(self, Context *ctx) noexcept nogil

cdef inline uint8_t *packet_buffer(const Context *ctx, uint32_t index) noexcept nogil:
    """Start of the packet's buffer; the frame begins `offset` bytes after it."""
    vnic_check(index < ctx.total_count, "packet index within the pool")
    if index < ctx.small_count:
        return ctx.small_base + <size_t>index * SMALL_BYTES
    return ctx.large_base + <size_t>(index - ctx.small_count) * LARGE_BYTES

cdef inline uint8_t *packet_data(const Context *ctx, uint32_t index) noexcept nogil:
    """First byte of the frame."""
    return packet_buffer(ctx, index) + ctx.packets[index].offset

cdef inline uint32_t packet_capacity(const Context *ctx, uint32_t index) noexcept nogil:
    """Bytes of the packet's buffer, headroom included."""
    return SMALL_BYTES if index < ctx.small_count else LARGE_BYTES

cdef inline uint64_t packet_memory(uint64_t small, uint64_t large) noexcept nogil:
    """Bytes of the pool that these numbers of packets take: buffers and records, whatever the
    frames' lengths."""
    return small * (SMALL_BYTES + sizeof(Packet)) + large * (LARGE_BYTES + sizeof(Packet))

cdef inline void batch_add(Batch *batch, uint32_t index) noexcept nogil:
    vnic_check(batch.count < BATCH_MAX, "room in the batch")
    batch.index[batch.count] = index
    batch.count += 1

cdef uint32_t packet_refill(Context *ctx, bint large) noexcept nogil
cdef void packet_spill(Context *ctx, bint large) noexcept nogil

cdef inline uint32_t packet_alloc(Context *ctx, uint32_t frame_bytes) noexcept nogil:
    """Allocates a packet whose buffer holds `frame_bytes` after the headroom; NO_PACKET: none is
    free. Resets the record, not the frame."""
    cdef uint32_t index
    cdef Packet *p
    if frame_bytes <= SMALL_FRAME:
        if ctx.small_cached == 0 and packet_refill(ctx, False) == 0:
            return NO_PACKET
        ctx.small_cached -= 1
        index = ctx.small_cache[ctx.small_cached]
    elif frame_bytes <= LARGE_FRAME:
        if ctx.large_cached == 0 and packet_refill(ctx, True) == 0:
            return NO_PACKET
        ctx.large_cached -= 1
        index = ctx.large_cache[ctx.large_cached]
    else:
        return NO_PACKET
    p = &ctx.packets[index]
    p.length = frame_bytes
    p.next = NO_PACKET
    p.mark = 0
    p.hash = 0
    p.offset = HEADROOM
    p.flags = PACKET_IN_USE
    p.vnet_flags = 0
    p.gso_type = GSO_NONE
    p.header_length = 0
    p.gso_size = 0
    p.csum_start = 0
    p.csum_offset = 0
    p.trailer_bytes = 0
    return index

cdef inline void packet_free(Context *ctx, uint32_t index) noexcept nogil:
    """Frees a packet that the caller holds."""
    vnic_check(index < ctx.total_count, "packet index within the pool")
    vnic_check(ctx.packets[index].flags & PACKET_IN_USE, "packet is allocated (double free?)")
    ctx.packets[index].flags = 0
    if index < ctx.small_count:
        if ctx.small_cached == SMALL_CACHE:
            packet_spill(ctx, False)
        ctx.small_cache[ctx.small_cached] = index
        ctx.small_cached += 1
    else:
        if ctx.large_cached == LARGE_CACHE:
            packet_spill(ctx, True)
        ctx.large_cache[ctx.large_cached] = index
        ctx.large_cached += 1

cdef void packet_return_cache(Context *ctx) noexcept nogil
cdef uint32_t packet_copy(Context *ctx, uint32_t index) noexcept nogil

cdef inline uint32_t packet_wire_bytes(const Packet *p) noexcept nogil:
    """Layer-2 bytes (no preamble, no FCS) of the packet on a wire, where every GSO segment repeats
    the headers."""
    cdef uint32_t payload
    if p.flags & PACKET_TRUNCATED:           # a capture has fewer bytes than there were on the wire
        return p.original_length
    if p.gso_type == GSO_NONE or p.gso_size == 0 or p.length <= p.header_length:
        return p.length
    payload = p.length - p.header_length
    return p.length + ((payload + p.gso_size - 1) // p.gso_size - 1) * p.header_length
