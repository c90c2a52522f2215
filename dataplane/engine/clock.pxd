"""The clock behind now_ns: CLOCK_MONOTONIC, or a virtual clock that moves only when set."""
from libc.stdint cimport uint64_t

cdef class Clock:
    cdef readonly bint virtual
    cdef uint64_t virtual_ns
    cdef uint64_t now(self) noexcept nogil
