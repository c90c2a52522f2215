"""Balancer: what threads of one group ask now and then, and which moves engines between them (dataplane/compactor.pxd is one)."""
from libc.stdint cimport uint64_t

cdef class Balancer:
    # Moves engines between threads. Threads call it between two passes.
    cdef uint64_t next_ns        # shared: when it wants to look again
    cdef void balance(self, uint64_t now_ns) noexcept nogil
