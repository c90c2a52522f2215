"""ElementArrays: an engine's elements as C arrays, for code without the GIL: all of them, those with timers, and those
whose CPU time is not settled yet.

Made beside the engine and put in place between two turns, so that a change of the graph does not hold packets
up. Only the engine's thread uses them then. They have room to spare, so that a few more elements are
appended in constant time.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.timers cimport Timers
from dataplane.engine.warm_up cimport WarmUp

cdef class ElementArrays:
    cdef list elements                   # owning references; the C arrays borrow them
    cdef dict names                      # of them: element by name
    cdef uint32_t member_room, timed_room
    cdef PyObject **members              # all elements
    cdef uint32_t member_count
    cdef PyObject **timed                # elements that can have a timer
    cdef uint32_t timed_count
    cdef PyObject **due                  # room for `timed_count` elements whose timers have run out
    cdef PyObject **weighed              # elements with a weight: sources, and elements with timers
    cdef uint32_t weighed_count
    cdef uint32_t weighed_room           # elements with a weight
    cdef uint32_t weighed_most           # for which there is memory
    cdef Timers timers
    cdef WarmUp warm
    cdef bint fits(self, list fresh) except -1
    cdef int append(self, list fresh) except -1
    cdef void gather(self) noexcept nogil
    cdef void gather_timers(self) noexcept nogil

cdef inline void weigh(ElementArrays arrays, Element element, uint64_t took_ns) noexcept nogil:
    """Adds to the clock time that a source's poll or a timer took; `Engine.settle` turns it into CPU time."""
    if element.weight_ns == 0 and took_ns and arrays.weighed_count < arrays.weighed_room:
        arrays.weighed[arrays.weighed_count] = <PyObject *>element
        arrays.weighed_count += 1
    element.weight_ns += took_ns
