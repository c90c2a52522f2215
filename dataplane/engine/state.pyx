"""StateWork. The contract is in state.pxd."""
from libc.stdint cimport uint64_t
from dataplane.graph.element cimport Counters, Element
from dataplane.engine.engine cimport Engine
from dataplane.packet.pool cimport Context, packet_return_cache
from dataplane.graph.work cimport Work


cdef class StateWork(Work):
    """Calls function(self) on the engine's thread between two batches.

    The function may set `return_cache`: the engine's free packets return to the pool, unless it
    raises.
    """

    def __init__(self, function):
        self._function = function

    cdef void run(self, Context *ctx) noexcept nogil:
        with gil:
            try:
                self.result = self._function(self)
            except BaseException as error:
                self.error = error
                return
        if self.return_cache:
            packet_return_cache(ctx)


def charged_ns(Element element not None):
    """CPU time charged to an element, in nanoseconds. Only between two batches."""
    return element.charged_ns


def overhead_ns(Engine engine not None):
    """CPU time of the engine itself, in nanoseconds. Only between two batches."""
    return engine.overhead_ns


def counts(Element element not None):
    """An element's counters as bytes, for comparison, and its charge. Only between two batches."""
    return (<char *>&element.counters)[:sizeof(Counters)], element.charged_ns


def set_charges(Engine engine not None, list elements, uint64_t overhead_ns, uint64_t cpu_ns):
    """Sets the CPU time accounts to another engine's values: elements as [(element, ns)], overhead,
    and total. Only between two batches."""
    for element, charged in elements:
        (<Element?>element).charged_ns = charged
    engine.overhead_ns, engine.cpu_ns = overhead_ns, cpu_ns
