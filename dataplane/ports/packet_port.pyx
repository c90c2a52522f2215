"""PacketPort. The contract is in packet_port.pxd."""
import os

from libc.errno cimport EAGAIN, EINTR, EINVAL, EMSGSIZE, ENETDOWN, ENOBUFS, ENXIO, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from dataplane.packet.pool cimport (GSO_NONE, HEADROOM, LARGE_FRAME, NO_PACKET, VNET_NEEDS_CSUM,
                                    Batch, Context, Packet, batch_add, packet_alloc, packet_buffer,
                                    packet_data, packet_free)
from dataplane.graph.offload cimport OFFLOAD_ALL
from dataplane.graph.port cimport (TX_IO_ERROR, TX_LINK_DOWN, TX_QUEUE_FULL, TX_REJECTED,
                                   TX_TOO_LONG, Port, count_segments, fits_mtu)
from dataplane.vatomic cimport (va_cas_u64, va_load_acquire_u32, va_load_relaxed_u32,
                                va_load_relaxed_u64, va_store_relaxed_u32, va_store_relaxed_u64,
                                va_store_release_u32, vnic_check)
from dataplane.wire.headers cimport ETHERNET_BYTES, store_be16
from dataplane.wire.vnet_header cimport VNET_HEADER, VnetHeader, receive, write_header

from dataplane.errors import PortError

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <linux/if_packet.h>
    #include <net/if.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* glibc's sendmmsg() and recvmsg() are cancellation points, which cost atomic operations in a
     * process with threads. Engines are never cancelled. */
    static inline int packet_send(int fd, void *messages, unsigned count)
    { return (int)syscall(SYS_sendmmsg, fd, messages, count, MSG_DONTWAIT); }
    static inline ssize_t packet_receive(int fd, struct msghdr *message)
    { return syscall(SYS_recvmsg, fd, message, MSG_DONTWAIT | MSG_TRUNC); }
    /* Makes the kernel transmit the requested slots. */
    static inline ssize_t packet_kick(int fd)
    { return syscall(SYS_sendto, fd, NULL, 0, MSG_DONTWAIT, NULL, 0); }
    /* Reads and clears the socket's pending error. */
    static inline int packet_error(int fd)
    {
        int error = 0;
        socklen_t bytes = sizeof(error);
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
        return error;
    }
    /* Whether the socket's interface has a carrier. The flag may lag by a second after a loss
     * (linkwatch). ethtool's query does not, but waits for the RTNL lock; engines must not. */
    static inline int packet_has_carrier(int fd)
    {
        struct sockaddr_ll at = {0};
        struct ifreq ask = {0};
        socklen_t bytes = sizeof(at);
        if (getsockname(fd, (struct sockaddr *)&at, &bytes))
            return 0;
        ask.ifr_ifindex = at.sll_ifindex;
        return !ioctl(fd, SIOCGIFNAME, &ask) && !ioctl(fd, SIOCGIFFLAGS, &ask)
               && ask.ifr_flags & IFF_RUNNING;
    }
    static inline unsigned packet_drops(int fd)
    {
        struct tpacket_stats found = {0};
        socklen_t bytes = sizeof(found);
        return getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &found, &bytes) ? 0 : found.tp_drops;
    }
    """
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    cdef struct mmsghdr:
        msghdr msg_hdr
    cdef struct cmsghdr:
        int cmsg_level
        int cmsg_type
        size_t cmsg_len
    cdef struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_mac
        uint16_t tp_vlan_tci
        uint16_t tp_vlan_tpid
    cdef struct tpacket_auxdata:
        uint32_t tp_status
        uint16_t tp_vlan_tci
        uint16_t tp_vlan_tpid
    cmsghdr *CMSG_FIRSTHDR(msghdr *message) nogil
    uint8_t *CMSG_DATA(cmsghdr *header) nogil
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset) nogil
    int munmap(void *address, size_t size) nogil
    int packet_send(int fd, void *messages, unsigned count) nogil
    ssize_t packet_receive(int fd, msghdr *message) nogil
    ssize_t packet_kick(int fd) nogil
    int packet_error(int fd) nogil
    bint packet_has_carrier(int fd) nogil
    unsigned packet_drops(int fd) nogil
    void *MAP_FAILED
    enum:
        MAP_SHARED, MAP_POPULATE, PROT_READ, PROT_WRITE
        SOL_PACKET, PACKET_AUXDATA
        TP_STATUS_AVAILABLE, TP_STATUS_SEND_REQUEST
        TP_STATUS_KERNEL, TP_STATUS_USER, TP_STATUS_COPY
        TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID

cdef enum:
    MAC_BYTES = 12           # both addresses; a VLAN tag follows
    TAG_BYTES = 4
    DOT1Q = 0x8100           # the tag's type where an old kernel does not report it
    CONTROL_BYTES = 64       # room for a tpacket_auxdata
    SEND_AT = 32             # start of data in a slot to transmit: behind the aligned tpacket2_hdr
    SENT = 0xFFFF            # tx_status of a transmitted packet, until tx_burst frees it


cdef void unmap_ring(Ring *ring) noexcept:
    if ring.memory != NULL:
        munmap(ring.memory, ring.size)
    ring.memory, ring.fd = NULL, -1


cdef class PacketPort(Port):
    """The device's side of a veth pair: rx_burst receives the container's frames, tx_burst
    transmits to it.

    fds, sending: two sockets per queue pair, opened by `vnic.device.kinds.veth`: one with a receive
    ring of `blocks` blocks, one with a transmit ring of `sending_blocks`. A block has
    `block_bytes`, a slot `slot_bytes`. The caller closes them, after the port. offloads: those
    enabled at the container's end. Raises PortError for a descriptor that is not open or has
    another ring.

    Receive: frames of up to a slot are copied out of the ring; the kernel delivers longer ones
    (GSO) through the socket, in the same order. The kernel's slot headers are trusted, but every
    offset and length is checked against the slot, so that a wrong one costs only its frame. Frames
    and their virtio-net headers are untrusted; Parse checks them. No other process can write to the
    ring, which only the socket's descriptor gives access to.

    Transmit: frames of up to a slot go through the other ring, where one system call sends all
    filled slots; longer ones by sendmmsg on the first socket. For 60-byte frames the ring takes a
    sixth less time than sendmmsg.

    A frame with several VLAN tags may not be longer than one with a single tag (too_long), as on a
    veth.
    """

    # a socket's error because its interface went down ends when the link comes up again
    RECOVERS = True

    def __cinit__(self, *args, **kwargs):
        self._receiving = self._sending = NULL

    def __init__(self, str name, fds, sending, *, uint32_t slot_bytes, uint32_t block_bytes,
                 uint32_t blocks, uint32_t sending_blocks,
                 uint32_t number=0, uint32_t offloads=OFFLOAD_ALL, uint32_t mtu=1500):
        cdef mmsghdr *message
        cdef iovec *vectors
        cdef uint32_t i
        fds, sending = list(fds), list(sending)
        super().__init__(name, number, len(fds), offloads)
        if len(sending) != len(fds):
            raise PortError(f"port {name}: {len(fds)} sockets to receive from, "
                            f"but {len(sending)} to transmit by")
        if slot_bytes < ETHERNET_BYTES + 128 or slot_bytes > block_bytes // 2:
            raise PortError(f"port {name}: slots of {slot_bytes} bytes in blocks of {block_bytes}")
        self.mtu, self.slot_bytes, self.block_bytes = mtu, slot_bytes, block_bytes
        self.block_slots = block_bytes // slot_bytes
        if block_bytes - self.block_slots * slot_bytes < TAIL_BYTES:
            raise PortError(f"port {name}: slots of {slot_bytes} bytes "
                            f"leave less than {TAIL_BYTES} bytes of a block of {block_bytes}")
        for count in (blocks, sending_blocks):
            if not 1 <= count <= (1 << 30) // block_bytes:
                raise PortError(f"port {name}: a ring of {count} blocks of {block_bytes} bytes")
        self._sink = <uint8_t *>calloc(1, LARGE_FRAME)
        self._messages = calloc(MESSAGES, sizeof(mmsghdr) + sizeof(iovec))
        self._staged = <uint32_t *>calloc(
            max(<uint32_t>MESSAGES, self.block_slots * sending_blocks), sizeof(uint32_t))
        self._receiving = <Ring *>calloc(len(fds), sizeof(Ring))
        self._sending = <Ring *>calloc(len(fds), sizeof(Ring))
        if not (self._sink and self._messages and self._staged and self._receiving
                and self._sending):
            raise MemoryError(f"port {name}")
        message = <mmsghdr *>self._messages
        vectors = <iovec *>(message + <size_t>MESSAGES)
        for i in range(<uint32_t>MESSAGES):
            message[i].msg_hdr.msg_iov, message[i].msg_hdr.msg_iovlen = &vectors[i], 1
        self._descriptors = fds
        for queue in range(len(fds)):
            self.map_ring(&self._receiving[queue], fds[queue], blocks,
                          f"queue {queue}: descriptor {fds[queue]}")
            self.map_ring(&self._sending[queue], sending[queue], sending_blocks,
                          f"queue {queue}: descriptor {sending[queue]}")

    def __dealloc__(self):
        self.unmap()
        free(self._receiving)
        free(self._sending)
        free(self._sink)
        free(self._messages)
        free(self._staged)

    cdef void map_ring(self, Ring *ring, int fd, uint32_t blocks, what) except *:
        cdef void *memory
        try:
            os.set_blocking(fd, False)
        except OSError as error:
            raise PortError(f"port {self.name}: {what}: {error.strerror}") from error
        ring.size = <size_t>self.block_bytes * blocks
        # MAP_POPULATE: else the first packets would wait for page faults
        memory = mmap(NULL, ring.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0)
        if memory == MAP_FAILED:
            raise PortError(f"port {self.name}: {what}: its ring cannot be mapped: "
                            f"{os.strerror(errno)}")
        ring.fd, ring.memory, ring.slots = fd, <uint8_t *>memory, self.block_slots * blocks
        ring.slot_bytes, ring.block_bytes = self.slot_bytes, self.block_bytes
        ring.block_slots = self.block_slots
        ring.tail = <Tail *>(ring.memory + ring.size - TAIL_BYTES)

    def descriptors(self):
        return list(self._descriptors)

    def close(self):
        """Unmaps the rings, which keep the sockets open, and forgets the descriptors. Only when no
        engine serves the port."""
        self.unmap()
        self._descriptors = []

    cdef void unmap(self) noexcept:
        cdef uint32_t queue
        for queue in range(self.queues if self._receiving != NULL and self._sending != NULL else 0):
            unmap_ring(&self._receiving[queue])
            unmap_ring(&self._sending[queue])

    def ring_drops(self):
        """Frames dropped because a queue was full. A read resets the kernel's counter, so the sum
        is stored in the ring's memory, also for the next process."""
        cdef uint64_t total = 0, seen
        cdef uint32_t queue, found
        for queue in range(self.queues):
            if self._receiving[queue].memory == NULL:
                continue
            found = packet_drops(self._receiving[queue].fd)
            seen = va_load_relaxed_u64(&self._receiving[queue].tail.no_room)
            # During an upgrade two processes may add at the same time. Relaxed: no other field
            # depends on the sum.
            while not va_cas_u64(&self._receiving[queue].tail.no_room, &seen, seen + found):
                pass
            total += seen + found + va_load_relaxed_u64(&self._receiving[queue].tail.cut)
        return total

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef Ring *ring = &self._receiving[queue]
        cdef uint32_t taken = 0, before = batch.count, budget = READ_BUDGET, index, length, status
        cdef uint32_t start, position, in_block
        cdef tpacket2_hdr *slot
        cdef uint8_t *block
        if ring.memory == NULL:
            return 0
        # relaxed: the process that served the queue before has stopped, synchronized by system
        # calls
        position = va_load_relaxed_u32(&ring.tail.position)
        if position >= ring.slots:
            position = 0                 # shared memory is untrusted
        in_block = position % self.block_slots
        block = ring.memory + <size_t>(position // self.block_slots) * self.block_bytes
        while taken < limit:
            slot = <tpacket2_hdr *>(block + in_block * self.slot_bytes)
            # Acquire: read the slot's content after its status; pairs with the kernel's write
            # barrier.
            status = va_load_acquire_u32(&slot.tp_status)
            if not status & TP_STATUS_USER:
                break
            start, length = slot.tp_mac, slot.tp_snaplen
            if (start < sizeof(tpacket2_hdr) + VNET_HEADER or start > self.slot_bytes
                    or length > self.slot_bytes - start or not length):
                self.stats[queue].rx_dropped += 1
                self.stats[queue].rx_unreadable += 1
            elif status & TP_STATUS_COPY:
                length = self.take_long(ctx, ring, queue, slot.tp_len, batch)
            elif slot.tp_len != length:
                # Longer than a slot, and the socket's buffer was full: counted as a full queue. No
                # atomic addition, since only this thread writes it.
                va_store_relaxed_u64(&ring.tail.cut, va_load_relaxed_u64(&ring.tail.cut) + 1)
            else:
                index = packet_alloc(ctx, length)
                if index == NO_PACKET:
                    self.stats[queue].rx_dropped += 1
                else:
                    memcpy(packet_buffer(ctx, index) + HEADROOM, <uint8_t *>slot + start, length)
                    receive(ctx, index, <VnetHeader *>(<uint8_t *>slot + start - VNET_HEADER),
                            self.number, queue)
                    if status & TP_STATUS_VLAN_VALID:
                        push_tag(ctx, index,
                                 slot.tp_vlan_tpid if status & TP_STATUS_VLAN_TPID_VALID else DOT1Q,
                                 slot.tp_vlan_tci)
                    self.stats[queue].rx_packets += 1
                    self.stats[queue].rx_bytes += ctx.packets[index].length
                    batch_add(batch, index)
            in_block += 1
            position += 1
            if in_block == self.block_slots:
                in_block = 0
                block += self.block_bytes
                if position == ring.slots:
                    position, block = 0, ring.memory
            # Before the slot is freed: if this process is killed in between, a slot is read again a
            # round later; the other way round, the position would point behind the kernel's.
            va_store_relaxed_u32(&ring.tail.position, position)
            # Release: the slot is read before the kernel may overwrite it.
            va_store_release_u32(&slot.tp_status, TP_STATUS_KERNEL)
            # lost frames too: an empty pool must not keep the engine here
            taken += 1
            if length >= budget:
                break
            budget -= length
        if taken == 0 and limit == 1:
            # Woken without input: the interface went down; the pending error would wake the engine
            # again and again.
            packet_error(ring.fd)
        return batch.count - before

    cdef uint32_t take_long(self, Context *ctx, Ring *ring, uint32_t queue, uint32_t length,
                            Batch *batch) noexcept nogil:
        """Receives a frame longer than a slot from the socket; returns the bytes read. The VLAN tag
        is taken from the message, not from the slot: after a crash, the frame may belong to another
        slot."""
        cdef msghdr message
        cdef iovec vector
        cdef uint8_t[CONTROL_BYTES] control
        cdef VnetHeader header
        cdef cmsghdr *extra
        cdef tpacket_auxdata aux
        cdef uint32_t index = (packet_alloc(ctx, length) if length <= LARGE_FRAME - TAG_BYTES
                               else NO_PACKET)
        cdef uint8_t *target = ((packet_buffer(ctx, index) + HEADROOM - VNET_HEADER)
                                if index != NO_PACKET else self._sink)
        cdef size_t room = VNET_HEADER + (length if index != NO_PACKET else 0)
        cdef ssize_t got
        cdef int error = 0, _try
        # the first call may return a pending error (interface down)
        for _try in range(2):
            memset(&message, 0, sizeof(message))
            vector.iov_base, vector.iov_len = target, room
            message.msg_iov, message.msg_iovlen = &vector, 1
            message.msg_control, message.msg_controllen = control, CONTROL_BYTES
            got = packet_receive(ring.fd, &message)
            error = errno if got < 0 else 0
            if got >= 0 or (error != EINTR and error != ENETDOWN):
                break
        if index == NO_PACKET or got != <ssize_t>(length + VNET_HEADER):
            # no buffer, longer than any buffer, or not the frame of this slot
            self.stats[queue].rx_dropped += 1
            if index != NO_PACKET or length > LARGE_FRAME - TAG_BYTES:
                self.stats[queue].rx_unreadable += 1
            if index != NO_PACKET:
                packet_free(ctx, index)
            return length
        memcpy(&header, target, VNET_HEADER)
        receive(ctx, index, &header, self.number, queue)
        extra = CMSG_FIRSTHDR(&message)
        if extra != NULL and extra.cmsg_level == SOL_PACKET and extra.cmsg_type == PACKET_AUXDATA:
            memcpy(&aux, CMSG_DATA(extra), sizeof(aux))
            if aux.tp_status & TP_STATUS_VLAN_VALID:
                push_tag(ctx, index,
                         aux.tp_vlan_tpid if aux.tp_status & TP_STATUS_VLAN_TPID_VALID else DOT1Q,
                         aux.tp_vlan_tci)
        self.stats[queue].rx_packets += 1
        self.stats[queue].rx_bytes += ctx.packets[index].length
        batch_add(batch, index)
        return length

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef Ring *ring = &self._sending[queue]
        cdef mmsghdr *messages = <mmsghdr *>self._messages
        cdef uint32_t i, index, left = 0, sent = 0
        cdef int fd = self._receiving[queue].fd
        cdef bint room = True
        cdef Packet *p
        self._in_messages = self._in_slots = 0
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            vnic_check(p.offset >= VNET_HEADER, "room for the virtio-net header")
            if not fits_mtu(p, self.mtu) or (p.gso_type == GSO_NONE
                                             and p.length > self.mtu + ETHERNET_BYTES + TAG_BYTES):
                p.tx_status = TX_TOO_LONG
                continue
            # To preserve the order, staged frames of one method are sent before the other is used.
            if room and goes_by_ring(p, self.slot_bytes):
                if self._in_messages:
                    self.send_messages(ctx, fd)
                room = self.fill_slot(ctx, ring, index)
                if room:
                    continue
                # ring full: the rest of the burst goes by messages, which need fewer system calls
            if self._in_slots:
                self.send_slots(ctx, ring)
            write_header(<VnetHeader *>(packet_data(ctx, index) - VNET_HEADER), p, p.header_length)
            messages[self._in_messages].msg_hdr.msg_iov.iov_base = packet_data(
                ctx, index) - VNET_HEADER
            messages[self._in_messages].msg_hdr.msg_iov.iov_len = p.length + VNET_HEADER
            self._staged[self._in_messages] = index
            self._in_messages += 1
            if self._in_messages == MESSAGES:
                self.send_messages(ctx, fd)
        if self._in_slots:
            self.send_slots(ctx, ring)
        if self._in_messages:
            self.send_messages(ctx, fd)
        for i in range(batch.count):     # frees sent packets; the others stay in order
            index = batch.index[i]
            p = &ctx.packets[index]
            if p.tx_status != SENT:
                batch.index[left] = index
                left += 1
                continue
            sent += 1
            self.stats[queue].tx_packets += 1
            self.stats[queue].tx_bytes += p.length
            count_segments(p, &self.stats[queue].tx_more_packets, &self.stats[queue].tx_more_bytes)
            packet_free(ctx, index)
        self.stats[queue].tx_dropped += left
        batch.count = left
        return sent

    cdef bint fill_slot(self, Context *ctx, Ring *ring, uint32_t index) noexcept nogil:
        """Puts a frame into the next slot and requests its transmission; False if the slot is not
        free, since the container's kernel still has its last frame."""
        cdef uint32_t position, status
        cdef tpacket2_hdr *slot
        cdef uint8_t *at
        cdef const Packet *p = &ctx.packets[index]
        if ring.memory == NULL:
            return False
        if not ring.begun:
            begin(ring)
        position = va_load_relaxed_u32(&ring.tail.position)
        if position >= ring.slots:
            position = 0                 # shared memory is untrusted
        slot = slot_at(ring, position)
        # Acquire: the kernel has read the slot before it marks it as free.
        status = va_load_acquire_u32(&slot.tp_status)
        if status == TP_STATUS_SEND_REQUEST:
            # all slots are filled, by this burst or by frames cancelled while the link was down
            if self._in_slots:
                self.send_slots(ctx, ring)
            else:
                packet_kick(ring.fd)
            status = va_load_acquire_u32(&slot.tp_status)
        if status != TP_STATUS_AVAILABLE:
            return False
        at = <uint8_t *>slot + SEND_AT
        # the whole frame counts as header, so that the kernel copies it and frees the slot early
        write_header(<VnetHeader *>at, p, <uint16_t>p.length)
        memcpy(at + VNET_HEADER, packet_data(ctx, index), p.length)
        slot.tp_len = p.length + VNET_HEADER
        # Release: the slot is written before its status. If this process is killed from here on,
        # the next worker skips the slot (begin), and the kernel sends it with the next one.
        va_store_release_u32(&slot.tp_status, TP_STATUS_SEND_REQUEST)
        va_store_relaxed_u32(&ring.tail.position, position + 1 if position + 1 < ring.slots else 0)
        self._staged[self._in_slots] = index
        self._in_slots += 1
        return True

    cdef void send_slots(self, Context *ctx, Ring *ring) noexcept nogil:
        """Sends the filled slots and sets each packet's tx_status to SENT or the reason of
        failure."""
        cdef uint32_t done = 0, count = self._in_slots, position
        cdef uint32_t first = va_load_relaxed_u32(&ring.tail.position)
        cdef tpacket2_hdr *slot
        cdef int error, carrier = -1
        cdef uint16_t reason
        self._in_slots = 0
        first = first - count if first >= count else first + ring.slots - count
        while done < count:
            error = 0 if packet_kick(ring.fd) >= 0 else errno
            if error == EINTR:
                continue
            # The kernel takes slots in order. Each slot has its result; the system call's does not
            # tell.
            while done < count:
                position = first + done if first + done < ring.slots else first + done - ring.slots
                slot = slot_at(ring, position)
                if va_load_acquire_u32(&slot.tp_status) == TP_STATUS_SEND_REQUEST:
                    break
                ctx.packets[self._staged[done]].tx_status = SENT
                done += 1
            if done == count:
                break
            # This slot failed; the kernel would retry it with the next call. A transmission is the
            # reception in the container: a frame that fails is lost, as on a wire. So its length is
            # set to 0, a malformed slot, which the kernel skips (PACKET_LOSS).
            if error == ENOBUFS and carrier < 0:
                carrier = packet_has_carrier(ring.fd)
            reason = reason_of(error if error else EAGAIN, carrier > 0)
            while done < count:
                position = first + done if first + done < ring.slots else first + done - ring.slots
                slot_at(ring, position).tp_len = 0
                ctx.packets[self._staged[done]].tx_status = reason
                done += 1
                if error != ENETDOWN and error != ENXIO:  # these fail for all slots
                    break

    cdef void send_messages(self, Context *ctx, int fd) noexcept nogil:
        """Sends the staged messages and sets each packet's tx_status to SENT or the reason of
        failure."""
        cdef mmsghdr *messages = <mmsghdr *>self._messages
        cdef uint32_t done = 0, count = self._in_messages
        cdef int sent, error, i, carrier = -1
        self._in_messages = 0
        while done < count:
            sent = packet_send(fd, &messages[done], count - done)
            error = errno
            if sent < 0 and error == EINTR:
                continue
            for i in range(sent):
                ctx.packets[self._staged[done + i]].tx_status = SENT
            if sent > 0:
                done += sent
                continue
            if error == ENOBUFS and carrier < 0:
                # the container's end is down, or its queue full; one system call per burst to find
                # out
                carrier = packet_has_carrier(fd)
            ctx.packets[self._staged[done]].tx_status = reason_of(error, carrier > 0)
            done += 1


cdef inline tpacket2_hdr *slot_at(const Ring *ring, uint32_t position) noexcept nogil:
    return <tpacket2_hdr *>(ring.memory + <size_t>(position // ring.block_slots) * ring.block_bytes
                            + (position % ring.block_slots) * ring.slot_bytes)


cdef void begin(Ring *ring) noexcept nogil:
    """Skips slots that a killed process has filled without updating the position."""
    cdef uint32_t _i, position = va_load_relaxed_u32(&ring.tail.position)
    if position >= ring.slots:
        position = 0
    for _i in range(ring.slots):
        if va_load_acquire_u32(&slot_at(ring, position).tp_status) != TP_STATUS_SEND_REQUEST:
            break
        position = position + 1 if position + 1 < ring.slots else 0
    va_store_relaxed_u32(&ring.tail.position, position)
    ring.begun = True


cdef inline bint goes_by_ring(const Packet *p, uint32_t slot_bytes) noexcept nogil:
    """Whether a frame fits into a slot and is valid: the ring does not report why the kernel
    refuses a frame."""
    return (p.gso_type == GSO_NONE
            and ETHERNET_BYTES <= p.length <= slot_bytes - SEND_AT - VNET_HEADER
            and (not p.vnet_flags & VNET_NEEDS_CSUM
                 or <uint32_t>p.csum_start + p.csum_offset + 2 <= p.length))


cdef inline uint16_t reason_of(int error, bint carrier) noexcept nogil:
    if error == ENETDOWN or error == ENXIO or (error == ENOBUFS and not carrier):
        return TX_LINK_DOWN
    if error == ENOBUFS or error == EAGAIN:
        return TX_QUEUE_FULL
    if error == EMSGSIZE:
        return TX_TOO_LONG
    return TX_REJECTED if error == EINVAL else TX_IO_ERROR


cdef inline void push_tag(Context *ctx, uint32_t index, uint16_t kind, uint16_t tci) noexcept nogil:
    """Inserts the VLAN tag that the kernel has removed from the frame, by means of the headroom. A
    frame shorter than both addresses stays a runt, which Parse drops."""
    cdef Packet *p = &ctx.packets[index]
    cdef uint8_t *frame = packet_data(ctx, index)
    if p.length < MAC_BYTES:
        return
    memmove(frame - TAG_BYTES, frame, MAC_BYTES)
    store_be16(frame - TAG_BYTES + MAC_BYTES, kind)
    store_be16(frame - TAG_BYTES + MAC_BYTES + 2, tci)
    p.offset -= TAG_BYTES
    p.length += TAG_BYTES
    # the kernel's offsets are those of the frame without the tag
    if p.vnet_flags & VNET_NEEDS_CSUM:
        p.csum_start += TAG_BYTES
    if p.gso_type != GSO_NONE:
        p.header_length += TAG_BYTES
