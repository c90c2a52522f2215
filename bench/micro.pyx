"""The measuring loops of `bench elements`. The contract is in micro.pxd."""
cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from dataplane.abi cimport check_abi
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport Element
from dataplane.graph.timers cimport Entry, Heap, timer_set
from dataplane.packet.pool cimport (BATCH_MAX, NO_PACKET, VNET_NEEDS_CSUM, Batch, Context, Packet,
                                    PacketPool, packet_alloc, packet_copy, packet_data)
from dataplane.packet.ring cimport Ring
from dataplane.elements.rss cimport Rss
from dataplane.vatomic cimport va_store_release_u16
from virt.chain cimport DESCRIPTOR_BYTES, DESCRIPTOR_WRITE, Descriptor
from virt.packed_ring cimport PACKED_AVAILABLE, PACKED_USED
from virt.split_ring cimport SPLIT_ENTRIES_AT, split_index
from virt.virtio_port cimport VirtioPort

check_abi(__name__)


cdef uint64_t monotonic_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline void fifo_put(Fifo *fifo, uint32_t index) noexcept nogil:
    fifo.indices[fifo.last & fifo.mask] = index
    fifo.last += 1


@cython.final
cdef class Sink(Element):
    """Returns packets to its lane; the last element of every measurement."""

    OUTPUTS = 0

    def __init__(self, Lane lane, *, name=None):
        self.lane = lane
        self.fifo = &lane.fifo

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i
        for i in range(batch.count):
            fifo_put(self.fifo, batch.index[i])


@cython.final
cdef class Hop(Element):
    """Forwards packets: the minimum cost of an element."""

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        self.emit(ctx, 0, batch)


@cython.final
cdef class Flows(Element):
    """Makes the packets, which must be parsed, of `count` flows in turn, in a scattered order."""

    def __init__(self, uint32_t count, *, name=None):
        self.count = count

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, flow
        for i in range(batch.count):
            flow = <uint32_t>(self.number * <uint64_t>2654435761 % self.count)    # a prime
            self.number += 1
            memcpy(ctx.packets[batch.index[i]].source_address, &flow, sizeof(flow))
        self.emit(ctx, 0, batch)


@cython.final
cdef class Steer(Element):
    """Hashes each packet and looks up its queue, as NicTx does before it transmits; forwards all
    packets to one output."""

    def __init__(self, *, name=None):
        self.rss = Rss(queues=4)

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i
        for i in range(batch.count):
            self.chosen += self.rss.queue_of(self.rss.hash_packet(ctx, batch.index[i]))
        self.emit(ctx, 0, batch)


cdef class Lane:
    """Packets made of `frames` (bytes), `copies` of each in turn, and the measuring loops.

    gso: (gso_type, header_length, gso_size, csum_start, csum_offset) of every frame; None for plain
    frames. The working set is frames times copies; keep it small (256 packets) as in a busy engine,
    whose pool allocates the most recently used packets first.
    """

    def __cinit__(self, PacketPool pool, list frames, uint32_t copies=1, gso=None):
        cdef uint32_t index, size = 1, _copy
        cdef const unsigned char[:] frame
        cdef Packet *p
        self.pool = pool
        while size < len(frames) * copies:
            size *= 2
        self.fifo.mask = size - 1
        self.fifo.indices = <uint32_t *>calloc(size, sizeof(uint32_t))
        self.ctx = <Context *>calloc(1, sizeof(Context))
        if self.ctx == NULL or self.fifo.indices == NULL:
            raise MemoryError("lane")
        pool.attach(self.ctx)
        self.ctx.now_ns = 1000000000
        for _copy in range(copies):
            for data in frames:
                frame = data
                index = packet_alloc(self.ctx, <uint32_t>len(data))
                if index == NO_PACKET:
                    raise MemoryError("lane: the pool is too small for its packets")
                memcpy(packet_data(self.ctx, index), &frame[0], len(data))
                p = &self.ctx.packets[index]
                p.timestamp_ns = self.ctx.now_ns
                if gso is not None:
                    p.vnet_flags = VNET_NEEDS_CSUM
                    p.gso_type, p.header_length, p.gso_size, p.csum_start, p.csum_offset = gso
                fifo_put(&self.fifo, index)

    def __dealloc__(self):
        free(self.fifo.indices)
        free(self.ctx)

    @property
    def waiting(self):
        """Packets in the lane; the others are held by the element, or lost."""
        return self.fifo.last - self.fifo.first

    def measure(self, Element element, uint32_t turns, uint32_t batch, uint64_t step_ns=0,
                bint loses=False):
        """Pushes `turns` batches into the element; each turn advances the clock by step_ns, and the
        element's timer runs when due. loses: packets that the element drops are replaced, which
        is part of the measured time.

        Returns ns per packet. Raises RuntimeError when the lane runs empty: the element lost
        packets, or holds more than the lane has.
        """
        cdef uint64_t packets = 0, ns
        if not 1 <= batch <= BATCH_MAX:
            raise ValueError(f"batch of {batch}: expected 1 to {BATCH_MAX}")
        with nogil:
            ns = self.turns(element, turns, batch, step_ns, loses, &packets)
        if packets != <uint64_t>turns * batch:
            raise RuntimeError(f"{element.name}: the lane ran dry after {packets} packets")
        return ns / <double>packets

    cdef uint64_t turns(self, Element element, uint32_t count, uint32_t batch, uint64_t step_ns,
                        bint loses, uint64_t *packets) noexcept nogil:
        cdef Batch out
        cdef Fifo *fifo = &self.fifo
        cdef uint32_t _turn, i, whole = fifo.last - fifo.first
        cdef uint64_t start = monotonic_ns()
        for _turn in range(count):
            if fifo.last - fifo.first < batch:
                break
            for i in range(batch):
                out.index[i] = fifo.indices[fifo.first & fifo.mask]
                fifo.first += 1
            out.count = batch
            packets[0] += batch
            self.ctx.now_ns += step_ns
            element.push(self.ctx, &out)
            if self.ctx.now_ns >= element.deadline_ns:
                element.tick(self.ctx)
            while loses and fifo.last - fifo.first < whole:
                fifo_put(fifo, packet_copy(self.ctx, fifo.indices[fifo.first & fifo.mask]))
        return monotonic_ns() - start

    def measure_ring(self, Ring ring, uint32_t turns, uint32_t batch):
        """Pushes and pops `turns` batches through a ring, on one thread (no cache line moves
        between CPUs). Returns ns per packet."""
        cdef uint64_t packets = 0, ns
        with nogil:
            ns = self.ring_turns(ring, turns, batch, &packets)
        if packets != <uint64_t>turns * batch:
            raise RuntimeError(f"the ring lost packets after {packets}")
        return ns / <double>packets

    cdef uint64_t ring_turns(self, Ring ring, uint32_t count, uint32_t batch,
                             uint64_t *packets) noexcept nogil:
        cdef uint32_t values[BATCH_MAX]
        cdef uint32_t _turn, i
        cdef uint64_t start = monotonic_ns()
        for _turn in range(count):
            for i in range(batch):
                values[i] = self.fifo.indices[i & self.fifo.mask]
            if ring.push(values, batch) != batch or ring.pop(values, batch) != batch:
                break
            packets[0] += batch
        return monotonic_ns() - start


@cython.final
cdef class Driver:
    """A guest's driver of one ring, in C: each buffer is one descriptor and is posted again when it
    was used. Without checks, since the device completes all in order."""

    def __init__(self, VirtioPort port, uint32_t ring, uint64_t address, uint32_t stride,
                 uint32_t length):
        """The ring must be started. Its buffers, of `length` bytes, are at `address` (guest
        physical) and then every `stride` bytes."""
        self.q, self.address = &port._rings[ring].queue, address
        self.stride, self.length = stride, length
        self.flags = 0 if ring & 1 else DESCRIPTOR_WRITE
        cdef uint32_t slot
        for slot in range(self.q.size if not self.q.packed else 0):
            self.write(slot, 0, self.flags, 0)
            (<uint16_t *>(self.q.driver + SPLIT_ENTRIES_AT))[slot] = <uint16_t>slot

    cdef void write(self, uint32_t slot, uint16_t id, uint16_t third,
                    uint16_t fourth) noexcept nogil:
        cdef Descriptor *d = <Descriptor *>(self.q.descriptors + slot * DESCRIPTOR_BYTES)
        d.address, d.length = self.address + slot * self.stride, self.length
        d.third, d.fourth = third, fourth

    cdef void post(self, uint32_t count) noexcept nogil:
        """Makes so many buffers available."""
        cdef uint32_t _i
        cdef uint16_t available
        if not self.q.packed:
            self.position += count
            va_store_release_u16(split_index(self.q.driver), <uint16_t>self.position)
            return
        for _i in range(count):
            available = PACKED_USED if self.wraps & 1 else PACKED_AVAILABLE
            self.write(self.position, 0, <uint16_t>self.position, self.flags | available)
            self.position += 1
            if self.position == self.q.size:
                self.position = 0
                self.wraps += 1


def measure_guests(Engine engine, Driver sender, Driver receiver, uint32_t turns, uint32_t batch):
    """Frames of one guest that an engine forwards to another, `turns` times `batch` of them, with
    all of it on one CPU. Returns ns per frame, those of both drivers included."""
    cdef uint32_t _turn, got = 0
    cdef uint64_t start
    with nogil:
        start = monotonic_ns()
        for _turn in range(turns):
            sender.post(batch)
            receiver.post(batch)
            got += engine.iterate()
        start = monotonic_ns() - start
    if got != turns * batch:
        raise RuntimeError(f"{got} of {turns * batch} frames were forwarded")
    return start / <double>got


def measure_timers(uint32_t count, uint32_t turns):
    """An engine's timers, `count` of them: `turns` times the earliest is set anew, to an instant up
    to a million ns later. Returns ns for each."""
    cdef Heap heap
    cdef uint32_t *places = <uint32_t *>calloc(count, sizeof(uint32_t))
    cdef uint32_t i, _turn, random = 1
    cdef uint64_t start, took
    heap.entries, heap.count, heap.room = <Entry *>calloc(count, sizeof(Entry)), 0, count
    try:
        if heap.entries == NULL or places == NULL:
            raise MemoryError("timers")
        with nogil:
            for i in range(count):
                random = random * 1664525 + 1013904223
                timer_set(&heap, NULL, &places[i], random >> 12)
            start = monotonic_ns()
            for _turn in range(turns):
                random = random * 1664525 + 1013904223
                timer_set(&heap, NULL, heap.entries[0].place,
                          heap.entries[0].deadline_ns + (random >> 12))
            took = monotonic_ns() - start
        return took / <double>turns
    finally:
        free(heap.entries)
        free(places)
