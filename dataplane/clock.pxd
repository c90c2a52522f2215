"""One clock behind one now_ns: the machine's monotonic clock, or a virtual one that only moves when told."""
from libc.stdint cimport uint64_t

cdef class Clock:
    cdef readonly bint virtual
    cdef uint64_t virtual_ns
    cdef uint64_t now(self) noexcept nogil
