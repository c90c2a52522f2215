"""StateWork: gives dataplane/engine/handover.py access to an engine's private state."""
from dataplane.packet.pool cimport Context
from dataplane.graph.work cimport Work

cdef class StateWork(Work):
    cdef object _function
    cdef public bint return_cache
    cdef void run(self, Context *ctx) noexcept nogil
