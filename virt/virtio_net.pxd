"""virtio-net: feature bits and the header before each frame (virtio 1.2, 5.1.3 and 5.1.6)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from dataplane.graph.offload cimport (OFFLOAD_CSUM, OFFLOAD_ECN, OFFLOAD_TSO4, OFFLOAD_TSO6,
                                      OFFLOAD_USO)
from dataplane.packet.pool cimport (VNET_DATA_VALID, VNET_NEEDS_CSUM, Context, Packet)
from dataplane.vatomic cimport va_copied
from dataplane.wire.vnet_header cimport VnetHeader, receive
from virt.guest_hash cimport report_of

# Feature bits, by number.
cdef enum:
    NET_CSUM = 0             # the device completes partial checksums
    NET_GUEST_CSUM = 1       # the driver does
    NET_GUEST_TSO4 = 7
    NET_GUEST_TSO6 = 8
    NET_GUEST_ECN = 9
    NET_HOST_TSO4 = 11
    NET_HOST_TSO6 = 12
    NET_HOST_ECN = 13
    NET_MRG_RXBUF = 15       # a frame may take several receive buffers
    RING_INDIRECT = 28
    RING_EVENT_IDX = 29
    VIRTIO_VERSION_1 = 32
    RING_PACKED = 34
    RING_IN_ORDER = 35
    NET_GUEST_USO4 = 54
    NET_GUEST_USO6 = 55
    NET_HOST_USO = 56
    NET_HASH_REPORT = 57     # the header has the hash of a received frame

cdef enum:
    NET_HEADER_MOST = 20     # bytes: u16 buffers and, with HASH_REPORT, u32 hash, u16 kind, u16 0

cdef inline bint has(uint64_t features, uint32_t bit) noexcept nogil:
    return features >> bit & 1


cdef inline uint32_t header_bytes(uint64_t features) noexcept nogil:
    """Bytes of the header with these features: the legacy device's lacks the number of buffers."""
    if has(features, NET_HASH_REPORT):
        return 20
    return 12 if has(features, VIRTIO_VERSION_1) or has(features, NET_MRG_RXBUF) else 10


cdef inline uint32_t guest_offloads(uint64_t features) noexcept nogil:
    """What the driver takes instead of whole checksums and segments, as a Port's offloads."""
    cdef uint32_t offloads = 0
    # every other one needs it (5.1.3.1)
    if not has(features, NET_GUEST_CSUM):
        return 0
    offloads |= OFFLOAD_CSUM
    if has(features, NET_GUEST_TSO4):
        offloads |= OFFLOAD_TSO4
    if has(features, NET_GUEST_TSO6):
        offloads |= OFFLOAD_TSO6
    if has(features, NET_GUEST_ECN):
        offloads |= OFFLOAD_ECN
    # USO of a packet is of either family
    if has(features, NET_GUEST_USO4) and has(features, NET_GUEST_USO6):
        offloads |= OFFLOAD_USO
    return offloads


cdef inline void take_header(Context *ctx, uint32_t index, const uint8_t *header, uint32_t number,
                             uint32_t queue) noexcept nogil:
    """Fills the record of a frame that a driver transmitted; may be called on the driver's own
    memory, of which each byte is read once. Parse checks the fields. A driver sets no flag but
    NEEDS_CSUM, and the device must not act on others."""
    cdef VnetHeader fields
    cdef uint64_t first
    cdef uint16_t last
    # Two loads, and the fields out of registers: through a struct in memory, loads span what was
    # stored apart, for which a CPU waits. That took 5 ns a frame.
    memcpy(&first, header, 8)
    memcpy(&last, header + 8, 2)
    va_copied()
    fields.flags, fields.gso_type = <uint8_t>first & VNET_NEEDS_CSUM, <uint8_t>(first >> 8)
    fields.header_length, fields.gso_size = <uint16_t>(first >> 16), <uint16_t>(first >> 32)
    fields.csum_start, fields.csum_offset = <uint16_t>(first >> 48), last
    receive(ctx, index, &fields, number, queue)


cdef inline void make_header(uint8_t *header, uint32_t size, const Packet *p,
                             uint32_t offloads, uint16_t buffers,
                             uint32_t hash_types) noexcept nogil:
    """Writes the `size` bytes of header of a frame for a driver's receive buffers. The number of
    buffers is 1 without MRG_RXBUF, too (5.1.6.4.1). hash_types: of frames whose hash is in
    Packet.hash; 0: of none."""
    cdef uint32_t[2] report    # the hash; its type, and padding
    # without GUEST_CSUM the flags are 0; PortTx has completed the checksum
    cdef uint64_t flags = (p.vnet_flags & (VNET_NEEDS_CSUM | VNET_DATA_VALID)
                           if offloads & OFFLOAD_CSUM else 0)
    # in registers, as in take_header: 4 ns a frame
    cdef uint64_t first = (flags | <uint64_t>p.gso_type << 8 | <uint64_t>p.header_length << 16
                           | <uint64_t>p.gso_size << 32 | <uint64_t>p.csum_start << 48)
    cdef uint32_t second = p.csum_offset | <uint32_t>buffers << 16
    memcpy(header, &first, 8)
    memcpy(header + 8, &second, 2 if size == 10 else 4)
    if size == NET_HEADER_MOST:
        report[1] = report_of(p, hash_types) if hash_types else 0
        report[0] = p.hash if report[1] else 0
        memcpy(header + 12, report, 8)
