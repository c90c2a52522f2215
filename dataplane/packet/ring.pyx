"""Lock-free rings in shared memory. The contract is in ring.pxd."""
import os
from array import array

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport read, write
from dataplane.packet.mapping cimport mapping_base
from dataplane.vatomic cimport (va_cas_u32, va_exchange_u32, va_fence, va_load_acquire_u32,
                                va_load_relaxed_u32, va_store_relaxed_u32, va_store_release_u32)

from dataplane.packet import shared_memory
from dataplane.errors import VnicError

cdef uint64_t RING_MAGIC = 0x676e697263696e76   # "vnicring", little endian
cdef enum:
    RING_VERSION = 1
    KIND_SPSC = 1
    KIND_MPSC = 2


cdef bint _is_capacity(uint32_t capacity) noexcept nogil:
    return 2 <= capacity <= 1 << 20 and capacity & (capacity - 1) == 0


cdef class Ring:
    """Base of the rings: `capacity` (a power of two, 2 to 2^20) 32-bit indices in a memfd, and an
    eventfd as doorbell.

    `push_many`, `pop_many` and `len()` are for control and tests. start: initial value of the
    32-bit positions; tests set it near 2^32 to make them wrap. Raises ValueError for another
    capacity.
    """

    kind = 0
    cell_bytes = 4

    def __cinit__(self, uint32_t capacity=1024, uint32_t start=0, *, descriptor=None, doorbell=None,
                  bint reset=False):
        self.fd = self.doorbell = -1
        if descriptor is not None:
            self.map_existing(descriptor, doorbell)
            if reset:
                self.clear(0)
            else:
                self.check_positions()
            return
        if not _is_capacity(capacity):
            raise ValueError(f"ring: capacity {capacity} is not a power of two from 2 to 1048576")
        self.fd, self._map = shared_memory.create("vnic-ring",
                                                  sizeof(RingHeader) + capacity * type(
                                                      self).cell_bytes)
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.take_views(capacity)
        self.header.version = RING_VERSION
        self.header.capacity = capacity
        self.header.kind = type(self).kind
        self.clear(start)
        self.header.magic = RING_MAGIC

    @classmethod
    def from_descriptor(cls, descriptor, doorbell, *, reset=False):
        """Maps the ring in an existing segment, with its doorbell, which other users share; the
        caller keeps both descriptors.

        reset: empties the ring. Only when nothing else uses it, as after a crash. Raises VnicError,
        with nothing changed, for descriptors that this class could not have created.
        """
        return cls(descriptor=descriptor, doorbell=doorbell, reset=reset)

    cdef int map_existing(self, descriptor, doorbell) except -1:
        cdef RingHeader header
        kind = type(self).kind
        self.fd, self._map = shared_memory.attach(descriptor, "ring", RING_MAGIC, RING_VERSION,
                                                  sizeof(RingHeader))
        # Read once: the capacity bounds every later access, whatever another process writes there.
        memcpy(&header, mapping_base(self._map), sizeof(RingHeader))
        if header.kind != kind:
            raise VnicError(f"ring: is of kind {header.kind}, not {kind} (1 SPSC, 2 MPSC); "
                            "check which segment it is")
        if (not _is_capacity(header.capacity)
                or len(self._map) != (sizeof(RingHeader)
                                      + header.capacity * type(self).cell_bytes)):
            raise VnicError(f"ring: {header.capacity} cells do not make a segment of "
                            f"{len(self._map)} bytes; its header is damaged")
        self.doorbell = shared_memory.attach_doorbell(doorbell, "ring")
        self.take_views(header.capacity)
        return 0

    cdef int check_positions(self) except -1:
        """Raises VnicError for positions and sequence numbers that no use of the ring leads to;
        others may use it at the same time. With a damaged ring `push` and `pop` would stay within
        the segment, but an MPSC producer might wait for its cell for ever."""
        cdef RingCell *cells = <RingCell *>self.cells
        cdef uint32_t head = va_load_acquire_u32(&self.header.head)
        cdef uint32_t tail = va_load_acquire_u32(&self.header.tail)
        cdef uint32_t i, position, ahead
        # SPSC: the consumer may have advanced since head was read, so only an unchanged head proves
        # damage. MPSC: the consumer publishes its head after the cells it freed, so the ring may
        # seem to hold more than its capacity.
        if <int>(tail - head) < 0 or (type(self).kind == KIND_SPSC and tail - head > self.capacity
                                      and head == va_load_acquire_u32(&self.header.head)):
            raise VnicError(f"ring: consumed {head}, produced {tail}, with {self.capacity} cells; "
                            "its header is damaged")
        for i in range(self.capacity if type(self).kind == KIND_MPSC else 0):
            # a tail that changes at every attempt proves that producers are running
            for _ in range(1000):
                tail = va_load_acquire_u32(&self.header.tail)
                position = tail - self.capacity + i               # the last claim of this cell
                ahead = va_load_acquire_u32(&cells[position & self.mask].sequence) - position
                # claimed, filled, or free again
                if ahead == 0 or ahead == 1 or ahead == self.capacity:
                    break
                if tail == va_load_acquire_u32(&self.header.tail):
                    raise VnicError(f"ring: cell {position & self.mask} has the sequence number "
                                    f"{<uint32_t>(ahead + position)} while {tail} is produced; "
                                    "it is damaged")
        return 0

    cdef int take_views(self, uint32_t capacity) except -1:
        cdef uint8_t *base = mapping_base(self._map)
        self.header = <RingHeader *>base
        self.cells = base + sizeof(RingHeader)
        self.capacity = capacity
        self.mask = capacity - 1
        return 0

    cdef int clear(self, uint32_t start) except -1:
        """Empties the ring: positions at `start`, consumer awake, doorbell cleared. Only while
        nothing else uses the ring."""
        cdef RingCell *cells = <RingCell *>self.cells
        cdef uint64_t value
        cdef uint32_t i
        if type(self).kind == KIND_MPSC:
            for i in range(self.capacity):
                cells[(start + i) & self.mask].sequence = start + i
        self.header.head = self.header.tail = start
        self.header.sleeping = 0
        read(self.doorbell, &value, 8)
        return 0

    def __dealloc__(self):
        for descriptor in (self.fd, self.doorbell):
            if descriptor >= 0:
                os.close(descriptor)

    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil:
        """Appends up to `count` values, in order; returns how many were appended."""
        return 0

    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil:
        """Removes up to `count` values, oldest first; returns how many."""
        return 0

    cdef bint empty(self) noexcept nogil:
        """True if the consumer would find nothing."""
        return True

    cdef bint arm(self) noexcept nogil:
        """Called by the consumer before it sleeps: requests a doorbell. True: values are there
        already, do not sleep."""
        va_store_relaxed_u32(&self.header.sleeping, 1)
        # Store, then load: without the full fence the producer could miss the flag while the
        # consumer misses the packet.
        va_fence()
        return not self.empty()

    cdef void disarm(self) noexcept nogil:
        """Called by the consumer when awake: cancels the request and clears a doorbell that was
        rung."""
        cdef uint64_t value
        va_exchange_u32(&self.header.sleeping, 0)
        # Even if a producer has cleared the flag: it may write the eventfd after this read, and a
        # doorbell left set would end every later sleep at once. Never blocks (EFD_NONBLOCK). The
        # next arm() at the latest sees what was pushed.
        read(self.doorbell, &value, 8)

    cdef void ring_doorbell(self) noexcept nogil:
        """Called by a producer after a push: wakes the consumer if it requested that."""
        cdef uint64_t one = 1
        va_fence()  # the pushed tail before the load of the flag; pairs with arm()
        if va_load_relaxed_u32(&self.header.sleeping) and va_exchange_u32(&self.header.sleeping, 0):
            write(self.doorbell, &one, 8)

    def __len__(self):
        # Head first: it never passes a tail that is read later. Both may change in between, so the
        # result is bounded, not exact.
        cdef uint32_t head = va_load_acquire_u32(&self.header.head)
        return min(va_load_acquire_u32(&self.header.tail) - head, self.capacity)

    def push_many(self, values):
        """Appends the ints of `values` and rings the doorbell; returns how many were appended."""
        cdef const uint32_t[::1] view = array("I", values)
        cdef uint32_t done = 0, count = <uint32_t>len(view)
        if count:
            with nogil:
                done = self.push(&view[0], count)
                self.ring_doorbell()
        return done

    def pop_many(self, uint32_t count):
        """Removes up to `count` values; returns them as a list, oldest first."""
        values = array("I", bytes(4 * max(count, 1)))
        cdef uint32_t[::1] view = values
        cdef uint32_t done
        with nogil:
            done = self.pop(&view[0], count)
        return values[:done].tolist()


cdef class SpscRing(Ring):
    """One producer thread, one consumer thread."""

    kind = KIND_SPSC

    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil:
        cdef uint32_t *slots = <uint32_t *>self.cells
        cdef uint32_t tail = self.header.tail          # written by the producer only
        # Acquire: the consumer has read the slots it freed before they are overwritten.
        cdef uint32_t room = self.capacity - (tail - va_load_acquire_u32(&self.header.head))
        cdef uint32_t i
        if count > room:
            count = room
        for i in range(count):
            slots[(tail + i) & self.mask] = values[i]
        # the slots before the tail that publishes them
        va_store_release_u32(&self.header.tail, tail + count)
        return count

    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil:
        cdef uint32_t *slots = <uint32_t *>self.cells
        cdef uint32_t head = self.header.head          # written by the consumer only
        # pairs with the release in push
        cdef uint32_t filled = va_load_acquire_u32(&self.header.tail) - head
        cdef uint32_t i
        if count > filled:
            count = filled
        for i in range(count):
            values[i] = slots[(head + i) & self.mask]
        # the slots are read before they are freed
        va_store_release_u32(&self.header.head, head + count)
        return count

    cdef bint empty(self) noexcept nogil:
        return va_load_acquire_u32(&self.header.tail) == self.header.head


cdef class MpscRing(Ring):
    """Any number of producer threads, one consumer thread (D. Vyukov's bounded queue, a sequence
    number per cell).

    A producer that is suspended between claiming a cell and filling it delays the consumer at that
    cell; nothing is lost.
    """

    kind = KIND_MPSC
    cell_bytes = 8

    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil:
        cdef RingCell *cells = <RingCell *>self.cells
        cdef RingCell *cell
        cdef uint32_t done = 0, tail
        while done < count:
            tail = va_load_relaxed_u32(&self.header.tail)
            while True:
                cell = &cells[tail & self.mask]
                # Acquire: the consumer's read of the old value precedes the overwrite.
                if va_load_acquire_u32(&cell.sequence) == tail:
                    # updates tail when another producer won
                    if va_cas_u32(&self.header.tail, &tail, tail + 1):
                        break
                elif <int>(va_load_acquire_u32(&cell.sequence) - tail) < 0:
                    return done                        # the consumer has not freed this cell: full
                else:
                    tail = va_load_relaxed_u32(&self.header.tail)
            cell.value = values[done]
            # the value before the sequence that publishes it
            va_store_release_u32(&cell.sequence, tail + 1)
            done += 1
        return done

    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil:
        cdef RingCell *cells = <RingCell *>self.cells
        cdef RingCell *cell
        cdef uint32_t head = self.header.head, done = 0
        while done < count:
            cell = &cells[head & self.mask]
            if va_load_acquire_u32(&cell.sequence) != head + 1:
                break
            values[done] = cell.value
            # the value is read before the cell is free again
            va_store_release_u32(&cell.sequence, head + self.capacity)
            head += 1
            done += 1
        va_store_release_u32(&self.header.head, head)
        return done

    def peek(self):
        """The values in the ring, oldest first, without removing them. Values pushed or popped at
        the same time may be included or not."""
        cdef RingCell *cells = <RingCell *>self.cells
        cdef RingCell *cell
        cdef uint32_t head = va_load_acquire_u32(&self.header.head), fill = <uint32_t>len(self), i
        cdef list found = []
        for i in range(fill):
            cell = &cells[(head + i) & self.mask]
            # Acquire: reads the value that the sequence published, or one of the next lap.
            if va_load_acquire_u32(&cell.sequence) == head + i + 1:
                found.append(va_load_relaxed_u32(&cell.value))
        return found

    cdef bint empty(self) noexcept nogil:
        cdef RingCell *cells = <RingCell *>self.cells
        return (va_load_acquire_u32(&cells[self.header.head & self.mask].sequence)
                != self.header.head + 1)
