"""MemoryPort. The contract is in memory.pxd."""
import os
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport read
from dataplane.packet.pool cimport (LARGE_FRAME, NO_PACKET, Batch, Context, Packet, batch_add,
                                    packet_alloc, packet_data, packet_free)
from dataplane.graph.offload cimport OFFLOAD_ALL
from dataplane.graph.port cimport NO_MTU, TX_TOO_LONG, Port, count_segments, fits_mtu
from dataplane.vatomic cimport va_load_acquire_u32, va_store_release_u32

from dataplane.errors import ConfigError


class Frame(NamedTuple):
    """A frame and its metadata. The virtio-net fields are those of struct virtio_net_hdr (virtio
    1.2, 5.1.6)."""

    data: bytes
    vnet_flags: int = 0
    gso_type: int = 0
    header_length: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    queue: int = 0
    time_ns: int = 0          # transmitted frames: the engine's clock


cdef class MemoryPort(Port):
    """Frames from and to Python. `inject` queues received frames, `take` returns transmitted ones.

    offloads: those that the port accepts on transmission (OFFLOAD_ALL by default). mtu: longer
    frames are dropped (too_long). Slow, since it needs the GIL; for tests and tools.
    """

    def __init__(self, str name, uint32_t number=0, uint32_t queues=1,
                 uint32_t offloads=OFFLOAD_ALL, *,
                 uint32_t mtu=NO_MTU):
        import threading
        super().__init__(name, number, queues, offloads)
        self.mtu = mtu
        self._lock = threading.Lock()
        self._incoming = [[] for _ in range(queues)]
        self.transmitted = []
        self.needs_arm = True
        self._doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def descriptors(self):
        return [self._doorbell] * self.queues if self._doorbell >= 0 else []

    def close(self):
        if self._doorbell >= 0:
            os.close(self._doorbell)
            self._doorbell = -1

    def __dealloc__(self):
        if self._doorbell > 0:
            os.close(self._doorbell)

    def inject(self, frames, *, int queue=0):
        """Queues frames (bytes or Frame) for reception, in order. Raises ConfigError for one longer
        than 69,504 bytes."""
        frames = [frame if isinstance(frame, Frame) else Frame(bytes(frame)) for frame in frames]
        for frame in frames:
            if len(frame.data) > LARGE_FRAME:
                raise ConfigError(f"{self.name}: a frame of {len(frame.data)} bytes; the longest "
                                  f"is {LARGE_FRAME}")
        with self._lock:
            self._incoming[queue].extend(frames)
            va_store_release_u32(&self.waiting, self.waiting + <uint32_t>len(frames))
        os.eventfd_write(self._doorbell, 1)

    def take(self):
        """The frames transmitted since the last call, a list of Frame."""
        with self._lock:
            taken, self.transmitted = self.transmitted, []
        return taken

    cdef bint arm(self) noexcept nogil:
        return va_load_acquire_u32(&self.waiting) != 0

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef uint32_t done = 0, index
        cdef Packet *p
        cdef uint64_t value
        cdef const uint8_t[::1] data
        if va_load_acquire_u32(&self.waiting) == 0:
            return 0
        with gil, self._lock:
            read(self._doorbell, &value, 8)
            frames = self._incoming[queue][:limit]
            del self._incoming[queue][:limit]
            va_store_release_u32(&self.waiting, self.waiting - <uint32_t>len(frames))
            for frame in frames:
                index = packet_alloc(ctx, <uint32_t>len(frame.data))
                if index == NO_PACKET:
                    self.stats[queue].rx_dropped += 1
                    continue
                p = &ctx.packets[index]
                p.timestamp_ns = ctx.now_ns
                p.port, p.queue = self.number, queue
                p.vnet_flags, p.gso_type = frame.vnet_flags, frame.gso_type
                p.gso_size, p.header_length = frame.gso_size, frame.header_length
                p.csum_start, p.csum_offset = frame.csum_start, frame.csum_offset
                if len(frame.data):
                    data = frame.data
                    memcpy(packet_data(ctx, index), &data[0], len(frame.data))
                self.stats[queue].rx_packets += 1
                self.stats[queue].rx_bytes += p.length
                batch_add(batch, index)
                done += 1
        return done

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i, done = 0, left = 0
        cdef Packet *p
        with gil, self._lock:
            for i in range(batch.count):
                p = &ctx.packets[batch.index[i]]
                if not fits_mtu(p, self.mtu):
                    p.tx_status = TX_TOO_LONG
                    batch.index[left] = batch.index[i]
                    left += 1
                    continue
                self.transmitted.append(Frame(
                    packet_data(ctx, batch.index[i])[:p.length], p.vnet_flags, p.gso_type,
                    p.header_length, p.gso_size, p.csum_start, p.csum_offset, queue, ctx.now_ns))
                self.stats[queue].tx_packets += 1
                self.stats[queue].tx_bytes += p.length
                count_segments(p, &self.stats[queue].tx_more_packets,
                               &self.stats[queue].tx_more_bytes)
                packet_free(ctx, batch.index[i])
                done += 1
            self.stats[queue].tx_dropped += left
            batch.count = left
        return done
