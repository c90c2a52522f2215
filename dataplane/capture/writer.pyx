"""CaptureWriter. The contract is in writer.pxd. Formats: draft-ietf-opsawg-pcap,
draft-ietf-opsawg-pcapng."""
import os
import struct

cimport cython
from libc.errno cimport EAGAIN, EINTR, EIO, ENOMEM, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memmove, memset
from posix.unistd cimport write
from dataplane.packet.pool cimport (PACKET_TRUNCATED, Context, Packet, packet_buffer,
                                    packet_capacity, packet_data)

from dataplane.errors import ConfigError, PortError

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    short POLLOUT

cdef extern from "capture/preallocate.h" nogil:
    bint vnic_gains_by_space(int descriptor)
    bint vnic_allocate(int descriptor, uint64_t offset, uint64_t bytes)
    void vnic_free_space(int descriptor)

PCAP_MAGIC_NS = 0xA1B23C4D
SNAPLEN = 262144
ETHERNET = 1

cdef enum:
    ENHANCED_PACKET = 6
    EPB_BYTES = 28               # of the block before the data
    PCAP_RECORD = 16
    OPTION_COMMENT = 1
    ROOM_FIRST = 4194304
    OVERHEAD = 64


@cython.final
cdef class CaptureWriter:
    """Writes `file`, a path (created or truncated, mode 0600, since it has users' traffic) or the
    number of an open descriptor.

    names: of the interfaces, by number. format: "pcapng", or "pcap" (nanoseconds; without
    interfaces and comments); None: by the path's extension. Raises PortError.
    """

    def __cinit__(self, *args, **kwargs):
        self.descriptor = -1

    def __init__(self, file, names, *, format=None):
        self.path = f"descriptor {file}" if isinstance(file, int) else os.fspath(file)
        self.format = format or format_of(self.path)
        if self.format not in ("pcap", "pcapng"):
            raise ConfigError(f"{self.path}: format {format!r}: expected pcap or pcapng")
        self.is_pcapng = self.format == "pcapng"
        self.interfaces = len(names)
        self.room, self.pending_room = ROOM_FIRST, 256
        self.buffer = <uint8_t *>malloc(self.room)
        self.pending = <Pending *>malloc(self.pending_room * sizeof(Pending))
        if self.buffer == NULL or self.pending == NULL:
            raise MemoryError(self.path)
        head = self._section(names) if self.is_pcapng else struct.pack(
            "=IHHIIII", PCAP_MAGIC_NS, 2, 4, 0, 0, SNAPLEN, ETHERNET)
        try:
            self.descriptor = (os.dup(file) if isinstance(file, int) else
                               os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
                                       0o600))
        except OSError as error:
            raise PortError(f"cannot write {self.path}: {os.strerror(error.errno)}") from None
        # Not of a descriptor that others hold, too: its offset may be anywhere.
        self.wants_space = not isinstance(file, int) and vnic_gains_by_space(self.descriptor)
        if <uint64_t>len(head) > <uint64_t>ROOM_FIRST:
            raise ConfigError(f"{self.path}: too many interfaces")
        memcpy(self.buffer, <const char *><bytes>head, len(head))
        self.used = self.instant_start = len(head)

    def __dealloc__(self):
        free(self.buffer)
        free(self.pending)
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def _section(self, names):
        application = _option(4, b"vnic")
        blocks = [_block(0x0A0D0D0A,
                         struct.pack("=IHHq", 0x1A2B3C4D, 1, 0,
                                     -1) + application + _option(0, b""))]
        for name in names:
            options = _option(2, name.encode()) + _option(9, b"\x09") + _option(0, b"")
            blocks.append(_block(1, struct.pack("=HHI", ETHERNET, 0, SNAPLEN) + options))
        return b"".join(blocks)

    @property
    def error(self):
        """The error that ended the writing early, or None."""
        return f"cannot write {self.path}: {os.strerror(self.failed)}" if self.failed else None

    def flush(self):
        """Writes the buffered records. Raises PortError where writing failed, now or before."""
        if self.descriptor >= 0:
            with nogil:
                self.end_instant()
                self.write_out(True)
        if self.failed:
            raise PortError(self.error)

    def close(self):
        """Flushes and closes. May be called twice. Raises PortError as `flush` does."""
        try:
            self.flush()
        finally:
            if self.descriptor >= 0:
                if self.space_end > self.written:
                    vnic_free_space(self.descriptor)
                os.close(self.descriptor)
                self.descriptor = -1

    cdef bint write_packet(self, Context *ctx, uint32_t index, uint32_t interface, uint64_t time_ns,
                           const char *comment,
                           uint32_t comment_bytes) noexcept nogil:
        """Copies the frame into a record of `interface` at `time_ns`; False after a failed write.
        The caller keeps the packet."""
        cdef const Packet *p = &ctx.packets[index]
        cdef Content content
        content.data, content.captured = packet_data(ctx, index), p.length
        content.original = p.original_length if p.flags & PACKET_TRUNCATED else p.length
        content.trailer_bytes = p.trailer_bytes
        if p.trailer_bytes:                  # pcapng options of the packet's source, see pool.pxd
            content.trailer = packet_buffer(ctx,
                                            index) + packet_capacity(ctx, index) - p.trailer_bytes
        return self.put(&content, interface, time_ns, comment, comment_bytes)

    def write(self, uint32_t interface, uint64_t time_ns, const uint8_t[::1] data not None, *,
              original=None, str comment=""):
        """Writes one frame, for tools and tests. Raises PortError after a failed write."""
        cdef Content content
        text = comment.encode()
        content.data, content.captured = (&data[0] if data.shape[0]
                                          else NULL), <uint32_t>data.shape[0]
        content.original, content.trailer_bytes = original or content.captured, 0
        if not self.put(&content, interface, time_ns, <const char *><bytes>text,
                        <uint32_t>len(text)):
            raise PortError(self.error or f"{self.path}: is closed")

    cdef bint put(self, const Content *content, uint32_t interface, uint64_t time_ns,
                  const char *comment,
                  uint32_t comment_bytes) noexcept nogil:
        cdef uint32_t kept = content.captured, padded = (kept + 3) & ~<uint32_t>3, bytes, fixed
        cdef uint32_t trailer = content.trailer_bytes if self.is_pcapng else 0
        cdef uint32_t comment_padded = (comment_bytes + 3) & ~<uint32_t>3
        cdef uint8_t *at
        cdef uint32_t *words
        cdef Pending *record
        if time_ns != self.instant_ns:
            self.end_instant()
            self.instant_ns = time_ns
        fixed = EPB_BYTES if self.is_pcapng else PCAP_RECORD
        bytes = fixed + padded + comment_padded + trailer + OVERHEAD
        if ((self.used + bytes > self.room or self.pending_count == self.pending_room or self.failed
             or self.descriptor < 0)
                and not self.make_room(bytes)):
            return False
        at = self.buffer + self.used
        words = <uint32_t *>at
        record = &self.pending[self.pending_count]
        record.comment = record.comment_bytes = 0
        if self.is_pcapng:
            words[0], words[2] = ENHANCED_PACKET, interface
            words[3], words[4] = <uint32_t>(time_ns >> 32), <uint32_t>time_ns
            words[5], words[6] = kept, content.original
            if kept != padded:
                memset(at + EPB_BYTES + padded - 4, 0, 4)
            memcpy(at + EPB_BYTES, content.data, kept)
            bytes = EPB_BYTES + padded
            if comment_bytes:
                (<uint16_t *>(at + bytes))[0] = OPTION_COMMENT
                (<uint16_t *>(at + bytes))[1] = <uint16_t>comment_bytes
                memcpy(at + bytes + 4, comment, comment_bytes)
                memset(at + bytes + 4 + comment_bytes, 0, comment_padded - comment_bytes)
                record.comment, record.comment_bytes = self.used + bytes + 4, comment_bytes
                bytes += 4 + comment_padded
            if trailer:
                memcpy(at + bytes, content.trailer, trailer)
                bytes += trailer
            if trailer or comment_bytes:
                memset(at + bytes, 0, 4)     # end of options
                bytes += 4
            bytes += 4
            words[1] = bytes
            memcpy(at + bytes - 4, &words[1], 4)
        else:
            words[0], words[1] = <uint32_t>(time_ns // 1000000000), <uint32_t>(time_ns % 1000000000)
            words[2], words[3] = kept, content.original
            memcpy(at + PCAP_RECORD, content.data, kept)
            bytes = PCAP_RECORD + kept
        record.interface, record.start, record.bytes = interface, self.used, bytes
        record.order = self.pending_count
        if record.order and (interface < self.pending[self.pending_count - 1].interface
                             or comment_bytes):
            self.unordered = True
        self.pending_count += 1
        self.used += bytes
        self.packets += 1
        self.frame_bytes += kept
        return True

    cdef bint make_room(self, uint64_t bytes) noexcept nogil:
        """For a record: writes earlier instants, then enlarges the buffer. False after a
        failure."""
        cdef void *grown
        if self.failed or self.descriptor < 0:
            return False
        if self.used + bytes > self.room:
            if self.instant_start > FLUSH_BYTES or self.used >= INSTANT_MOST:
                if self.used >= INSTANT_MOST:
                    self.end_instant()
                self.write_out(False)
            while self.used + bytes > self.room:
                grown = realloc(self.buffer, 2 * self.room)
                if grown == NULL:
                    self.failed = ENOMEM
                    return False
                self.buffer = <uint8_t *>grown
                self.room *= 2
        if self.pending_count == self.pending_room:
            grown = realloc(self.pending, 2 * self.pending_room * sizeof(Pending))
            if grown == NULL:
                self.failed = ENOMEM
                return False
            self.pending = <Pending *>grown
            self.pending_room *= 2
        return self.failed == 0

    cdef void end_instant(self) noexcept nogil:
        if self.unordered:
            self.put_in_order()
            self.unordered = False
        self.pending_count = 0
        self.instant_start = self.used
        if self.used >= FLUSH_BYTES:
            self.write_out(False)

    cdef void put_in_order(self) noexcept nogil:
        cdef uint64_t total = self.used - self.instant_start, at = 0
        cdef uint8_t *sorted = <uint8_t *>malloc(total)
        cdef uint32_t i
        if sorted == NULL:
            self.failed = ENOMEM
            return
        # offsets of comments become addresses, for by_place
        for i in range(self.pending_count):
            self.pending[i].comment += <uint64_t>self.buffer
        qsort(self.pending, self.pending_count, sizeof(Pending), by_place)
        for i in range(self.pending_count):
            memcpy(sorted + at, self.buffer + self.pending[i].start, self.pending[i].bytes)
            at += self.pending[i].bytes
        memcpy(self.buffer + self.instant_start, sorted, total)
        free(sorted)

    cdef void write_out(self, bint all) noexcept nogil:
        """Writes the records before the current instant; all: also those behind the last multiple
        of FLUSH_BYTES."""
        cdef uint64_t done = 0, count = self.instant_start
        cdef ssize_t got
        cdef pollfd wait
        if not all:
            count = max((self.written + count) & ~<uint64_t>(FLUSH_BYTES - 1),
                        self.written) - self.written
        if (self.wants_space and self.written >= SPACE_FROM
                and self.written + count > self.space_end):
            self.space_end = self.written + SPACE_BYTES
            # Where the disk is full, the write says so.
            self.wants_space = vnic_allocate(self.descriptor, self.written, SPACE_BYTES)
        while done < count and not self.failed:
            got = write(self.descriptor, self.buffer + done, count - done)
            if got > 0:
                done += <uint64_t>got
            elif got < 0 and errno == EAGAIN:    # another process made the pipe non-blocking
                wait.fd, wait.events, wait.revents = self.descriptor, POLLOUT, 0
                poll(&wait, 1, -1)
            elif got == 0 or errno != EINTR:
                self.failed = EIO if got == 0 else errno
        self.written += done
        memmove(self.buffer, self.buffer + count, self.used - count)
        shift(self.pending, self.pending_count, count)
        self.used -= count
        self.instant_start -= count


cdef void shift(Pending *pending, uint32_t count, uint64_t by) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        pending[i].start -= by
        if pending[i].comment_bytes:
            pending[i].comment -= by


cdef int by_place(const void *left, const void *right) noexcept nogil:
    cdef const Pending *a = <const Pending *>left
    cdef const Pending *b = <const Pending *>right
    cdef uint32_t least
    cdef int difference
    if a.interface != b.interface:
        return -1 if a.interface < b.interface else 1
    least = a.comment_bytes if a.comment_bytes < b.comment_bytes else b.comment_bytes
    difference = memcmp(<const void *>a.comment, <const void *>b.comment, least) if least else 0
    if difference:
        return difference
    if a.comment_bytes != b.comment_bytes:
        return -1 if a.comment_bytes < b.comment_bytes else 1
    return -1 if a.order < b.order else 1


def format_of(str path):
    """The format for a file name: "pcap" or "pcapng"."""
    return "pcap" if path.endswith((".pcap", ".cap", ".dmp")) else "pcapng"


def _option(code, value):
    return struct.pack("=HH", code, len(value)) + value + b"\0" * ((4 - len(value) % 4) % 4)


def _block(kind, body):
    return struct.pack("=II", kind, len(body) + 12) + body + struct.pack("=I", len(body) + 12)
