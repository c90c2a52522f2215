"""Framing: how many bytes a layer-2 frame takes on a line that adds headers, pads short frames and
fills cells."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from dataplane.packet.pool cimport GSO_NONE, Packet, packet_wire_bytes

cdef enum:
    CELL_NONE = 0
    CELL_ATM = 1                 # cells of 53 bytes carry 48
    CELL_PTM = 2                 # 64b/65b: one byte more for each 64, or part of them

# Bounds, those of tc-cake(8). With them, the line's bytes of one GSO frame stay below 1.5e9.
cdef enum:
    FRAMING_BYTES_LEAST = -64
    FRAMING_BYTES_MOST = 256
    FRAMING_MINIMUM_MOST = 256

cdef struct Framing:
    bint counts                  # False: a frame's own bytes count, and segments are not counted
    int32_t bytes                # added to each frame
    uint32_t minimum             # of the sum; at least 1
    uint32_t cell                # CELL_*, after that

cdef struct Load:                # what a packet is to a queue and to its line
    uint32_t bytes               # on the line, each GSO segment with headers and framing
    uint32_t segments            # 0 where they are not counted

cdef inline uint64_t framed_bytes(const Framing *framing, uint32_t frame_bytes) noexcept nogil:
    """Bytes on the line of one frame without GSO; at least 1."""
    cdef int64_t length = frame_bytes
    if not framing.counts:
        return frame_bytes
    length = max(length + framing.bytes, <int64_t>framing.minimum)
    if framing.cell == CELL_ATM:
        return <uint64_t>(length + 47) // 48 * 53
    if framing.cell == CELL_PTM:
        return length + <uint64_t>(length + 63) // 64
    return length

cdef Load segments_load(const Framing *framing, const Packet *p) noexcept nogil

cdef inline Load packet_load(const Framing *framing, const Packet *p) noexcept nogil:
    cdef Load load
    if framing.counts and p.gso_type != GSO_NONE:
        return segments_load(framing, p)
    load.bytes = <uint32_t>framed_bytes(framing, packet_wire_bytes(p))
    load.segments = framing.counts
    return load
