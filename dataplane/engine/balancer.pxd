"""Balancer: called by the threads of a group at intervals; may move engines between them, as
dataplane/groups/compactor.pxd does."""
from libc.stdint cimport uint64_t

cdef class Balancer:
    # Threads call it between two passes.
    cdef uint64_t next_ns        # shared: when to call balance() next
    cdef void balance(self, uint64_t now_ns) noexcept nogil
