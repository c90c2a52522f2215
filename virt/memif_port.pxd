"""MemifPort: the rings of a memif interface as a Port (memif 2.0: FD.io VPP, src/plugins/memif/
memif.h)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.graph.port cimport Port
from dataplane.packet.pool cimport Batch, Context
from virt.chain cimport FAULTS_COUNT, Chain
from virt.guest_memory cimport GuestMemory, PageLog
from virt.notifier cimport Notifier

cdef enum:
    REGION_SHIFT = 40        # byte `offset` of region r has the address r << 40 | offset
    RING_HEADER = 128        # bytes before the descriptors
    RING_COOKIE_AT = 0
    RING_FLAGS_AT = 4
    RING_HEAD_AT = 6         # stored by the client
    RING_TAIL_AT = 64        # stored by the server
    RING_MOST = 16384        # descriptors: DPDK, libmemif and VPP make no larger rings
    MASK_INTERRUPTS = 1      # flag of a ring: its receiver polls
    BUFFER_NEXT = 1          # flag of a descriptor: the frame goes on in the next one
    READ_BUDGET = 1048576    # bytes that a burst may read, as in VirtioPort
    SENT = 0xFFFF            # not a TX_*: the frame is in the peer's buffers

# What the receiver of a ring has said of interrupts.
cdef enum:
    INTERRUPTS_UNKNOWN = 0   # after the start: as the peer or another process has left it
    INTERRUPTS_ON = 1
    INTERRUPTS_OFF = 2

cdef struct BufferDescriptor:
    uint16_t flags
    uint16_t region
    uint32_t length
    uint32_t offset
    uint32_t metadata

cdef struct MemifRing:
    uint8_t *at              # this process's address of the header
    uint64_t address         # by REGION_SHIFT
    uint64_t buffers         # of the client's own: address of the first, each of buffer_bytes
    uint32_t buffer_bytes
    uint32_t last_region     # for guest_at
    uint32_t size            # descriptors; a power of two
    uint16_t position        # descriptors that this side has finished with, modulo 2^16
    uint16_t free            # transmit: descriptors that the burst at hand has left
    uint32_t interrupts      # receive: INTERRUPTS_*
    Notifier wake            # receive: from the peer; transmit: to it
    bint runs                # started, not broken, and the memory is there
    bint started
    uint32_t broken          # CHAIN_* for which the ring was stopped; 0: none
    # counters
    uint64_t[FAULTS_COUNT] faults        # frames, by CHAIN_*
    uint64_t no_buffers      # frames for which the peer had no buffer, or too few
    uint64_t calls           # interrupts to the peer
    uint64_t calls_failed    # of them, that a full or closed descriptor did not take

cdef class MemifPort(Port):
    cdef readonly bint client
    cdef MemifRing *_rings               # two per queue pair: to the peer, from the peer
    cdef Chain *_chain                   # of the packet at hand
    cdef PageLog _no_log
    cdef list _epolls                    # per queue pair, with the interrupts of its receive ring
    cdef int *_epoll_fds
    cdef readonly GuestMemory memory
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef uint32_t pending(self, const MemifRing *ring) noexcept nogil
    cdef uint32_t add_buffer(self, MemifRing *ring, uint16_t position, bint writable,
                             uint16_t *flags) noexcept nogil
    cdef uint32_t take(self, MemifRing *ring, uint32_t most, uint32_t *count) noexcept nogil
    cdef uint32_t receive_chain(self, Context *ctx, MemifRing *ring, uint32_t queue,
                                Batch *batch) noexcept nogil
    cdef void give_back(self, MemifRing *ring, uint16_t start) noexcept nogil
    cdef uint32_t deliver(self, Context *ctx, MemifRing *ring, uint32_t index) noexcept nogil
    cdef uint32_t gather(self, MemifRing *ring, uint32_t needed, uint32_t *count) noexcept nogil
    cdef void notify(self, MemifRing *ring) noexcept nogil
    cdef bint is_cut(self) noexcept nogil
    cdef void stop_broken(self, MemifRing *ring, uint32_t why) noexcept nogil
    cdef void drain(self, uint32_t queue, MemifRing *ring) noexcept nogil
    cdef MemifRing *ring_at(self, ring) except NULL
