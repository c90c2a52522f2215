"""TapPort. The contract is in tap_port.pxd."""
import os

from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from dataplane.packet.pool cimport (HEADROOM, LARGE_BYTES, LARGE_FRAME, NO_PACKET, SMALL_FRAME,
                                    Batch, Context, Packet, batch_add, packet_alloc, packet_buffer,
                                    packet_data, packet_free)
from dataplane.graph.offload cimport OFFLOAD_ALL
from dataplane.graph.port cimport (TX_IO_ERROR, TX_LINK_DOWN, TX_QUEUE_FULL, TX_REJECTED,
                                   TX_TOO_LONG, Port, count_segments, fits_mtu)
from dataplane.vatomic cimport vnic_check
from dataplane.wire.headers cimport ETHERNET_BYTES
from dataplane.wire.vnet_header cimport VNET_HEADER, VnetHeader, receive, write_header

from dataplane.errors import PortError

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    /* glibc's read() and write() are cancellation points, which cost two atomic operations each in
     * a process with threads: 4 % of the engine's time at 64-byte frames. Engines are never
     * cancelled. */
    static inline ssize_t tap_read(int fd, void *buffer, size_t bytes)
    { return syscall(SYS_read, fd, buffer, bytes); }
    static inline ssize_t tap_write(int fd, const void *buffer, size_t bytes)
    { return syscall(SYS_write, fd, buffer, bytes); }
    """
    ssize_t tap_read(int fd, void *buffer, size_t size) nogil
    ssize_t tap_write(int fd, const void *buffer, size_t size) nogil


cdef class TapPort(Port):
    """The device's side of a TAP: rx_burst reads the container's frames, tx_burst writes to it.

    fds: one descriptor per queue pair, opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR and a header
    size of 10 bytes; the caller closes them, after the port. offloads: those that TUNSETOFFLOAD
    accepted. Raises PortError for a descriptor that is not open.
    """

    def __init__(self, str name, fds, *, uint32_t number=0, uint32_t offloads=OFFLOAD_ALL,
                 uint32_t mtu=1500):
        fds = list(fds)
        super().__init__(name, number, len(fds), offloads)
        self.mtu = mtu
        self._fds = <int *>calloc(len(fds), sizeof(int))
        self._sink = <uint8_t *>calloc(1, LARGE_BYTES)
        if self._fds == NULL or self._sink == NULL:
            raise MemoryError(f"port {name}")
        self._descriptors = fds
        for queue, fd in enumerate(fds):
            try:
                os.set_blocking(fd, False)
            except OSError as error:
                raise PortError(f"port {name}: queue {queue}: descriptor {fd}: "
                                f"{error.strerror}") from error
            self._fds[queue] = fd

    def __dealloc__(self):
        free(self._fds)
        free(self._sink)

    def descriptors(self):
        return list(self._descriptors)

    def close(self):
        """Forgets the descriptors. Only when no engine serves the port."""
        for queue in range(self.queues):
            self._fds[queue] = -1
        self._descriptors = []

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        # Every frame is read into a large packet, since its length is unknown before. A short one
        # is copied (cheaper than a second iovec), and the large packet, which is in the cache, is
        # used for the next read.
        cdef uint32_t taken = 0, before = batch.count, budget = READ_BUDGET, index, length
        cdef uint32_t spare = packet_alloc(ctx, LARGE_FRAME)
        cdef uint8_t *target
        cdef ssize_t got
        while taken < limit:
            target = (packet_buffer(ctx, spare) + HEADROOM
                      - VNET_HEADER) if spare != NO_PACKET else self._sink
            blank_header(target)
            got = tap_read(self._fds[queue], target, LARGE_FRAME + VNET_HEADER)
            if got < 0 and errno == EINTR:
                continue
            if got < 0 and errno != EINVAL:
                # EAGAIN: empty. Anything else: ppoll reports the descriptor as failed.
                break
            if got <= VNET_HEADER or is_blank(target):
                # EINVAL: the virtio-net header is longer than the buffer; the kernel has dropped
                # the frame.
                self.stats[queue].rx_dropped += 1
                self.stats[queue].rx_unreadable += 1
                # so a descriptor that always fails cannot keep the engine here
                taken += 1
                continue
            length = <uint32_t>got - VNET_HEADER
            if length <= SMALL_FRAME:
                index = packet_alloc(ctx, length)
                if index != NO_PACKET:
                    memcpy(packet_buffer(ctx, index) + HEADROOM - VNET_HEADER, target, got)
            else:
                index, spare = spare, NO_PACKET
                if index != NO_PACKET:
                    ctx.packets[index].length = length
            if index == NO_PACKET:
                self.stats[queue].rx_dropped += 1
            else:
                receive(ctx, index,
                        <VnetHeader *>(packet_buffer(ctx, index) + HEADROOM
                                       - VNET_HEADER), self.number, queue)
                self.stats[queue].rx_packets += 1
                self.stats[queue].rx_bytes += length
                batch_add(batch, index)
            # lost frames too: an empty pool must not keep the engine here
            taken += 1
            if length >= budget:
                break
            budget -= length
            if spare == NO_PACKET:
                spare = packet_alloc(ctx, LARGE_FRAME)
        if spare != NO_PACKET:
            packet_free(ctx, spare)
        return batch.count - before

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, left = 0, sent = 0
        cdef Packet *p
        cdef VnetHeader *header
        cdef ssize_t written
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            vnic_check(p.offset >= VNET_HEADER, "room for the virtio-net header")
            if not fits_mtu(p, self.mtu):
                p.tx_status = TX_TOO_LONG
                batch.index[left] = index
                left += 1
                continue
            header = <VnetHeader *>(packet_data(ctx, index) - VNET_HEADER)
            write_header(header, p, p.header_length)
            written = tap_write(self._fds[queue], header, p.length + VNET_HEADER)
            while written < 0 and errno == EINTR:
                written = tap_write(self._fds[queue], header, p.length + VNET_HEADER)
            if written >= 0:
                sent += 1
                self.stats[queue].tx_packets += 1
                self.stats[queue].tx_bytes += p.length
                count_segments(p, &self.stats[queue].tx_more_packets,
                               &self.stats[queue].tx_more_bytes)
                packet_free(ctx, index)
                continue
            # A write to a TAP is the reception in the container: a frame that fails is lost, as on
            # a wire.
            p.tx_status = (TX_LINK_DOWN if errno == EIO else TX_REJECTED if errno == EINVAL
                           else TX_QUEUE_FULL if errno == EAGAIN else TX_IO_ERROR)
            batch.index[left] = index
            left += 1
        self.stats[queue].tx_dropped += left
        batch.count = left
        return sent


# The virtio-net header size belongs to the interface, not to the descriptor: root in the
# container's user namespace may attach a queue to a multi-queue TAP and increase it
# (TUNSETVNETHDRSZ). Linux before "tun: Pad virtio headers" then skips the surplus in our buffer
# without writing it, and stale bytes, perhaps of another NIC's frame, would be taken for the
# beginning of this one. So the Ethernet header is zeroed before each read. If the surplus covers
# it, it stays zero, which no valid frame has (source address 0), and the frame is dropped; a
# smaller surplus shows zeros and this frame, no stale bytes.


cdef inline void blank_header(uint8_t *target) noexcept nogil:
    memset(target + VNET_HEADER, 0, ETHERNET_BYTES)


cdef inline bint is_blank(const uint8_t *target) noexcept nogil:
    cdef uint64_t first, last
    memcpy(&first, target + VNET_HEADER, 8)
    memcpy(&last, target + VNET_HEADER + ETHERNET_BYTES - 8, 8)
    return first == 0 and last == 0
