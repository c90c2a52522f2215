"""settle: engines' accounts up to now. An engine's thread does it once a millisecond by itself."""
from dataplane.engine cimport Engine
from dataplane.engine_thread cimport EngineThread
from dataplane.packet cimport Context
from dataplane.work cimport Work


cdef class Settle(Work):
    """Brings an engine's accounts up to date, on its thread."""

    def __init__(self, Engine engine):
        self.engine = engine

    cdef void run(self, Context *ctx) noexcept nogil:
        if self.engine.owner != NULL:
            (<EngineThread>self.engine.owner).settle()


def settle(Engine engine not None):
    """Brings `engine.charges()` and `engine.cpu_ns` up to this instant."""
    engine.post(Settle(engine))
