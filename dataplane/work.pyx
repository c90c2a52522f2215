"""Work: short pieces of work that an engine runs for others. The contract is in work.pxd."""
import select

from dataplane.packet cimport Context
from dataplane.vatomic cimport va_load_acquire_u32, va_store_release_u32


cdef object await_readable(int descriptor, int timeout_ms):
    """Waits without the GIL. By poll(2): select(2) knows no descriptor above 1023. By Python's: Ctrl-C ends it."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.poll(timeout_ms)


cdef class Work:
    """A short piece of work for an engine's mailbox. `result` and `error` are valid once `Engine.post` returned."""

    cdef bint finished(self) noexcept nogil:
        """The poster's look: True from the engine's last touch on; acquire, so that what the work wrote is seen with it."""
        return va_load_acquire_u32(&self.done) != 0

    cdef void finish(self) noexcept nogil:
        """The engine's last touch: once this is seen, the poster may free the work."""
        va_store_release_u32(&self.done, 1)

    cdef void run(self, Context *ctx) noexcept nogil:
        """On the engine's thread, with ctx.now_ns fresh: never block."""


cdef class Call(Work):
    """Work that is a Python callable: takes the GIL, so the engine waits for the interpreter (at worst milliseconds). For
    changes of the graph; what is read or set often is Work in Cython."""

    def __init__(self, function):
        self._function = function

    cdef void run(self, Context *ctx) noexcept nogil:
        with gil:
            try:
                self.result = self._function()
            except BaseException as error:
                self.error = error
