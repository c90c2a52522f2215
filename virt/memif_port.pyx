"""MemifPort. The contract is in memif_port.pxd."""
import select

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from dataplane.graph.port cimport (TX_LINK_DOWN, TX_QUEUE_FULL, TX_REJECTED, TX_TOO_LONG, Port,
                                   count_segments, fits_mtu)
from dataplane.packet.pool cimport (LARGE_FRAME, NO_PACKET, Batch, Context, Packet, batch_add,
                                    packet_alloc, packet_data, packet_free)
from dataplane.vatomic cimport (va_copied, va_fence, va_load_acquire_u16, va_load_relaxed_u16,
                                va_load_relaxed_u32, va_store_release_u16)
from dataplane.wire.vnet_header cimport VnetHeader, receive
from virt.chain cimport (BROKEN_ADDRESS, BROKEN_COUNT, BROKEN_LAYOUT, BROKEN_LOOP, BROKEN_MEMORY,
                         CHAIN_EMPTY, CHAIN_LONG, CHAIN_OK, CHAIN_SHORT, DESCRIPTOR_BYTES,
                         SEGMENTS_MOST, Chain, Cursor, chain_add, chain_clear, chain_read,
                         chain_write)
from virt.guest_memory cimport GuestMemory, guest_at
from virt.notifier cimport (notifier_drain, notifier_prepare, notifier_signal,
                            notifier_unwatch)

from dataplane.errors import ConfigError, VnicError
from virt.vhost_user.notifications import check_notifier

cdef enum:
    NO_WAKE = -1             # not started
    WAKE_CLOSED = -2

cdef uint32_t COOKIE = 0x3E31F20
# By CHAIN_*: what happened to a frame, or why a ring was stopped.
FAULTS = {
    CHAIN_EMPTY: "a buffer of no bytes",
    CHAIN_SHORT: "a frame without its last buffer",
    CHAIN_LONG: "a frame too long",
    BROKEN_COUNT: "more buffers than the ring has descriptors",
    BROKEN_LOOP: f"a frame of more than {SEGMENTS_MOST} buffers",
    BROKEN_ADDRESS: "a buffer outside the regions",
    BROKEN_MEMORY: "the memory of a region was truncated",
    BROKEN_LAYOUT: "the ring is not in the regions",
}


cdef class MemifPort(Port):
    """One side of a memif connection: rx_burst takes what the peer sends, tx_burst sends to it.

    client: whether this side made the memory. Then its rings take buffers of that memory in their
    order, and nothing that the peer writes says where a buffer is. Otherwise the peer's descriptors
    say it.

    queues: queue pairs. Ring 2q sends to the peer (a server's M2S ring q, a client's S2M ring),
    ring 2q + 1 receives. Frames carry no offloads: checksums and segments are complete.

    All Python methods are for control and must be called on the engine's thread, between two
    batches. The port borrows descriptors and memory: the caller closes them after `stop`.

    Everything in the regions is hostile. Descriptors are copied once, then checked; a frame that
    makes no sense is given back and counted (`ring_state`), a ring that makes no sense is stopped.

    How far each side is, is in the rings: a process that is killed leaves its place there, because
    both sides copy frames at once and in order.
    """

    MOVABLE = True
    RECOVERS = True

    def __cinit__(self, *args, **kwargs):
        self._rings, self._chain, self._epoll_fds = NULL, NULL, NULL

    def __init__(self, str name, *, uint32_t number=0, uint32_t queues=1, uint32_t mtu=1500,
                 bint client=False):
        super().__init__(name, number, queues, 0)
        self.mtu, self.needs_arm, self.client = mtu, True, client
        self._rings = <MemifRing *>calloc(2 * queues, sizeof(MemifRing))
        self._chain = <Chain *>calloc(1, sizeof(Chain))
        self._epoll_fds = <int *>calloc(queues, sizeof(int))
        if not (self._rings and self._chain and self._epoll_fds):
            raise MemoryError(f"port {name}")
        for ring in range(2 * queues):
            self._rings[ring].wake.fd = NO_WAKE
        # As in VirtioPort: an engine watches the descriptors that it found when the port was
        # loaded, and interrupts come and go with the peer.
        self._epolls = [select.epoll() for _ in range(queues)]
        for queue in range(queues):
            self._epoll_fds[queue] = self._epolls[queue].fileno()

    def __dealloc__(self):
        free(self._rings)
        free(self._chain)
        free(self._epoll_fds)

    # -- control -----------------------------------------------------------------------------------

    def descriptors(self):
        return [each.fileno() for each in self._epolls]

    def close(self):
        """Stops all rings and forgets memory and descriptors. Only when no engine serves the
        port."""
        for ring in range(2 * self.queues if self._rings != NULL else 0):
            self.stop(ring)
        self.memory = None
        for each in self._epolls or ():
            each.close()
        self._epolls = []

    cdef MemifRing *ring_at(self, ring) except NULL:
        # a number of the peer, checked before it is stored in fewer bits
        if not 0 <= ring < 2 * self.queues:
            raise ConfigError(f"port {self.name}: ring {ring}; it has {2 * self.queues}")
        return &self._rings[ring]

    def set_memory(self, GuestMemory memory):
        """Uses these regions from now on, each at the address REGION_SHIFT gives it; None: none.
        Only while no ring is started. Raises ConfigError."""
        if any(self._rings[ring].started for ring in range(2 * self.queues)):
            raise ConfigError(f"port {self.name}: its rings have to be stopped before its memory "
                              "changes")
        self.memory = memory

    def start(self, ring, *, size, address, wake_fd, resumed=False, buffers=0, buffer_bytes=0):
        """Starts a ring of `size` descriptors whose header is at `address` (see REGION_SHIFT).

        wake_fd: the ring's interrupts. resumed: another process of this side ran the ring before,
        which goes on where that one was; otherwise it begins with no frame. buffers, buffer_bytes:
        of a client, the address of the ring's first buffer and the size of each.

        Raises ConfigError, and then the ring is not started.
        """
        cdef MemifRing *found = self.ring_at(ring)
        what = f"ring {ring}"
        if found.started or self.memory is None:
            raise ConfigError(f"{what}: it is started, or there are no regions")
        if not 2 <= size <= RING_MOST or size & (size - 1):
            raise ConfigError(f"{what}: {size} descriptors: expected a power of two, 2 to "
                              f"{RING_MOST}")
        if not 0 <= address < 1 << 56 or address % DESCRIPTOR_BYTES:
            raise ConfigError(f"{what}: its offset {address % (1 << 32)}: expected a "
                              f"multiple of {DESCRIPTOR_BYTES}")
        memset(found, 0, sizeof(MemifRing))
        found.wake.fd = NO_WAKE
        found.at = guest_at(self.memory.table, &found.last_region, address,
                            RING_HEADER + DESCRIPTOR_BYTES * <uint64_t>size)
        if found.at == NULL:
            raise ConfigError(f"{what}: region {address >> REGION_SHIFT} does not contain it: "
                              "expected a ring within a region that was added")
        if va_load_relaxed_u32(<uint32_t *>(found.at + RING_COOKIE_AT)) != COOKIE:
            raise ConfigError(f"{what}: no cookie: expected {COOKIE:#x} at its beginning")
        if self.client and guest_at(self.memory.table, &found.last_region, buffers,
                                    <uint64_t>size * buffer_bytes) == NULL:
            raise ConfigError(f"{what}: its buffers are outside the regions")
        found.address, found.size = address, size
        found.buffers, found.buffer_bytes = buffers, buffer_bytes
        if wake_fd is not None:
            found.wake.kind = check_notifier(f"{what}: its interrupts", wake_fd)
            notifier_prepare()
            if ring & 1:
                self._epolls[ring >> 1].register(wake_fd, select.EPOLLIN)
            found.wake.fd = wake_fd
        if not resumed:
            va_store_release_u16(<uint16_t *>(found.at + RING_TAIL_AT), 0)
            va_store_release_u16(<uint16_t *>(found.at + RING_HEAD_AT), 0)
            if ring & 1 and self.client:
                # all buffers are the server's to fill
                self.give_back(found, <uint16_t>(0 - found.size))
        elif self.client:
            found.position = va_load_relaxed_u16(<uint16_t *>(found.at + RING_HEAD_AT))
            if ring & 1:
                found.position -= <uint16_t>found.size
        else:
            found.position = va_load_relaxed_u16(<uint16_t *>(found.at + RING_TAIL_AT))
        found.started = found.runs = True

    def stop(self, ring):
        """Stops a ring and forgets its descriptor. Also for a ring that was not started."""
        cdef MemifRing *found = self.ring_at(ring)
        if found.wake.fd >= 0 and ring & 1:
            notifier_unwatch(self._epoll_fds[ring >> 1], found.wake.fd)
        found.wake.fd = NO_WAKE
        found.started = found.runs = False
        found.at = NULL

    def ring_state(self, ring):
        """A ring's state and counters, as a dict."""
        cdef MemifRing *found = self.ring_at(ring)
        return {
            "started": bool(found.started), "broken": FAULTS.get(found.broken, ""),
            "size": found.size, "position": found.position, "no_buffers": found.no_buffers,
            "calls": found.calls, "calls_failed": found.calls_failed,
            "faults": {FAULTS[i]: found.faults[i] for i in range(<uint32_t>FAULTS_COUNT)
                       if found.faults[i]}}

    def can_sleep(self):
        """Asks the peer for interrupts, as an engine does before it sleeps; False if there are
        frames already."""
        return not self.arm()

    def save_state(self, direction):
        """`rings`: number and position of each started ring of one direction."""
        return {"rings": [[ring, self._rings[ring].position]
                          for ring in range(direction == "rx", 2 * self.queues, 2)
                          if self._rings[ring].started]}

    def load_state(self, direction, dict state):
        try:
            rings = [(int(ring), int(position)) for ring, position in state.get("rings", [])]
            for ring, position in rings:
                if not 0 <= position < 1 << 16:
                    raise ValueError(f"position {position}")
                self.ring_at(ring)
        except (TypeError, ValueError, ConfigError) as error:
            raise VnicError(f"port {self.name}: its state: {error}") from None
        for ring, position in rings:
            self.ring_at(ring).position = position

    # -- on the engine's thread --------------------------------------------------------------------

    cdef bint is_cut(self) noexcept nogil:
        """Whether a region was truncated, so that it now has zeros in places: stops all rings.
        Asked before each burst, and before a ring is blamed for what it contains."""
        cdef uint32_t i
        if va_load_relaxed_u32(&self.memory.table.broken) == 0:
            return False
        for i in range(2 * self.queues):
            if self._rings[i].runs:
                self.stop_broken(&self._rings[i], BROKEN_MEMORY)
        return True

    cdef void stop_broken(self, MemifRing *ring, uint32_t why) noexcept nogil:
        cdef uint32_t number = <uint32_t>(ring - self._rings)
        ring.runs, ring.broken = False, why
        ring.faults[why] += 1
        # else each interrupt would wake the engine for nothing
        if number & 1 and ring.wake.fd >= 0:
            notifier_unwatch(self._epoll_fds[number >> 1], ring.wake.fd)

    cdef void drain(self, uint32_t queue, MemifRing *ring) noexcept nogil:
        """Reads interrupts, so that they end one sleep only."""
        if ring.wake.fd >= 0 and not notifier_drain(ring.wake.fd, ring.wake.kind):
            notifier_unwatch(self._epoll_fds[queue], ring.wake.fd)
            ring.wake.fd = WAKE_CLOSED

    cdef void notify(self, MemifRing *ring) noexcept nogil:
        """Interrupts the peer unless it polls. The fence: it unmasks, then looks at the index."""
        va_fence()
        if (ring.wake.fd >= 0 and not
                va_load_relaxed_u16(<uint16_t *>(ring.at + RING_FLAGS_AT)) & MASK_INTERRUPTS):
            ring.calls += 1
            if notifier_signal(ring.wake.fd, ring.wake.kind) != 0:
                ring.calls_failed += 1

    cdef bint arm(self) noexcept nogil:
        cdef uint32_t queue
        cdef MemifRing *ring
        cdef bint found = False
        for queue in range(self.queues):
            ring = &self._rings[2 * queue + 1]
            if not ring.runs:
                continue
            if ring.interrupts != INTERRUPTS_ON:
                va_store_release_u16(<uint16_t *>(ring.at + RING_FLAGS_AT), 0)
                ring.interrupts = INTERRUPTS_ON
                va_fence()
            found = self.pending(ring) != 0 or ring.wake.fd == NO_WAKE or found
        return found

    cdef uint32_t pending(self, const MemifRing *ring) noexcept nogil:
        """Descriptors between this side's place in a ring and the peer's, modulo 2^16. Loaded once
        a burst, since the peer's index may be anything; more than the ring has are a lie."""
        cdef const uint8_t *at = ring.at + (RING_TAIL_AT if self.client else RING_HEAD_AT)
        return <uint16_t>(va_load_acquire_u16(<const uint16_t *>at) - ring.position)

    cdef uint32_t add_buffer(self, MemifRing *ring, uint16_t position, bint writable,
                             uint16_t *flags) noexcept nogil:
        """Appends the buffer of a descriptor to the chain at hand; CHAIN_OK or why the ring is
        broken. What the peer writes is copied once, and only the copy is checked and used."""
        cdef uint32_t slot = position & (ring.size - 1)
        cdef BufferDescriptor copy
        cdef uint64_t address
        memcpy(&copy, ring.at + RING_HEADER + DESCRIPTOR_BYTES * slot, sizeof(copy))
        va_copied()
        flags[0] = copy.flags
        if self.client:
            address = ring.buffers + <uint64_t>slot * ring.buffer_bytes
            if writable:
                copy.length = ring.buffer_bytes
            elif copy.length > ring.buffer_bytes:
                return BROKEN_ADDRESS
        else:
            address = <uint64_t>copy.region << REGION_SHIFT | copy.offset
        return chain_add(self._chain, self.memory.table, &ring.last_region, address, copy.length,
                         writable)

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef MemifRing *ring = &self._rings[2 * queue + 1]
        cdef uint32_t taken = 0, before = batch.count, budget = READ_BUDGET, left, count, status
        cdef uint32_t length
        cdef uint16_t start = ring.position
        # The first iteration after a sleep asks for one packet, only where an interrupt has come.
        if limit == 1:
            self.drain(queue, ring)
        if not ring.runs or self.is_cut():
            return 0
        left = self.pending(ring)
        if left > ring.size:
            if not self.is_cut():
                self.stop_broken(ring, BROKEN_COUNT)
            return 0
        while taken < limit and left:
            status = self.take(ring, left, &count)
            if status != CHAIN_OK:
                if not self.is_cut():
                    self.stop_broken(ring, status)
                break
            length = self.receive_chain(ctx, ring, queue, batch)
            ring.position += <uint16_t>count
            left -= count
            # lost frames too: an empty pool must not keep the engine here
            taken += 1
            if length >= budget:
                break
            budget -= length
        if taken:
            if ring.interrupts != INTERRUPTS_OFF:
                va_store_release_u16(<uint16_t *>(ring.at + RING_FLAGS_AT), MASK_INTERRUPTS)
                ring.interrupts = INTERRUPTS_OFF
            self.give_back(ring, start)
        return batch.count - before

    cdef uint32_t take(self, MemifRing *ring, uint32_t most, uint32_t *count) noexcept nogil:
        """The buffers of the next frame, of at most so many descriptors, as the chain at hand;
        CHAIN_OK or why the ring is broken. A fault that costs only this frame is in the chain."""
        cdef uint32_t n = 0, status
        cdef uint16_t flags = BUFFER_NEXT
        chain_clear(self._chain)
        while flags & BUFFER_NEXT:
            if n == most:
                self._chain.fault = CHAIN_SHORT
                break
            # counts descriptors without bytes, too, which the chain does not have
            if n == SEGMENTS_MOST:
                return BROKEN_LOOP
            status = self.add_buffer(ring, <uint16_t>(ring.position + n), False, &flags)
            if status != CHAIN_OK:
                return status
            n += 1
        count[0] = n
        return CHAIN_OK

    cdef uint32_t receive_chain(self, Context *ctx, MemifRing *ring, uint32_t queue,
                                Batch *batch) noexcept nogil:
        """Copies the frame of the chain at hand into a packet; returns the bytes read."""
        cdef Chain *chain = self._chain
        cdef uint32_t index, length
        cdef Cursor cursor
        cdef VnetHeader header
        if not chain.fault and chain.readable > LARGE_FRAME:
            chain.fault = CHAIN_LONG
        if chain.fault:
            ring.faults[chain.fault] += 1
            self.stats[queue].rx_dropped += 1
            self.stats[queue].rx_unreadable += 1
            return 0
        length = <uint32_t>chain.readable
        index = packet_alloc(ctx, length)
        if index == NO_PACKET:
            self.stats[queue].rx_dropped += 1
            return length
        cursor.segment = cursor.offset = 0
        chain_read(chain, &cursor, packet_data(ctx, index), length)
        memset(&header, 0, sizeof(header))
        receive(ctx, index, &header, self.number, queue)
        self.stats[queue].rx_packets += 1
        self.stats[queue].rx_bytes += length
        batch_add(batch, index)
        return length

    cdef void give_back(self, MemifRing *ring, uint16_t start) noexcept nogil:
        """Gives the buffers from `start` to the ring's position back to the peer, by one store. A
        client writes their descriptors anew, which the server has filled."""
        cdef BufferDescriptor fresh
        cdef uint32_t slot
        if not self.client:
            va_store_release_u16(<uint16_t *>(ring.at + RING_TAIL_AT), ring.position)
            return
        memset(&fresh, 0, sizeof(fresh))
        fresh.length = ring.buffer_bytes
        while start != ring.position:
            slot = start & (ring.size - 1)
            fresh.offset = <uint32_t>(ring.buffers + <uint64_t>slot * ring.buffer_bytes)
            memcpy(ring.at + RING_HEADER + DESCRIPTOR_BYTES * slot, &fresh, sizeof(fresh))
            start += 1
        # all of them are the server's: so the head tells a successor where this side was
        va_store_release_u16(<uint16_t *>(ring.at + RING_HEAD_AT),
                             <uint16_t>(ring.position + ring.size))

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef MemifRing *ring = &self._rings[2 * queue]
        cdef uint32_t i, index, status, left = 0, sent = 0, pending
        cdef Packet *p
        if ring.runs and not self.is_cut():
            pending = self.pending(ring)
            if self.client:              # from its own place back to the server's
                pending = ring.size - <uint32_t><uint16_t>(0 - pending)
            ring.free = <uint16_t>pending
            if pending > ring.size and not self.is_cut():
                self.stop_broken(ring, BROKEN_COUNT)
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            if not ring.runs:
                status = TX_LINK_DOWN
            elif not fits_mtu(p, self.mtu):
                status = TX_TOO_LONG
            else:
                status = self.deliver(ctx, ring, index)
            if status == SENT:
                sent += 1
                self.stats[queue].tx_packets += 1
                self.stats[queue].tx_bytes += p.length
                count_segments(p, &self.stats[queue].tx_more_packets,
                               &self.stats[queue].tx_more_bytes)
                packet_free(ctx, index)
            else:
                p.tx_status = <uint16_t>status
                batch.index[left] = index
                left += 1
        if sent:
            va_store_release_u16(<uint16_t *>(ring.at + (RING_HEAD_AT if self.client
                                                         else RING_TAIL_AT)), ring.position)
            self.notify(ring)
        self.stats[queue].tx_dropped += left
        batch.count = left
        return sent

    cdef uint32_t deliver(self, Context *ctx, MemifRing *ring, uint32_t index) noexcept nogil:
        """Copies a frame into the next buffers of the ring; SENT or TX_*."""
        cdef uint32_t needed = ctx.packets[index].length, count = 0, i, slot, status
        cdef BufferDescriptor *d
        cdef Cursor cursor
        status = self.gather(ring, needed, &count)
        if status != SENT:
            return status
        cursor.segment = cursor.offset = 0
        chain_write(self._chain, &cursor, packet_data(ctx, index), needed, &self._no_log)
        for i in range(count):
            slot = <uint16_t>(ring.position + i) & (ring.size - 1)
            d = <BufferDescriptor *>(ring.at + RING_HEADER + DESCRIPTOR_BYTES * slot)
            if self.client:
                d.region, d.metadata = 0, 0
                d.offset = <uint32_t>(ring.buffers + <uint64_t>slot * ring.buffer_bytes)
            d.length = min(self._chain.segments[i].length, needed)
            needed -= min(self._chain.segments[i].length, needed)
            d.flags = BUFFER_NEXT if i + 1 < count else 0
        ring.position += <uint16_t>count
        ring.free -= <uint16_t>count
        return SENT

    cdef uint32_t gather(self, MemifRing *ring, uint32_t needed, uint32_t *count) noexcept nogil:
        """Buffers for `needed` bytes as the chain at hand; SENT or TX_*. Too few are left to the
        peer."""
        cdef uint32_t n = 0, status
        cdef uint16_t flags
        chain_clear(self._chain)
        while self._chain.writable < needed:
            if n == ring.size or n == SEGMENTS_MOST:
                return TX_REJECTED
            if n == ring.free:
                ring.no_buffers += 1
                return TX_QUEUE_FULL
            status = self.add_buffer(ring, <uint16_t>(ring.position + n), True, &flags)
            # A buffer of no bytes would be asked for at each frame, and never be used up.
            if status == CHAIN_OK and self._chain.fault:
                status = self._chain.fault
            if status != CHAIN_OK:
                if not self.is_cut():
                    self.stop_broken(ring, status)
                return TX_LINK_DOWN
            n += 1
        count[0] = n
        return SENT
