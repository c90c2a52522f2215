"""Settle: work that makes an engine's thread settle its accounts."""
from dataplane.engine cimport Engine
from dataplane.packet cimport Context
from dataplane.work cimport Work

cdef class Settle(Work):
    cdef Engine engine
    cdef void run(self, Context *ctx) noexcept nogil
