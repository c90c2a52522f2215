"""CaptureReader. The contract is in reader.pxd. Formats: draft-ietf-opsawg-pcap,
draft-ietf-opsawg-pcapng (section numbers below)."""
import os

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove
from posix.unistd cimport read

from dataplane.capture.compression import decompress
from dataplane.capture.link_types import describe as describe_link_type
from dataplane.capture.signatures import describe as describe_content
from dataplane.errors import CaptureError

cdef extern from "capture/formats.h" nogil:
    bint vnic_nanoseconds(uint64_t ticks, uint64_t ticks_a_second, int64_t offset_s,
                          uint64_t *nanoseconds)

cdef enum:
    ETHERNET = 1                         # link type
    MICROSECONDS = 0xA1B2C3D4            # pcap magics, in the writer's byte order
    NANOSECONDS = 0xA1B23C4D
    # of patched libpcaps of about 2000: 8 more bytes before each packet
    MODIFIED = 0xA1B2CD34
    SECTION_HEADER = 0x0A0D0D0A          # block types; the first is the same in both byte orders
    INTERFACE_DESCRIPTION = 1
    OBSOLETE_PACKET = 2
    SIMPLE_PACKET = 3
    ENHANCED_PACKET = 6
    BYTE_ORDER_MAGIC = 0x1A2B3C4D
    OPTION_END = 0
    IF_NAME = 2
    IF_TSRESOL = 9
    IF_FCSLEN = 13
    IF_TSOFFSET = 14
    PCAP_HEADER = 24
    PCAP_RECORD = 16
    MODIFIED_RECORD = 24
    BLOCK_LEAST = 12                     # type and both lengths
    LINK_TYPE_MASK = 0x03FFFFFF
    # bits above the link type: whether frames carry their FCS, and its length in 16-bit words
    FCS_PRESENT = 0x04000000
    FCS_WORDS_SHIFT = 28


@cython.final
cdef class CaptureReader:
    """Reads `file`, a path or the number of an open descriptor (which the caller closes).

    Formats: pcap of both byte orders, with microseconds or nanoseconds, and its modified form with
    longer records; pcapng with several sections and interfaces, if_tsresol, if_tsoffset and
    if_fcslen, enhanced, simple and obsolete packet blocks; each also compressed (gzip, zstd, lz4).
    An original length above 262144 bytes, which no frame has, is reduced to 262144 and counted in
    `overlong`. If the file declares an FCS, it is removed. Raises CaptureError where the file
    cannot be opened, is not a capture, or its first packet is not Ethernet. A later error ends the
    reading: packets before it were delivered, and `error` has the reason and offset.
    """

    def __cinit__(self, *args, **kwargs):
        self.descriptor = -1

    def __init__(self, file):
        cdef uint32_t magic
        self.path = f"descriptor {file}" if isinstance(file, int) else os.fspath(file)
        self.names = []
        try:
            self.descriptor = (os.dup(file) if isinstance(file, int)
                               else os.open(file, os.O_RDONLY | os.O_CLOEXEC))
            self.size = os.fstat(self.descriptor).st_size
        except OSError as error:
            raise CaptureError(f"{self.path}: {os.strerror(error.errno)}") from None
        self.window = <uint8_t *>malloc(WINDOW_BYTES)
        self.interface_room = 4
        self.interfaces = <Interface *>malloc(self.interface_room * sizeof(Interface))
        if self.window == NULL or self.interfaces == NULL:
            raise MemoryError(f"{self.path}: {WINDOW_BYTES} bytes")
        with nogil:
            self.have(PCAP_HEADER)
        self.stream = decompress(self.window[:self.end], self.descriptor, self.path)
        if self.stream is not None:
            self.at = self.end = self.size = 0
            self.ended = False
            with nogil:
                self.have(PCAP_HEADER)
        if self.broken is not None:
            raise CaptureError(self.error)
        if self.end == 0:
            raise CaptureError(f"{self.path}: is empty")
        if self.end < 8:
            raise CaptureError(f"{self.path}: {self.end} bytes are not a capture: expected pcap or "
                               f"pcapng")
        memcpy(&magic, self.window, 4)
        if magic == SECTION_HEADER:
            self.is_pcapng = True
            self.format = "pcapng"
            self._first_packet()
        else:
            self.format = "pcap"
            self._pcap_header(magic)

    def __dealloc__(self):
        free(self.window)
        free(self.interfaces)
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def close(self):
        """Closes the file. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.ended = True
        self.at = self.end

    @property
    def error(self):
        """The error that ended the reading early, with file and offset, or None."""
        if self.broken is None:
            return None
        return f"{self.path}: offset {self.broken[1]}: {self.broken[0]}"

    @property
    def position(self):
        """Bytes of the file read so far."""
        return self.window_offset + self.at

    def _pcap_header(self, uint32_t magic):
        cdef uint32_t number, link
        cdef Interface *only = self.interfaces
        for swapped in (False, True):
            self.swapped = swapped
            number = self.u32(self.window)
            if number == MICROSECONDS or number == NANOSECONDS or number == MODIFIED:
                break
        else:
            header = self.window[:min(self.end, <uint32_t>PCAP_HEADER)]
            raise CaptureError(f"{self.path}: {describe_content(header)}")
        if self.end < PCAP_HEADER:
            raise CaptureError(f"{self.path}: the file's header ends at byte {self.end} of "
                               f"{PCAP_HEADER}")
        if self.u16(self.window + 4) != 2:
            raise CaptureError(f"{self.path}: pcap version "
                               f"{self.u16(self.window + 4)}.{self.u16(self.window + 6)}: "
                               f"expected 2.4")
        only.ticks_a_second = 1000000000 if number == NANOSECONDS else 1000000
        self.fraction_ns = <uint32_t>(1000000000 // only.ticks_a_second)
        only.snaplen = self.u32(self.window + 16)
        only.offset_s = 0
        link = self.u32(self.window + 20)
        only.link_type = link & LINK_TYPE_MASK
        only.fcs_bytes = 2 * (link >> FCS_WORDS_SHIFT) if link & FCS_PRESENT else 0
        self.record_head = MODIFIED_RECORD if number == MODIFIED else PCAP_RECORD
        self.interface_count = 1
        self.names.append(None)
        if only.link_type != ETHERNET:
            raise CaptureError(f"{self.path}: {describe_link_type(only.link_type)}: expected "
                               f"Ethernet")
        self.at = PCAP_HEADER

    def _first_packet(self):
        """Reads the first packet, so that the constructor rejects a file that is not Ethernet."""
        cdef int got
        with nogil:
            got = self.read_record(&self.first)
        if got < 0:
            raise CaptureError(self.error)
        self.has_first = got == 1

    # -- the window --------------------------------------------------------------------------------

    cdef uint32_t have(self, uint32_t wanted) noexcept nogil:
        """Provides `wanted` unread bytes (at most WINDOW_BYTES); returns their number, smaller only
        at the end of the file."""
        cdef uint32_t there = self.end - self.at
        return there if there >= wanted else self.fill(wanted)

    cdef uint32_t fill(self, uint32_t wanted) noexcept nogil:
        """Reads more of the file, for `have`."""
        cdef ssize_t got
        if self.ended:
            return self.end - self.at
        memmove(self.window, self.window + self.at, self.end - self.at)
        self.window_offset += self.at
        self.end -= self.at
        self.at = 0
        while self.end < wanted:
            got = self.pull(self.window + self.end,
                            min(<uint32_t>WINDOW_BYTES - self.end,
                                max(wanted, <uint32_t>READ_BYTES)))
            if got <= 0:
                self.ended = True
                break
            self.end += <uint32_t>got
        return self.end

    cdef ssize_t pull(self, uint8_t *target, size_t count) noexcept nogil:
        """Reads up to `count` bytes of the file's content. 0: end; -1: an error, in `broken`."""
        cdef ssize_t got
        if self.stream is not None:
            with gil:
                try:
                    # at most `count`, so a small file cannot exhaust the memory
                    content = self.stream.read1(count)
                    got = len(content)
                    memcpy(target, <const char *><bytes>content, got)
                    return got
                except Exception as error:       # each library has its own exceptions
                    self.broken = (f"cannot be decompressed further: {error}",
                                   self.window_offset + self.end)
                    return -1
        while True:
            got = read(self.descriptor, target, count)
            if got >= 0:
                return got
            if errno != EINTR:
                with gil:
                    self.broken = (os.strerror(errno), self.window_offset + self.end)
                return -1

    cdef bint skip(self, uint64_t count) noexcept nogil:
        """Skips `count` bytes, which may exceed the window; False where the file has fewer."""
        cdef uint32_t there
        while count:
            there = self.have(1 if count >= WINDOW_BYTES else <uint32_t>count)
            if there == 0:
                return False
            there = <uint32_t>count if count < there else there
            self.at += there
            count -= there
        return True

    cdef uint32_t u32(self, const uint8_t *at) noexcept nogil:
        cdef uint32_t value
        memcpy(&value, at, 4)
        return __builtin_bswap32(value) if self.swapped else value

    cdef uint32_t u16(self, const uint8_t *at) noexcept nogil:
        cdef uint16_t value
        memcpy(&value, at, 2)
        return __builtin_bswap16(value) if self.swapped else value

    cdef int fail(self, const char *what, uint64_t offset) noexcept nogil:
        """Ends the reading with an error. Returns -1."""
        self.ended = True
        self.at = self.end
        with gil:
            if self.broken is None:
                self.broken = (what.decode(), offset)
        return -1

    # -- packets -----------------------------------------------------------------------------------

    cdef int next(self, Record *record) noexcept nogil:
        """1: *record is the next packet. 0: end of the file. -1: an error, see `error`."""
        cdef int got
        if not self.is_pcapng:
            got = self.next_pcap(record)
        elif self.has_first:
            self.has_first = False
            record[0] = self.first
            got = 1
        else:
            got = self.read_record(record)
        if got == 1:
            self.packets += 1
            if record.original > ORIGINAL_MOST:
                record.original = ORIGINAL_MOST
                self.overlong += 1
            self.captured_bytes += record.captured
            self.truncated += record.captured < record.original
            self.last_ns = record.time_ns
        return got

    cdef int read_record(self, Record *record) noexcept nogil:
        cdef int got = 2
        if not self.is_pcapng:
            return self.next_pcap(record)
        while got == 2:
            got = self.next_block(record)
        return got

    cdef int next_pcap(self, Record *record) noexcept nogil:
        cdef uint32_t there = self.have(self.record_head), captured, whole
        cdef uint64_t offset = self.window_offset + self.at
        cdef const uint8_t *head
        if there == 0:
            return -1 if self.broken is not None else 0
        if there < self.record_head:
            return self.fail("the file ends within a record's header", offset)
        captured = self.u32(self.window + self.at + 8)
        if captured > CAPTURED_MOST:
            return self.fail("a record says that it has more than 262144 bytes", offset)
        whole = self.record_head + captured
        if self.have(whole) < whole:
            return self.fail("the file ends within a packet", offset)
        head = self.window + self.at
        record.time_ns = <uint64_t>self.u32(head) * 1000000000 + <uint64_t>self.u32(
            head + 4) * self.fraction_ns
        record.offset = offset
        record.data = head + self.record_head
        record.captured = captured
        record.original = max(self.u32(head + 12), captured)
        record.interface = 0
        record.options = NULL
        record.options_bytes = 0
        record.swapped = self.swapped
        strip_fcs(record, self.interfaces[0].fcs_bytes)
        self.at += whole
        return 1

    cdef int next_block(self, Record *record) noexcept nogil:
        """As `next`; 2: a block that is no packet was read (section 3.1)."""
        cdef uint32_t there = self.have(BLOCK_LEAST), kind, total
        cdef uint64_t offset = self.window_offset + self.at
        cdef const uint8_t *body
        if there == 0:
            return -1 if self.broken is not None else 0
        if there < BLOCK_LEAST:
            return self.fail("the file ends within a block's header", offset)
        kind = self.u32(self.window + self.at)
        if kind == SECTION_HEADER:
            return self.section(offset)
        total = self.u32(self.window + self.at + 4)
        if total < BLOCK_LEAST or total % 4:
            return self.fail("a block has an impossible length", offset)
        if total > BLOCK_MOST:
            if kind == ENHANCED_PACKET or kind == SIMPLE_PACKET or kind == OBSOLETE_PACKET:
                return self.fail("a packet's block has more than 1 MiB", offset)
            if not self.skip(total):
                return self.fail("the file ends within a block", offset)
            return 2
        if self.have(total) < total:
            return self.fail("the file ends within a block", offset)
        body = self.window + self.at + 8
        if self.u32(body + total - BLOCK_LEAST) != total:
            return self.fail("a block's two lengths differ", offset)
        self.at += total
        if kind == ENHANCED_PACKET or kind == SIMPLE_PACKET or kind == OBSOLETE_PACKET:
            return self.packet_block(record, kind, body, total - BLOCK_LEAST, offset)
        if kind == INTERFACE_DESCRIPTION:
            return self.describe_interface(body, total - BLOCK_LEAST, offset)
        return 2

    cdef int section(self, uint64_t offset) noexcept nogil:
        """A section header (4.1): sets the byte order and restarts the numbers of interfaces."""
        cdef uint32_t total
        if self.have(28) < 28:
            return self.fail("the file ends within a section header", offset)
        self.swapped = False
        if self.u32(self.window + self.at + 8) != BYTE_ORDER_MAGIC:
            self.swapped = True
            if self.u32(self.window + self.at + 8) != BYTE_ORDER_MAGIC:
                return self.fail("a section header without the byte-order magic", offset)
        if self.u16(self.window + self.at + 12) != 1:
            return self.fail("a section of an unknown version: expected 1", offset)
        total = self.u32(self.window + self.at + 4)
        if total < 28 or total % 4:
            return self.fail("a section header has an impossible length", offset)
        if not self.skip(total):
            return self.fail("the file ends within a section header", offset)
        self.first_interface += self.interface_count
        self.interface_count = 0
        return 2

    cdef int describe_interface(self, const uint8_t *body, uint32_t count,
                                uint64_t offset) noexcept nogil:
        """An interface description (4.2)."""
        cdef Interface *grown
        cdef Interface *interface
        cdef uint32_t at = 8, code, length
        cdef uint64_t exponent
        if count < 8:
            return self.fail("an interface description of less than 20 bytes", offset)
        if self.first_interface + self.interface_count >= INTERFACES_ALL_MOST:
            return self.fail("more than 262144 interfaces in all sections", offset)
        if self.interface_count == self.interface_room:
            if self.interface_room >= INTERFACES_MOST:
                return self.fail("a section with more than 65536 interfaces", offset)
            grown = <Interface *>realloc(self.interfaces,
                                         2 * self.interface_room * sizeof(Interface))
            if grown == NULL:
                return self.fail("no memory for another interface", offset)
            self.interfaces = grown
            self.interface_room *= 2
        interface = &self.interfaces[self.interface_count]
        interface.link_type = self.u16(body)
        interface.snaplen = self.u32(body + 4)
        interface.ticks_a_second = 1000000
        interface.offset_s = 0
        interface.fcs_bytes = 0
        self.interface_count += 1
        with gil:
            self.names.append(None)
        while at + 4 <= count:
            code, length = self.u16(body + at), self.u16(body + at + 2)
            at += 4
            if code == OPTION_END:
                break
            if length > count - at:
                return self.fail("an option is longer than its block", offset)
            if code == IF_TSRESOL and length >= 1:
                exponent = body[at] & 0x7F
                if exponent > (63 if body[at] & 0x80 else 19):
                    return self.fail("an interface counts time in steps too fine to represent",
                                     offset)
                interface.ticks_a_second = (<uint64_t>1 << exponent if body[at] & 0x80
                                            else power_of_ten(exponent))
            elif code == IF_TSOFFSET and length >= 8:
                memcpy(&interface.offset_s, body + at, 8)
                if self.swapped:
                    interface.offset_s = <int64_t>__builtin_bswap64(<uint64_t>interface.offset_s)
            elif code == IF_FCSLEN and length >= 1:
                # The specification says bits, its example and most writers use bytes: 4 equals 32.
                interface.fcs_bytes = body[at] if body[at] < 8 else body[at] // 8
            elif code == IF_NAME:
                with gil:
                    name = body[at:at + length].rstrip(b"\0")
                    self.names[len(self.names) - 1] = name.decode(errors="replace")
            at += (length + 3) & ~<uint32_t>3
        return 2

    cdef int packet_block(self, Record *record, uint32_t kind, const uint8_t *body, uint32_t count,
                          uint64_t offset) noexcept nogil:
        """Enhanced (4.3), simple (4.4) and obsolete (appendix) packet blocks."""
        cdef uint32_t fixed = 4 if kind == SIMPLE_PACKET else 20, number = 0, padded
        cdef Interface *interface
        if count < fixed:
            return self.fail("a packet's block is shorter than its own header", offset)
        if kind != SIMPLE_PACKET:
            number = self.u32(body) if kind == ENHANCED_PACKET else self.u16(body)
        if number >= self.interface_count:
            return self.fail("a packet of an interface that its section does not describe", offset)
        interface = &self.interfaces[number]
        if interface.link_type != ETHERNET:
            with gil:
                text = f"{describe_link_type(interface.link_type)}: expected Ethernet".encode()
                return self.fail(text, offset)
        if kind == SIMPLE_PACKET:
            record.original = self.u32(body)
            record.captured = min(record.original, count - fixed)
            if interface.snaplen:
                record.captured = min(record.captured, interface.snaplen)
            record.time_ns = self.last_ns        # a simple packet block has no time stamp
        else:
            record.captured, record.original = self.u32(body + 12), self.u32(body + 16)
            if not vnic_nanoseconds(<uint64_t>self.u32(body + 4) << 32 | self.u32(body + 8),
                                    interface.ticks_a_second,
                                    interface.offset_s, &record.time_ns):
                return self.fail("a time stamp outside 1970 to 2262", offset)
        if record.captured > count - fixed or record.captured > CAPTURED_MOST:
            return self.fail("a packet is longer than its block", offset)
        padded = (record.captured + 3) & ~<uint32_t>3
        record.original = max(record.original, record.captured)
        record.offset = offset
        record.data = body + fixed
        record.interface = self.first_interface + number
        record.options = NULL
        record.options_bytes = 0
        record.swapped = self.swapped
        if kind == ENHANCED_PACKET and fixed + padded < count:
            record.options = body + fixed + padded
            record.options_bytes = count - fixed - padded
        strip_fcs(record, interface.fcs_bytes)
        return 1

    def __iter__(self):
        return self

    def __next__(self):
        """The next packet as (time_ns, data, original length, interface), for tools and tests.
        Raises CaptureError where the file is damaged."""
        cdef Record record
        cdef int got
        with nogil:
            got = self.next(&record)
        if got < 0:
            raise CaptureError(self.error)
        if got == 0:
            raise StopIteration
        return (record.time_ns, <bytes>record.data[:record.captured], record.original,
                record.interface)


cdef extern from * nogil:
    uint32_t __builtin_bswap32(uint32_t value)
    uint16_t __builtin_bswap16(uint16_t value)
    uint64_t __builtin_bswap64(uint64_t value)


cdef inline void strip_fcs(Record *record, uint32_t bytes) noexcept nogil:
    """Removes the frame check sequence from a frame."""
    record.original -= min(bytes, record.original)
    record.captured = min(record.captured, record.original)


cdef uint64_t power_of_ten(uint64_t exponent) noexcept nogil:
    cdef uint64_t value = 1
    while exponent:
        value *= 10
        exponent -= 1
    return value
