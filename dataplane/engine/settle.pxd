"""Settle: work by which an engine's thread updates its CPU time accounts."""
from dataplane.engine.engine cimport Engine
from dataplane.packet.pool cimport Context
from dataplane.graph.work cimport Work

cdef class Settle(Work):
    cdef Engine engine
    cdef void run(self, Context *ctx) noexcept nogil
