"""StateWork. The contract is in engine_state.pxd."""
from libc.stdint cimport uint64_t
from dataplane.element cimport Element
from dataplane.engine cimport Engine
from dataplane.packet cimport Context, packet_return_cache
from dataplane.work cimport Work


cdef class StateWork(Work):
    """Calls function(self) on the engine's thread between two batches; it may read and set `random_state`, and have the engine's free
    packets returned to the pool by setting `return_cache`. When it raises, nothing is set."""

    def __init__(self, function):
        self._function = function

    cdef void run(self, Context *ctx) noexcept nogil:
        with gil:
            self.random_state = ctx.random_state
            try:
                self.result = self._function(self)
            except BaseException as error:
                self.error = error
                return
        ctx.random_state = self.random_state
        if self.return_cache:
            packet_return_cache(ctx)


def charged_ns(Element element not None):
    """CPU time that was charged to an element, in nanoseconds. Between two batches."""
    return element.charged_ns


def set_charges(Engine engine not None, dict elements, uint64_t overhead_ns, uint64_t cpu_ns):
    """Accounts go on where another engine's ended: CPU time by element, the engine's own, and all of it. Between two batches."""
    cdef Element element
    for element in engine.elements:
        element.charged_ns = elements[element.name]
    engine.overhead_ns, engine.cpu_ns = overhead_ns, cpu_ns
