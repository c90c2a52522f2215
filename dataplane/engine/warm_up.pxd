"""WarmUp: prefetches the memory that the first packet after a sleep will need."""
from libc.stdint cimport uint32_t

cdef enum:
    WARM_LINES = 768         # prefetching them takes some 300 ns if all are cached already

cdef class WarmUp:
    cdef readonly uint32_t count
    cdef const char *lines[WARM_LINES]
    cdef set seen                # classes whose code is prefetched
    cdef bint many               # prefetch code only, not the elements' objects
    cdef bint covers(self, list fresh) except -1
    cdef void add(self, const void *start, uint32_t bytes) noexcept
    cdef int add_element(self, object element, bint code_only) except -1
    cdef void add_object(self, object thing) noexcept
    cdef void add_methods(self, object thing, uint32_t methods) noexcept
    cdef void prefetch(self) noexcept nogil
