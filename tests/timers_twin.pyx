"""A class for tests/test_timers.py over the functions of dataplane/graph/timers.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from dataplane.graph.timers cimport Entry, Heap, timer_first, timer_remove, timer_set


cdef class TwinHeap:
    cdef Heap heap
    cdef uint32_t *places

    def __cinit__(self, uint32_t elements, uint32_t room):
        self.heap.entries = <Entry *>calloc(room + 1, sizeof(Entry))
        self.places = <uint32_t *>calloc(elements + 1, sizeof(uint32_t))
        self.heap.room = room

    def __dealloc__(self):
        free(self.heap.entries)
        free(self.places)

    def set(self, uint32_t element, uint64_t deadline_ns):
        timer_set(&self.heap, <void *><size_t>(element + 1), &self.places[element], deadline_ns)

    def remove(self, uint32_t element):
        timer_remove(&self.heap, &self.places[element])

    def first(self):
        return timer_first(&self.heap)

    def entries(self):
        """(deadline, element) of each, in the heap's order; checks that places and order are
        right."""
        cdef uint32_t i
        for i in range(self.heap.count):
            assert self.heap.entries[i].place[0] == i + 1
            assert i == 0 or self.heap.entries[(i - 1) // 2].deadline_ns <= self.heap.entries[i].deadline_ns
        return [(self.heap.entries[i].deadline_ns, <size_t>self.heap.entries[i].element - 1) for i in range(self.heap.count)]
