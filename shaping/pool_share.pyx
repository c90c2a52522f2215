"""PoolShare. The contract is in pool_share.pxd."""
from libc.stdint cimport uint32_t
from dataplane.vatomic cimport va_load_relaxed_u32


cdef class PoolShare:
    """At most `small` and `large` buffers of a pool for all shapers that `join` it."""

    def __init__(self, uint32_t small, uint32_t large):
        self.held.small_limit, self.held.large_limit = small, large

    @property
    def packets(self):
        """(small, large): packets held now."""
        return va_load_relaxed_u32(&self.held.small), va_load_relaxed_u32(&self.held.large)

    @property
    def limits(self):
        """(small, large): the limits."""
        return self.held.small_limit, self.held.large_limit
