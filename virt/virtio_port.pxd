"""VirtioPort: the queues of a virtio-net device as a Port (virtio 1.2, 5.1)."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.port cimport Port
from dataplane.packet.pool cimport Batch, Context
from virt.chain cimport FAULTS_COUNT, Chain, Segment
from virt.coalescing cimport Coalescing
from virt.guest_memory cimport DirtyLog, GuestMemory
from virt.notifier cimport Notifier
from virt.receive_filter cimport ReceiveFilter
from virt.virtqueue cimport Taken, Virtqueue

cdef enum:
    READ_BUDGET = 1048576    # bytes that a burst may read, as in TapPort
    BUFFERS_MOST = 1024      # receive buffers of one frame: each has at least a segment
    # receive buffers given back unused for one frame, so that a driver that posts such buffers only
    # cannot keep the engine here
    FAULTY_MOST = 8
    ANNOUNCEMENT_BYTES = 60
    SENT = 0xFFFF            # not a TX_*: the frame is in the driver's buffers

cdef struct Ring:
    Virtqueue queue
    Notifier kick            # from the driver
    Notifier call            # to the driver
    Notifier error           # to the front end: the ring was stopped
    bint runs                # started, not broken, and the memory is there
    bint started
    bint enabled             # else frames of the driver are discarded and it gets none
    uint64_t generation      # of the ring, as the caller counts
    bint position_lost       # descriptors contradict the position at which it began
    uint32_t broken          # CHAIN_* for which the ring was stopped; 0: none
    uint64_t descriptors     # the front end's addresses
    uint64_t available
    uint64_t used
    Coalescing coalescing
    # counters
    uint64_t[FAULTS_COUNT] faults        # chains, by CHAIN_*
    uint64_t discarded       # frames of the driver while disabled
    uint64_t no_buffers      # frames for which the driver had no buffer, or too few
    uint64_t no_room         # frames longer than the driver's buffer, without MRG_RXBUF
    uint64_t calls           # notifications to the driver
    uint64_t calls_failed    # of them, that a full or closed descriptor did not take


@cython.final
cdef class VirtioPort(Port):
    cdef Ring *_rings                    # two per queue pair: the driver's RX, its TX
    cdef Chain *_chain                   # of the packet at hand
    cdef Taken *_taken                   # receive buffers of the packet at hand
    cdef list _epolls                    # per queue pair, with the kick of its TX ring
    cdef int *_epoll_fds
    cdef readonly GuestMemory memory
    cdef readonly DirtyLog log
    cdef readonly uint64_t features
    cdef uint32_t header_size
    cdef ReceiveFilter _filter
    cdef uint32_t _hash_types            # of frames whose hash is reported; 0: of none
    cdef Element _timer                  # calls `call_due` when it ticks, or None
    cdef bint _announces                 # the frame below is to be received next
    cdef uint8_t[ANNOUNCEMENT_BYTES] _announcement
    cdef object _stored
    cdef uint64_t *_positions            # of `_stored`: two words per ring, or NULL
    cdef void receive_announcement(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t receive_single(self, Context *ctx, uint32_t queue, const Segment *segment,
                                 Batch *batch) noexcept nogil
    cdef uint32_t receive_chain(self, Context *ctx, Ring *ring, uint32_t queue,
                                Batch *batch) noexcept nogil
    cdef uint32_t gather(self, Ring *ring, uint64_t needed, uint32_t *count) noexcept nogil
    cdef bint give_back(self, Ring *ring, uint32_t count) noexcept nogil
    cdef void deliver_single(self, Context *ctx, Virtqueue *q, uint32_t index,
                             const Segment *segment) noexcept nogil
    cdef uint32_t deliver(self, Context *ctx, Ring *ring, uint32_t index) noexcept nogil
    cdef bint is_cut(self) noexcept nogil
    cdef void notify(self, Ring *ring) noexcept nogil
    cdef void postpone(self, Context *ctx, Ring *ring, uint32_t packets) noexcept nogil
    cdef void call_now(self, Ring *ring) noexcept nogil
    cdef uint64_t call_due(self, uint64_t now_ns) noexcept nogil
    cdef void stop_broken(self, Ring *ring, uint32_t why) noexcept nogil
    cdef void drain(self, uint32_t queue, Ring *ring) noexcept nogil
    cdef Ring *ring_at(self, ring) except NULL
    cdef void apply_features(self, Ring *ring) noexcept
    cdef void apply_log(self, Ring *ring) noexcept
    cdef void store(self, uint32_t ring) noexcept
    cdef void watch(self, number) except *
