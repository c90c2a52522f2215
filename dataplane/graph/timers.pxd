"""Timers of an engine's elements: binary heaps by deadline, so that an iteration's cost depends on
the timers that are due, not on those that are set.

Two heaps: timers that end a sleep, and deferrable ones (`Element.DEFERRABLE`), which run when the
engine is awake anyway. Only the engine's thread uses them. Loading a graph allocates room for all
elements with TICKS, so setting a timer never allocates.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    NO_TIMER = 0                         # `place` of an element without an entry
    # of an element without room: in no engine, or without TICKS
    NO_PLACE = 0xFFFFFFFF

cdef struct Entry:
    uint64_t deadline_ns
    uint32_t *place                      # of the element: 1 + its entry's index
    void *element

cdef struct Heap:
    Entry *entries
    uint32_t count
    uint32_t room

cdef struct Timers:
    Heap waking
    Heap deferrable
    bint changed                         # a timer was set since virtual time cleared this


cdef inline void _put(Heap *heap, uint32_t at, Entry entry) noexcept nogil:
    heap.entries[at] = entry
    entry.place[0] = at + 1


cdef inline void _rise(Heap *heap, uint32_t at, Entry entry) noexcept nogil:
    """Puts `entry` at `at` or, past parents with later deadlines, nearer to the root."""
    cdef uint32_t above
    while at > 0:
        above = (at - 1) // 2
        if heap.entries[above].deadline_ns <= entry.deadline_ns:
            break
        _put(heap, at, heap.entries[above])
        at = above
    _put(heap, at, entry)


cdef inline void _sink(Heap *heap, uint32_t at, Entry entry) noexcept nogil:
    """Puts `entry` at `at` or, past children with earlier deadlines, farther from the root."""
    cdef uint32_t below
    while True:
        below = 2 * at + 1
        if below >= heap.count:
            break
        if (below + 1 < heap.count
                and heap.entries[below + 1].deadline_ns < heap.entries[below].deadline_ns):
            below += 1
        if entry.deadline_ns <= heap.entries[below].deadline_ns:
            break
        _put(heap, at, heap.entries[below])
        at = below
    _put(heap, at, entry)


cdef inline void timer_remove(Heap *heap, uint32_t *place) noexcept nogil:
    cdef uint32_t at = place[0] - 1
    cdef Entry last
    if place[0] == NO_TIMER or place[0] == NO_PLACE:
        return
    place[0] = NO_TIMER
    heap.count -= 1
    if at == heap.count:
        return
    last = heap.entries[heap.count]
    if at > 0 and last.deadline_ns < heap.entries[(at - 1) // 2].deadline_ns:
        _rise(heap, at, last)
    else:
        _sink(heap, at, last)


cdef inline void timer_set(Heap *heap, void *element, uint32_t *place,
                           uint64_t deadline_ns) noexcept nogil:
    """Sets or moves the timer of an element; UINT64_MAX removes it."""
    cdef Entry entry
    cdef uint32_t at
    if place[0] == NO_PLACE:
        return
    if deadline_ns == <uint64_t>-1:
        timer_remove(heap, place)
        return
    entry.deadline_ns, entry.place, entry.element = deadline_ns, place, element
    if place[0] == NO_TIMER:
        if heap.count == heap.room:      # unreachable: every element with a place has room
            return
        at = heap.count
        heap.count += 1
        _rise(heap, at, entry)
        return
    at = place[0] - 1
    if deadline_ns < heap.entries[at].deadline_ns:
        _rise(heap, at, entry)
    else:
        _sink(heap, at, entry)


cdef inline uint64_t timer_first(const Heap *heap) noexcept nogil:
    """The earliest deadline; UINT64_MAX if there is none."""
    return heap.entries[0].deadline_ns if heap.count else <uint64_t>-1
