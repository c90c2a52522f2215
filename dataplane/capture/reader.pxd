"""CaptureReader: packets of a pcap or pcapng file, one after the other, in constant memory.

Everything in the file is hostile: each length is checked against what is left and against a bound before it is used. The file is read
into a window, not mapped: a file that somebody shortens meanwhile ends early instead of ending the process (SIGBUS), and a pipe is a file.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    WINDOW_BYTES = 2097152       # what a packet's block fits into, wherever it begins
    READ_BYTES = 131072          # read at once: what is read is still in the second-level cache when it is looked at
    BLOCK_MOST = 1048576         # bytes of a packet's block, options and all; longer ones of other types are skipped
    CAPTURED_MOST = 262144       # bytes kept of a packet: libpcap's MAXIMUM_SNAPLEN
    INTERFACES_MOST = 65536      # of a section
    INTERFACES_ALL_MOST = 262144 # of all sections: their names are kept, and packets tell their number in 32 bits
    ORIGINAL_MOST = CAPTURED_MOST  # bytes a packet may say that it had on the wire: what no frame has would wrap what shapers compute

cdef struct Interface:
    uint32_t link_type
    uint32_t snaplen             # 0: unlimited
    uint32_t fcs_bytes           # at the end of each frame, by the file's word; not part of what is read
    uint64_t ticks_a_second
    int64_t offset_s

cdef struct Record:              # valid until the next call
    uint64_t time_ns             # since the epoch
    uint64_t offset              # of the record in the file
    const uint8_t *data
    uint32_t captured            # bytes there are
    uint32_t original            # bytes the wire carried
    uint32_t interface           # number over all sections
    uint32_t options_bytes
    const uint8_t *options       # pcapng's, in the byte order of the section
    bint swapped                 # that byte order is not the machine's

cdef class CaptureReader:
    cdef readonly str path
    cdef readonly str format             # "pcap" or "pcapng"
    cdef readonly uint64_t packets       # read so far
    cdef readonly uint64_t truncated     # of them, shorter than on the wire
    cdef readonly uint64_t overlong      # of them, those that said to be longer on the wire than ORIGINAL_MOST, and count as that
    cdef readonly uint64_t captured_bytes
    cdef readonly uint64_t size          # of the file, 0 for a pipe or a compressed file
    cdef readonly list names             # of the interfaces of all sections so far, by number; None where the file gives none
    cdef int descriptor
    cdef object stream                   # of a compressed file: what `read1` gives its content; None for others
    cdef uint8_t *window
    cdef uint64_t window_offset          # of its first byte in the file
    cdef uint32_t at, end                # unread part of the window
    cdef bint ended                      # the file has no more
    cdef bint swapped, is_pcapng
    cdef uint32_t record_head            # pcap: bytes before each packet
    cdef bint has_first
    cdef Record first                    # of a pcapng file, read before anything begins; valid where has_first
    cdef Interface *interfaces           # of this section
    cdef uint32_t interface_count, interface_room
    cdef uint32_t first_interface        # number of this section's first interface
    cdef uint64_t last_ns
    cdef object broken                   # (what, offset) that ended the reading early, or None
    cdef int next(self, Record *record) noexcept nogil
    cdef int read_record(self, Record *record) noexcept nogil
    cdef ssize_t pull(self, uint8_t *target, size_t count) noexcept nogil
    cdef uint32_t fill(self, uint32_t wanted) noexcept nogil
    cdef bint skip(self, uint64_t count) noexcept nogil
    cdef int fail(self, const char *what, uint64_t offset) noexcept nogil
    cdef int next_pcap(self, Record *record) noexcept nogil
    cdef int next_block(self, Record *record) noexcept nogil
    cdef int section(self, uint64_t offset) noexcept nogil
    cdef int describe_interface(self, const uint8_t *body, uint32_t count, uint64_t offset) noexcept nogil
    cdef int packet_block(self, Record *record, uint32_t kind, const uint8_t *body, uint32_t count, uint64_t offset) noexcept nogil
    cdef uint32_t u32(self, const uint8_t *at) noexcept nogil
    cdef uint32_t u16(self, const uint8_t *at) noexcept nogil
