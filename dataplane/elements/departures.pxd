"""Departures: how late packets leave, against the instants that their source meant."""
from dataplane.element cimport Element
from dataplane.meter cimport Meter
from dataplane.packet cimport Batch, Context

cdef class Departures(Element):
    cdef readonly Meter meter
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
