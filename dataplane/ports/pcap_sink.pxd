"""PcapSink: a port that transmits into a capture, metered by class; DropRecorder: records dropped
packets in a capture."""
from libc.stdint cimport uint32_t
from dataplane.capture.writer cimport CaptureWriter
from dataplane.engine.meter cimport Meter
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port

cdef enum:
    CLASSES = 32                 # marks with a meter each; higher ones share the last meter

cdef class PcapSink(Port):
    cdef readonly CaptureWriter writer
    cdef readonly uint32_t interface
    cdef list _kept
    # Meter, borrowed from _kept; NULL: no packet of that class yet
    cdef void *meters[CLASSES + 1]
    cdef Meter meter(self, uint32_t number)
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil

cdef class DropRecorder:
    # Called for every drop: meters the packet, and writes it with the reason as comment.
    cdef readonly CaptureWriter writer
    cdef readonly uint32_t interface
    cdef readonly dict meters            # "ELEMENT: REASON" -> Meter
    cdef dict _comments                  # (element, reason) -> comment, meter
    cdef list _engines
    cdef void record(self, Context *ctx, void *element, uint32_t index,
                     uint32_t reason) noexcept nogil
