"""A binary heap of classes by key, for Scheduler: the least key first, of equal ones the first
class; and of a queue's flows.

Keys are compared modulo 2^64, so that ever-growing ones never end; those in one heap must be within
2^63 of each other. A class knows its place, so that it can be moved and removed.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef struct HeapEntry:
    uint64_t key
    uint32_t *place              # of the class: 1 + the entry's index; 0: not in the heap
    uint32_t which               # number of the class

cdef struct ClassHeap:
    HeapEntry *entries           # room for all classes that can be in it
    uint32_t count

cdef inline void _put(ClassHeap *heap, uint32_t at, HeapEntry entry) noexcept nogil:
    heap.entries[at] = entry
    entry.place[0] = at + 1

cdef inline bint _before(const HeapEntry *a, const HeapEntry *b) noexcept nogil:
    cdef int64_t ahead = <int64_t>(a.key - b.key)
    return ahead < 0 or (ahead == 0 and a.which < b.which)

cdef inline void _rise(ClassHeap *heap, uint32_t at, HeapEntry entry) noexcept nogil:
    cdef uint32_t above
    while at > 0:
        above = (at - 1) // 2
        if not _before(&entry, &heap.entries[above]):
            break
        _put(heap, at, heap.entries[above])
        at = above
    _put(heap, at, entry)

cdef inline void _sink(ClassHeap *heap, uint32_t at, HeapEntry entry) noexcept nogil:
    cdef uint32_t below
    while True:
        below = 2 * at + 1
        if below >= heap.count:
            break
        if below + 1 < heap.count and _before(&heap.entries[below + 1], &heap.entries[below]):
            below += 1
        if not _before(&heap.entries[below], &entry):
            break
        _put(heap, at, heap.entries[below])
        at = below
    _put(heap, at, entry)

cdef inline void heap_add(ClassHeap *heap, uint32_t which, uint32_t *place,
                          uint64_t key) noexcept nogil:
    """Adds a class that is not in the heap."""
    cdef HeapEntry entry
    entry.key, entry.place, entry.which = key, place, which
    heap.count += 1
    _rise(heap, heap.count - 1, entry)

cdef inline void heap_remove(ClassHeap *heap, uint32_t *place) noexcept nogil:
    """Removes a class, if it is in the heap."""
    cdef uint32_t at = place[0] - 1
    cdef HeapEntry last
    if place[0] == 0:
        return
    place[0] = 0
    heap.count -= 1
    if at == heap.count:
        return
    last = heap.entries[heap.count]
    if at > 0 and _before(&last, &heap.entries[(at - 1) // 2]):
        _rise(heap, at, last)
    else:
        _sink(heap, at, last)

cdef inline void heap_move(ClassHeap *heap, uint32_t *place, uint64_t key) noexcept nogil:
    """Gives a class of the heap a later key."""
    cdef HeapEntry entry = heap.entries[place[0] - 1]
    entry.key = key
    _sink(heap, place[0] - 1, entry)

cdef inline void heap_change(ClassHeap *heap, uint32_t *place, uint64_t key) noexcept nogil:
    """Gives a class of the heap another key."""
    cdef uint32_t at = place[0] - 1
    cdef HeapEntry entry = heap.entries[at]
    entry.key = key
    if at > 0 and _before(&entry, &heap.entries[(at - 1) // 2]):
        _rise(heap, at, entry)
    else:
        _sink(heap, at, entry)
