"""Work: pieces of work posted to an engine's mailbox (Snap, section 2.3)."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport Context

cdef object await_readable(int descriptor, int timeout_ms)

cdef class Work:
    # A short piece of work that an engine runs on its own thread between two batches. Work that
    # must not wait for the GIL is a subclass in Cython.
    cdef readonly object error
    cdef readonly object result
    cdef uint32_t done
    cdef bint finished(self) noexcept nogil
    cdef void finish(self) noexcept nogil
    cdef void run(self, Context *ctx) noexcept nogil

cdef class Call(Work):
    cdef object _function
    cdef void run(self, Context *ctx) noexcept nogil
