"""HostileGuest. The contract is in guest.pxd."""
import os
import traceback

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport fflush, fprintf, stderr
from libc.stdlib cimport abort, calloc, free
from libc.string cimport memcmp, memcpy, memset
from dataplane.elements.parse cimport Parse
from dataplane.engine.engine cimport Engine
from dataplane.graph.port cimport PortRx, PortTx
from dataplane.packet.pool cimport (BURST, NO_PACKET, PACKET_IN_USE, Batch, PacketPool,
                                    batch_add, packet_alloc, packet_data)
from virt.chain cimport (CHAIN_BROKEN, CHAIN_EMPTY, DESCRIPTOR_INDIRECT,
                         DESCRIPTOR_NEXT, DESCRIPTOR_WRITE, FAULTS_COUNT)
from virt.guest_memory cimport DirtyLog, GuestMemory
from virt.packed_ring cimport PACKED_AVAILABLE, PACKED_USED
from virt.virtio_net cimport (NET_GUEST_CSUM, NET_GUEST_TSO4, NET_HASH_REPORT, NET_MRG_RXBUF,
                              RING_EVENT_IDX, RING_IN_ORDER, RING_INDIRECT, RING_PACKED,
                              VIRTIO_VERSION_1)
from virt.virtio_port cimport Ring, VirtioPort

from dataplane.engine.clock import Clock
from dataplane.errors import ConfigError
from virt.guest_memory import MemoryRegion

cdef extern from "interfere.h":
    enum:
        INTERFERENCES
    struct interference:
        uint8_t **at
        uint16_t *value
        uint32_t *wait
        uint32_t next
        uint32_t count
    interference vnic_interference

cdef extern from *:
    """
    #include <sys/mman.h>
    """
    int mprotect(void *address, size_t bytes, int protection)
    int PROT_NONE

cdef uint64_t LOW = 0x100000, HIGH = 0x180000            # guest physical
cdef uint64_t USER = 0x7F0000000000, USER_HIGH = 0x7F0000100000
cdef uint32_t NEIGHBOUR_BYTES = TABLE_BYTES + BUFFERS * (BUFFER_BYTES + CANARY_BYTES)

# By the bits of an input's first byte, the device's format.
FEATURES = ((RING_PACKED,), (NET_MRG_RXBUF,), (RING_INDIRECT,), (RING_EVENT_IDX,),
            (RING_IN_ORDER,), (NET_HASH_REPORT,), (VIRTIO_VERSION_1,),
            (NET_GUEST_CSUM, NET_GUEST_TSO4))

# Operations, by the bits of a byte below the highest, which chooses a ring; see `operate`.
OPERATIONS = ("describe", "write", "offer", "take", "deliver", "arm", "interfere", "cut", "fill",
              "enable", "restart", "take one")

# the headers of a TCP segment over IPv4
_TCP = bytes.fromhex("020000000002 020000000001 0800 4500 0028 0000 4000 4006 0000 0a000001"
                     "0a000002 0050 0051 00000001 00000001 5010 0100 0000 0000")


cdef inline uint8_t next8(Reader *reader) noexcept:
    cdef uint8_t value
    if reader.at == reader.end:
        return 0
    value = reader.at[0]
    reader.at += 1
    return value


cdef inline uint16_t next16(Reader *reader) noexcept:
    cdef uint16_t low = next8(reader)
    return low | <uint16_t>(next8(reader) << 8)


cdef inline void check(bint holds, const char *what) noexcept:
    """Ends the process with a message, which a fuzzer takes for a crash."""
    if not holds:
        fprintf(stderr, "vnic: fuzz: broken: %s\n", what)
        fflush(NULL)
        abort()


def mask(*bits):
    """Features of these numbers."""
    return sum(1 << int(bit) for bit in bits)


def memory_file(name, size):
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


cdef uint16_t[8] POSITIONS = [1, 2, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF]


cdef class Started:
    pass


cdef class Device:
    def __init__(self, HostileGuest guest, uint32_t format):
        chosen = [bits for place, bits in enumerate(FEATURES) if format >> place & 1]
        self.packed, self.format = format & 1, format
        self.port = VirtioPort(f"hostile{format}", number=2 + format, mtu=65535)
        self.port.set_features(mask(*[bit for bits in chosen for bit in bits]))
        self.port.set_memory(guest.memory)
        self.port.set_positions(guest._positions)
        self.rx = PortRx(self.port)
        parse, self.into = Parse(name=f"parse{format}"), Parse(name=f"into{format}")
        out = PortTx(self.port, name=f"hostile{format}.tx")
        self.rx >> parse
        parse >> guest.to_neighbour
        self.into >> out
        guest.engine.extend([self.rx], [parse, self.into, out])


cdef class HostileGuest:
    """One guest of which all is hostile; its frames go to a neighbour on the same engine, and
    frames of the network to it. `run` does what an input says, and ends the process where a rule is
    broken:

    - nothing of a third guest's memory is read or written, as it cannot be accessed at all, nor
      anything beside a region, where guards are;
    - of the neighbour's memory, only receive buffers that it has posted are written;
    - each chain that is taken becomes a frame or is counted: as lost, discarded or a fault;
    - a ring that stops has its reason counted once, and is not touched any more;
    - no packet is lost track of.
    """

    def __cinit__(self):
        self.kept = <uint8_t *>calloc(1, NEIGHBOUR_BYTES)
        if self.kept == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.kept)

    def __init__(self):
        self.pool = PacketPool(small=256, large=16)
        self.engine = Engine("fuzz", self.pool, clock=Clock(virtual=True, start_ns=1))
        self.devices, self.started = [None] * FORMATS, {}
        hostile = memory_file("hostile", LOW_BYTES + HIGH_BYTES)
        neighbours = memory_file("neighbour", NEIGHBOUR_BYTES)
        strangers = memory_file("stranger", 1 << 20)
        log = memory_file("log", 4096)
        # mapped one beside the other, as the kernel does
        self.strangers = GuestMemory([MemoryRegion(LOW, 1 << 19, USER, 0, strangers)])
        self.memory = GuestMemory([
            MemoryRegion(LOW, LOW_BYTES, USER, 0, hostile),
            MemoryRegion(HIGH, HIGH_BYTES, USER_HIGH, LOW_BYTES, hostile)])
        self.strangers.add(MemoryRegion(HIGH, 1 << 19, USER_HIGH, 1 << 19, strangers))
        self.neighbours = GuestMemory([MemoryRegion(LOW, NEIGHBOUR_BYTES, USER, 0, neighbours)])
        # fewer pages than the guest has: of the others nothing may be marked
        self.log = DirtyLog(log, 33, 0)
        for fd in (hostile, neighbours, strangers, log):
            os.close(fd)
        for i in range(2):
            if mprotect(self.strangers.table.regions[i].host, 1 << 19, PROT_NONE):
                raise OSError("mprotect")
        self.low = self.memory.table.regions[0].host
        self.high = self.memory.table.regions[1].host
        self.table = self.neighbours.table.regions[0].host
        self._positions = bytearray(32)
        self.neighbour = VirtioPort("neighbour", number=1, mtu=1500)
        self.neighbour.set_features(mask(VIRTIO_VERSION_1, NET_MRG_RXBUF))
        self.neighbour.set_memory(self.neighbours)
        self.fill_neighbour()
        self.neighbour.start(0, size=BUFFERS, descriptors=USER, available=USER + 16 * BUFFERS,
                             used=USER + 2048, base=0)
        self.neighbour.enable(0, True)
        self.to_neighbour = PortTx(self.neighbour, name="to neighbour")
        self.plain = _TCP + bytes(range(256)) * 6
        self.large = _TCP + bytes(range(256)) * 30

    cdef void fill_neighbour(self) noexcept:
        """The neighbour has all its buffers posted, in order; canaries are between them."""
        cdef uint32_t i
        cdef uint64_t at
        memset(self.table, 0xC5, NEIGHBOUR_BYTES)
        memset(self.table + 2048, 0, 4 + 8 * BUFFERS)
        for i in range(<uint32_t>BUFFERS):
            at = LOW + TABLE_BYTES + i * (BUFFER_BYTES + CANARY_BYTES)
            (<uint64_t *>(self.table + 16 * i))[0] = at
            (<uint32_t *>(self.table + 16 * i + 8))[0] = BUFFER_BYTES
            (<uint32_t *>(self.table + 16 * i + 12))[0] = DESCRIPTOR_WRITE
            (<uint16_t *>(self.table + 16 * BUFFERS + 4))[i] = <uint16_t>i
        (<uint32_t *>(self.table + 16 * BUFFERS))[0] = 0
        memcpy(self.kept, self.table, NEIGHBOUR_BYTES)

    def run(self, const uint8_t[::1] data):
        """Does what an input says."""
        self.execute(&data[0] if data.shape[0] else NULL, data.shape[0])

    def counts(self):
        """What the inputs have led to since the start."""
        return {"executions": self.executions, "bursts": self.bursts, "frames out": self.frames_out,
                "frames in": self.frames_in, "faults of chains": self.chain_faults,
                "faults of rings": self.ring_faults}

    cdef Device device_of(self, uint32_t format):
        if self.devices[format] is None:
            self.devices[format] = Device(self, format)
        return self.devices[format]

    # -- an input ----------------------------------------------------------------------------------

    cdef void execute(self, const uint8_t *data, size_t size):
        cdef uint32_t left = OPERATIONS_MOST
        self.executions += 1
        self.reader.at, self.reader.end = data, data + size
        vnic_interference.next = vnic_interference.count = 0
        self.begin()
        while left and self.reader.at != self.reader.end:
            left -= 1
            self.operate()
        self.take(BURST)
        self.deliver()
        self.take(BURST)
        self.inspect()
        vnic_interference.next = vnic_interference.count = 0

    cdef void begin(self):
        """The first bytes: features, layout and positions."""
        cdef Reader *r = &self.reader
        cdef Started started
        cdef uint32_t ring, shape, layout
        cdef Side *side
        memset(self.low, 0, LOW_BYTES)
        memset(self.high, 0, HIGH_BYTES)
        self.memory.table.broken, self.restarts = 0, 0
        self.device = self.device_of(next8(r))
        layout = next8(r)
        for ring in range(2):
            side = &self.sides[ring]
            shape = next8(r) if layout else 10 + ring
            side.size = 1 + shape % 32 if self.device.packed else 1 << shape % 6
            side.descriptors, side.available, side.used = 1024 * ring, 2048 + 128 * ring, \
                2304 + 512 * ring
            # parts that end where the region does, behind which is a guard
            if layout & 4:
                side.descriptors = LOW_BYTES - 16 * side.size
            if layout & 8:
                side.used = LOW_BYTES + HIGH_BYTES - (6 + 8 * side.size + 2 & ~3)
            if layout & 16:
                side.available = LOW_BYTES + HIGH_BYTES - 6 - 2 * side.size & ~3
            if layout & 32:
                side.used = side.available & ~<uint64_t>3
            if layout & 64:
                side.descriptors = 64 * next8(r)
            side.next, side.wrap = 0, True
            if layout & 128:
                side.next = POSITIONS[next8(r) % 8]
                if self.device.packed:
                    side.wrap = side.next >> 15
                    side.next = (side.next & 0x7FFF) % side.size
                else:
                    self.write16(side.available + 2, side.next)
                    self.write16(side.used + 2, side.next)
        self.device.port.log = self.log if layout & 1 else None
        key = self.device.format, layout, (<uint8_t *>self.sides)[:sizeof(self.sides)]
        started = self.started.get(key)
        if started is None:
            self.start_both(layout)
            if len(self.started) == STARTED_MOST:
                self.started.clear()
            started = Started()
            memcpy(started.rings, self.device.port._rings, sizeof(started.rings))
            self.started[key] = started
        memcpy(self.device.port._rings, started.rings, sizeof(started.rings))

    cdef void start_both(self, uint32_t layout):
        cdef VirtioPort port = self.device.port
        port.set_log(port.log)
        for ring in range(2):
            port.stop(ring)
            port.log_ring(ring, LOW + 64 * ring if layout & 2 else None)
            port.enable(ring, True)
            self.start(ring)

    cdef void start(self, uint32_t ring):
        """As a front end starts it; one that makes no sense does not start."""
        cdef Side *side = &self.sides[ring]
        cdef uint64_t low = USER, high = USER_HIGH - LOW_BYTES
        position = (side.next | side.wrap << 15) if self.device.packed else side.next
        try:
            self.device.port.start(
                ring, size=side.size, base=position,
                descriptors=side.descriptors + (low if side.descriptors < LOW_BYTES else high),
                available=side.available + (low if side.available < LOW_BYTES else high),
                used=side.used + (low if side.used < LOW_BYTES else high))
        except ConfigError:
            pass

    cdef void operate(self):
        """The next operation."""
        cdef Reader *r = &self.reader
        cdef uint32_t what = next8(r), ring, i, count
        cdef uint64_t at
        ring = what >> 7
        what = (what & 0x7F) % 12
        if what == 0:
            self.describe()
        elif what == 1:
            at = next16(r)
            self.write16(at, next16(r))
        elif what == 2:
            # a head, and the index that tells of it; of a packed ring, the driver's event flags
            at = self.sides[ring].available
            if self.device.packed:
                self.write16(at + 2, next8(r))
                return
            self.write16(at + 4 + 2 * (self.sides[ring].next % self.sides[ring].size), next8(r))
            self.sides[ring].next += 1
            self.write16(at + 2, self.sides[ring].next)
        elif what == 3:
            self.take(BURST)
        elif what == 4:
            self.deliver()
        elif what == 5:
            self.device.rx.arm()
        elif what == 6:
            self.interfere()
        elif what == 7:
            # what the handler of SIGBUS does
            memset(self.low, 0, LOW_BYTES)
            memset(self.high, 0, HIGH_BYTES)
            self.memory.table.broken = 1
        elif what == 8:
            at, count = next16(r), next8(r) % 64
            for i in range(count):
                self.place((at + i) % (LOW_BYTES + HIGH_BYTES))[0] = next8(r)
        elif what == 9:
            self.device.port._rings[ring].enabled = next8(r) & 1
        elif what == 10 and self.restarts < RESTARTS_MOST:
            self.restarts += 1
            self.device.port.stop(ring)
            self.start(ring)
        elif what == 11:
            self.take(1)

    cdef void describe(self):
        """A descriptor: which, where it leads, its length, its flags."""
        cdef Reader *r = &self.reader
        cdef uint32_t what = next8(r), length
        cdef Side *side = &self.sides[what & 1]
        cdef uint16_t flags = 0, odd, last = next8(r)
        cdef uint64_t at, address = self.address()
        length = next8(r)
        if what & 2:
            length = length << 8 | next8(r)
        if what & 4:
            length = length << 16 | next16(r)
        flags |= DESCRIPTOR_NEXT if what & 8 else 0
        flags |= DESCRIPTOR_WRITE if what & 16 else 0
        flags |= DESCRIPTOR_INDIRECT if what & 32 else 0
        odd = next16(r) if what & 128 else 0
        if what & 64:
            # into a table of descriptors, at the place of the data
            at = DATA_AT + 16 * (last & 63)
        elif self.device.packed:
            at = side.descriptors + 16 * side.next
        else:
            at = side.descriptors + 16 * (last & 63)
        memcpy(self.place(at), &address, 8)
        memcpy(self.place(at + 8), &length, 4)
        if not self.device.packed:
            self.write16(at + 12, flags)
            self.write16(at + 14, last >> 6 if what & 128 else last + 1)
            return
        self.write16(at + 12, last)
        if what & 64:
            self.write16(at + 14, flags)
            return
        flags |= PACKED_AVAILABLE if side.wrap else PACKED_USED
        self.write16(at + 14, flags ^ odd)
        side.next += 1
        if side.next >= side.size:
            side.next, side.wrap = 0, not side.wrap

    cdef uint64_t address(self):
        """A guest physical address: in the data, at a region's end, in a ring, or any."""
        cdef Reader *r = &self.reader
        cdef uint32_t kind = next8(r)
        cdef uint64_t found = 0
        if kind < 128:
            return LOW + DATA_AT + 64 * kind
        if kind < 160:
            return LOW + LOW_BYTES - next8(r)
        if kind < 176:
            return HIGH + HIGH_BYTES - next8(r)
        if kind < 192:
            return LOW + 16 * <uint64_t>next8(r)
        if kind < 208:
            return HIGH + next16(r)
        if kind < 216:
            return HIGH - next8(r)
        for _ in range(8):
            found = found << 8 | next8(r)
        return found

    cdef void interfere(self):
        """Plans a write of another CPU, after a number of reads of the device."""
        cdef Reader *r = &self.reader
        cdef interference *plan = &vnic_interference
        cdef uint32_t wait = next8(r)
        cdef uint64_t at = next16(r) & 0xFFFE
        cdef uint16_t value = next16(r)
        if plan.next == plan.count:
            plan.next = plan.count = 0
        if plan.count == INTERFERENCES:
            return
        plan.at[plan.count] = self.place(at)
        plan.value[plan.count], plan.wait[plan.count] = value, wait
        plan.count += 1

    # -- the memory --------------------------------------------------------------------------------

    cdef uint8_t *place(self, uint64_t offset) noexcept:
        """A place in the guest's memory where 16 bytes are."""
        offset %= LOW_BYTES + HIGH_BYTES
        if offset < LOW_BYTES:
            return self.low + min(offset, <uint64_t>LOW_BYTES - 16)
        return self.high + min(offset - LOW_BYTES, <uint64_t>HIGH_BYTES - 16)

    cdef void write16(self, uint64_t offset, uint16_t value) noexcept:
        offset %= LOW_BYTES + HIGH_BYTES - 1
        if offset < LOW_BYTES - 1:
            memcpy(self.low + offset, &value, 2)
        elif offset >= LOW_BYTES:
            memcpy(self.high + offset - LOW_BYTES, &value, 2)

    # -- the device --------------------------------------------------------------------------------

    cdef void take(self, uint32_t limit):
        """The engine polls the device; what it finds goes to the neighbour."""
        cdef Ring *ring = &self.device.port._rings[1]
        cdef uint64_t[FAULTS_COUNT] faults
        cdef uint64_t lost, unreadable, packets, discarded, chains = 0
        cdef bint ran = ring.runs
        cdef uint16_t used = ring.queue.next_used
        cdef uint32_t i
        memcpy(faults, ring.faults, sizeof(faults))
        packets = self.device.port.stats[0].rx_packets
        lost = self.device.port.stats[0].rx_dropped
        unreadable = self.device.port.stats[0].rx_unreadable
        discarded = ring.discarded
        # the neighbour has emptied its buffers
        (<uint16_t *>(self.table + 16 * BUFFERS))[1] = \
            self.neighbour._rings[0].queue.next_available + BUFFERS
        self.engine.ctx.burst = limit
        self.device.rx.poll(self.engine.ctx)
        self.bursts += 1
        packets = self.device.port.stats[0].rx_packets - packets
        lost = self.device.port.stats[0].rx_dropped - lost
        unreadable = self.device.port.stats[0].rx_unreadable - unreadable
        discarded = ring.discarded - discarded
        self.frames_out += packets
        used = ring.queue.next_used - used
        if not self.device.packed:
            check(used == packets + lost + discarded, "each chain is a frame or counted")
        for i in range(<uint32_t>CHAIN_EMPTY, <uint32_t>CHAIN_BROKEN):
            chains += ring.faults[i] - faults[i]
        check(chains == unreadable, "each fault of a chain is counted")
        self.chain_faults += chains
        if ran and not ring.runs:
            self.ring_faults += 1
            check(ring.broken >= CHAIN_BROKEN, "a ring that stops has a reason")
            check(ring.faults[ring.broken] == faults[ring.broken] + 1, "which is counted once")
        elif not ran:
            check(packets + lost + discarded == 0, "a ring that stopped is not touched")
        check(not (ring.runs and self.memory.table.broken), "memory that was truncated is noticed")
        check(packets + lost + discarded <= BURST, "the burst has a bound")
        check(ring.queue.prepared == 0, "all is published")

    cdef void deliver(self):
        """Frames of the network come to the device: how many, how long, and of what kind."""
        cdef Reader *r = &self.reader
        cdef uint32_t what = next8(r), length = next16(r), index
        cdef Batch batch
        cdef bytes frame = self.large if what & 4 else self.plain
        cdef const uint8_t *content = frame
        cdef Ring *ring = &self.device.port._rings[0]
        cdef bint ran = ring.runs
        cdef uint64_t sent = self.device.port.stats[0].tx_packets
        batch.count = 0
        length = min(max(length, <uint32_t>1), <uint32_t>len(frame))
        for _ in range(1 + (what & 3)):
            index = packet_alloc(self.engine.ctx, length)
            check(index != NO_PACKET, "the pool has packets")
            memcpy(packet_data(self.engine.ctx, index), content, length)
            if what & 8 and length > 54:
                self.engine.ctx.packets[index].gso_type = 1
                self.engine.ctx.packets[index].gso_size = 1 + (what >> 4) * 256
                self.engine.ctx.packets[index].header_length = 54
                self.engine.ctx.packets[index].vnet_flags = 1
                self.engine.ctx.packets[index].csum_start = 34
                self.engine.ctx.packets[index].csum_offset = 16
            batch_add(&batch, index)
        self.device.into.push(self.engine.ctx, &batch)
        self.bursts += 1
        sent = self.device.port.stats[0].tx_packets - sent
        self.frames_in += sent
        if ran and not ring.runs:
            self.ring_faults += 1
            check(ring.broken >= CHAIN_BROKEN, "a ring that stops has a reason")
        elif not ran:
            check(sent == 0, "nothing is delivered to a ring that stopped")
        check(ring.queue.prepared == 0, "all is published")

    cdef void inspect(self):
        """After an input."""
        cdef uint32_t i, at
        for i in range(self.engine.ctx.total_count):
            check(not self.engine.ctx.packets[i].flags & PACKET_IN_USE, "no packet is lost")
        # the neighbour: descriptors, available ring but for its index, canaries
        at = 16 * BUFFERS
        check(memcmp(self.table, self.kept, at + 2) == 0, "the neighbour's descriptors")
        at += 4
        check(memcmp(self.table + at, self.kept + at, 2048 - at) == 0, "the neighbour's own ring")
        at = 2048 + 4 + 8 * BUFFERS
        check(memcmp(self.table + at, self.kept + at, TABLE_BYTES - at) == 0,
              "bytes behind the neighbour's used ring")
        for i in range(<uint32_t>BUFFERS):
            at = TABLE_BYTES + i * (BUFFER_BYTES + CANARY_BYTES) + BUFFER_BYTES
            check(memcmp(self.table + at, self.kept + at, CANARY_BYTES) == 0,
                  "bytes behind the neighbour's buffers")
        check(self.neighbour._rings[0].broken == 0, "the neighbour's ring runs")


def spoil(HostileGuest guest):
    """Writes where nobody may, for the test of the rules."""
    guest.table[TABLE_BYTES + BUFFER_BYTES] ^= 1


cdef HostileGuest the_guest = None


cdef void execute(const uint8_t *data, size_t size) noexcept:
    try:
        the_guest.execute(data, size)
    except BaseException:
        traceback.print_exc()
        check(False, "no exception but ConfigError")


def entry():
    """For main.c: a capsule of the function that takes an input."""
    global the_guest
    the_guest = HostileGuest()
    return PyCapsule_New(<void *>execute, "fuzz", NULL)
