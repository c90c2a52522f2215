"""ElementArrays. The contract is in element_arrays.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from dataplane.graph.element cimport Element, Source
from dataplane.graph.timers cimport Entry, Heap, timer_set
from dataplane.engine.warm_up cimport WarmUp

cdef enum:
    SPARE = 64                   # room for the elements of a few more NICs


cdef class ElementArrays:
    """C arrays of `elements`. Raises MemoryError."""

    def __init__(self, elements):
        cdef uint32_t number, deferrable = 0, weighed = 0, spare
        cdef Element element
        cdef list timed = []
        cdef bint ticks
        self.elements = list(elements)
        self.names = {(<Element>each).name: each for each in self.elements}
        spare = SPARE + <uint32_t>len(self.elements) // 8
        for element in self.elements:
            ticks = element.TICKS  # differs by object: a PortRx has a timer if its port has one
            if ticks:
                timed.append(element)
                deferrable += element.deferrable
            weighed += ticks or isinstance(element, Source)
        self.member_room, self.timed_room = <uint32_t>len(self.elements) + spare, <uint32_t>len(
            timed) + spare
        self.weighed_most = weighed + spare
        self.members = <PyObject **>calloc(self.member_room, sizeof(PyObject *))
        self.timed = <PyObject **>calloc(self.timed_room, sizeof(PyObject *))
        self.due = <PyObject **>calloc(self.timed_room, sizeof(PyObject *))
        self.weighed = <PyObject **>calloc(self.weighed_most, sizeof(PyObject *))
        if not (self.members and self.timed and self.due and self.weighed):
            raise MemoryError("elements")
        make_room(&self.timers.waking, <uint32_t>len(timed) - deferrable + spare)
        make_room(&self.timers.deferrable, deferrable + spare)
        for number, element in enumerate(self.elements):
            self.members[number] = <PyObject *>element
        for number, element in enumerate(timed):
            self.timed[number] = <PyObject *>element
        self.member_count, self.timed_count = <uint32_t>len(self.elements), <uint32_t>len(timed)
        self.weighed_room = weighed
        self.warm = WarmUp(self.elements)

    def __dealloc__(self):
        free(self.members)
        free(self.timed)
        free(self.due)
        free(self.weighed)
        free(self.timers.waking.entries)
        free(self.timers.deferrable.entries)

    cdef bint fits(self, list fresh) except -1:
        """Whether `append` has room for these elements and WarmUp covers them already."""
        # each may have a timer and a weight; both heaps have spare room for all
        cdef uint32_t count = <uint32_t>len(fresh)
        return (self.member_count + count <= self.member_room
                and self.timed_count + count <= self.timed_room
                and self.weighed_room + count <= self.weighed_most and self.warm.covers(fresh))

    cdef int append(self, list fresh) except -1:
        """Adds elements after `fits` returned True. Runs on the engine's thread, between two
        batches."""
        cdef Element element
        for element in fresh:
            self.elements.append(element)
            self.names[element.name] = element
            self.members[self.member_count] = <PyObject *>element
            self.member_count += 1
            ticks = element.TICKS
            self.weighed_room += ticks or isinstance(element, Source)
            if element.weight_ns:
                self.weighed[self.weighed_count] = <PyObject *>element
                self.weighed_count += 1
            if ticks:
                self.timed[self.timed_count] = <PyObject *>element
                self.timed_count += 1
                element.timer_place = 0
                timer_set(&self.timers.deferrable if element.deferrable else &self.timers.waking,
                          <void *>element,
                          &element.timer_place, element.deadline_ns)
        return 0

    cdef void gather(self) noexcept nogil:
        """Collects weights and timers after these arrays have replaced others."""
        cdef uint32_t i
        self.weighed_count = 0
        for i in range(self.member_count):
            if (<Element>self.members[i]).weight_ns and self.weighed_count < self.weighed_room:
                self.weighed[self.weighed_count] = self.members[i]
                self.weighed_count += 1
        self.gather_timers()

    cdef void gather_timers(self) noexcept nogil:
        """Rebuilds the timer heaps: after work from control, which may have set any timer."""
        cdef uint32_t i
        self.timers.waking.count = self.timers.deferrable.count = 0
        for i in range(self.timed_count):
            (<Element>self.timed[i]).timer_place = 0
        for i in range(self.timed_count):
            timer_set(&self.timers.deferrable if (<Element>self.timed[i]).deferrable
                      else &self.timers.waking,
                      <void *>self.timed[i], &(<Element>self.timed[i]).timer_place, (
                          <Element>self.timed[i]).deadline_ns)


cdef int make_room(Heap *heap, uint32_t room) except -1:
    heap.entries = <Entry *>calloc(room + 1, sizeof(Entry))
    if heap.entries == NULL:
        raise MemoryError("timers")
    heap.room = room
    return 0
