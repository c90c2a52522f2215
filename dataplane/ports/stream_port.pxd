"""StreamPort: frames over a stream socket, each behind its length as 32 bits in network byte order:
QEMU's `-netdev stream` (net/stream.c, net/net.c of QEMU), passt, socket_vmnet.

The bytes that were read from the socket and not yet delivered, and those of transmitted frames that
the socket has not yet taken, are in shared memory (StreamBuffers). The position of each is where
the last system call began plus what that call moved, and it is the kernel which writes the latter
number, in the same system call (msg_len of recvmmsg and sendmmsg). So a process that is killed at
any instruction leaves the stream at a known byte, and the next one goes on in the middle of a
frame.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from dataplane.graph.port cimport Port
from dataplane.packet.pool cimport Batch, Context
from dataplane.ports.socket_calls cimport iovec, mmsghdr

cdef enum:
    LENGTH_BYTES = 4         # before each frame
    READ_BYTES = 65536       # asked of the socket at once: 43 frames of 1514 bytes, and cached
    READS = 4                # in a burst, so that a peer that sends byte by byte frees the engine
    # A frame that was read in part, and behind it room for a read. Such a frame is moved to the
    # beginning when the end comes near: the two places must not overlap, since the process may be
    # killed meanwhile.
    BUFFER_BYTES = 262144
    HEADER_BYTES = 4096      # of the segment
    SEGMENT_BYTES = 4096 + 2 * 262144

# A system call: what it moved is at `at` in the buffer, and has message.msg_len bytes.
cdef struct Call:
    uint32_t head            # incoming: first byte that was not delivered
    uint32_t at
    uint32_t end             # outgoing: of the bytes to be sent
    mmsghdr message          # its addresses are those of the process that made the call
    iovec vector

# One direction. A new call is prepared in the place of the last but one, and then made the
# current one by one store.
cdef struct Direction:
    uint32_t current
    Call[2] calls

cdef struct Segment:
    uint64_t magic
    uint32_t version
    uint32_t unused
    Direction incoming
    Direction outgoing

cdef class StreamBuffers:
    cdef readonly int fd
    cdef object _map
    cdef uint8_t *_base

cdef class StreamPort(Port):
    cdef int _fd                         # the socket; -1: none, or its stream has ended
    cdef readonly int gone               # eventfd: the stream has ended, see `problem`
    cdef int _more                       # eventfd that is always readable
    cdef int _epoll_fd
    cdef object _epoll                   # what the engine watches, while sockets come and go
    cdef readonly StreamBuffers buffers
    cdef Segment *_segment
    cdef uint8_t *_incoming
    cdef uint8_t *_outgoing
    cdef uint32_t _events                # that the socket is watched for
    cdef bint _has_more                  # `_more` is watched, too: whole frames were left
    cdef uint32_t _ended                 # why the stream has ended: ENDED_*
    cdef uint32_t _detail
    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
    cdef bint take(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t read(self) noexcept nogil
    cdef bint flush(self) noexcept nogil
    cdef void begin_sending(self, uint32_t end) noexcept nogil
    cdef void watch(self, uint32_t events) noexcept nogil
    cdef void leave(self, bint more) noexcept nogil
    cdef void end(self, uint32_t why, uint32_t detail) noexcept nogil
