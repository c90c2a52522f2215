"""StreamPort, StreamBuffers. The contract is in stream_port.pxd."""
import os
import select

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from dataplane.graph.port cimport (TX_LINK_DOWN, TX_QUEUE_FULL, TX_TOO_LONG, Port, fits_mtu)
from dataplane.packet.mapping cimport mapping_base
from dataplane.packet.pool cimport (LARGE_FRAME, NO_PACKET, Batch, Context, Packet, batch_add,
                                    packet_alloc, packet_data, packet_free)
from dataplane.ports.socket_calls cimport (EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT,
                                           socket_receive, socket_ring, socket_send, socket_watch)
from dataplane.vatomic cimport va_load_relaxed_u32, va_store_release_u32
from dataplane.wire.headers cimport load_be32, store_be32
from dataplane.wire.vnet_header cimport VnetHeader, receive

from dataplane.errors import PortError, VnicError
from dataplane.packet import shared_memory

cdef enum:
    ENDED_NOT = 0
    ENDED_CLOSED = 1
    ENDED_LENGTH = 2         # a length that no frame has
    ENDED_ERROR = 3

MAGIC = 0x6d6165727473766e   # "nvstream"
VERSION = 1
BYTES = SEGMENT_BYTES


cdef class StreamBuffers:
    """The shared memory of a stream: bytes that were read and not delivered, or transmitted and
    not sent. descriptor: of another process's buffers, to go on with them; None: new ones. `fd`:
    for `descriptor`. Raises VnicError for a descriptor of something else."""

    def __cinit__(self, *args, **kwargs):
        self.fd = -1

    def __init__(self, descriptor=None):
        cdef Segment *segment
        if descriptor is None:
            self.fd, self._map = shared_memory.create("vnic-stream", BYTES)
        else:
            self.fd, self._map = shared_memory.attach(descriptor, "stream", MAGIC, VERSION, BYTES)
        self._base = mapping_base(self._map)
        segment = <Segment *>self._base
        segment.magic, segment.version = MAGIC, VERSION
        if not are_valid(&segment.incoming, False) or not are_valid(&segment.outgoing, True):
            self.close()
            raise VnicError("stream: its buffers are inconsistent; start anew instead of taking "
                            "them over")

    def close(self):
        """Closes the descriptor; the memory is unmapped with its last user."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


cdef bint are_valid(const Direction *direction, bint outgoing) noexcept:
    """Whether all positions are within the buffer."""
    cdef const Call *call = &direction.calls[direction.current & 1]
    cdef uint64_t end = <uint64_t>call.at + call.message.msg_len
    return (direction.current <= 1 and call.head <= end <= BUFFER_BYTES
            and call.end <= BUFFER_BYTES and (end <= call.end or not outgoing))


cdef class StreamPort(Port):
    """Frames over a stream socket. It has one queue, and no offloads: PortTx completes checksums
    and segments before.

    mtu: of frames that it transmits. Longer ones than a buffer holds (69,504 bytes) end the stream
    when they are received, since no frame can be found behind them.
    """

    RECOVERS = True

    def __cinit__(self, *args, **kwargs):
        self._fd = self.gone = self._more = -1

    def __init__(self, str name, *, uint32_t number=0, uint32_t mtu=1500):
        super().__init__(name, number, 1, 0)
        self.mtu = mtu
        self._epoll = select.epoll()
        self._epoll_fd = self._epoll.fileno()
        self.gone = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._more = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._more, 0)

    def descriptors(self):
        return [] if self._epoll is None else [self._epoll_fd]

    def close(self):
        """Forgets the socket. Only when no engine serves the port."""
        if self._epoll is None:
            return
        self.disconnect()
        self._epoll.close()
        self._epoll = None
        os.close(self.gone)
        os.close(self._more)
        self.gone = self._more = -1

    # -- on the engine's thread --------------------------------------------------------------------

    def connect(self, int fd, StreamBuffers buffers not None):
        """Serves a connected stream socket from now on, which the caller closes after `disconnect`.
        Raises PortError for a descriptor that cannot be watched."""
        self.disconnect()
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except OSError as error:
            raise PortError(f"port {self.name}: its socket cannot be watched: "
                            f"{error.strerror}") from None
        self.buffers = buffers
        self._segment = <Segment *>buffers._base
        self._incoming = buffers._base + HEADER_BYTES
        self._outgoing = self._incoming + BUFFER_BYTES
        self._fd, self._events, self._ended = fd, EPOLLIN, ENDED_NOT
        # another process may have left whole frames, and such that were not sent
        self.watch(EPOLLIN | EPOLLOUT)
        self.leave(True)

    def disconnect(self):
        """Forgets socket and buffers; whole frames that were not delivered are lost."""
        if self._fd >= 0:
            socket_watch(self._epoll_fd, EPOLL_CTL_DEL, self._fd, 0)
            self._fd = -1
        self.leave(False)
        self.buffers = None

    @property
    def connected(self):
        """Whether a stream is there that has not ended."""
        return self._fd >= 0

    @property
    def problem(self):
        """Why the last stream has ended; "": it has not, or the peer has closed it."""
        if self._ended == ENDED_LENGTH:
            return (f"the peer announced a frame of {self._detail} bytes: expected at most "
                    f"{LARGE_FRAME}")
        return os.strerror(self._detail) if self._ended == ENDED_ERROR else ""

    cdef void watch(self, uint32_t events) noexcept nogil:
        """Lets these events of the socket wake the engine."""
        if events != self._events:
            self._events = events
            socket_watch(self._epoll_fd, EPOLL_CTL_MOD, self._fd, events)

    cdef void leave(self, bint more) noexcept nogil:
        """Whether the engine is to poll the port again although its socket may be silent."""
        if more != self._has_more:
            self._has_more = more
            socket_watch(self._epoll_fd, EPOLL_CTL_MOD, self._more, EPOLLIN if more else 0)

    cdef void end(self, uint32_t why, uint32_t detail) noexcept nogil:
        """Ends the stream, and tells control."""
        self._ended, self._detail = why, detail
        # a closed socket is always ready, and would keep the engine awake
        socket_watch(self._epoll_fd, EPOLL_CTL_DEL, self._fd, 0)
        self._fd = -1
        self.leave(False)
        socket_ring(self.gone)

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef uint32_t before = batch.count, taken = 0, reads = 0, got
        cdef bint more = True            # what is left of the burst may be whole frames
        if self._fd < 0:
            return 0
        if self._events & EPOLLOUT:
            # It is read from also while it takes nothing: the peer may be waiting in turn.
            self.flush()
        while taken < limit and self._fd >= 0:
            if self.take(ctx, batch):
                taken += 1               # lost ones, too: an empty pool must not keep the engine
                continue
            more = False
            if self._fd < 0 or reads == READS:
                break
            got = self.read()
            if got == 0:
                break
            more = True
            # a short read has emptied the socket
            reads = READS if got < READ_BYTES else reads + 1
        if self._fd >= 0:
            self.leave(more)
        return batch.count - before

    cdef bint take(self, Context *ctx, Batch *batch) noexcept nogil:
        """Appends the next whole frame to the batch, or counts it as lost; False if there is none,
        or the stream has ended."""
        cdef Call *call = &self._segment.incoming.calls[self._segment.incoming.current]
        cdef uint32_t length, index, have = call.at + call.message.msg_len - call.head
        cdef const uint8_t *bytes = self._incoming + call.head
        cdef VnetHeader header
        if have < LENGTH_BYTES:
            return False
        length = load_be32(bytes)
        if length > LARGE_FRAME:
            self.end(ENDED_LENGTH, length)
            return False
        if have < LENGTH_BYTES + length:
            return False
        index = packet_alloc(ctx, length) if length else NO_PACKET
        if index == NO_PACKET:
            self.stats[0].rx_dropped += 1
            if not length:
                self.stats[0].rx_unreadable += 1
        else:
            memcpy(packet_data(ctx, index), bytes + LENGTH_BYTES, length)
            ctx.packets[index].length = length
            memset(&header, 0, sizeof(header))
            receive(ctx, index, &header, self.number, 0)
            self.stats[0].rx_packets += 1
            self.stats[0].rx_bytes += length
            batch_add(batch, index)
        # A process that is killed from here on loses the packet, as all packets of its pool. The
        # store is after the copy, or the next process would not see the frame at all.
        va_store_release_u32(&call.head, call.head + LENGTH_BYTES + length)
        return True

    cdef uint32_t read(self) noexcept nogil:
        """Reads from the socket; returns the bytes that came. There is no whole frame."""
        cdef Direction *direction = &self._segment.incoming
        cdef Call *last = &direction.calls[direction.current]
        cdef Call *call = &direction.calls[1 - direction.current]
        cdef uint32_t end = last.at + last.message.msg_len, left = end - last.head
        cdef int done, error
        call.head, call.at = last.head, end
        if not left:
            call.head = call.at = 0
        elif end > BUFFER_BYTES - READ_BYTES:
            memmove(self._incoming, self._incoming + last.head, left)
            call.head, call.at = 0, left
        call.end = call.message.msg_len = 0
        memset(&call.message.msg_hdr, 0, sizeof(call.message.msg_hdr))
        call.vector.iov_base, call.vector.iov_len = self._incoming + call.at, READ_BYTES
        call.message.msg_hdr.msg_iov, call.message.msg_hdr.msg_iovlen = &call.vector, 1
        # Release: the call is prepared before it is the current one.
        va_store_release_u32(&direction.current, 1 - direction.current)
        done = socket_receive(self._fd, &call.message, 1)
        error = errno
        if done == 1 and va_load_relaxed_u32(&call.message.msg_len):
            return call.message.msg_len
        if done == 1:
            self.end(ENDED_CLOSED, 0)
        elif error != EAGAIN and error != EINTR:
            self.end(ENDED_ERROR, <uint32_t>error)
        return 0

    cdef void begin_sending(self, uint32_t end) noexcept nogil:
        """The bytes before `end` in the outgoing buffer are to be sent. There are no others."""
        cdef Direction *direction = &self._segment.outgoing
        cdef Call *call = &direction.calls[1 - direction.current]
        call.head = call.at = call.message.msg_len = 0
        call.end = end
        va_store_release_u32(&direction.current, 1 - direction.current)

    cdef bint flush(self) noexcept nogil:
        """Sends what is to be sent; False while some is left, or the stream has ended."""
        cdef Direction *direction = &self._segment.outgoing
        cdef Call *last
        cdef Call *call
        cdef int done, error
        while True:
            last = &direction.calls[direction.current]
            call = &direction.calls[1 - direction.current]
            call.head, call.end, call.message.msg_len = 0, last.end, 0
            call.at = last.at + last.message.msg_len
            if call.at == call.end:
                self.watch(EPOLLIN)
                return True
            memset(&call.message.msg_hdr, 0, sizeof(call.message.msg_hdr))
            call.vector.iov_base = self._outgoing + call.at
            call.vector.iov_len = call.end - call.at
            call.message.msg_hdr.msg_iov, call.message.msg_hdr.msg_iovlen = &call.vector, 1
            va_store_release_u32(&direction.current, 1 - direction.current)
            done = socket_send(self._fd, &call.message, 1)
            error = errno
            if done == 1 or error == EINTR:
                continue
            if error == EAGAIN or error == ENOBUFS or error == ENOMEM:
                self.watch(EPOLLIN | EPOLLOUT)
            else:
                self.end(ENDED_ERROR, <uint32_t>error)
            return False

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, at = 0, left = 0, sent = 0
        cdef Packet *p
        cdef uint8_t *bytes
        # Frames that the socket does not take whole stay in the buffer, and so before later ones.
        cdef bint room = self._fd >= 0 and (not self._events & EPOLLOUT or self.flush())
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            if not fits_mtu(p, self.mtu):
                p.tx_status = TX_TOO_LONG
                batch.index[left] = index
                left += 1
                continue
            if room and at + LENGTH_BYTES + p.length > BUFFER_BYTES:
                self.begin_sending(at)
                room, at = self.flush(), 0
            if not room:
                p.tx_status = TX_QUEUE_FULL if self._fd >= 0 else TX_LINK_DOWN
                batch.index[left] = index
                left += 1
                continue
            bytes = self._outgoing + at
            store_be32(bytes, p.length)
            memcpy(bytes + LENGTH_BYTES, packet_data(ctx, index), p.length)
            at += LENGTH_BYTES + p.length
            sent += 1
            self.stats[0].tx_packets += 1
            self.stats[0].tx_bytes += p.length
            packet_free(ctx, index)
        if at:
            self.begin_sending(at)
            self.flush()
        self.stats[0].tx_dropped += left
        batch.count = left
        return sent
