"""Offloads in software: checksums and segmentation, for ports that lack the feature and for shapers that need smaller frames.

Both work on parsed packets (`Parse` has filled the offsets and validated the virtio-net fields against the headers).
"""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet cimport Batch, Context, Packet

cdef struct Cursor:          # where a pass over a batch stands, since one packet may become more segments than a batch holds
    uint32_t packet          # position in the batch
    uint32_t payload         # bytes of that packet's payload already cut into segments

# Moves packets from `batch` (from the cursor on) to `ready`, in a form that a port with `offloads` takes, until the batch is done
# (cursor.packet == batch.count) or `ready` is full. n segments of one frame add n - 1 to *generated; a segment for which there is no
# buffer, and a frame that cannot be segmented, add 1 to *lost.
cdef void complete_offloads(Context *ctx, const Batch *batch, Cursor *cursor, Batch *ready, uint32_t offloads,
                            uint64_t *generated, uint64_t *lost) noexcept nogil

# Stores the checksum that VNET_NEEDS_CSUM asks for and clears the flag; False where csum_start/csum_offset lie outside the frame.
cdef bint complete_checksum(Context *ctx, uint32_t index) noexcept nogil

# Cuts a GSO frame into frames of `segments_each` segments (1: plain frames that still need their checksum; more: smaller GSO frames),
# starting at payload byte *done, appending to `out` until it has `most` or the frame is used up; *done says how far it came. The frame
# itself stays the caller's, its payload has length - header_length bytes. Returns how many segments (frames of `out`) had no
# buffer and are lost.
cdef uint32_t segment(Context *ctx, uint32_t index, uint32_t segments_each, uint32_t *done, Batch *out,
                      uint32_t most=*) noexcept nogil

# Whether `segment` can cut the packet: a GSO frame that Parse found sound, and nobody spoilt since.
cdef bint can_segment(const Packet *p) noexcept nogil
