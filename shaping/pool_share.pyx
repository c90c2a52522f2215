"""PoolShare. The contract is in pool_share.pxd."""
from libc.stdint cimport uint32_t
from dataplane.vatomic cimport va_load_relaxed_u32


cdef class PoolShare:
    """Bounds on small and large buffers for all shapers that `join` the share."""

    def __init__(self, uint32_t small, uint32_t large):
        self.held.small_limit, self.held.large_limit = small, large

    @property
    def packets(self):
        """Packets held now: (small, large)."""
        return va_load_relaxed_u32(&self.held.small), va_load_relaxed_u32(&self.held.large)

    @property
    def limits(self):
        """The bounds: (small, large)."""
        return self.held.small_limit, self.held.large_limit
