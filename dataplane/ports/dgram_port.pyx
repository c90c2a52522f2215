"""DgramPort. The contract is in dgram_port.pxd."""
import os

from libc.errno cimport (EAGAIN, ECONNREFUSED, EINTR, EMSGSIZE, ENOBUFS, ENOENT, ENOTCONN, EPIPE,
                         errno)
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from dataplane.graph.port cimport (TX_IO_ERROR, TX_LINK_DOWN, TX_QUEUE_FULL, TX_TOO_LONG, Port,
                                   fits_mtu)
from dataplane.packet.pool cimport (HEADROOM, LARGE_FRAME, NO_PACKET, SMALL_FRAME, Batch, Context,
                                    Packet, batch_add, packet_alloc, packet_buffer, packet_data,
                                    packet_free)
from dataplane.ports.socket_calls cimport MSG_TRUNC, socket_receive, socket_send
from dataplane.wire.vnet_header cimport VnetHeader, receive

from dataplane.errors import PortError

cdef enum:
    SENT = 0xFFFF                # not a TX_*


cdef class DgramPort(Port):
    """Frames over a datagram socket. It has one queue, and no offloads: PortTx completes checksums
    and segments before.

    fd: the bound socket, which the caller closes, after the port. peer: the address to which it
    sends, as the kernel has it (struct sockaddr_un with its path); b"": the socket is connected.
    Where no peer is there, frames are dropped as link_down. mtu: of frames that it transmits.
    Raises PortError for a descriptor that is not open, or an address that is too long.
    """

    RECOVERS = True

    def __init__(self, str name, int fd, *, bytes peer=b"", uint32_t number=0, uint32_t mtu=1500):
        super().__init__(name, number, 1, 0)
        self.mtu, self._fd = mtu, fd
        if len(peer) > PATH_BYTES:
            raise PortError(f"port {name}: the address of its peer has {len(peer)} bytes: expected "
                            f"at most {PATH_BYTES}")
        self._peer_bytes = <uint32_t>len(peer)
        memcpy(&self._peer[0], <const char *>peer, len(peer))
        self._messages = <mmsghdr *>calloc(MESSAGES, sizeof(mmsghdr))
        self._vectors = <iovec *>calloc(2 * MESSAGES, sizeof(iovec))
        self._sink = <uint8_t *>calloc(MESSAGES, LARGE_FRAME)  # pages come with the first use
        self._staged = <uint32_t *>calloc(MESSAGES, sizeof(uint32_t))
        if not (self._messages and self._vectors and self._sink and self._staged):
            raise MemoryError(f"port {name}")
        try:
            os.set_blocking(fd, False)
        except OSError as error:
            raise PortError(f"port {name}: descriptor {fd}: {error.strerror}") from error

    def __dealloc__(self):
        free(self._messages)
        free(self._vectors)
        free(self._sink)
        free(self._staged)

    def descriptors(self):
        return [] if self._fd < 0 else [self._fd]

    def close(self):
        """Forgets the descriptor. Only when no engine serves the port."""
        self._fd = -1

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        # A datagram goes into a small packet as far as it fits, and its rest into the sink: most
        # frames are short, and are not copied then.
        cdef uint32_t i, index, before = batch.count, count = min(limit, <uint32_t>MESSAGES)
        cdef int got
        memset(self._messages, 0, MESSAGES * sizeof(mmsghdr))
        for i in range(count):
            index = packet_alloc(ctx, SMALL_FRAME)
            self._staged[i] = index
            # without a packet the whole frame goes into the sink, and is lost
            self._vectors[2 * i].iov_base = (packet_buffer(ctx, index) + HEADROOM
                                             if index != NO_PACKET else self._sink)
            self._vectors[2 * i].iov_len = SMALL_FRAME
            self._vectors[2 * i + 1].iov_base = self._sink + <size_t>i * LARGE_FRAME + SMALL_FRAME
            self._vectors[2 * i + 1].iov_len = LARGE_FRAME - SMALL_FRAME
            self._messages[i].msg_hdr.msg_iov = &self._vectors[2 * i]
            self._messages[i].msg_hdr.msg_iovlen = 2
        got = socket_receive(self._fd, self._messages, count)
        if got < 0 and errno == ECONNREFUSED:
            # UDP: an earlier datagram was refused. The error is reported once, before what arrived.
            got = socket_receive(self._fd, self._messages, count)
        for i in range(count):
            if <int>i < got:
                self.deliver(ctx, batch, i, self._staged[i])
            elif self._staged[i] != NO_PACKET:
                packet_free(ctx, self._staged[i])
        return batch.count - before

    cdef void deliver(self, Context *ctx, Batch *batch, uint32_t number,
                      uint32_t index) noexcept nogil:
        """Appends a datagram to the batch, or counts it as lost."""
        cdef uint32_t length = self._messages[number].msg_len, large
        cdef bint unreadable = not length or self._messages[number].msg_hdr.msg_flags & MSG_TRUNC
        cdef VnetHeader header
        if index != NO_PACKET and not unreadable and length > SMALL_FRAME:
            large = packet_alloc(ctx, length)
            if large != NO_PACKET:
                memcpy(packet_data(ctx, large), packet_buffer(ctx, index) + HEADROOM, SMALL_FRAME)
                memcpy(packet_data(ctx, large) + SMALL_FRAME,
                       self._sink + <size_t>number * LARGE_FRAME + SMALL_FRAME,
                       length - SMALL_FRAME)
            packet_free(ctx, index)
            index = large
        if index == NO_PACKET or unreadable:
            self.stats[0].rx_dropped += 1
            if unreadable:
                self.stats[0].rx_unreadable += 1
            if index != NO_PACKET:
                packet_free(ctx, index)
            return
        ctx.packets[index].length = length
        memset(&header, 0, sizeof(header))
        receive(ctx, index, &header, self.number, 0)
        self.stats[0].rx_packets += 1
        self.stats[0].rx_bytes += length
        batch_add(batch, index)

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, left = 0, sent = 0, staged = 0
        cdef Packet *p
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            if not fits_mtu(p, self.mtu):
                p.tx_status = TX_TOO_LONG
                continue
            self._vectors[staged].iov_base = packet_data(ctx, index)
            self._vectors[staged].iov_len = p.length
            self._staged[staged] = index
            staged += 1
            if staged == MESSAGES:
                self.send(ctx, staged)
                staged = 0
        if staged:
            self.send(ctx, staged)
        for i in range(batch.count):     # frees sent packets; the others stay in order
            index = batch.index[i]
            p = &ctx.packets[index]
            if p.tx_status != SENT:
                batch.index[left] = index
                left += 1
                continue
            sent += 1
            self.stats[0].tx_packets += 1
            self.stats[0].tx_bytes += p.length
            packet_free(ctx, index)
        self.stats[0].tx_dropped += left
        batch.count = left
        return sent

    cdef void send(self, Context *ctx, uint32_t count) noexcept nogil:
        """Sends the staged frames and sets each packet's tx_status to SENT or the reason of
        failure."""
        cdef uint32_t i, done = 0
        cdef int sent, error
        cdef bint refused = False
        memset(self._messages, 0, count * sizeof(mmsghdr))
        for i in range(count):
            self._messages[i].msg_hdr.msg_iov = &self._vectors[i]
            self._messages[i].msg_hdr.msg_iovlen = 1
            if self._peer_bytes:
                self._messages[i].msg_hdr.msg_name = &self._peer[0]
                self._messages[i].msg_hdr.msg_namelen = self._peer_bytes
        while done < count:
            sent = socket_send(self._fd, &self._messages[done], count - done)
            error = errno
            if sent < 0 and error == EINTR:
                continue
            if sent < 0 and error == ECONNREFUSED and not self._peer_bytes and not refused:
                refused = True           # UDP: reported once, of an earlier datagram
                continue
            for i in range(<uint32_t>max(sent, 0)):
                ctx.packets[self._staged[done + i]].tx_status = SENT
            if sent > 0:
                done += sent
                continue
            if error == EMSGSIZE:        # this datagram; the next ones may fit
                ctx.packets[self._staged[done]].tx_status = TX_TOO_LONG
                done += 1
                continue
            for i in range(done, count):  # no peer is there, or its queue is full, for all of them
                ctx.packets[self._staged[i]].tx_status = reason_of(error)
            break


cdef inline uint16_t reason_of(int error) noexcept nogil:
    if error == EAGAIN or error == ENOBUFS:
        return TX_QUEUE_FULL
    if error == ECONNREFUSED or error == ENOENT or error == ENOTCONN or error == EPIPE:
        return TX_LINK_DOWN
    return TX_IO_ERROR
