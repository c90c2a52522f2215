"""Departures: measures how late packets leave, relative to the source's time stamps."""
from dataplane.element cimport Element
from dataplane.meter cimport Meter
from dataplane.packet cimport Batch, Context

cdef class Departures(Element):
    cdef readonly Meter meter
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
