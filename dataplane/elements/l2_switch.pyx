"""L2Switch. The contract is in l2_switch.pxd."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memmove, memset
from dataplane.element cimport NEVER, Element
from dataplane.elements.mac_table cimport LEARN_MOVED, LEARN_NEW, LEARN_REFUSED, MAX_PORTS, MacTable, mac_key
from dataplane.packet cimport NO_PACKET, PACKET_PARSED, Batch, Context, Packet, packet_copy, packet_data

from dataplane.errors import ConfigError

cdef enum:                       # DROP_REASONS
    DROP_UNKNOWN_PORT = 0
    DROP_RUNT = 1
    DROP_BAD_SOURCE = 2
    DROP_RESERVED = 3
    DROP_VLAN = 4
    DROP_HAIRPIN = 5
    DROP_NO_DESTINATION = 6
    DROP_NO_BUFFER = 7

cdef enum:                       # COUNTERS
    COUNT_LEARNED = 0
    COUNT_MOVED = 1
    COUNT_AGED = 2
    COUNT_REFUSED = 3
    COUNT_FLOODED = 4

cdef enum:
    ETHERNET = 14                # bytes of an untagged header
    TAG = 4                      # bytes of a VLAN tag
    TICK_NS = 100000000          # between two slices of ageing


cdef inline bint is_tagged(const uint8_t *data, uint32_t length) noexcept nogil:
    """An 802.1Q or 802.1ad tag, whole, behind the addresses."""
    return length >= ETHERNET + TAG and ((data[12] == 0x81 and data[13] == 0x00) or (data[12] == 0x88 and data[13] == 0xA8))


cdef inline uint32_t vlan_id(const uint8_t *data) noexcept nogil:
    return (<uint32_t>data[14] << 8 | data[15]) & 0xFFF


cdef class L2Switch(Element):
    """Forwards by destination address, learns from source addresses, VLAN by VLAN; what it does not know it floods.

    Synopsis:  switch = L2Switch(MacTable()); a.rx >> Parse() >> switch; switch[1] >> PortTx(b); switch.activate(1)
    Ports:     any number in (Packet.port says where a packet came from), one gate a port; gates may be added while it runs
    Config:    table; per port: a trunk of all VLANs (default), a trunk of some with an optional native VLAN, or an access port
    Counters:  learned, moved, aged, learn_refused (table, bucket or the port's share full), flooded; drops: unknown_port (not
               active), runt, bad_source (group or zero), reserved_multicast (01-80-C2-00-00-0X, 802.1Q 8.6.3), vlan_filtered,
               hairpin (its destination is where it came from), no_destination, no_buffer (a flooded copy)
    Handlers:  activate, deactivate: on the engine's thread
    Threads:   one engine an instance; instances share the table without locks
    Cost:      see dataplane/README.md

    Tags: an access port's frames have none, a trunk's have one except those of the native VLAN; the switch pushes and pops (802.1Q type
    8100). The outer tag decides, what is behind it is payload.
    """

    OUTPUTS = 0
    DROP_REASONS = ("unknown_port", "runt", "bad_source", "reserved_multicast", "vlan_filtered", "hairpin", "no_destination",
                    "no_buffer")
    COUNTERS = ("learned", "moved", "aged", "learn_refused", "flooded")

    def __cinit__(self, *args, **kwargs):
        memset(self.ports, 0, sizeof(self.ports))

    def __init__(self, MacTable table, uint32_t ports=0, *, name=None):
        self.table = table
        self.set_gates(ports)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(MAX_PORTS):
            free(self.ports[i])

    def activate(self, uint32_t port, *, access=None, trunk=None, native=None):
        """Opens a port: a trunk of all VLANs, or of those in `trunk` (untagged frames belong to `native`), or an access port.
        Raises ConfigError for a port without a gate and for VLANs outside 1 to 4094."""
        if port >= self.gate_count or port >= MAX_PORTS:
            raise ConfigError(f"{self.name}: port {port}: there is no such gate; it has {self.gate_count}")
        for vlan in (access, native, *(trunk or ())):
            if vlan is not None and not 1 <= vlan <= 4094:
                raise ConfigError(f"{self.name}: port {port}: VLAN {vlan}; want 1 to 4094")
        if access is not None and (trunk is not None or native is not None):
            raise ConfigError(f"{self.name}: port {port}: is either an access port or a trunk")
        cdef SwitchPort *state = <SwitchPort *>calloc(1, sizeof(SwitchPort))
        if state == NULL:
            raise MemoryError(self.name)
        state.access, state.native, state.all_vlans = access or 0, native or 0, trunk is None and access is None
        for vlan in (*(trunk or ()), *((native,) if native is not None else ()), *((access,) if access is not None else ())):
            state.allowed[vlan >> 3] |= <uint8_t>(1 << (vlan & 7))
        self.deactivate(port)
        self.ports[port] = state
        self.active[self.active_count] = port
        self.active_count += 1

    def deactivate(self, uint32_t port):
        """Closes a port: nothing is taken from it or sent to it any more. Its addresses stay in the table until
        `MacTable.forget_port`."""
        cdef uint32_t i, kept = 0
        if port >= MAX_PORTS or self.ports[port] == NULL:
            return
        free(self.ports[port])
        self.ports[port] = NULL
        for i in range(self.active_count):
            if self.active[i] != port:
                self.active[kept] = self.active[i]
                kept += 1
        self.active_count = kept

    def describe(self):
        return {"ports": self.active_count, "table": self.table.capacity}

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint64_t now_ms = ctx.now_ns // 1000000, key, learned_key = 0, looked_key = 0
        cdef uint32_t i, index, learned_port = 0
        cdef int vlan, out = -1
        cdef SwitchPort *port
        cdef Packet *p
        cdef uint8_t *data
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            data = packet_data(ctx, index)
            port = self.ports[p.port] if p.port < MAX_PORTS else NULL
            if port == NULL:
                self.drop(ctx, index, DROP_UNKNOWN_PORT)
                continue
            if p.length < ETHERNET:
                self.drop(ctx, index, DROP_RUNT)
                continue
            if data[6] & 1 or not (data[6] | data[7] | data[8] | data[9] | data[10] | data[11]):
                self.drop(ctx, index, DROP_BAD_SOURCE)
                continue
            if data[0] == 0x01 and data[1] == 0x80 and data[2] == 0xC2 and not (data[3] | data[4] | (data[5] & 0xF0)):
                self.drop(ctx, index, DROP_RESERVED)
                continue
            vlan = self.ingress_vlan(ctx, index, port)
            if vlan == NO_VLAN:
                self.drop(ctx, index, DROP_VLAN)
                continue
            data = packet_data(ctx, index)       # a tag may have been popped
            key = mac_key(data + 6, vlan)
            # Most packets of a batch are of one flow: what the last one learned and found holds for the next.
            if key != learned_key or p.port != learned_port:
                self.note(ctx, self.table.learn(key, p.port, now_ms))
                learned_key, learned_port = key, p.port
                looked_key = 0                   # it may be the very address that was looked up
            if data[0] & 1:
                self.flood(ctx, index, vlan)
                continue
            key = mac_key(data, vlan)
            if key != looked_key:
                out = self.table.lookup(key)
                looked_key = key
            if out < 0 or <uint32_t>out >= MAX_PORTS:
                self.flood(ctx, index, vlan)
            elif <uint32_t>out == p.port:
                self.drop(ctx, index, DROP_HAIRPIN)
            elif not carries(self.ports[out], vlan):
                self.drop(ctx, index, DROP_NO_DESTINATION)
            else:
                self.send(ctx, index, out, vlan)
        self.flush(ctx)

    cdef void note(self, Context *ctx, int learned) noexcept nogil:
        """Counts what learning did; the first address starts the ageing."""
        if learned == LEARN_NEW:
            self.counters.extra[COUNT_LEARNED] += 1
        elif learned == LEARN_MOVED:
            self.counters.extra[COUNT_MOVED] += 1
        elif learned == LEARN_REFUSED:
            self.counters.extra[COUNT_REFUSED] += 1
        if self.deadline_ns == NEVER:
            self.deadline_ns = ctx.now_ns + TICK_NS

    cdef int ingress_vlan(self, Context *ctx, uint32_t index, const SwitchPort *port) noexcept nogil:
        """The VLAN that the frame belongs to; a priority tag (VLAN 0) is popped. NO_VLAN: the port does not carry it."""
        cdef uint8_t *data = packet_data(ctx, index)
        cdef uint32_t vlan = 0
        if is_tagged(data, ctx.packets[index].length):
            vlan = vlan_id(data)
            if vlan == 0 and not port.all_vlans:
                pop_tag(ctx, index)
            elif port.access:
                return NO_VLAN               # 802.1Q 6.9: an access port admits untagged frames only
        if vlan == 0:
            vlan = port.access or port.native
        return vlan if carries(port, vlan) else NO_VLAN

    cdef void flood(self, Context *ctx, uint32_t index, uint32_t vlan) noexcept nogil:
        """To every other active port of the VLAN: copies to all but the last, which gets the packet itself."""
        cdef uint32_t i, out, copy, last = MAX_PORTS
        cdef uint32_t ingress = ctx.packets[index].port
        for i in range(self.active_count):
            out = self.active[i]
            if out == ingress or not carries(self.ports[out], vlan):
                continue
            if last != MAX_PORTS:
                copy = packet_copy(ctx, index)
                self.counters.generated += 1
                if copy == NO_PACKET:
                    self.counters.drops[DROP_NO_BUFFER] += 1
                else:
                    self.send(ctx, copy, last, vlan)
            last = out
        if last == MAX_PORTS:
            self.drop(ctx, index, DROP_NO_DESTINATION)
            return
        self.counters.extra[COUNT_FLOODED] += 1
        self.send(ctx, index, last, vlan)

    cdef void send(self, Context *ctx, uint32_t index, uint32_t out, uint32_t vlan) noexcept nogil:
        """Stages the packet for a port that carries its VLAN, tagged as that port wants it."""
        cdef SwitchPort *port = self.ports[out]
        cdef uint8_t *data = packet_data(ctx, index)
        cdef bint tagged = is_tagged(data, ctx.packets[index].length) and vlan_id(data) != 0
        cdef bint wanted = vlan != 0 and vlan != port.access and vlan != port.native
        if tagged and not wanted:
            pop_tag(ctx, index)
        elif wanted and not tagged:
            if ctx.packets[index].offset < 64:   # the headroom is used up: cannot happen with one push a pass, and must not
                self.drop(ctx, index, DROP_NO_BUFFER)
                return
            push_tag(ctx, index, vlan)
        self.stage(ctx, out, index)

    cdef void tick(self, Context *ctx) noexcept nogil:
        cdef uint32_t slots = self.table.header.slots
        self.counters.extra[COUNT_AGED] += self.table.expire(self.ageing_cursor, AGEING_SLICE, ctx.now_ns // 1000000)
        self.ageing_cursor = (self.ageing_cursor + AGEING_SLICE) & (slots - 1) if slots > AGEING_SLICE else 0
        self.deadline_ns = ctx.now_ns + TICK_NS if self.table.header.count else NEVER


cdef inline bint carries(const SwitchPort *port, uint32_t vlan) noexcept nogil:
    """Whether frames of the VLAN (0: of none) may pass the port."""
    if port == NULL:
        return False
    return port.all_vlans or (port.allowed[vlan >> 3] >> (vlan & 7)) & 1


cdef void move_offsets(Packet *p, int bytes) noexcept nogil:
    """What the record says of places behind the Ethernet addresses moves with them."""
    p.offset = <uint16_t>(p.offset - bytes)
    p.length += bytes
    if p.csum_start:
        p.csum_start = <uint16_t>(p.csum_start + bytes)
    if p.header_length:
        p.header_length = <uint16_t>(p.header_length + bytes)
    if not p.flags & PACKET_PARSED:
        return
    p.l3_offset = <uint16_t>(p.l3_offset + bytes)
    if p.l4_offset:
        p.l4_offset = <uint16_t>(p.l4_offset + bytes)
    if p.payload_offset:
        p.payload_offset = <uint16_t>(p.payload_offset + bytes)


cdef void pop_tag(Context *ctx, uint32_t index) noexcept nogil:
    cdef Packet *p = &ctx.packets[index]
    cdef uint8_t *data = packet_data(ctx, index)
    memmove(data + TAG, data, 12)
    move_offsets(p, -TAG)
    if p.flags & PACKET_PARSED and p.vlan_count:
        p.vlan_count -= 1
        p.vlan_tci = p.vlan_inner_tci


cdef void push_tag(Context *ctx, uint32_t index, uint32_t vlan) noexcept nogil:
    cdef Packet *p = &ctx.packets[index]
    cdef uint8_t *data = packet_data(ctx, index)
    memmove(data - TAG, data, 12)
    move_offsets(p, TAG)
    data = packet_data(ctx, index)
    data[12], data[13], data[14], data[15] = 0x81, 0x00, <uint8_t>(vlan >> 8), <uint8_t>vlan
    if p.flags & PACKET_PARSED:
        p.vlan_inner_tci = p.vlan_tci
        p.vlan_tci = <uint16_t>vlan
        p.vlan_count = 2 if p.vlan_count else 1
