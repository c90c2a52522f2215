"""Balancer: may move engines between the threads of a group, which call it at intervals.
dataplane/groups/compactor.pxd is one."""
from libc.stdint cimport uint64_t

cdef class Balancer:
    cdef uint64_t next_ns        # shared: when to call balance() next, between two passes
    cdef void balance(self, uint64_t now_ns) noexcept nogil
