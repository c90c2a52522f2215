"""Software offloads. The contract is in offload.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet cimport BATCH_MAX, Batch, Context, batch_add


cdef void complete_offloads(Context *ctx, const Batch *batch, Cursor *cursor, Batch *ready, uint32_t offloads,
                            uint64_t *generated, uint64_t *lost) noexcept nogil:
    while cursor.packet < batch.count and ready.count < BATCH_MAX:
        batch_add(ready, batch.index[cursor.packet])
        cursor.packet += 1


cdef bint complete_checksum(Context *ctx, uint32_t index) noexcept nogil:
    return False


cdef uint32_t segment(Context *ctx, uint32_t index, uint32_t segments_each, uint32_t *done, Batch *out) noexcept nogil:
    return 0
