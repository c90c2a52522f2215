"""SideSource. The contract is in side_source.pxd."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp
from dataplane.capture.reader cimport CaptureReader
from dataplane.graph.element cimport NEVER
from dataplane.packet.pool cimport PACKET_TRUNCATED, Batch, Context, Packet, packet_data
from dataplane.ports.pcap_source cimport PcapSource
from dataplane.wire.headers cimport (ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6,
                                     IPV4_BYTES, IPV4_FRAGMENT_OFFSET, IPV6_BYTES, PORTS_BYTES,
                                     PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, VLAN_BYTES,
                                     is_vlan_ethertype, load_be16)
from dataplane.wire.rewrite cimport Rewrite

cdef enum:
    PORT_NUMBERS = 65536
    MAC_BYTES = 6


cdef class Split:
    """Determines a frame's side. macs: MAC address -> side. prefixes: (address, bits, side). ports:
    TCP, UDP or SCTP port -> side. server, client: the side of a packet's lower and higher port.
    other: the side of all other frames; -1: none.

    Rules are tried in this order: MAC address, longest prefix, port, server and client, other.
    """

    def __cinit__(self, *args, **kwargs):
        self.macs = NULL
        self.mac_sides = NULL
        self.prefixes = NULL
        self.ports = NULL

    def __init__(self, macs=None, prefixes=(), ports=None, *, server=-1, client=-1, other=-1):
        cdef const uint8_t[::1] octets
        cdef uint32_t i
        macs = sorted((macs or {}).items())
        self.macs = <uint64_t *>calloc(len(macs) + 1, sizeof(uint64_t))
        self.mac_sides = <int32_t *>calloc(len(macs) + 1, sizeof(int32_t))
        self.prefixes = <PrefixRule *>calloc(len(prefixes) + 1, sizeof(PrefixRule))
        if self.macs == NULL or self.mac_sides == NULL or self.prefixes == NULL:
            raise MemoryError("split")
        for mac, side in macs:
            self.macs[self.mac_count], self.mac_sides[self.mac_count] = int.from_bytes(
                mac, "big"), side
            self.mac_count += 1
        for address, bits, side in sorted(prefixes, key=lambda rule: -rule[1]):
            octets = address
            for i in range(len(address)):
                self.prefixes[self.prefix_count].address[i] = octets[i]
            self.prefixes[self.prefix_count].bytes = len(address)
            self.prefixes[self.prefix_count].bits = bits
            self.prefixes[self.prefix_count].side = side
            self.prefix_count += 1
        if ports:
            self.ports = <int32_t *>malloc(PORT_NUMBERS * sizeof(int32_t))
            if self.ports == NULL:
                raise MemoryError("split")
            for i in range(PORT_NUMBERS):
                self.ports[i] = -1
            for port, side in ports.items():
                self.ports[<uint32_t>port & 0xFFFF] = side
        self.server, self.client, self.other = server, client, other

    def __dealloc__(self):
        free(self.macs)
        free(self.mac_sides)
        free(self.prefixes)
        free(self.ports)

    def side_of(self, bytes frame not None, bint destination=False):
        """The side that sent a frame or, with destination=True, that receives it; -1: none."""
        return self.side(<const uint8_t *>frame, <uint32_t>len(frame), destination)

    cdef int32_t side(self, const uint8_t *data, uint32_t length, bint destination) noexcept nogil:
        cdef uint32_t at = ETHERNET_BYTES, transport = 0, mine, peer
        cdef int32_t found = -1
        cdef uint8_t protocol = 0
        cdef uint16_t ethertype
        if length < ETHERNET_BYTES:
            return self.other
        if self.mac_count:
            found = self.by_mac(data if destination else data + MAC_BYTES)
            if found >= 0:
                return found
        if self.prefix_count == 0 and self.ports == NULL and self.server < 0:
            return self.other
        ethertype = load_be16(data + 12)
        while is_vlan_ethertype(ethertype) and at + VLAN_BYTES <= length:
            ethertype = load_be16(data + at + 2)
            at += VLAN_BYTES
        if ethertype == ETHERTYPE_IPV4 and at + IPV4_BYTES <= length:
            found = self.by_address(data + at + (16 if destination else 12), 4)
            if not load_be16(data + at + 6) & IPV4_FRAGMENT_OFFSET:
                protocol, transport = data[at + 9], at + (data[at] & 0x0F) * 4
        elif ethertype == ETHERTYPE_IPV6 and at + IPV6_BYTES <= length:
            found = self.by_address(data + at + (24 if destination else 8), 16)
            protocol, transport = data[at + 6], at + IPV6_BYTES
        elif ethertype == ETHERTYPE_ARP and at + 28 <= length:
            found = self.by_address(data + at + (24 if destination else 14), 4)
        if found >= 0:
            return found
        if (protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP or protocol == PROTOCOL_SCTP) and (
                transport + PORTS_BYTES <= length):
            mine, peer = load_be16(data + transport), load_be16(data + transport + 2)
            if destination:
                mine, peer = peer, mine
            if self.ports != NULL and self.ports[mine] >= 0:
                return self.ports[mine]
            if self.server >= 0 and mine != peer:
                return self.server if mine < peer else self.client
        return self.other

    cdef int32_t by_mac(self, const uint8_t *at) noexcept nogil:
        cdef uint64_t mac = 0
        cdef uint32_t i, low = 0, high = self.mac_count
        for i in range(MAC_BYTES):
            mac = mac << 8 | at[i]
        while low < high:
            i = (low + high) // 2
            if self.macs[i] < mac:
                low = i + 1
            else:
                high = i
        return self.mac_sides[low] if low < self.mac_count and self.macs[low] == mac else -1

    cdef int32_t by_address(self, const uint8_t *at, uint32_t bytes) noexcept nogil:
        cdef PrefixRule *rule
        cdef uint32_t i, whole, rest
        for i in range(self.prefix_count):
            rule = &self.prefixes[i]
            if rule.bytes != bytes:
                continue
            whole, rest = rule.bits // 8, rule.bits % 8
            if memcmp(rule.address, at, whole) == 0 and (
                    rest == 0 or (rule.address[whole] ^ at[whole]) >> (8 - rest) == 0):
                return rule.side
        return -1


cdef class SharedCapture:
    """A capture that several SideSources of one virtual clock read together, in the order of the
    file. Not for engines with threads."""

    def __init__(self, CaptureReader reader not None, Split split not None):
        self.reader, self.split = reader, split
        self.next_ns = 0
        with nogil:
            self.advance()

    cdef void advance(self) noexcept nogil:
        """Reads the next packet that has a side. One older than the one before is due at once."""
        while True:
            if self.reader.next(&self.record) != 1:
                self.next_ns = NEVER
                return
            if self.record.time_ns < self.next_ns:
                self.out_of_order += 1
            else:
                self.next_ns = self.record.time_ns
            self.side = self.split.side(self.record.data, self.record.captured, False)
            if self.side >= 0:
                return
            self.unassigned += 1


cdef class SideSource(PcapSource):
    """A PcapSource that rewrites frames and, with `shared`, delivers only those of `side`.

    macs: MAC addresses of the NICs by side, six bytes each, which replace those of frames: the
    source becomes that of the frame's side; the destination that of the side which the split finds
    for it, or of the other one where there are two.
    """

    MOVABLE = False              # what the sides share

    def __init__(self, str name, CaptureReader reader not None, uint32_t number=0,
                 uint32_t queues=1, *, bint held=False,
                 uint32_t mtu=0, SharedCapture shared=None, int side=0, Rewrite rewrite=None,
                 bytes macs=b""):
        cdef const uint8_t[::1] octets = macs
        cdef uint32_t i
        self.shared, self.side = shared, side
        self.mac_count = <uint32_t>(len(macs) // MAC_BYTES)
        if self.macs == NULL:
            self.macs = <uint8_t *>calloc(len(macs) + 1, 1)
        if self.macs == NULL:
            raise MemoryError(name)
        for i in range(self.mac_count * MAC_BYTES):
            self.macs[i] = octets[i]
        self.rewrite = Rewrite() if rewrite is None and macs else rewrite
        if shared is not None:
            self.record, self.split = shared.record, shared.split
        self.edits = self.rewrite is not None
        super().__init__(name, reader, number, queues, held=held, mtu=mtu)

    def __dealloc__(self):
        free(self.macs)

    def shift(self, int64_t by_ns):
        """Adds `by_ns` to all packets' times, before the first is delivered. Not with `shared`."""
        if self.next_ns != NEVER:
            self.shift_ns += by_ns
            self.next_ns += by_ns
            self.first_ns += by_ns

    cdef void advance(self) noexcept nogil:
        if self.shared is None:
            PcapSource.advance(self)
        else:
            self.next_ns = self.shared.next_ns

    cdef void edit(self, Context *ctx, uint32_t index) noexcept nogil:
        cdef const uint8_t *source = NULL
        cdef const uint8_t *destination = NULL
        cdef int32_t moved, peer = -1, sides = <int32_t>self.mac_count
        cdef Packet *p = &ctx.packets[index]
        cdef uint8_t *data = packet_data(ctx, index)
        if sides:
            source = self.macs + MAC_BYTES * self.side
            if self.split is not None:
                peer = self.split.side(data, p.length, True)
            if (peer < 0 or peer == self.side) and sides == 2:
                peer = 1 - self.side
            if 0 <= peer < sides:
                destination = self.macs + MAC_BYTES * peer
        # The headroom before the frame has room for a tag.
        moved = self.rewrite.frame(data, p.length, source, destination)
        p.offset += moved
        p.length -= moved
        if p.flags & PACKET_TRUNCATED:
            p.original_length -= moved

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef uint32_t taken = 0, before = batch.count
        if self.shared is None:
            return PcapSource.rx_burst(self, ctx, queue, batch, limit)
        if queue:
            return 0
        while taken < limit and self.shared.next_ns <= ctx.now_ns and self.shared.side == self.side:
            self.record, self.next_ns = self.shared.record, self.shared.next_ns
            self.deliver(ctx, queue, batch)
            self.taken += 1
            self.cut += self.record.captured < self.record.original
            taken += 1
            self.shared.advance()
        self.next_ns = self.shared.next_ns
        return batch.count - before
