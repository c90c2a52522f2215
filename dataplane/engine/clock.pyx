"""Clock. The contract is in clock.pxd."""
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from dataplane.errors import ConfigError


cdef class Clock:
    """A clock in nanoseconds. `Clock()` reads CLOCK_MONOTONIC; `Clock(virtual=True, start_ns=0)`
    changes only by `set`."""

    def __init__(self, *, bint virtual=False, uint64_t start_ns=0):
        self.virtual = virtual
        self.virtual_ns = start_ns

    cdef uint64_t now(self) noexcept nogil:
        cdef timespec t
        if self.virtual:
            return self.virtual_ns
        clock_gettime(CLOCK_MONOTONIC, &t)
        return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec

    @property
    def now_ns(self):
        """The current time in nanoseconds."""
        return self.now()

    def set(self, uint64_t now_ns):
        """Sets a virtual clock; it never goes back."""
        if not self.virtual:
            raise ConfigError("clock: the machine's clock cannot be set; make a virtual one")
        if now_ns < self.virtual_ns:
            raise ConfigError(f"clock: {now_ns} ns lies before {self.virtual_ns} ns; time does not "
                              f"go back")
        self.virtual_ns = now_ns
