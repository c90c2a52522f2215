"""CaptureReader: reads the packets of a pcap or pcapng file in order, in constant memory.

The file is not trusted: each length is checked against the rest of the file and against a bound
before it is used. The file is read into a window, not mapped: so a file that is truncated meanwhile
only ends early (no SIGBUS), and pipes work, too.
"""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    WINDOW_BYTES = 2097152       # fits a packet's block, wherever it begins
    READ_BYTES = 131072          # per read: fits the second-level cache, where it is parsed
    # bytes of a packet's block with options; longer blocks of other types are skipped
    BLOCK_MOST = 1048576
    CAPTURED_MOST = 262144       # captured bytes of a packet: libpcap's MAXIMUM_SNAPLEN
    INTERFACES_MOST = 65536      # of a section
    INTERFACES_ALL_MOST = 262144 # of all sections: bounds the memory for their names
    # maximum original length: longer ones, which no frame has, would overflow in shapers
    ORIGINAL_MOST = CAPTURED_MOST

cdef struct Interface:
    uint32_t link_type
    uint32_t snaplen             # 0: unlimited
    uint32_t fcs_bytes           # FCS bytes at the end of each frame, as the file declares; removed
    uint64_t ticks_a_second
    int64_t offset_s

cdef struct Record:              # valid until the next call
    uint64_t time_ns             # since the epoch
    uint64_t offset              # of the record in the file
    const uint8_t *data
    uint32_t captured            # bytes in the file
    uint32_t original            # bytes on the wire
    uint32_t interface           # number over all sections
    uint32_t options_bytes
    const uint8_t *options       # pcapng's, in the byte order of the section
    bint swapped                 # that byte order is not the machine's


@cython.final
cdef class CaptureReader:
    cdef readonly str path
    cdef readonly str format             # "pcap" or "pcapng"
    cdef readonly uint64_t packets       # read so far
    cdef readonly uint64_t truncated     # of those, shorter than on the wire
    # of those, with an original length above ORIGINAL_MOST, reduced to that
    cdef readonly uint64_t overlong
    cdef readonly uint64_t captured_bytes
    cdef readonly uint64_t size          # of the file, 0 for a pipe or a compressed file
    # of the interfaces of all sections so far, by number; None where the file has no name
    cdef readonly list names
    cdef int descriptor
    # of a compressed file: its content, by `read1`; None for other files
    cdef object stream
    cdef uint8_t *window
    cdef uint64_t window_offset          # offset of its first byte in the file
    cdef uint32_t at, end                # unread part of the window
    cdef bint ended                      # end of the file
    cdef bint swapped, is_pcapng
    cdef uint32_t record_head            # pcap: bytes before each packet
    cdef uint32_t fraction_ns            # pcap: nanoseconds of a record's fraction of a second
    cdef bint has_first
    # of a pcapng file, read by the constructor; valid if has_first
    cdef Record first
    cdef Interface *interfaces           # of this section
    cdef uint32_t interface_count, interface_room
    cdef uint32_t first_interface        # number of this section's first interface
    cdef uint64_t last_ns
    cdef object broken                   # (error, offset) that ended the reading early, or None
    cdef int next(self, Record *record) noexcept nogil
    cdef int read_record(self, Record *record) noexcept nogil
    cdef ssize_t pull(self, uint8_t *target, size_t count) noexcept nogil
    cdef uint32_t have(self, uint32_t wanted) noexcept nogil
    cdef uint32_t fill(self, uint32_t wanted) noexcept nogil
    cdef bint skip(self, uint64_t count) noexcept nogil
    cdef int fail(self, const char *what, uint64_t offset) noexcept nogil
    cdef int next_pcap(self, Record *record) noexcept nogil
    cdef int next_block(self, Record *record) noexcept nogil
    cdef int section(self, uint64_t offset) noexcept nogil
    cdef int describe_interface(self, const uint8_t *body, uint32_t count,
                                uint64_t offset) noexcept nogil
    cdef int packet_block(self, Record *record, uint32_t kind, const uint8_t *body, uint32_t count,
                          uint64_t offset) noexcept nogil
    cdef uint32_t u32(self, const uint8_t *at) noexcept nogil
    cdef uint32_t u16(self, const uint8_t *at) noexcept nogil
