"""Mirror. The contract is in mirror.pxd."""
import os

from libc.stdint cimport uint32_t
from dataplane.graph.element cimport Element
from dataplane.engine.engine cimport Engine
from dataplane.packet.pool cimport Batch, Context
from dataplane.ports.pcap_writer cimport CaptureFile
from dataplane.vatomic cimport va_load_relaxed_u32

from dataplane.errors import ConfigError, VnicError
from dataplane.ports.pcap_writer import SNAPLEN_MAX, _capacity

# COUNTERS
cdef enum:
    MIRRORED = 0
    MIRRORED_BYTES = 1
    MIRROR_OVERFLOW = 2
    MIRROR_FAILED = 3


cdef class Mirror(Element):
    """Passes packets on and writes a copy of each to a pcap file.

    Synopsis:  a >> Mirror(file="web.pcap", snaplen=128) >> b
    Ports:     1 input, 1 output; every packet goes on, also when its copy cannot be written.
    Config:    file: A path, a named pipe (its reader must be there first), or the number of an open
                   descriptor. In Python also a CaptureFile, which several mirrors of one engine may
                   share and which the caller closes.
               snaplen: Bytes of each frame that are kept, 1 to 262144. The record says how long the
                   frame was. Default: 262144, which is all.
               buffer: Memory for copies that wait for the disk, such as "8mb" or a number of bytes,
                   512 KiB to 1 GiB.
    Counters:  mirrored: frames copied
               mirrored_bytes: bytes of the frames copied
               mirror_overflow: copies lost because the buffer was full
               mirror_failed: copies lost because a write failed: the disk is full, or the reader
                   has closed the pipe
    Handlers:  counters
    Threads:   any one engine; a thread of its own writes the file, so the engine never waits for a
               disk
    Cost:      see dataplane/README.md
    Example:   Capture the first 128 bytes of each frame that the container sends.
               nics:
                 web:
                   netns: /run/netns/web
                   egress: {elements: [{element: Mirror, file: /tmp/web.pcap, snaplen: 128}]}
                 db: {netns: /run/netns/db}

    Time stamps are the time of day in nanoseconds at which the packet passed; under virtual time,
    the virtual clock's. A GSO frame is one record. A checksum that is left to the NIC is written as
    it is. The file is closed, and complete, when the element leaves the engine.
    """

    COUNTERS = ("mirrored", "mirrored_bytes", "mirror_overflow", "mirror_failed")

    def __init__(self, file, snaplen=SNAPLEN_MAX, buffer="8mb", *, name=None):
        if isinstance(file, CaptureFile):
            self.capture = self.file = file
            self.snaplen = snaplen
            return
        if not isinstance(file, (str, int, os.PathLike)) or isinstance(file, bool) or file == "":
            raise ConfigError(f"{self.name}: file {file!r}: expected a path or the number of an "
                              "open descriptor")
        if (not isinstance(snaplen, int) or isinstance(snaplen, bool)
                or not 1 <= snaplen <= SNAPLEN_MAX):
            raise ConfigError(f"{self.name}: snaplen {snaplen!r}: expected 1 to {SNAPLEN_MAX} "
                              "bytes")
        self.file, self.snaplen, self.buffer = file, snaplen, _capacity(self.name, buffer)

    def initialize(self):
        cdef Engine engine = self.engine
        if self.capture is None:
            self.capture = CaptureFile(self.name, self.file, snaplen=self.snaplen,
                                       buffer=self.buffer, clock=engine.clock)

    def cleanup(self):
        if self.capture is not None and self.capture is not self.file:
            self.capture.close()

    def memory_bytes(self):
        """Size of the buffer; 0 for a shared file."""
        return 0 if self.capture is None or self.capture is self.file else self.capture.capacity

    def save_state(self):
        """`begun`: whether the file has its header and earlier records; then the new engine's
        mirror appends."""
        if isinstance(self.file, int):
            raise VnicError(f"{self.name}: a capture into an open file cannot be handed over; end "
                            "it first")
        return {"begun": self.capture is not None and self.capture.begun}

    def load_state(self, dict state):
        if set(state) != {"begun"} or type(state["begun"]) is not bool or self.capture is None:
            raise VnicError(f"{self.name}: its state is not that of a Mirror")
        self.capture.take_over(state["begun"])

    def forget_state(self):
        """Writes the buffer out and closes the file, so that the other engine's mirror can continue
        it. A shared file is closed by its creator: until then the other engine's copies wait."""
        Element.forget_state(self)
        self.cleanup()

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i
        for i in range(batch.count):
            if self.capture.write_packet(ctx, batch.index[i]):
                self.counters.extra[MIRRORED] += 1
                self.counters.extra[MIRRORED_BYTES] += ctx.packets[batch.index[i]].length
            elif va_load_relaxed_u32(&self.capture.ring.failed):
                self.counters.extra[MIRROR_FAILED] += 1
            else:
                self.counters.extra[MIRROR_OVERFLOW] += 1
        self.capture.wake()
        self.emit(ctx, 0, batch)

    @property
    def error(self):
        """The reason why writing ended early, or None."""
        return None if self.capture is None else self.capture.error

    def describe(self):
        file = (self.capture.path if self.capture is not None and self.capture is self.file
                else str(self.file))
        return {"file": file, **({} if self.snaplen == SNAPLEN_MAX else {"snaplen": self.snaplen})}
