"""Departures: measures how late packets leave, relative to the source's time stamps."""
from dataplane.graph.element cimport Element
from dataplane.engine.meter cimport Meter
from dataplane.packet.pool cimport Batch, Context

cdef class Departures(Element):
    cdef readonly Meter meter
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
