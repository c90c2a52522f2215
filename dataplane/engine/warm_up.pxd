"""WarmUp: prefetches the memory that the first packet after a sleep will need."""
from libc.stdint cimport uint32_t

cdef enum:
    WARM_LINES = 768         # prefetching this number of cached lines takes some 300 ns

cdef class WarmUp:
    cdef readonly uint32_t count
    cdef const char *lines[WARM_LINES]
    cdef set seen                # classes
    cdef bint many               # of the elements' objects none is prefetched
    cdef bint covers(self, list fresh) except -1
    cdef void add(self, const void *start, uint32_t bytes) noexcept
    cdef int add_element(self, object element, bint code_only) except -1
    cdef void add_object(self, object thing) noexcept
    cdef void add_methods(self, object thing, uint32_t methods) noexcept
    cdef void prefetch(self) noexcept nogil
