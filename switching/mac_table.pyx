"""MacTable. The contract is in mac_table.pxd."""
import os
import time

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from dataplane.packet.mapping cimport mapping_base
from dataplane.vatomic cimport (va_add_u32, va_cas_u64, va_fence, va_load_acquire_u64,
                                va_load_relaxed_u32, va_load_relaxed_u64, va_store_release_u64,
                                va_sub_u32)

from dataplane.packet import shared_memory
from dataplane.errors import ConfigError, VnicError

cdef uint64_t TABLE_MAGIC = 0x736361636d696e76   # "vnimcacs", little endian
cdef extern from *:              # constants for the C compiler
    """
    #define MAC_PRESENT (1ULL << 50)
    #define MAC_STATIC (1ULL << 51)
    #define MAC_CHECK_MASK (0x3FFFULL << 36)
    #define MAC_TIME_MASK ((1ULL << 36) - 1)
    """
    uint64_t PRESENT "MAC_PRESENT"
    uint64_t STATIC "MAC_STATIC"
    uint64_t CHECK_MASK "MAC_CHECK_MASK"
    # 795 days in ms; it may wrap, since ageing times are far below half of it
    uint64_t TIME_MASK "MAC_TIME_MASK"
cdef enum:
    TABLE_VERSION = 2
    PORT_SHIFT = 52
    # the cache line of an entry in use moves between CPUs at most this often
    REFRESH_MOST_MS = 1000

CAPACITY_MIN, CAPACITY_MAX = 16, 1 << 20
AGEING_MIN_NS, AGEING_MAX_NS = 10**9, 10**6 * 10**9      # 802.1Q, table 8-6: 10 s to 10^6 s


def siphash(bytes secret, uint64_t word):
    """SipHash-1-3 of `word` (8 bytes, little endian) with a secret of 16 bytes. For tests."""
    cdef uint64_t key[2]
    key[0], key[1] = int.from_bytes(secret[:8], "little"), int.from_bytes(secret[8:16], "little")
    return siphash13(key, word)


@cython.final
cdef class MacTable:
    """Learned and static addresses of all VLANs, shared by any number of L2Switch elements, in a
    segment (`fd`).

    capacity: maximum number of entries, 16 to 2^20. ageing_ns: how long an unseen address stays, 1
    s to 10^6 s; its time is updated at most once a second (or once in a tenth of the ageing time,
    if that is less), so it may be removed that much early. per_port: maximum number of entries of a
    port, which also never has more entries than the table has free places (see the contract).
    Raises ConfigError.
    """

    def __cinit__(self, uint32_t capacity=4096, uint64_t ageing_ns=300_000_000_000, per_port=None,
                  *, descriptor=None,
                  bint reset=False):
        self.fd = -1
        if descriptor is not None:
            self.map_existing(descriptor)
            if reset:
                self.repair()
            return
        _check_limits(capacity, ageing_ns, capacity if per_port is None else per_port)
        self.slot_count = _slots(capacity)
        self.fd, self._map = shared_memory.create(
            "vnic-mac-table", sizeof(MacTableHeader) + self.slot_count * sizeof(MacSlot))
        self.header = <MacTableHeader *>mapping_base(self._map)
        self.header.version = TABLE_VERSION
        self.header.capacity, self.header.slots = capacity, self.slot_count
        self.header.per_port = capacity if per_port is None else per_port
        self.header.ageing_ns = ageing_ns
        secret = os.urandom(16)
        self.header.secret[0] = int.from_bytes(secret[:8], "little")
        self.header.secret[1] = int.from_bytes(secret[8:], "little")
        self.take_settings(self.header)
        self.header.magic = TABLE_MAGIC

    @classmethod
    def from_descriptor(cls, descriptor, *, reset=False):
        """Maps the table in an existing segment, which other users share; the caller keeps the
        descriptor.

        reset: calls `repair`, which leaves the entries. Raises VnicError, with nothing changed, for
        a segment that this version of vnic could not have created.
        """
        return cls(descriptor=descriptor, reset=reset)

    cdef int map_existing(self, descriptor) except -1:
        cdef MacTableHeader header
        self.fd, self._map = shared_memory.attach(descriptor, "MAC table", TABLE_MAGIC,
                                                  TABLE_VERSION,
                                                  sizeof(MacTableHeader))
        self.header = <MacTableHeader *>mapping_base(self._map)
        memcpy(&header, self.header, sizeof(header))  # read once, so that checked values are used
        try:
            _check_limits(header.capacity, header.ageing_ns, header.per_port)
        except ConfigError as error:
            raise VnicError(f"{error}; its header is damaged") from None
        if (header.slots != _slots(header.capacity)
                or <size_t>len(self._map) != sizeof(header) + header.slots * sizeof(MacSlot)):
            raise VnicError(f"MAC table: {header.capacity} entries in {header.slots} slots "
                            f"do not make a segment of {len(self._map)} bytes; "
                            "its header is damaged")
        self.take_settings(&header)
        return 0

    cdef void take_settings(self, const MacTableHeader *header) noexcept nogil:
        """Copies the settings that bound and place every access: another process may overwrite the
        header later."""
        self.slots = <MacSlot *>(<uint8_t *>self.header + sizeof(MacTableHeader))
        self.slot_count = header.slots
        self.bucket_mask = header.slots // MAC_WAYS - 1
        self.ageing_ms = header.ageing_ns // 1000000
        self.refresh_ms = min(<uint64_t>REFRESH_MOST_MS, self.ageing_ms // 10)
        self.secret[0], self.secret[1] = header.secret[0], header.secret[1]

    def repair(self):
        """Clears slots that a killed process left half-written or whose entry could not be found,
        and counts anew; returns the number of slots cleared. Only while nothing else uses the
        table."""
        cdef uint32_t i, before, cleared = 0
        cdef uint64_t key, value, other = 0
        cdef Place place
        cdef MacSlot *slot
        cdef MacSlot *twin
        with nogil:
            for i in range(self.slot_count):
                slot = &self.slots[i]
                key, value = slot.key, slot.value
                if key == MAC_FREE and value == 0:
                    continue
                place = mac_place(self, key)
                # A key without a value: killed while inserting or removing. No process of vnic
                # writes the other cases.
                if (not value & PRESENT or not _is_key(key) or value >> PORT_SHIFT >= MAX_PORTS
                        or value & CHECK_MASK != place.check
                        or not (_holds(place.bucket[0], slot) or _holds(place.bucket[1], slot))):
                    slot.key = slot.value = 0
                    cleared += 1
            # Two processes may have inserted the same address and been killed before `settle`: as
            # there, the entry in the earlier slot stays, or a static one. Repeated until nothing
            # changes, since the earlier one may be removed in the same pass.
            before = cleared + 1
            while before != cleared:
                before = cleared
                for i in range(self.slot_count):
                    slot = &self.slots[i]
                    if slot.key == MAC_FREE:
                        continue
                    place = mac_place(self, slot.key)
                    twin = self.find(&place, slot.key, &other)
                    if twin != slot:
                        if twin != NULL and slot.value & STATIC and not other & STATIC:
                            slot = twin
                        slot.key = slot.value = 0
                        cleared += 1
            self.header.count = 0
            memset(&self.header.port_count[0], 0, sizeof(self.header.port_count))
            for i in range(self.slot_count):
                if self.slots[i].key != MAC_FREE:
                    self.header.count += 1
                    self.header.port_count[self.slots[i].value >> PORT_SHIFT] += 1
        return cleared

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    # -- the packet path ---------------------------------------------------------------------------

    cdef MacSlot *find(self, const Place *place, uint64_t key, uint64_t *value) noexcept nogil:
        """The slot of an address and its value; NULL: not found."""
        # Compared one by one until found: addresses are mostly in the first slots, and comparing
        # all without branches was measured slower.
        cdef MacSlot *slot
        cdef int choice, i
        for choice in range(2):
            slot = place.bucket[choice]
            for i in range(MAC_WAYS):
                if va_load_acquire_u64(&slot[i].key) == key:
                    # acquire: the key below is read after it
                    value[0] = va_load_acquire_u64(&slot[i].value)
                    if (value[0] & (CHECK_MASK | PRESENT) == (place.check | PRESENT)
                            and va_load_relaxed_u64(&slot[i].key) == key):
                        return &slot[i]
        return NULL

    cdef int lookup(self, const Place *place, uint64_t key, uint64_t now_ms) noexcept nogil:
        """The port of an address, or -1."""
        cdef uint64_t value
        if self.find(place, key, &value) == NULL or self.aged(value, now_ms):
            return -1
        return <int>(value >> PORT_SHIFT)

    cdef int learn(self, const Place *place, uint64_t key, uint32_t port,
                   uint64_t now_ms) noexcept nogil:
        """Records that the address was seen at the port (below MAX_PORTS); returns LEARN_*."""
        cdef uint64_t seen
        cdef uint64_t value = (<uint64_t>port << PORT_SHIFT | PRESENT | place.check
                               | (now_ms & TIME_MASK))
        cdef MacSlot *slot = self.find(place, key, &seen)
        if slot == NULL:
            return self.insert(place, key, value)
        if seen >> PORT_SHIFT == port:
            if seen & STATIC or age_ms(seen, now_ms) < <int64_t>self.refresh_ms:
                return LEARN_KNOWN  # the usual case, without a write
        elif seen & STATIC:
            return LEARN_REFUSED
        return self.update(slot, seen, value, now_ms)

    cdef int update(self, MacSlot *slot, uint64_t seen, uint64_t value,
                    uint64_t now_ms) noexcept nogil:
        """Replaces an entry's value `seen`, to change its time and perhaps its port."""
        cdef uint32_t old_port = <uint32_t>(seen >> PORT_SHIFT)
        cdef uint32_t port = <uint32_t>(value >> PORT_SHIFT)
        cdef bint was_aged = self.aged(seen, now_ms)
        if port != old_port and not self.admit(port, 0, value & STATIC != 0):
            return LEARN_REFUSED
        # if another engine has updated it meanwhile, that value is as recent
        if not va_cas_u64(&slot.value, &seen, value):
            if port != old_port:
                self.withdraw(port, 0)
            return LEARN_KNOWN
        if port != old_port:
            self.withdraw(old_port, 0)
        if was_aged:
            return LEARN_AGED
        return LEARN_MOVED if port != old_port else LEARN_KNOWN

    cdef int insert(self, const Place *place, uint64_t key, uint64_t value) noexcept nogil:
        """Inserts an address that was not found into the emptier of its buckets."""
        cdef uint32_t port = <uint32_t>(value >> PORT_SHIFT)
        cdef int room[2]
        cdef int i, choice, turn
        cdef uint64_t seen
        cdef MacSlot *slot
        if not self.admit(port, 1, value & STATIC != 0):
            return LEARN_REFUSED
        for choice in range(2):
            room[choice] = 0
            for i in range(MAC_WAYS):
                room[choice] += va_load_relaxed_u64(&place.bucket[choice][i].key) == MAC_FREE
        for turn in range(2):
            slot = place.bucket[turn if room[0] >= room[1] else 1 - turn]
            for i in range(MAC_WAYS):
                seen = MAC_FREE
                if (va_load_relaxed_u64(&slot[i].key) != MAC_FREE
                        or not va_cas_u64(&slot[i].key, &seen, key)):
                    continue
                # after the key: from here on it is an entry, which may be removed
                va_store_release_u64(&slot[i].value, value)
                return LEARN_NEW if self.settle(place, key, &slot[i]) else LEARN_KNOWN
        self.withdraw(port, 1)
        return LEARN_REFUSED

    cdef bint settle(self, const Place *place, uint64_t key, MacSlot *mine) noexcept nogil:
        """After an insert: if another engine has inserted the same address meanwhile, removes the
        entry in the later slot (a static one stays). False: this insert was removed."""
        cdef MacSlot *first = NULL
        cdef MacSlot *loser
        cdef uint64_t value
        cdef bint ours = True
        cdef int i
        # write our value before reading the others, as the other engine does: at least one of the
        # two sees both
        va_fence()
        for i in range(2 * MAC_WAYS):
            loser = &place.bucket[i // MAC_WAYS][i % MAC_WAYS]
            value = self.entry_of(place, key, loser)
            if not value:
                continue         # another address, or not stored yet: then its thread will see ours
            if first == NULL:
                first = loser
                continue
            if value & STATIC:
                first, loser = loser, first
                value = self.entry_of(place, key, loser)
            while value:         # retry if it was refreshed or moved meanwhile, or both would stay
                if self.remove(loser, value):
                    ours = ours and loser != mine
                    break
                value = self.entry_of(place, key, loser)
        return ours

    cdef uint64_t entry_of(self, const Place *place, uint64_t key, MacSlot *slot) noexcept nogil:
        """The value in a slot if it belongs to the address, else 0."""
        # acquire: the key was stored before the value, and is read after it
        cdef uint64_t value = va_load_acquire_u64(&slot.value)
        if (value & (CHECK_MASK | PRESENT) != (place.check | PRESENT)
                or va_load_relaxed_u64(&slot.key) != key):
            return 0
        return value

    cdef bint admit(self, uint32_t port, uint32_t entries, bint static) noexcept nogil:
        """Reserves a place in the port's share, and `entries` (1: new, 0: moved to the port) in the
        table. False: there is no room, and nothing is reserved. Static entries, which the operator
        adds, count in the share but are not limited by it."""
        # Add first, then compare: two engines cannot both take the last place.
        cdef uint32_t mine = va_add_u32(&self.header.port_count[port], 1)
        cdef uint32_t total = (va_add_u32(&self.header.count, entries) if entries
                               else va_load_relaxed_u32(&self.header.count))
        cdef uint32_t capacity = self.header.capacity
        # a port's first entry needs no further free place
        if total + entries <= capacity and (static or (
                mine < self.header.per_port and (mine == 0 or mine < capacity - total))):
            return True
        self.withdraw(port, entries)
        return False

    cdef void withdraw(self, uint32_t port, uint32_t entries) noexcept nogil:
        va_sub_u32(&self.header.port_count[port], 1)
        if entries:
            va_sub_u32(&self.header.count, entries)

    cdef bint remove(self, MacSlot *slot, uint64_t value) noexcept nogil:
        """Removes the entry in `slot` if its value still is `value`."""
        if not value & PRESENT or not va_cas_u64(&slot.value, &value, 0):
            return False
        self.withdraw(<uint32_t>(value >> PORT_SHIFT), 1)
        va_store_release_u64(&slot.key, MAC_FREE)                # after the 0, see the contract
        return True

    cdef bint aged(self, uint64_t value, uint64_t now_ms) noexcept nogil:
        return not value & STATIC and age_ms(value, now_ms) >= <int64_t>self.ageing_ms

    cdef uint32_t expire(self, uint32_t budget, uint64_t now_ms) noexcept nogil:
        """Checks the next `budget` slots (all engines advance one cursor) and removes aged entries;
        returns their number."""
        cdef uint32_t slots = self.slot_count, removed = 0, first, i
        cdef uint64_t value
        cdef MacSlot *slot
        budget = min(budget, slots)
        first = va_add_u32(&self.header.cursor, budget)
        for i in range(budget):
            slot = &self.slots[(first + i) & (slots - 1)]
            value = va_load_relaxed_u64(&slot.value)             # relaxed: `remove` compares it
            if value & PRESENT and self.aged(value, now_ms) and self.remove(slot, value):
                removed += 1
        return removed

    # -- control -----------------------------------------------------------------------------------

    @property
    def capacity(self):
        """Maximum number of entries."""
        return self.header.capacity

    @property
    def per_port(self):
        """Maximum number of entries of one port."""
        return self.header.per_port

    @property
    def ageing_ns(self):
        """How long an unseen address stays."""
        return self.header.ageing_ns

    def __len__(self):
        """Number of entries, including aged ones that are not removed yet."""
        return va_load_relaxed_u32(&self.header.count)

    def port_count(self, uint32_t port):
        """Number of entries of a port."""
        return va_load_relaxed_u32(&self.header.port_count[port]) if port < MAX_PORTS else 0

    def add_static(self, mac, uint32_t port, uint32_t vlan=0):
        """Binds an address ("02:00:00:00:00:01") of a VLAN to a port: it neither ages nor moves.
        Raises ConfigError when there is no room."""
        cdef uint64_t key = _key(mac, vlan), seen
        cdef Place place = mac_place(self, key)
        cdef MacSlot *slot
        if port >= MAX_PORTS:
            raise ConfigError(f"MAC table: port {port}: expected 0 to {MAX_PORTS - 1}")
        cdef uint64_t value = <uint64_t>port << PORT_SHIFT | STATIC | PRESENT | place.check
        for _ in range(100):     # engines may learn or remove the same address meanwhile
            slot = self.find(&place, key, &seen)
            if slot != NULL:
                self.update(slot, seen, value, 0)
            elif self.insert(&place, key, value) == LEARN_REFUSED:
                break
            if self.find(&place, key, &seen) != NULL and seen == value:
                return
        raise ConfigError(f"MAC table: no room for {mac} of VLAN {vlan} at port {port}; "
                          "make the table larger")

    def learn_all(self, const uint64_t[::1] macs, uint32_t port, uint32_t vlan=0, now_ns=None):
        """Learns addresses (48-bit numbers) at a port, as switches do from frames, without the GIL;
        returns the number of refused ones."""
        cdef uint64_t key, now_ms = (time.monotonic_ns() if now_ns is None else now_ns) // 1000000
        cdef uint32_t refused = 0
        cdef Py_ssize_t i
        cdef Place place
        if port >= MAX_PORTS or vlan > 4094:
            raise ConfigError(f"MAC table: port {port}, VLAN {vlan}: "
                              f"expected a port below {MAX_PORTS} and VLAN 0 to 4094")
        with nogil:
            for i in range(macs.shape[0]):
                key = macs[i] << 16 | vlan << 1 | 1
                place = mac_place(self, key)
                refused += self.learn(&place, key, port, now_ms) == LEARN_REFUSED
        return refused

    def take_entries(self, MacTable other not None):
        """Copies the entries of another table, with their times, as far as there is room; returns
        the number of entries that did not fit. Other engines may use the other table meanwhile."""
        cdef uint64_t key, value, seen
        cdef uint32_t i, refused = 0
        cdef Place place
        with nogil:
            for i in range(other.slot_count):
                key = va_load_acquire_u64(&other.slots[i].key)
                value = va_load_acquire_u64(&other.slots[i].value)
                # as in `find`: the key once more, since the entry may have been removed in between
                if (not value & PRESENT or not _is_key(key)
                        or va_load_relaxed_u64(&other.slots[i].key) != key):
                    continue
                place = mac_place(self, key)
                if self.find(&place, key, &seen) == NULL:
                    value = value & ~<uint64_t>CHECK_MASK | place.check
                    refused += self.insert(&place, key, value) == LEARN_REFUSED
        return refused

    def forget(self, mac, uint32_t vlan=0):
        """Removes an address of a VLAN, also a static one; returns whether it was in the table."""
        cdef uint64_t key = _key(mac, vlan), value
        cdef Place place = mac_place(self, key)
        cdef MacSlot *slot = self.find(&place, key, &value)
        while slot != NULL:
            if self.remove(slot, value):
                return True
            slot = self.find(&place, key, &value)
        return False

    def forget_port(self, uint32_t port):
        """Removes all entries of a port, static ones too; returns their number. Deactivate the port
        in every switch first, since an engine that still processes its frames may learn them
        again."""
        return self.forget_where(port, True)

    def forget_learned(self, port=None):
        """Removes all learned entries, or those of a port; engines may learn them again meanwhile.
        Static ones stay. Returns the number of removed entries."""
        return self.forget_where(-1 if port is None else port, False)

    cdef uint32_t forget_where(self, int64_t port, bint static) noexcept:
        """Removes entries of a port (-1: of all ports), with or without static ones."""
        cdef uint32_t i, removed = 0
        cdef uint64_t value
        with nogil:
            for i in range(self.slot_count):
                value = va_load_relaxed_u64(&self.slots[i].value)  # relaxed: `remove` compares it
                while (value & PRESENT and (port < 0 or value >> PORT_SHIFT == <uint64_t>port)
                       and (static or not value & STATIC)):
                    if self.remove(&self.slots[i], value):
                        removed += 1
                        break
                    # retry if the entry was refreshed meanwhile
                    value = va_load_relaxed_u64(&self.slots[i].value)
        return removed

    def entries(self, now_ns=None):
        """All entries as dicts (mac, vlan, port, age_s, static), sorted by VLAN and address.
        now_ns: time of the engines' clock."""
        cdef uint64_t key, value
        cdef uint64_t now_ms = (time.monotonic_ns() if now_ns is None else now_ns) // 1000000
        cdef uint32_t i
        found = []
        for i in range(self.slot_count):
            key = va_load_acquire_u64(&self.slots[i].key)
            value = va_load_acquire_u64(&self.slots[i].value)
            if (not key & 1 or not value & PRESENT
                    or va_load_relaxed_u64(&self.slots[i].key) != key or self.aged(value, now_ms)):
                continue
            static = bool(value & STATIC)
            found.append({"mac": int(key >> 16).to_bytes(6, "big").hex(":"),
                          "vlan": int(key >> 1 & 0xFFF), "port": int(value >> PORT_SHIFT),
                          "age_s": None if static else age_ms(value, now_ms) / 1000.0,
                          "static": static})
        return sorted(found, key=lambda entry: (entry["vlan"], entry["mac"]))


cdef inline bint _holds(const MacSlot *bucket, const MacSlot *slot) noexcept nogil:
    return bucket <= slot < bucket + MAC_WAYS


cdef inline bint _is_key(uint64_t key) noexcept nogil:
    """True for a unicast address (bit 40 of 48 is the group bit), a VLAN of 12 bits, and bit
    0 set."""
    return key & 1 and key & 0xE000 == 0 and not key >> 56 & 1


cdef uint32_t _slots(uint32_t capacity) noexcept nogil:
    cdef uint32_t slots = 2 * MAC_WAYS
    while slots < 2 * capacity:
        slots *= 2
    return slots


def _check_limits(capacity, ageing_ns, per_port):
    if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
        raise ConfigError(f"MAC table: capacity {capacity}: "
                          f"expected {CAPACITY_MIN} to {CAPACITY_MAX}")
    if not AGEING_MIN_NS <= ageing_ns <= AGEING_MAX_NS:
        raise ConfigError(f"MAC table: ageing {ageing_ns} ns: expected 1 s to 10^6 s")
    if not 1 <= per_port <= capacity:
        raise ConfigError(f"MAC table: per_port {per_port}: expected 1 to the capacity, {capacity}")


cdef inline int64_t age_ms(uint64_t value, uint64_t now_ms) noexcept nogil:
    """Milliseconds since the entry was seen; 0 if another engine, whose clock was read later, has
    seen it after `now`."""
    cdef uint64_t age = (now_ms - value) & TIME_MASK
    return <int64_t>age if age <= TIME_MASK // 2 else 0


def _key(mac, vlan):
    try:
        octets = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else b""
    except ValueError:
        octets = b""
    if len(octets) != 6 or octets[0] & 1 or octets == bytes(6) or vlan > 4094:
        raise ConfigError(f"MAC table: {mac!r} of VLAN {vlan}: "
                          "expected a unicast address such as 02:00:00:00:00:01 and 0 to 4094")
    return int.from_bytes(octets, "big") << 16 | vlan << 1 | 1
