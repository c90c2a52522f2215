"""MacTable. The contract is in mac_table.pxd."""
import mmap
import os
import time

import numpy as np
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from dataplane.vatomic cimport (va_add_u32, va_cas_u64, va_load_acquire_u64, va_load_relaxed_u32, va_load_relaxed_u64,
                                va_store_release_u64, va_sub_u32)

from dataplane.errors import ConfigError

cdef uint64_t TABLE_MAGIC = 0x736361636d696e76   # "vnimcacs", little endian
cdef uint64_t STATIC = <uint64_t>1 << 47
cdef uint64_t TIME_MASK = STATIC - 1
cdef enum:
    TABLE_VERSION = 1
    REFRESH_MS = 1000        # how stale a time may be before it is written again: keeps the line shared between engines


cdef class MacTable:
    """Learned and static addresses of all VLANs, shared by any number of L2Switch elements.

    capacity: entries it may hold (16 to 2^20); ageing_ns: how long an address stays without being seen; per_port: entries that one
    port may have (default: a quarter), so that a guest that makes addresses up takes its own share and nobody else's.
    """

    def __cinit__(self, uint32_t capacity=4096, uint64_t ageing_ns=300_000_000_000, per_port=None):
        self.fd = -1
        if not 16 <= capacity <= 1 << 20:
            raise ConfigError(f"MAC table: capacity {capacity}; want 16 to 1048576")
        if ageing_ns < 1_000_000_000:
            raise ConfigError(f"MAC table: ageing {ageing_ns} ns; want at least a second")
        cdef uint32_t buckets = 1
        # Twice the slots that the entries need: then a bucket of eight is full before its time about once in a thousand.
        while buckets * SLOT_WAYS < 2 * capacity:
            buckets *= 2
        self.bucket_mask = buckets - 1
        self.ageing_ns = ageing_ns
        size = sizeof(MacTableHeader) + buckets * SLOT_WAYS * sizeof(MacSlot)
        self.fd = os.memfd_create("vnic-mac-table", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        cdef uint8_t *base = <uint8_t *><uintptr_t>np.frombuffer(self._map, np.uint8).ctypes.data
        self.header = <MacTableHeader *>base
        self.slots = <MacSlot *>(base + sizeof(MacTableHeader))
        self.header.magic, self.header.version = TABLE_MAGIC, TABLE_VERSION
        self.header.capacity, self.header.slots = capacity, buckets * SLOT_WAYS
        self.header.per_port = max(1, capacity // 4) if per_port is None else per_port
        secret = os.urandom(16)
        self.secret[0] = int.from_bytes(secret[:8], "little")
        self.secret[1] = int.from_bytes(secret[8:], "little") | 1

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    # -- the packet path ---------------------------------------------------------------------------------------------------

    cdef MacSlot *bucket(self, uint64_t key) noexcept nogil:
        # Keyed, because guests choose addresses: who does not know the secret cannot aim at a bucket. What an attacker could see
        # of it is only whether his own addresses are learned, so two rounds of multiply and shift do.
        cdef uint64_t x = (key ^ self.secret[0]) * self.secret[1]
        x ^= x >> 32
        x *= <uint64_t>0x9E3779B97F4A7C15
        return &self.slots[<size_t>(<uint32_t>(x >> 32) & self.bucket_mask) * SLOT_WAYS]

    cdef int lookup(self, uint64_t key) noexcept nogil:
        """The port of an address, or -1."""
        cdef MacSlot *slot = self.bucket(key)
        cdef uint64_t value
        cdef int i
        for i in range(SLOT_WAYS):
            if va_load_acquire_u64(&slot[i].key) == key:
                value = va_load_acquire_u64(&slot[i].value)      # the key again after the value: see the contract
                if va_load_relaxed_u64(&slot[i].key) == key:
                    return <int>(value >> 48)
        return -1

    cdef int learn(self, uint64_t key, uint32_t port, uint64_t now_ms) noexcept nogil:
        """Notes that the address was seen at the port; returns LEARN_*."""
        cdef MacSlot *slot = self.bucket(key)
        cdef int i
        for i in range(SLOT_WAYS):
            if va_load_acquire_u64(&slot[i].key) == key:
                return self.refresh(&slot[i], key, port, now_ms)
        return self.insert(key, port, now_ms & TIME_MASK)

    cdef int refresh(self, MacSlot *slot, uint64_t key, uint32_t port, uint64_t now_ms) noexcept nogil:
        cdef uint64_t value = va_load_acquire_u64(&slot.value), seen = key
        if value >> 48 == port:
            if not value & STATIC and (now_ms & TIME_MASK) - (value & TIME_MASK) >= REFRESH_MS:
                va_cas_u64(&slot.value, &value, <uint64_t>port << 48 | (now_ms & TIME_MASK))
            return LEARN_KNOWN
        if value & STATIC or not self.admit(port):
            return LEARN_REFUSED
        if not va_cas_u64(&slot.key, &seen, SLOT_BUSY):
            self.withdraw(port)                                  # somebody else moves or removes it just now
            return LEARN_KNOWN
        value = va_load_relaxed_u64(&slot.value)
        while not va_cas_u64(&slot.value, &value, <uint64_t>port << 48 | (now_ms & TIME_MASK)):
            pass                                                 # a refresh came between
        self.withdraw(<uint32_t>(value >> 48))
        va_store_release_u64(&slot.key, key)
        return LEARN_MOVED

    cdef int insert(self, uint64_t key, uint32_t port, uint64_t flags_ms) noexcept nogil:
        cdef MacSlot *slot = self.bucket(key)
        cdef uint64_t seen
        cdef int i
        if not self.admit(port):
            return LEARN_REFUSED
        for i in range(SLOT_WAYS):
            seen = SLOT_EMPTY
            if va_load_relaxed_u64(&slot[i].key) == SLOT_EMPTY and va_cas_u64(&slot[i].key, &seen, SLOT_BUSY):
                va_store_release_u64(&slot[i].value, <uint64_t>port << 48 | flags_ms)
                va_store_release_u64(&slot[i].key, key)          # the value before the key that makes it count
                return LEARN_NEW
        self.withdraw(port)
        return LEARN_REFUSED

    cdef bint admit(self, uint32_t port) noexcept nogil:
        """Takes one entry of the port's share and of the table, or nothing."""
        if port >= MAX_PORTS:
            return False
        # Add first, look then: two engines cannot both take the last entry.
        if va_add_u32(&self.header.port_count[port], 1) < self.header.per_port:
            if va_add_u32(&self.header.count, 1) < self.header.capacity:
                return True
            va_sub_u32(&self.header.count, 1)
        va_sub_u32(&self.header.port_count[port], 1)
        return False

    cdef void withdraw(self, uint32_t port) noexcept nogil:
        va_sub_u32(&self.header.port_count[port], 1)
        va_sub_u32(&self.header.count, 1)

    cdef bint remove(self, MacSlot *slot, int only_port, uint64_t seen_before_ms) noexcept nogil:
        """Removes an entry of `only_port` (-1: of any, unless static) last seen before an instant; False: it is not such a one."""
        cdef uint64_t key = va_load_acquire_u64(&slot.key), value = va_load_acquire_u64(&slot.value)
        if not key & 1 or not self.matches(value, only_port, seen_before_ms) or not va_cas_u64(&slot.key, &key, SLOT_BUSY):
            return False
        value = va_load_relaxed_u64(&slot.value)
        if not self.matches(value, only_port, seen_before_ms):   # refreshed or moved before we took it
            va_store_release_u64(&slot.key, key)
            return False
        self.withdraw(<uint32_t>(value >> 48))
        va_store_release_u64(&slot.key, SLOT_EMPTY)
        return True

    cdef bint matches(self, uint64_t value, int only_port, uint64_t seen_before_ms) noexcept nogil:
        if only_port >= 0:
            return <int>(value >> 48) == only_port
        return not value & STATIC and (value & TIME_MASK) < seen_before_ms

    cdef uint32_t expire(self, uint32_t first, uint32_t budget, uint64_t now_ms) noexcept nogil:
        """Removes what has aged among `budget` slots from `first` on (round and round); returns how many."""
        cdef uint64_t ageing_ms = self.ageing_ns // 1000000
        cdef uint32_t i, removed = 0
        if now_ms < ageing_ms:
            return 0
        for i in range(min(budget, self.header.slots)):
            # A seen-time of exactly now - ageing has reached its age.
            if self.remove(&self.slots[(first + i) & (self.header.slots - 1)], -1, now_ms - ageing_ms + 1):
                removed += 1
        return removed

    # -- control -----------------------------------------------------------------------------------------------------------

    @property
    def capacity(self):
        """Entries that the table may hold."""
        return self.header.capacity

    @property
    def per_port(self):
        """Entries that one port may have."""
        return self.header.per_port

    def __len__(self):
        return va_load_relaxed_u32(&self.header.count)

    def add_static(self, mac, uint32_t port, uint32_t vlan=0):
        """Binds an address ("02:00:00:00:00:01") of a VLAN to a port: it neither ages nor moves. Raises ConfigError when full."""
        cdef uint64_t key = self._key(mac, vlan)
        self.forget(mac, vlan)
        if self.insert(key, port, STATIC) != LEARN_NEW:
            raise ConfigError(f"MAC table: no room for {mac} of VLAN {vlan} at port {port}")

    def forget(self, mac, uint32_t vlan=0):
        """Removes an address of a VLAN, also a static one; True if it was there."""
        cdef uint64_t key = self._key(mac, vlan)
        cdef MacSlot *slot = self.bucket(key)
        cdef int i
        for i in range(SLOT_WAYS):
            if va_load_acquire_u64(&slot[i].key) == key:
                return self.remove(&slot[i], <int>(va_load_acquire_u64(&slot[i].value) >> 48), 0)
        return False

    def _key(self, mac, uint32_t vlan):
        cdef bytes octets = bytes.fromhex(mac.replace(":", ""))
        if len(octets) != 6 or vlan > 4095:
            raise ConfigError(f"MAC table: {mac!r} of VLAN {vlan}: want six bytes such as 02:00:00:00:00:01 and 0 to 4095")
        return mac_key(<const uint8_t *>octets, vlan)

    def forget_port(self, int port):
        """Removes all entries of a port, static ones too; returns how many."""
        cdef uint32_t i
        return sum(self.remove(&self.slots[i], port, 0) for i in range(self.header.slots))

    def entries(self, now_ns=None):
        """All entries as dicts (mac, vlan, port, age_s, static), by VLAN and address. now_ns: of the clock that the engines use."""
        cdef uint64_t key, value, now_ms = (time.monotonic_ns() if now_ns is None else now_ns) // 1000000
        cdef uint32_t i
        found = []
        for i in range(self.header.slots):
            key = va_load_acquire_u64(&self.slots[i].key)
            value = va_load_acquire_u64(&self.slots[i].value)
            if not key & 1 or va_load_relaxed_u64(&self.slots[i].key) != key:
                continue
            static = bool(value & STATIC)
            seen_ms = value & TIME_MASK
            age_s = None if static else max(0, <object>now_ms - seen_ms) / 1000
            found.append({"mac": int(key >> 16).to_bytes(6, "big").hex(":"), "vlan": int(key >> 1 & 0xFFF), "port": int(value >> 48),
                          "age_s": age_s, "static": static})
        return sorted(found, key=lambda entry: (entry["vlan"], entry["mac"]))
