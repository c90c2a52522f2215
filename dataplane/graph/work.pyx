"""Work: short pieces of work posted to an engine. The contract is in work.pxd."""
import select

from dataplane.packet.pool cimport Context
from dataplane.vatomic cimport va_load_acquire_u32, va_store_release_u32


cdef object await_readable(int descriptor, int timeout_ms):
    """Waits without the GIL. Uses poll(2), since select(2) cannot take descriptors above 1023, and
    Python's, since Ctrl-C interrupts it."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.poll(timeout_ms)


cdef class Work:
    """A short piece of work for an engine's mailbox. `result` and `error` are valid once
    `Engine.post` returned."""

    cdef bint finished(self) noexcept nogil:
        """For the poster: True after finish(). Acquire: the poster also sees the work's writes."""
        return va_load_acquire_u32(&self.done) != 0

    cdef void finish(self) noexcept nogil:
        """The engine's last access: once the poster sees it, it may free the work."""
        va_store_release_u32(&self.done, 1)

    cdef void run(self, Context *ctx) noexcept nogil:
        """Runs on the engine's thread, with an up-to-date ctx.now_ns; must not block."""


cdef class Call(Work):
    """A Python callable as Work. It takes the GIL, so the engine may wait milliseconds for the
    interpreter: for changes of the graph; frequent reads and writes should be Work in Cython."""

    def __init__(self, function):
        self._function = function

    cdef void run(self, Context *ctx) noexcept nogil:
        with gil:
            try:
                self.result = self._function()
            except BaseException as error:
                self.error = error
