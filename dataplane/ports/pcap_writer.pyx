"""CaptureFile and PcapWriter. The contract is in pcap_writer.pxd."""
import contextlib
import errno as error_numbers
import fcntl
import os
import stat
import struct
import threading
import time

cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport read, write
from dataplane.engine.clock cimport Clock
from dataplane.packet.pool cimport Batch, Context, Packet, packet_data, packet_free
from dataplane.graph.offload cimport OFFLOAD_ALL
from dataplane.graph.port cimport TX_IO_ERROR, TX_LINK_DOWN, TX_QUEUE_FULL, Port
from dataplane.vatomic cimport (va_exchange_u32, va_fence, va_load_acquire_u32,
                                va_load_acquire_u64, va_load_relaxed_u32, va_store_relaxed_u32,
                                va_store_release_u32, va_store_release_u64)

from dataplane.errors import ConfigError, PortError, VnicError
from dataplane.units import parse_size

cdef extern from "<sys/file.h>" nogil:
    int flock(int descriptor, int operation)
    int LOCK_EX, LOCK_NB

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    short POLLIN, POLLOUT, POLLERR, POLLHUP

# draft-ietf-opsawg-pcap: file header (magic of nanosecond time stamps, version 2.4, two reserved
# words, snap length, link type) and packet record (seconds, nanoseconds, captured length, original
# length), in the byte order of the machine.
PCAP_MAGIC_NS = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
# draft-ietf-opsawg-pcapng: a section header and one interface with times in nanoseconds
PCAPNG_HEADER = struct.Struct("=IIIHHqI IIHHIHHB3xII")
SECTION_BLOCK, BYTE_ORDER_MAGIC, INTERFACE_BLOCK, IF_TSRESOL = 0x0A0D0D0A, 0x1A2B3C4D, 1, 9
SNAPLEN_MAX = 262144             # libpcap's maximum for Ethernet; more than any frame here
BUFFER_MIN_BYTES = 1 << 19       # several records of the longest frame
BUFFER_MAX_BYTES = 1 << 30

cdef inline uint64_t monotonic_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef enum:
    RECORD_BYTES = 16
    # of a pcapng block with a packet, before the frame; the length again comes behind it
    BLOCK_BYTES = 28
    PACKET_BLOCK = 6
    FILE_CHUNK = 1 << 20         # bytes per write to a file
    # after POLLOUT a pipe has room for one page, so this write cannot block
    PIPE_CHUNK = 4096
    LOCK_POLL_MS = 5
    GRACE_MS = 1000              # how long close waits for a reader that does not read


@cython.final
cdef class CaptureFile:
    """A pcap file (nanoseconds, Ethernet), or with `pcapng` one of that format, that an engine
    writes into.

    file: a path (created or truncated, mode 0600, since it has users' traffic; a named pipe must
    have a reader already) or the number of an open descriptor, which is duplicated. snaplen: bytes
    kept of a frame, 1 to 262,144; the original length is in the record. buffer: capacity of the
    ring ("8mb" or bytes, rounded up to a power of two); packets that do not fit are rejected and
    the caller counts them. clock: the engine's; time stamps are wall-clock time, or that of a
    virtual clock. Raises PortError, ConfigError.

    Only one CaptureFile writes a file at a time: it has the lock (flock). A second one of the same
    path accepts no packets until `take_over`; then it appends, once the first has closed the file.
    resume: appends to what a process that was killed left of it, without the record that it was
    writing.
    """

    def __cinit__(self, *args, **kwargs):
        self.descriptor = self.doorbell = -1

    def __init__(self, str name, file, *, uint32_t snaplen=SNAPLEN_MAX, buffer="8mb",
                 Clock clock=None,
                 bint pcapng=False, bint resume=False):
        if not 1 <= snaplen <= SNAPLEN_MAX:
            raise ConfigError(f"{name}: snaplen {snaplen}: expected 1 to {SNAPLEN_MAX} bytes")
        self.path = f"descriptor {file}" if isinstance(file, int) else os.fspath(file)
        self.snaplen, self.pcapng = snaplen, pcapng
        self.capacity = _capacity(name, buffer)
        self.ring = <ByteRing *>calloc(1, sizeof(ByteRing))
        self.cells = <uint8_t *>malloc(self.capacity)
        if self.ring == NULL or self.cells == NULL:
            raise MemoryError(f"{name}: {self.capacity} bytes")
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if pcapng:
            header = PCAPNG_HEADER.pack(SECTION_BLOCK, 28, BYTE_ORDER_MAGIC, 1, 0, -1, 28,
                                        INTERFACE_BLOCK, 32, LINKTYPE_ETHERNET, 0, snaplen,
                                        IF_TSRESOL, 1, 9, 0, 32)
        else:
            header = struct.pack("=IHHIIII", PCAP_MAGIC_NS, 2, 4, 0, 0, snaplen, LINKTYPE_ETHERNET)
        try:
            # O_NONBLOCK: a named pipe without a reader must not block control (ENXIO instead).
            self.descriptor = os.dup(file) if isinstance(file, int) else _open(file)
            self.may_block = not stat.S_ISREG(os.fstat(self.descriptor).st_mode)
            self.locked = self.begun = self._lock()
            if self.locked:
                kept = 0
                if not self.may_block and not isinstance(file, int):
                    kept = whole_records(file, header) if resume else 0
                    os.ftruncate(self.descriptor, kept)
                if kept == 0:
                    os.write(self.descriptor, header)
        except OSError as error:
            self._close_descriptors()
            why = "a pipe that nobody reads" if error.errno == error_numbers.ENXIO else os.strerror(
                error.errno)
            raise PortError(f"{name}: cannot write {self.path}: {why}") from None
        self.chunk_bytes = PIPE_CHUNK if self.may_block else FILE_CHUNK
        self.wall_offset_ns = 0 if clock is not None and clock.virtual else time.time_ns() - (
            clock or Clock()).now_ns
        self._thread = threading.Thread(target=self._main, name=f"vnic-capture-{name}", daemon=True)
        self._thread.start()

    def __dealloc__(self):
        # The thread references this object, so it has ended.
        free(self.ring)
        free(self.cells)

    def _close_descriptors(self):
        for descriptor in (self.descriptor, self.doorbell):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self.doorbell = -1

    def _lock(self):
        """False: another process (or another CaptureFile) writes the file."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass                                 # a file system without locks
        return True

    def fileno(self):
        """The descriptor of the file; -1 once it is closed."""
        return self.descriptor

    def take_over(self, bint begun=True):
        """Continues the file of another CaptureFile once that has closed it (begun=False: revokes
        this). Only before the first packet."""
        if not self.locked:
            self.begun = begun

    def close(self):
        """Writes the ring's content, then closes. If a pipe's reader does not read for a second,
        the rest is lost. No engine may write any more. May be called twice."""
        if self._thread is None:
            return
        va_store_release_u32(&self.ring.stopping, 1)
        os.eventfd_write(self.doorbell, 1)
        self._thread.join()
        self._thread = None
        if self.locked:
            with contextlib.suppress(OSError):
                # duplicates of the descriptor would keep the lock
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self._close_descriptors()

    @property
    def error(self):
        """The error that ended the writing early ("No space left on device"), or None."""
        cdef uint32_t failed = va_load_acquire_u32(&self.ring.failed)
        if not self.begun:
            return f"{self.path} is being written by another process"
        return os.strerror(failed) if failed else None

    # -- the engine's side -------------------------------------------------------------------------

    cdef bint write_packet(self, Context *ctx, uint32_t index) noexcept nogil:
        """Copies the frame into the ring; False when there is no room or writing has failed. Call
        `wake` after a batch."""
        cdef const Packet *p = &ctx.packets[index]
        cdef uint64_t now_ns = ctx.now_ns + self.wall_offset_ns
        cdef uint64_t tail = self.ring.tail                # written by this thread only
        cdef uint32_t kept = p.length if p.length < self.snaplen else self.snaplen
        cdef uint32_t record[7]
        cdef uint32_t head = BLOCK_BYTES if self.pcapng else RECORD_BYTES
        cdef uint32_t pad = (-kept & 3) + 4 if self.pcapng else 0
        # Acquire: the writer has read the bytes it freed before we overwrite them.
        if (head + kept + pad > self.capacity - (tail - va_load_acquire_u64(&self.ring.head))
                or va_load_relaxed_u32(&self.ring.failed) or not self.begun):
            return False
        if self.pcapng:
            record[0], record[1], record[2] = PACKET_BLOCK, head + kept + pad, 0
            record[3], record[4] = <uint32_t>(now_ns >> 32), <uint32_t>now_ns
            record[5], record[6] = kept, p.length
        else:
            record[0], record[1] = <uint32_t>(now_ns // 1000000000), <uint32_t>(now_ns % 1000000000)
            record[2], record[3] = kept, p.length
        self.put(tail, <const uint8_t *>record, head)
        self.put(tail + head, packet_data(ctx, index), kept)
        if self.pcapng:
            record[0] = 0                # the padding, then the length again
            self.put(tail + head + kept, <const uint8_t *>record, pad - 4)
            self.put(tail + head + kept + pad - 4, <const uint8_t *>&record[1], 4)
        # release: the bytes before the tail
        va_store_release_u64(&self.ring.tail, tail + head + kept + pad)
        return True

    cdef void put(self, uint64_t at, const uint8_t *data, uint32_t count) noexcept nogil:
        cdef uint64_t offset = at & (self.capacity - 1)
        cdef uint64_t first = self.capacity - offset
        if count <= first:
            memcpy(self.cells + offset, data, count)
        else:
            memcpy(self.cells + offset, data, first)
            memcpy(self.cells, data + first, count - first)

    cdef void wake(self) noexcept nogil:
        cdef uint64_t one = 1
        # the tail before the flag is read; pairs with the fence in rest()
        va_fence()
        if va_load_relaxed_u32(&self.ring.sleeping) and va_exchange_u32(&self.ring.sleeping, 0):
            write(self.doorbell, &one, 8)

    # -- the writer's side -------------------------------------------------------------------------

    def _main(self):
        with nogil:
            self.run()

    cdef void run(self) noexcept nogil:
        cdef uint64_t head = 0, tail, count, offset, give_up_ns = 0
        cdef ssize_t done
        cdef bint stopping
        while True:
            # before the tail: once it is set, the engine adds no more
            stopping = va_load_acquire_u32(&self.ring.stopping)
            # for the whole rest, not for each page
            if stopping and give_up_ns == 0:
                give_up_ns = monotonic_ns() + GRACE_MS * 1000000
            # pairs with the release in write_packet
            tail = va_load_acquire_u64(&self.ring.tail)
            if tail == head:
                if stopping:
                    return
                self.rest()
                continue
            offset = head & (self.capacity - 1)
            if not self.locked and not self.wait_for_lock():
                va_store_release_u32(&self.ring.failed, EAGAIN)
                return
            count = min(min(tail - head, self.capacity - offset), <uint64_t>self.chunk_bytes)
            if self.may_block and not self.ready(give_up_ns):
                if stopping:
                    va_store_release_u32(&self.ring.failed, EAGAIN)
                    return
                continue
            done = write(self.descriptor, self.cells + offset, count)
            if done >= 0:
                head += <uint64_t>done
                # release: our reads before the engine may overwrite
                va_store_release_u64(&self.ring.head, head)
            elif errno != EINTR and errno != EAGAIN:
                va_store_release_u32(&self.ring.failed, <uint32_t>errno)
                return

    cdef bint wait_for_lock(self) noexcept nogil:
        """Waits until the previous writer has closed the file; False if `stopping` is set."""
        cdef pollfd bell
        bell.fd, bell.events, bell.revents = self.doorbell, POLLIN, 0
        while flock(self.descriptor, LOCK_EX | LOCK_NB) < 0 and errno == EAGAIN:
            if va_load_acquire_u32(&self.ring.stopping):
                return False
            # the kernel has no event for a released lock
            poll(&bell, 0, LOCK_POLL_MS)
        self.locked = True
        return True

    cdef void rest(self) noexcept nogil:
        """Sleeps until the doorbell rings, unless there is work already."""
        cdef pollfd bell
        cdef uint64_t value
        bell.fd, bell.events, bell.revents = self.doorbell, POLLIN, 0
        va_store_relaxed_u32(&self.ring.sleeping, 1)
        # the flag before the tail is read; pairs with the fence in wake()
        va_fence()
        if (va_load_acquire_u64(&self.ring.tail) == self.ring.head
                and not va_load_acquire_u32(&self.ring.stopping)):
            poll(&bell, 1, -1)
        va_exchange_u32(&self.ring.sleeping, 0)
        read(self.doorbell, &value, 8)

    cdef bint ready(self, uint64_t give_up_ns) noexcept nogil:
        """Waits until the pipe is writable (or broken, which write reports). False when only the
        doorbell rang, or at give_up_ns (0 before `close`)."""
        cdef pollfd both[2]
        cdef uint64_t value, now
        cdef bint stopping = va_load_acquire_u32(&self.ring.stopping)
        both[0].fd, both[0].events, both[0].revents = self.descriptor, POLLOUT, 0
        both[1].fd, both[1].events, both[1].revents = self.doorbell, POLLIN, 0
        # The doorbell announces `stopping`; after that, the reader has until give_up_ns.
        if stopping and give_up_ns:
            now = monotonic_ns()
            poll(&both[0], 1, <int>((give_up_ns - now) // 1000000) if now < give_up_ns else 0)
            return now < give_up_ns and both[0].revents & (POLLOUT | POLLERR | POLLHUP) != 0
        poll(&both[0], 2, -1)
        if both[1].revents:
            read(self.doorbell, &value, 8)
        return both[0].revents & (POLLOUT | POLLERR | POLLHUP) != 0


def _open(path):
    """Opens a file for writing. A pipe without a reader is opened if it is given as
    /proc/self/fd/N: then this process can continue a capture whose reader has ended."""
    flags = os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno != error_numbers.ENXIO or not os.fspath(path).startswith("/proc/self/fd/"):
            raise
        return os.open(path, flags | os.O_RDWR, 0o600)


def whole_records(path, bytes header):
    """Bytes at the beginning of a capture file of this machine that are the header and whole
    records; 0 where the header is another."""
    pcapng = header.startswith(struct.pack("=I", SECTION_BLOCK))
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(len(header)) != header:
                return 0
            at = len(header)
            while len(head := file.read(RECORD_BYTES)) == RECORD_BYTES:
                length = struct.unpack_from("=I", head, 4 if pcapng
                                            else 8)[0] + (0 if pcapng else RECORD_BYTES)
                if length < RECORD_BYTES or at + length > size:
                    break
                at += length
                file.seek(at)
            return at
    except OSError:
        return 0


def _capacity(name, buffer):
    """Bytes of the ring, a power of two."""
    if isinstance(buffer, bool) or not isinstance(buffer, int):
        try:
            buffer = parse_size(buffer)
        except ConfigError as error:
            raise ConfigError(f"{name}: buffer: {error}") from None
    if not BUFFER_MIN_BYTES <= buffer <= BUFFER_MAX_BYTES:
        raise ConfigError(f"{name}: a buffer of {buffer} bytes: expected 512kb to 1gb")
    return 1 << (buffer - 1).bit_length()


cdef class PcapWriter(Port):
    """A port that writes packets to a pcap file and receives nothing. GSO frames are written whole,
    with their length, and frames with a partial checksum as they are.

    Packets that do not fit into the ring stay with the sender (queue_full); after a failed write,
    all (io_error). file, snaplen, buffer, clock: see CaptureFile. `close` writes the ring's
    content. offloads: frames that need others are completed before (checksums, segments). When its
    engine is handed over, the other process' port goes on with the file once this one has written
    what waits.
    """

    def __init__(self, str name, file, uint32_t number=0, *, uint32_t snaplen=SNAPLEN_MAX,
                 buffer="8mb", Clock clock=None,
                 uint32_t offloads=OFFLOAD_ALL, bint pcapng=False, bint resume=False):
        super().__init__(name, number, 1, offloads)
        self.capture = CaptureFile(name, file, snaplen=snaplen, buffer=buffer, clock=clock,
                                   pcapng=pcapng, resume=resume)

    def save_state(self, direction):
        """`begun`: whether the file has its header and earlier records."""
        return {"begun": self.capture.begun} if direction == "tx" else {}

    def load_state(self, direction, dict state):
        if direction != "tx":
            return
        if set(state) != {"begun"} or type(state["begun"]) is not bool:
            raise VnicError(f"port {self.name}: its state is not that of a capture file")
        self.capture.take_over(state["begun"])

    def forget_state(self, direction):
        if direction == "tx":
            self.capture.close()

    def close(self):
        self.capture.close()

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, taken = 0, bytes_taken = 0
        cdef uint16_t why
        while taken < batch.count and self.capture.descriptor >= 0:
            index = batch.index[taken]
            if not self.capture.write_packet(ctx, index):
                break
            bytes_taken += ctx.packets[index].length
            packet_free(ctx, index)
            taken += 1
        self.capture.wake()
        self.stats[0].tx_packets += taken
        self.stats[0].tx_bytes += bytes_taken
        batch.count -= taken
        self.stats[0].tx_dropped += batch.count
        why = TX_QUEUE_FULL
        if self.capture.descriptor < 0:
            why = TX_LINK_DOWN
        elif va_load_relaxed_u32(&self.capture.ring.failed):
            why = TX_IO_ERROR
        for i in range(batch.count):
            batch.index[i] = batch.index[taken + i]
            ctx.packets[batch.index[i]].tx_status = why
        return taken
