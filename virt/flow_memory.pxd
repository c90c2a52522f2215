"""FlowMemory: on which queue pair a guest last transmitted a flow (virtio 1.2, 5.1.6.5.6)."""
from libc.stdint cimport uint32_t
from dataplane.elements.rss cimport Rss
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context

cdef enum:
    # Flows of a NIC, a power of two; one more takes another one's place, which then is steered as
    # a new one. 16 KiB, half of a CPU's first cache.
    FLOWS_MOST = 4096
    # parts of an entry; above them are the hash's upper bits
    FLOW_KNOWN = 0x800
    FLOW_QUEUE = 0x7F        # the queue pair

cdef class FlowMemory(Element):
    cdef readonly Rss rss
    cdef readonly bint learns
    cdef uint32_t[FLOWS_MOST] flows
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil


cdef inline uint32_t flow_entry(uint32_t hash, uint32_t queue) noexcept nogil:
    return hash & ~<uint32_t>(FLOWS_MOST - 1) | FLOW_KNOWN | queue


cdef inline uint32_t pair_of_flow(FlowMemory memory, uint32_t hash, uint32_t pairs,
                                  uint32_t otherwise) noexcept nogil:
    """The pair for a hash of Rss.hash_packet, below `pairs`; `otherwise` for a flow that is not
    known, or whose pair is not in use any more."""
    cdef uint32_t entry = memory.flows[hash & (FLOWS_MOST - 1)]
    cdef uint32_t queue = entry & FLOW_QUEUE
    if entry == flow_entry(hash, queue) and queue < pairs:
        return queue
    return otherwise
