"""Departures. The contract is in departures.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.engine.engine cimport Engine
from dataplane.engine.meter cimport Meter
from dataplane.packet.pool cimport BATCH_MAX, Batch, Context, packet_wire_bytes


@cython.final
cdef class Departures(Element):
    """Measures the time from a packet's timestamp_ns until the next elements have processed it.

    Synopsis:  ... >> Departures() >> nic.tx
    Ports:     1 in, 1 out
    Config:    none
    Counters:  none; `meter` has packets, bytes, and lateness as delay
    Handlers:  counters
    Threads:   any one engine
    Cost:      a clock reading per batch and some 5 ns per packet
    """

    MOVABLE = False              # its meter cannot be moved; only replays use it

    def __init__(self, *, name=None):
        self.meter = Meter()

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint64_t due[BATCH_MAX]
        cdef uint32_t size[BATCH_MAX]
        cdef uint32_t i, count = batch.count
        cdef uint64_t now
        for i in range(count):  # before they are passed on: then they belong to other elements
            due[i] = ctx.packets[batch.index[i]].timestamp_ns
            size[i] = packet_wire_bytes(&ctx.packets[batch.index[i]])
        self.emit(ctx, 0, batch)
        now = (<Engine>self.engine).clock.now()
        for i in range(count):
            self.meter.note(now, now - due[i] if now > due[i] else 0, size[i])
