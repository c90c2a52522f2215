"""ElementArrays. The contract is in element_arrays.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from dataplane.graph.element cimport Element, Source
from dataplane.graph.timers cimport Entry, Heap, timer_set
from dataplane.engine.warm_up cimport WarmUp


cdef class ElementArrays:
    """Of `elements`. Raises MemoryError."""

    def __init__(self, elements):
        cdef uint32_t number, deferrable = 0, weighed = 0
        cdef Element element
        cdef list timed = []
        cdef bint ticks
        self.elements = list(elements)
        for element in self.elements:
            ticks = element.TICKS              # of an object: a port's receive side has timers if its port has
            if ticks:
                timed.append(element)
                deferrable += element.deferrable
            weighed += ticks or isinstance(element, Source)
        self.members = <PyObject **>calloc(len(self.elements) + 1, sizeof(PyObject *))
        self.timed = <PyObject **>calloc(len(timed) + 1, sizeof(PyObject *))
        self.due = <PyObject **>calloc(len(timed) + 1, sizeof(PyObject *))
        self.weighed = <PyObject **>calloc(weighed + 1, sizeof(PyObject *))
        if not (self.members and self.timed and self.due and self.weighed):
            raise MemoryError("elements")
        make_room(&self.timers.waking, <uint32_t>len(timed) - deferrable)
        make_room(&self.timers.deferrable, deferrable)
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

    cdef void gather(self) noexcept nogil:
        """When the arrays take the place of others: collects weights and timers."""
        cdef uint32_t i
        self.weighed_count = 0
        for i in range(self.member_count):
            if (<Element>self.members[i]).weight_ns and self.weighed_count < self.weighed_room:
                self.weighed[self.weighed_count] = self.members[i]
                self.weighed_count += 1
        self.gather_timers()

    cdef void gather_timers(self) noexcept nogil:
        """Collects the timers anew: after work from control, which may have set any."""
        cdef uint32_t i
        self.timers.waking.count = self.timers.deferrable.count = 0
        for i in range(self.timed_count):
            (<Element>self.timed[i]).timer_place = 0
        for i in range(self.timed_count):
            timer_set(&self.timers.deferrable if (<Element>self.timed[i]).deferrable else &self.timers.waking,
                      <void *>self.timed[i], &(<Element>self.timed[i]).timer_place, (<Element>self.timed[i]).deadline_ns)


cdef int make_room(Heap *heap, uint32_t room) except -1:
    heap.entries = <Entry *>calloc(room + 1, sizeof(Entry))
    if heap.entries == NULL:
        raise MemoryError("timers")
    heap.room = room
    return 0
