"""CaptureWriter: writes a pcapng or pcap file on the engine's thread: for virtual time, where
waiting for a disk has no effect.

The file is a function of the written packets alone: it has no wall-clock time and no host name.
Records of one instant are ordered by interface, comment, and order of writing, so that the file
does not depend on which engine ran first.
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from dataplane.packet.pool cimport Context

cdef enum:
    # Per write, at a multiple of it: fits the second-level cache, and no page is written in two
    # parts. For longer writes the kernel searches longer runs of free memory, which costs ten times
    # as much where there are none.
    FLUSH_BYTES = 131072
    # shorter files are not worth allocating space ahead, see preallocate.h
    SPACE_FROM = 4194304
    SPACE_BYTES = 67108864       # at once
    INSTANT_MOST = 268435456     # bytes of one instant that are sorted; more are written in parts

cdef struct Pending:             # a record of the current instant
    uint32_t interface
    uint32_t comment_bytes
    uint64_t comment             # offsets into the buffer
    uint64_t start
    uint64_t bytes
    uint64_t order

cdef struct Content:             # of a record
    const uint8_t *data
    const uint8_t *trailer       # options in pcapng's form
    uint32_t captured
    uint32_t original
    uint32_t trailer_bytes


@cython.final
cdef class CaptureWriter:
    cdef readonly str path
    cdef readonly str format
    cdef readonly uint64_t packets, frame_bytes
    cdef readonly uint32_t interfaces
    cdef int descriptor
    cdef bint is_pcapng
    cdef uint8_t *buffer
    cdef uint64_t room, used, instant_start
    cdef uint64_t written        # bytes written to the descriptor
    cdef uint64_t space_end      # where the space allocated ahead ends
    cdef bint wants_space        # the file system writes faster into space allocated ahead
    cdef uint64_t instant_ns
    cdef Pending *pending
    cdef uint32_t pending_count, pending_room
    cdef bint unordered
    cdef int failed              # errno; 0: no error
    cdef bint write_packet(self, Context *ctx, uint32_t index, uint32_t interface, uint64_t time_ns,
                           const char *comment,
                           uint32_t comment_bytes) noexcept nogil
    cdef bint put(self, const Content *content, uint32_t interface, uint64_t time_ns,
                  const char *comment,
                  uint32_t comment_bytes) noexcept nogil
    cdef bint make_room(self, uint64_t bytes) noexcept nogil
    cdef void end_instant(self) noexcept nogil
    cdef void put_in_order(self) noexcept nogil
    cdef void write_out(self, bint all) noexcept nogil
