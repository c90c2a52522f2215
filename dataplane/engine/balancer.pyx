"""Balancer. The contract is in balancer.pxd."""
from libc.stdint cimport uint64_t
from dataplane.graph.element cimport NEVER


cdef class Balancer:
    """Base class of balancers; this one moves no engine."""

    def __cinit__(self, *args, **kwargs):
        self.next_ns = NEVER

    cdef void balance(self, uint64_t now_ns) noexcept nogil:
        """Must not block; several threads may call it at once."""
