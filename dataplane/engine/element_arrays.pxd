"""ElementArrays: an engine's elements as C arrays, for code without the GIL: all elements, those
with timers, and those with CPU time that is not settled yet.

A caller's thread builds the arrays and the engine swaps them in between two iterations, so that
changing the graph does not delay packets. From then on only the engine's thread uses them. Spare
room lets a few more elements be appended in constant time.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.timers cimport Timers
from dataplane.engine.warm_up cimport WarmUp

cdef class ElementArrays:
    cdef list elements                   # owning references; the C arrays borrow them
    cdef dict names                      # element by name
    cdef uint32_t member_room, timed_room        # capacities
    cdef PyObject **members              # all elements
    cdef uint32_t member_count
    cdef PyObject **timed                # elements with TICKS
    cdef uint32_t timed_count
    cdef PyObject **due                  # scratch: elements whose timers have expired
    cdef PyObject **weighed              # elements that used time since the last settlement
    cdef uint32_t weighed_count
    cdef uint32_t weighed_room           # number of sources and elements with timers
    cdef uint32_t weighed_most           # capacity
    cdef Timers timers
    cdef WarmUp warm
    cdef bint fits(self, list fresh) except -1
    cdef int append(self, list fresh) except -1
    cdef void gather(self) noexcept nogil
    cdef void gather_timers(self) noexcept nogil

cdef inline void weigh(ElementArrays arrays, Element element, uint64_t took_ns) noexcept nogil:
    """Adds the clock time that a source's poll or a timer took; `Engine.settle` converts it to CPU
    time."""
    if element.weight_ns == 0 and took_ns and arrays.weighed_count < arrays.weighed_room:
        arrays.weighed[arrays.weighed_count] = <PyObject *>element
        arrays.weighed_count += 1
    element.weight_ns += took_ns
