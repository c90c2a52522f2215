"""CaptureFile: writes frames to a pcap file or pipe without ever blocking the engine; PcapWriter: a
port that transmits into one.

The engine copies records into a ring of bytes; a writer thread, without the GIL, writes the ring's
content to the file as it is. One producer (the engine's thread), one consumer (the writer).
"""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from dataplane.packet.pool cimport Batch, Context
from dataplane.graph.port cimport Port

cdef struct ByteRing:
    uint64_t tail            # producer's cache line: total bytes put in
    uint8_t pad0[56]
    uint64_t head            # consumer's cache line: total bytes written
    uint8_t pad1[56]
    uint32_t sleeping        # 1: the writer sleeps; ring the doorbell
    uint32_t stopping        # 1: write the rest, then end
    uint32_t failed          # errno that ended the writing; 0: none
    uint8_t pad2[52]


@cython.final
cdef class CaptureFile:
    cdef readonly str path
    cdef readonly uint32_t snaplen
    cdef readonly uint64_t capacity
    cdef readonly bint pcapng
    cdef int64_t wall_offset_ns          # from the engine's clock to the time of day
    cdef ByteRing *ring
    cdef uint8_t *cells
    cdef int descriptor
    cdef int doorbell
    cdef uint32_t chunk_bytes            # maximum bytes per write
    cdef bint may_block                  # a pipe or socket: poll before each write
    # this object has the file's lock; set by the constructor, else by the writer
    cdef bint locked
    cdef readonly bint begun             # packets are accepted
    cdef object _thread
    cdef bint wait_for_lock(self) noexcept nogil
    cdef bint write_packet(self, Context *ctx, uint32_t index) noexcept nogil
    cdef void put(self, uint64_t at, const uint8_t *data, uint32_t count) noexcept nogil
    cdef void wake(self) noexcept nogil
    cdef void run(self) noexcept nogil
    cdef void rest(self) noexcept nogil
    cdef bint ready(self, uint64_t give_up_ns) noexcept nogil

cdef class PcapWriter(Port):
    cdef readonly CaptureFile capture
    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil
