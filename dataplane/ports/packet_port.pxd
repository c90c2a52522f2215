"""PacketPort: AF_PACKET sockets at the far end of a veth pair as a Port (packet(7); Linux
Documentation/networking/packet_mmap.rst; virtio 1.2, 5.1.6 for the header)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port

cdef enum:
    READ_BUDGET = 1048576    # bytes that a burst may read, as in TapPort
    MESSAGES = 64            # frames per sendmmsg: enough to amortize it, and they fit the cache
    TAIL_BYTES = 64          # at the end of a ring, behind the last slot: unused by the kernel

# The port's own part of a ring's memory. All processes that map the ring share it, so that the next
# worker continues at the right slot, also after a crash.
cdef struct Tail:
    uint32_t position        # the slot to read or fill next
    uint32_t unused
    uint64_t no_room         # frames dropped for a full ring, according to PACKET_STATISTICS
    uint64_t cut             # frames longer than a slot that did not fit the socket's buffer

cdef struct Ring:
    int fd                   # the socket, non-blocking; -1: closed
    uint8_t *memory          # NULL: closed
    size_t size
    Tail *tail
    uint32_t slots, slot_bytes, block_bytes, block_slots
    bint begun               # this process has used the ring

cdef class PacketPort(Port):
    cdef Ring *_receiving                # one per queue
    cdef Ring *_sending                  # one per queue
    cdef list _descriptors
    cdef uint32_t slot_bytes, block_bytes, block_slots
    cdef uint8_t *_sink                  # for frames for which the pool had no packet
    cdef void *_messages                 # MESSAGES headers of sendmmsg and their vectors
    # packets of the next system call: of the messages, or of the slots before the sending ring's
    # position
    cdef uint32_t *_staged
    cdef uint32_t _in_messages, _in_slots
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef void unmap(self) noexcept
    cdef uint32_t take_long(self, Context *ctx, Ring *ring, uint32_t queue, uint32_t length,
                            Batch *batch) noexcept nogil
    cdef bint fill_slot(self, Context *ctx, Ring *ring, uint32_t index) noexcept nogil
    cdef void send_slots(self, Context *ctx, Ring *ring) noexcept nogil
    cdef void send_messages(self, Context *ctx, int fd) noexcept nogil
    cdef void map_ring(self, Ring *ring, int fd, uint32_t blocks, what) except *
