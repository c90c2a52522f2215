"""Software offloads: checksums and segmentation.

For ports that lack the feature, and for shapers that need smaller frames. Both need parsed packets:
Parse has filled the offsets and validated the virtio-net fields against the headers.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from dataplane.packet.pool cimport Batch, Context, Packet

# Offloads of a port, by virtio feature name (virtio 1.2, 5.1.3). PortTx performs missing ones in
# software.
cdef enum:
    OFFLOAD_CSUM = 0x01      # completes partial checksums
    OFFLOAD_TSO4 = 0x02
    OFFLOAD_TSO6 = 0x04
    OFFLOAD_USO = 0x08       # UDP segmentation, both address families
    OFFLOAD_ECN = 0x10       # TSO of segments with CWR set
    OFFLOAD_ALL = 0x1F

cdef enum:
    LINK_HEADERS = 22        # Ethernet header and two VLAN tags, which the MTU does not count

# A position in a batch: one packet may become more segments than a batch holds.
cdef struct Cursor:
    uint32_t packet          # index in the batch
    uint32_t payload         # payload bytes of that packet that are segmented already

# Moves packets from `batch`, beginning at the cursor, to `ready`, with all offloads completed that
# a port with `offloads` lacks, until the batch is finished (cursor.packet == batch.count) or
# `ready` is full. A frame of n segments adds n - 1 to *generated; a segment without a buffer, or a
# frame that cannot be segmented, adds 1 to *lost.
cdef void complete_offloads(Context *ctx, const Batch *batch, Cursor *cursor, Batch *ready,
                            uint32_t offloads,
                            uint64_t *generated, uint64_t *lost) noexcept nogil

# Stores the checksum that VNET_NEEDS_CSUM asks for and clears the flag; False where csum_start and
# csum_offset lie outside the frame.
cdef bint complete_checksum(Context *ctx, uint32_t index) noexcept nogil

# Cuts a GSO frame into frames of `segments_each` segments (1: plain frames with a partial checksum;
# more: smaller GSO frames). Starts at payload byte *done, appends to `out` until it has `most` or
# the frame is finished, and advances *done. The caller keeps the frame; its payload has length -
# header_length bytes. Returns how many segments (frames of `out`) are lost for want of a buffer.
cdef uint32_t segment(Context *ctx, uint32_t index, uint32_t segments_each, uint32_t *done,
                      Batch *out,
                      uint32_t most=*) noexcept nogil

# True if `segment` can cut the packet: a valid GSO frame that Parse has seen and no element has
# changed since.
cdef bint can_segment(const Packet *p) noexcept nogil

# Restores the GSO metadata of a captured TCP frame longer than `mtu`: a host of that MTU leaves its
# segmentation to the NIC, and captures show such a frame before segmentation (or after GRO).
# Returns False, with nothing changed, for other frames, and for all if mtu is 0. Called before
# Parse, which validates the result as it does a guest's.
cdef bint restore_gso(uint8_t *data, Packet *p, uint32_t mtu) noexcept nogil
