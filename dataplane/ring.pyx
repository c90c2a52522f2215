"""Lock-free rings in shared memory. The contract is in ring.pxd."""
import mmap
import os

import numpy as np
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from posix.unistd cimport read, write
from dataplane.vatomic cimport (va_cas_u32, va_exchange_u32, va_fence, va_load_acquire_u32, va_load_relaxed_u32,
                                va_store_relaxed_u32, va_store_release_u32)

cdef uint64_t RING_MAGIC = 0x676e697263696e76   # "vnicring", little endian
cdef enum:
    RING_VERSION = 1


cdef class Ring:
    """Base of the rings: `capacity` (a power of two, 2 to 2^20) indices of 32 bits in a memfd, and an eventfd as doorbell.

    `push_many`, `pop_many` and `len()` are the Python face, for control and tests. Raises ValueError for another capacity.
    `start`: what the 32-bit positions begin at; any value is as good, and one near 2^32 shows that they wrap.
    """

    kind = 0
    cell_bytes = 4

    def __cinit__(self, uint32_t capacity=1024, uint32_t start=0):
        self.fd = self.doorbell = -1
        if capacity < 2 or capacity > 1 << 20 or capacity & (capacity - 1):
            raise ValueError(f"ring: capacity {capacity} is not a power of two from 2 to 1048576")
        self.capacity = capacity
        self.mask = capacity - 1
        size = sizeof(RingHeader) + capacity * type(self).cell_bytes
        self.fd = os.memfd_create("vnic-ring", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        cdef uint8_t *base = <uint8_t *><uintptr_t>np.frombuffer(self._map, np.uint8).ctypes.data
        self.header = <RingHeader *>base
        self.cells = base + sizeof(RingHeader)
        self.header.magic = RING_MAGIC
        self.header.version = RING_VERSION
        self.header.capacity = capacity
        self.header.kind = type(self).kind
        self.header.head = self.header.tail = start

    def __dealloc__(self):
        for descriptor in (self.fd, self.doorbell):
            if descriptor >= 0:
                os.close(descriptor)

    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil:
        """Appends up to `count` values, in order; returns how many fitted."""
        return 0

    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil:
        """Takes up to `count` values, oldest first; returns how many there were."""
        return 0

    cdef bint empty(self) noexcept nogil:
        """Consumer's view."""
        return True

    cdef bint arm(self) noexcept nogil:
        """Consumer, about to sleep: asks for a doorbell. True: there is something already, do not sleep."""
        va_store_relaxed_u32(&self.header.sleeping, 1)
        # Store, then load: without the full fence the producer could miss the flag while we miss its packet.
        va_fence()
        return not self.empty()

    cdef void disarm(self) noexcept nogil:
        """Consumer, awake: no doorbells, and the one that may have rung is taken back."""
        cdef uint64_t value
        va_exchange_u32(&self.header.sleeping, 0)
        # Always, whoever cleared the flag: a producer that cleared it may write only after this read, and the doorbell, left ringing,
        # would end every later sleep at once. Never blocks (EFD_NONBLOCK). What was pushed is seen by the next arm() at the latest.
        read(self.doorbell, &value, 8)

    cdef void ring_doorbell(self) noexcept nogil:
        """Producer, after a push: wakes the consumer if it asked."""
        cdef uint64_t one = 1
        va_fence()                             # the pushed tail before the load of the flag; pairs with arm()
        if va_load_relaxed_u32(&self.header.sleeping) and va_exchange_u32(&self.header.sleeping, 0):
            write(self.doorbell, &one, 8)

    def __len__(self):
        # Head first: it never passes a tail that is read later. Both may move in between, so the answer is bounded, not exact.
        cdef uint32_t head = va_load_acquire_u32(&self.header.head)
        return min(va_load_acquire_u32(&self.header.tail) - head, self.capacity)

    def push_many(self, values):
        """Appends the ints of `values`; returns how many fitted. Rings the doorbell."""
        array = np.ascontiguousarray(values, np.uint32)
        cdef const uint32_t[::1] view = array
        cdef uint32_t done = 0, count = <uint32_t>len(array)
        if count:
            with nogil:
                done = self.push(&view[0], count)
                self.ring_doorbell()
        return done

    def pop_many(self, uint32_t count):
        """Up to `count` values as a list, oldest first."""
        array = np.empty(max(count, 1), np.uint32)
        cdef uint32_t[::1] view = array
        cdef uint32_t done
        with nogil:
            done = self.pop(&view[0], count)
        return array[:done].tolist()


cdef class SpscRing(Ring):
    """One producer thread, one consumer thread."""

    kind = 1

    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil:
        cdef uint32_t *slots = <uint32_t *>self.cells
        cdef uint32_t tail = self.header.tail          # ours alone
        # Acquire: the consumer has read the slots it freed before we overwrite them.
        cdef uint32_t room = self.capacity - (tail - va_load_acquire_u32(&self.header.head))
        cdef uint32_t i
        if count > room:
            count = room
        for i in range(count):
            slots[(tail + i) & self.mask] = values[i]
        va_store_release_u32(&self.header.tail, tail + count)   # slots before the tail that announces them
        return count

    cdef uint32_t pop(self, uint32_t *values, uint32_t count) noexcept nogil:
        cdef uint32_t *slots = <uint32_t *>self.cells
        cdef uint32_t head = self.header.head          # ours alone
        cdef uint32_t filled = va_load_acquire_u32(&self.header.tail) - head   # pairs with the release in push
        cdef uint32_t i
        if count > filled:
            count = filled
        for i in range(count):
            values[i] = slots[(head + i) & self.mask]
        va_store_release_u32(&self.header.head, head + count)   # our reads before the slots are given back
        return count

    cdef bint empty(self) noexcept nogil:
        return va_load_acquire_u32(&self.header.tail) == self.header.head


cdef class MpscRing(Ring):
    """Any number of producer threads, one consumer thread (D. Vyukov's bounded queue with a sequence number a cell).

    A producer that is stopped between claiming a cell and filling it delays the consumer at that cell, and loses nothing.
    """

    kind = 2
    cell_bytes = 8

    def __init__(self, uint32_t capacity=1024, uint32_t start=0):
        cdef RingCell *cells = <RingCell *>self.cells
        cdef uint32_t i
        for i in range(capacity):
            cells[(start + i) & self.mask].sequence = start + i

    cdef uint32_t push(self, const uint32_t *values, uint32_t count) noexcept nogil:
        cdef RingCell *cells = <RingCell *>self.cells
        cdef RingCell *cell
        cdef uint32_t done = 0, tail
        while done < count:
            tail = va_load_relaxed_u32(&self.header.tail)
            while True:
                cell = &cells[tail & self.mask]
                # Acquire: the consumer's read of the old value precedes our overwrite.
                if va_load_acquire_u32(&cell.sequence) == tail:
                    if va_cas_u32(&self.header.tail, &tail, tail + 1):   # refreshes tail when another producer won
                        break
                elif <int>(va_load_acquire_u32(&cell.sequence) - tail) < 0:
                    return done                        # the consumer has not freed this cell: full
                else:
                    tail = va_load_relaxed_u32(&self.header.tail)
            cell.value = values[done]
            va_store_release_u32(&cell.sequence, tail + 1)               # value before the sequence that announces it
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
            va_store_release_u32(&cell.sequence, head + self.capacity)   # our read before the cell is free again
            head += 1
            done += 1
        va_store_release_u32(&self.header.head, head)
        return done

    cdef bint empty(self) noexcept nogil:
        cdef RingCell *cells = <RingCell *>self.cells
        return va_load_acquire_u32(&cells[self.header.head & self.mask].sequence) != self.header.head + 1
