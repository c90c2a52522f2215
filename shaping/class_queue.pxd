"""ClassQueue: the queue of a leaf class: one or many flows, each a FIFO, with or without CoDel.

    fifo       one flow
    codel      one flow, with CoDel
    fq         flows by hash, served in turns by deficit round robin, new flows first
    fq_codel   the same, with CoDel in each flow (RFC 8290)
    cake       flows found by a set-associative hash, turns of hosts before turns of flows, with
               COBALT in each flow

A GSO frame stays one packet until its turn comes. Then pieces are cut off its front as they are
sent, so that it never needs more than one buffer at a time besides its own.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Counters
from dataplane.graph.random_stream cimport RandomStream
from dataplane.packet.pool cimport Context
from shaping.class_heap cimport ClassHeap
from shaping.codel cimport CodelSetting
from shaping.flow_hash cimport FlowKeys
from shaping.flow_turns cimport FlowTurns
from shaping.framing cimport Framing, Load

cdef enum:
    FLOWS_MOST = 65536
    # of a queue that is over its bound, packets that the longest flow loses at once (RFC 8290, 4.1)
    DROP_BATCH = 64

# DROP_REASONS of the element that has the queue
cdef enum:
    QUEUE_FULL = 0
    CODEL_DROPPED = 1
    OVER_MEMORY = 2
    NO_BUFFER = 3
    RELEASED = 4
    BLUE_DROPPED = 5

# QueueSetting.aqm
cdef enum:
    AQM_NONE = 0
    AQM_CODEL = 1
    AQM_COBALT = 2

cdef struct QueueSetting:
    uint32_t aqm
    bint fair                    # several flows
    CodelSetting codel
    uint32_t flow_count          # a power of 2
    uint32_t quantum             # bytes that a flow may send in its turn
    uint64_t limit_bytes         # on the line
    uint64_t limit_segments

cdef struct ClassCounts:
    uint64_t sent_packets
    uint64_t sent_bytes          # on the line
    uint64_t sojourn_ns          # sum over sent packets
    uint64_t sojourn_max_ns
    uint64_t marked              # CE was set
    uint64_t full                # dropped: queue_full
    uint64_t codel               # dropped: codel
    uint64_t memory              # dropped: over_memory
    uint64_t blue                # dropped: blue

cdef struct ClassQueue:
    QueueSetting setting
    FlowTurns turns
    ClassHeap longest            # flows with packets, the longest first, once the queue was full
    uint32_t packets             # that wait
    uint64_t bytes               # on the line
    uint64_t segments
    ClassCounts counts

cdef struct Outlet:              # what a queue needs of the element that it belongs to
    Context *ctx
    PyObject *element            # Element, borrowed: drops packets
    Counters *counters           # its counters of what is held, made and lost
    Framing framing              # counts segments
    FlowKeys keys                # of the hash that tells flows apart
    RandomStream blue            # BLUE's draws
    uint64_t bytes               # on the line, of what waits in all queues
    uint32_t small               # buffers of each size in all queues
    uint32_t large
    uint64_t split               # GSO frames that were cut

# Appends a packet, or drops what exceeds the bound: of a single flow the packet or the end of a GSO
# frame, of several flows packets from the head of the longest one.
cdef void queue_add(ClassQueue *queue, Outlet *outlet, uint32_t index) noexcept nogil

# Removes and returns the next packet, with its load, and its arrival in Packet.release_ns;
# NO_PACKET: none is left. Cuts GSO frames longer than `quantum_bytes` on the line. CoDel may drop
# others before.
cdef uint32_t queue_take(ClassQueue *queue, Outlet *outlet, uint32_t quantum_bytes,
                         Load *load) noexcept nogil

# Drops packets from the head of the longest flow: at most DROP_BATCH, and half of what waits there;
# of a queue with COBALT that is full, one.
cdef void queue_relieve(ClassQueue *queue, Outlet *outlet, uint32_t reason) noexcept nogil

# Drops all packets that wait, as released.
cdef void queue_release(ClassQueue *queue, Outlet *outlet) noexcept nogil

# Moves all that waits from one queue to the end of another; the packets of a flow stay in order.
cdef void queue_move(ClassQueue *queue, ClassQueue *source, Outlet *outlet) noexcept nogil

# Counts what waits in a flow that was saved (head, packets, done, list and hosts are set) and puts
# it into its list. `held` has its packets already.
cdef void queue_restore(ClassQueue *queue, Outlet *outlet, uint32_t number) noexcept nogil
