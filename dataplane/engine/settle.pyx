"""settle: updates an engine's CPU time accounts. Its thread also does so once a millisecond."""
from dataplane.engine.engine cimport Engine
from dataplane.engine.thread cimport EngineThread
from dataplane.packet.pool cimport Context
from dataplane.graph.work cimport Work


cdef class Settle(Work):
    """Updates an engine's accounts on its thread."""

    def __init__(self, Engine engine):
        self.engine = engine

    cdef void run(self, Context *ctx) noexcept nogil:
        if self.engine.owner != NULL:
            (<EngineThread>self.engine.owner).settle()


def settle(Engine engine not None):
    """Updates `engine.charges()` and `engine.cpu_ns`."""
    engine.post(Settle(engine))
