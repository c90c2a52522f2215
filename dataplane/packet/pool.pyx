"""The packet pool: a memfd with a header, the records and two classes of buffers. The contract is
in pool.pxd."""
import os

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from dataplane.packet.mapping cimport mapping_base
from dataplane.vatomic cimport va_cas_u64, va_load_acquire_u64, va_load_relaxed_u64

from dataplane.packet import shared_memory
from dataplane.errors import VnicError

cdef enum:
    POOL_VERSION = 1
    REFILL = 32                      # indices moved between a Context and the shared stack at once

cdef uint64_t POOL_MAGIC = 0x6c6f6f7063696e76   # "vnicpool", little endian

_FIELDS = [
    ("timestamp_ns", "u8"), ("release_ns", "u8"), ("length", "u4"), ("next", "u4"), ("mark", "u4"),
    ("hash", "u4"), ("offset", "u2"), ("port", "u2"), ("queue", "u2"), ("flags", "u2"),
    ("vnet_flags", "u1"), ("gso_type", "u1"), ("header_length", "u2"), ("gso_size", "u2"),
    ("csum_start", "u2"), ("csum_offset", "u2"), ("tx_status", "u2"), ("original_length", "u4"),
    ("trailer_bytes", "u2"), ("reserved0", "u2"), ("held_word", "u4"), ("l3_offset", "u2"),
    ("l4_offset", "u2"), ("payload_offset", "u2"), ("ethertype", "u2"), ("vlan_tci", "u2"),
    ("vlan_inner_tci", "u2"), ("vlan_count", "u1"), ("ip_protocol", "u1"), ("tos", "u1"),
    ("ttl", "u1"), ("source_port", "u2"), ("destination_port", "u2"), ("reserved2", "u4"),
    ("source_address", "u1", (16,)), ("destination_address", "u1", (16,)), ("held_ns", "u8"),
]
_dtype = None


cdef dict _c_layout():
    """Offset of every field of the C struct, as compiled."""
    cdef Packet p
    cdef char *base = <char *>&p
    return {
        "timestamp_ns": <char *>&p.timestamp_ns - base, "release_ns": <char *>&p.release_ns - base,
        "length": <char *>&p.length - base, "next": <char *>&p.next - base,
        "mark": <char *>&p.mark - base, "hash": <char *>&p.hash - base,
        "offset": <char *>&p.offset - base, "port": <char *>&p.port - base,
        "queue": <char *>&p.queue - base, "flags": <char *>&p.flags - base,
        "vnet_flags": <char *>&p.vnet_flags - base, "gso_type": <char *>&p.gso_type - base,
        "header_length": <char *>&p.header_length - base, "gso_size": <char *>&p.gso_size - base,
        "csum_start": <char *>&p.csum_start - base, "csum_offset": <char *>&p.csum_offset - base,
        "tx_status": <char *>&p.tx_status - base,
        "original_length": <char *>&p.original_length - base,
        "trailer_bytes": <char *>&p.trailer_bytes - base, "reserved0": <char *>&p.reserved0 - base,
        "held_word": <char *>&p.held_word - base, "l3_offset": <char *>&p.l3_offset - base,
        "l4_offset": <char *>&p.l4_offset - base,
        "payload_offset": <char *>&p.payload_offset - base,
        "ethertype": <char *>&p.ethertype - base, "vlan_tci": <char *>&p.vlan_tci - base,
        "vlan_inner_tci": <char *>&p.vlan_inner_tci - base,
        "vlan_count": <char *>&p.vlan_count - base, "ip_protocol": <char *>&p.ip_protocol - base,
        "tos": <char *>&p.tos - base, "ttl": <char *>&p.ttl - base,
        "source_port": <char *>&p.source_port - base,
        "destination_port": <char *>&p.destination_port - base,
        "reserved2": <char *>&p.reserved2 - base,
        "source_address": <char *>&p.source_address - base,
        "destination_address": <char *>&p.destination_address - base,
        "held_ns": <char *>&p.held_ns - base,
    }


def check_layout(dtype):
    """Raises ImportError unless `dtype` and the C struct Packet have the same layout."""
    layout = _c_layout()
    if set(layout) != set(dtype.names) or dtype.itemsize != sizeof(Packet):
        raise ImportError(f"Packet: C struct has {sizeof(Packet)} bytes, numpy dtype "
                          f"{dtype.itemsize}")
    for name, offset in layout.items():
        if dtype.fields[name][1] != offset:
            raise ImportError(f"Packet.{name}: offset {offset} in C, {dtype.fields[name][1]} in "
                              f"numpy")


def __getattr__(name):
    """PACKET_DTYPE, made and checked on first use: a worker without elements in Python never loads
    numpy, which is a third of the CPU time of its start and a fifth of its memory."""
    global _dtype
    if name != "PACKET_DTYPE":
        raise AttributeError(f"module 'dataplane.packet.pool' has no attribute {name!r}")
    if _dtype is None:
        import numpy
        dtype = numpy.dtype(_FIELDS)
        check_layout(dtype)
        _dtype = dtype
    return _dtype


cdef enum:
    POOL_MOST = 1 << 24              # upper bound of a pool's packets, exclusive


def _pool_bytes(small, large):
    """Size of a segment. Buffers begin on a page, so that large buffers share no pages."""
    buffers = (sizeof(PoolHeader) + (small + large) * sizeof(Packet) + 4095) & ~4095
    return buffers + (small + (small & 1)) * SMALL_BYTES + large * LARGE_BYTES


cdef class PacketPool:
    """Packets in a shared memory segment (memfd), which another process can map from `fd`.

    small, large: numbers of 2 KiB and of 68 KiB buffers. Pages are allocated on first use, and the
    free lists are last-in first-out, so a pool takes the memory of its high-water mark. Raises
    ValueError for counts below 1, OSError when the segment cannot be created.
    """

    def __cinit__(self, uint32_t small=8192, uint32_t large=512, str name="vnic-pool", *,
                  descriptor=None, bint reset=False):
        self.fd = -1
        if descriptor is not None:
            self.map_existing(descriptor)
            if reset:
                self.free_all()
            return
        if small < 1 or large < 1 or small + large >= POOL_MOST:
            raise ValueError(f"packet pool: small={small} and large={large} "
                             "must be at least 1 and below 2^24 together")
        self.small_count, self.large_count = small, large
        self.fd, self._map = shared_memory.create(name, _pool_bytes(small, large))
        self.take_views()
        cdef PoolHeader *header = <PoolHeader *>self._base
        header.version = POOL_VERSION
        header.small_count = small
        header.large_count = large
        header.record_bytes = sizeof(Packet)
        self.free_all()
        header.magic = POOL_MAGIC

    @classmethod
    def from_descriptor(cls, descriptor, *, reset=False):
        """Maps the pool in an existing segment, which other users share; the caller keeps the
        descriptor.

        reset: frees all packets. Only when nothing else uses the pool, as after a crash. Raises
        VnicError, with nothing changed, for a segment that this version of vnic could not have
        created.
        """
        return cls(descriptor=descriptor, reset=reset)

    cdef int map_existing(self, descriptor) except -1:
        self.fd, self._map = shared_memory.attach(descriptor, "packet pool", POOL_MAGIC,
                                                  POOL_VERSION, sizeof(PoolHeader))
        # Read once: these numbers bound every later access, whatever another process writes there.
        cdef PoolHeader header
        memcpy(&header, mapping_base(self._map), sizeof(PoolHeader))
        if header.record_bytes != sizeof(Packet):
            raise VnicError(f"packet pool: its records have {header.record_bytes} bytes, "
                            f"this vnic's {sizeof(Packet)}; start anew")
        if (header.small_count < 1 or header.large_count < 1
                or <uint64_t>header.small_count + header.large_count >= POOL_MOST
                or len(self._map) != _pool_bytes(header.small_count, header.large_count)):
            raise VnicError(f"packet pool: {header.small_count} small and {header.large_count} "
                            f"large buffers do not make a segment of {len(self._map)} bytes; "
                            "its header is damaged")
        self.small_count, self.large_count = header.small_count, header.large_count
        self.take_views()
        return 0

    cdef int take_views(self) except -1:
        self._base = mapping_base(self._map)
        return 0

    cdef void free_all(self) noexcept nogil:
        """Puts all packets on the shared stacks. The change tags restart: no process is left that
        has read one."""
        cdef PoolHeader *header = <PoolHeader *>self._base
        cdef Packet *packets = <Packet *>(self._base + sizeof(PoolHeader))
        cdef uint32_t i, total = self.small_count + self.large_count
        for i in range(total):  # low indices on top: the first packets used share pages
            packets[i].next = i + 1
            packets[i].flags = 0
        packets[self.small_count - 1].next = NO_PACKET
        packets[total - 1].next = NO_PACKET
        header.small_free = 0
        header.large_free = self.small_count

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    cdef void attach(self, Context *ctx) noexcept nogil:
        """Prepares a Context for this pool. The Context must not outlive the pool."""
        cdef size_t total = <size_t>self.small_count + self.large_count
        cdef size_t buffers = (sizeof(PoolHeader) + total * sizeof(Packet) + 4095) & ~<size_t>4095
        ctx.pool = <PoolHeader *>self._base
        ctx.packets = <Packet *>(self._base + sizeof(PoolHeader))
        ctx.small_base = self._base + buffers
        ctx.large_base = ctx.small_base + (<size_t>self.small_count
                                           + (self.small_count & 1)) * SMALL_BYTES
        ctx.small_count = self.small_count
        ctx.total_count = <uint32_t>total
        ctx.small_cached = 0
        ctx.large_cached = 0

    @property
    def records(self):
        """The records of all packets as a numpy array of PACKET_DTYPE over the segment."""
        if self._records is None:
            import numpy
            self._records = numpy.frombuffer(self._map, __getattr__("PACKET_DTYPE"),
                                             offset=sizeof(PoolHeader),
                                             count=self.small_count + self.large_count)
        return self._records

    def damage(self, uint32_t index):
        """Why no element may hold packet `index`: "is free", "does not fit its buffer", or "" if it
        is valid."""
        if index >= self.small_count + self.large_count:
            raise IndexError(f"packet {index}: the pool has {self.small_count + self.large_count}")
        cdef Packet *p = <Packet *>(self._base + sizeof(PoolHeader)) + index
        cdef uint64_t used = <uint64_t>p.offset + p.length + p.trailer_bytes
        if not p.flags & PACKET_IN_USE:
            return "is free"
        cdef uint64_t room = SMALL_BYTES if index < self.small_count else LARGE_BYTES
        return "does not fit its buffer" if used > room else ""

    def check_held(self, bytes packets, bytearray owners, uint32_t owner):
        """Checks packets (32-bit indices) that an element is to hold, and stores `owner` (from 1)
        for each in `owners`, which has four bytes per packet of the pool. Returns None, or (index,
        reason): "is free", "is not in the pool", "does not fit its buffer", or the number of its
        other owner."""
        cdef const uint32_t *indices = <const uint32_t *><const char *>packets
        cdef uint32_t *noted = <uint32_t *><char *>owners
        cdef size_t i
        if len(owners) != (<size_t>self.small_count + self.large_count) * sizeof(uint32_t):
            raise ValueError("owners: expected four bytes a packet")
        for i in range(<size_t>(len(packets) // sizeof(uint32_t))):
            if indices[i] >= self.small_count + self.large_count:
                return indices[i], "is not in the pool"
            if noted[indices[i]]:
                return indices[i], noted[indices[i]]
            noted[indices[i]] = owner
            if what := self.damage(indices[i]):
                return indices[i], what
        return None

    def frame(self, uint32_t index):
        """The bytes of packet `index` as a writable uint8 array over the segment. Only for the
        packet's owner."""
        if index >= self.small_count + self.large_count:
            raise IndexError(f"packet {index}: the pool has {self.small_count + self.large_count}")
        cdef size_t total = <size_t>self.small_count + self.large_count
        cdef size_t start = (sizeof(PoolHeader) + total * sizeof(Packet) + 4095) & ~<size_t>4095
        if index < self.small_count:
            start += <size_t>index * SMALL_BYTES
        else:
            start += ((<size_t>self.small_count + (self.small_count & 1)) * SMALL_BYTES
                      + <size_t>(index - self.small_count) * LARGE_BYTES)
        cdef Packet *p = <Packet *>(self._base + sizeof(PoolHeader)) + index
        import numpy
        return numpy.frombuffer(self._map, numpy.uint8, p.length, start + p.offset)

    def memory_bytes(self, indices):
        """Bytes of the pool that the packets `indices` take: buffers and records."""
        small = sum(index < self.small_count for index in indices)
        return packet_memory(small, len(indices) - small)

    @property
    def in_use(self):
        """Number of allocated packets. Exact only while no engine runs."""
        cdef Packet *packets = <Packet *>(self._base + sizeof(PoolHeader))
        cdef uint32_t i, used = 0
        with nogil:
            for i in range(self.small_count + self.large_count):
                used += (packets[i].flags & PACKET_IN_USE) != 0
        return used


cdef uint32_t packet_refill(Context *ctx, bint large) noexcept nogil:
    """Moves up to REFILL (large: half a cache) indices from the shared stack to the empty cache;
    returns how many."""
    cdef uint64_t *top = &ctx.pool.large_free if large else &ctx.pool.small_free
    cdef uint32_t *cache = &ctx.large_cache[0] if large else &ctx.small_cache[0]
    cdef uint32_t want = LARGE_CACHE // 2 if large else REFILL
    cdef uint64_t seen = va_load_acquire_u64(top)
    cdef uint32_t index, got
    while True:
        index = <uint32_t>seen
        got = 0
        # Another engine may pop and reuse what is walked here: then the links read are stale, but
        # always indices or NO_PACKET (records never move), and the change tag makes the exchange
        # fail.
        while got < want and index < ctx.total_count:
            cache[want - 1 - got] = index
            got += 1
            index = ctx.packets[index].next
        if got == 0:
            return 0
        if va_cas_u64(top, &seen, ((seen >> 32) + 1) << 32 | index):
            break
    if got < want:                             # the cache is used from 0 on
        for index in range(got):
            cache[index] = cache[want - got + index]
    if large:
        ctx.large_cached = got
    else:
        ctx.small_cached = got
    return got


cdef void packet_spill(Context *ctx, bint large) noexcept nogil:
    """Moves the older half of a full cache to the shared stack."""
    cdef uint64_t *top = &ctx.pool.large_free if large else &ctx.pool.small_free
    cdef uint32_t *cache = &ctx.large_cache[0] if large else &ctx.small_cache[0]
    cdef uint32_t full = LARGE_CACHE if large else SMALL_CACHE
    cdef uint32_t half = full // 2
    cdef uint32_t i
    cdef uint64_t seen
    for i in range(half - 1):
        ctx.packets[cache[i]].next = cache[i + 1]
    seen = va_load_relaxed_u64(top)
    while True:
        ctx.packets[cache[half - 1]].next = <uint32_t>seen
        # Release (in the exchange): the links are visible before the new top.
        if va_cas_u64(top, &seen, ((seen >> 32) + 1) << 32 | cache[0]):
            break
    for i in range(half):
        cache[i] = cache[half + i]
    if large:
        ctx.large_cached = half
    else:
        ctx.small_cached = half


cdef void packet_return_cache(Context *ctx) noexcept nogil:
    """Returns every cached index to the shared stack, before an engine ends."""
    cdef uint32_t i
    cdef uint64_t seen
    cdef uint64_t *top
    for i in range(ctx.small_cached + ctx.large_cached):
        index = (ctx.small_cache[i] if i < ctx.small_cached
                 else ctx.large_cache[i - ctx.small_cached])
        top = &ctx.pool.small_free if i < ctx.small_cached else &ctx.pool.large_free
        seen = va_load_relaxed_u64(top)
        while True:
            ctx.packets[index].next = <uint32_t>seen
            if va_cas_u64(top, &seen, ((seen >> 32) + 1) << 32 | index):
                break
    ctx.small_cached = 0
    ctx.large_cached = 0


cdef uint32_t packet_copy(Context *ctx, uint32_t index) noexcept nogil:
    """Copies a packet that the caller holds, record and frame; NO_PACKET when the pool is
    exhausted."""
    cdef Packet *source = &ctx.packets[index]
    cdef uint32_t copy = packet_alloc(ctx, source.length)
    if copy == NO_PACKET:
        return NO_PACKET
    cdef Packet *target = &ctx.packets[copy]
    target[0] = source[0]
    target.offset = HEADROOM
    target.next = NO_PACKET
    memcpy(packet_data(ctx, copy), packet_data(ctx, index), source.length)
    if source.trailer_bytes:
        if HEADROOM + source.length + source.trailer_bytes > packet_capacity(ctx, copy):
            target.trailer_bytes = 0
        else:
            memcpy(packet_buffer(ctx, copy) + packet_capacity(ctx, copy) - source.trailer_bytes,
                   packet_buffer(ctx, index) + packet_capacity(ctx, index) - source.trailer_bytes,
                   source.trailer_bytes)
    return copy
