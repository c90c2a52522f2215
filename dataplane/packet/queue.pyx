"""Packed queues. The contract is in queue.pxd."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t
from libc.string cimport memset
from dataplane.packet.pool cimport NO_PACKET, Context, Packet, PacketPool


cdef void pool_records(PacketPool pool, Context *records) noexcept:
    memset(records, 0, sizeof(Context))
    pool.attach(records)


cdef bytes queue_packed(const Packet *packets, uint32_t head, uint32_t count):
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, count * sizeof(uint32_t))
    cdef uint32_t *indices = <uint32_t *>PyBytes_AS_STRING(packed)
    cdef uint32_t i
    for i in range(count):
        indices[i] = head
        head = packets[head].next
    return packed


cdef uint32_t queue_head(const Packet *packets, uint32_t total_count, bytes packed) except? 0:
    cdef const uint32_t *indices = queue_indices(packed)
    cdef uint32_t i = queue_length(packed), following = NO_PACKET
    if len(packed) % sizeof(uint32_t):
        raise ValueError(f"{len(packed)} bytes are no list of packets")
    while i:
        i -= 1
        if indices[i] >= total_count or packets[indices[i]].next != following:
            raise ValueError(f"packet {indices[i]} is not linked as the queue says")
        following = indices[i]
    return following


def with_packed_packets(entry):
    """For UPGRADES: packs an entry's `packets`, a list of indices."""
    state = entry["state"]
    packed = b"".join(index.to_bytes(4, "little") for index in state["packets"])
    return {**entry, "state": {**state, "packets": packed}}
