"""Balancer. The contract is in balancer.pxd."""
from libc.stdint cimport uint64_t
from dataplane.graph.element cimport NEVER


cdef class Balancer:
    """Moves no engine; base class of those that do."""

    def __cinit__(self, *args, **kwargs):
        self.next_ns = NEVER

    cdef void balance(self, uint64_t now_ns) noexcept nogil:
        """Any of the threads may call this, several at once: it must not block."""
