"""L2Switch. The contract is in l2_switch.pxd."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from dataplane.graph.element cimport NEVER, Element
from switching.mac_table cimport (LEARN_AGED, LEARN_KNOWN, LEARN_NEW, LEARN_REFUSED, MAX_PORTS,
                                  MacTable, Place, mac_key, mac_place)
from dataplane.graph.flood_credit cimport flood_refuse, flood_spend
from dataplane.packet.pool cimport (BATCH_MAX, NO_PACKET, PACKET_PARSED, Batch, Context, Packet,
                                    packet_copy, packet_data)
from dataplane.packet.queue cimport (pool_records, queue_head, queue_indices, queue_length,
                                     queue_packed)
from dataplane.vatomic cimport va_load_relaxed_u32
from dataplane.wire.headers cimport ETHERNET_BYTES, VLAN_BYTES, VLAN_ID_MASK, load_be16, store_be16

from switching.mac_table import _key
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from dataplane.packet.queue import with_packed_packets

cdef enum:                       # DROP_REASONS
    DROP_UNKNOWN_PORT = 0
    DROP_RUNT = 1
    DROP_BAD_SOURCE = 2
    DROP_RESERVED = 3
    DROP_VLAN = 4
    DROP_HAIRPIN = 5
    DROP_NO_DESTINATION = 6
    DROP_NO_BUFFER = 7
    DROP_SPOOFED = 8
    DROP_FLOOD_LIMIT = 9
    DROP_RELEASED = 10

cdef enum:                       # COUNTERS
    COUNT_LEARNED = 0
    COUNT_MOVED = 1
    COUNT_AGED = 2
    COUNT_REFUSED = 3
    COUNT_FLOODED = 4

cdef enum:
    FLOOD = 0x10000              # beyond all outputs
    ALL_SENT = 0x10000           # beyond all ports
    NO_VLAN = -1                 # the port does not carry the frame
    TAGGED_BYTES = ETHERNET_BYTES + VLAN_BYTES
    HEADROOM_KEPT = 16           # bytes before a frame, for a port's virtio-net header
    VLAN_MAX = 4094              # 4095 is reserved (802.1Q, table 9-2)

cdef enum:
    NS_A_MS = 1000000

# Constants of the compiler, not variables, which every frame would load. MIX: 2^64 / golden ratio,
# so that the upper half of a product depends on all bits; GROUP: an address's group bit; RESERVED:
# 01-80-C2-00-00-00 to -0F (802.1Q, table 8-1).
cdef extern from *:
    """
    #define VNIC_MIX 0x9E3779B97F4A7C15ULL
    #define VNIC_GROUP (1ULL << 40)
    #define VNIC_RESERVED 0x0180C2000000ULL
    """
    const uint64_t MIX "VNIC_MIX"
    const uint64_t GROUP "VNIC_GROUP"
    const uint64_t RESERVED "VNIC_RESERVED"

cdef uint64_t SWEEP_MIN_NS = 1000000000
cdef uint64_t SWEEP_MAX_NS = 30000000000


cdef inline bint has_tag(const uint8_t *data) noexcept nogil:
    """Whether the frame has an 802.1Q or 802.1ad tag."""
    cdef uint16_t ethertype = load_be16(data + 12)
    return ethertype == 0x8100 or ethertype == 0x88A8


cdef inline bint carries(const SwitchPort *port, uint32_t vlan) noexcept nogil:
    return (port.carries[vlan >> 3] >> (vlan & 7)) & 1


cdef inline const Place *known_place(L2Switch self, uint64_t key) noexcept nogil:
    """The buckets of an address, cached; valid until the next call. For lone packets, where the
    hash costs more than the rest of the lookup. In a burst, hashes are computed in parallel, and
    the cache was measured 20 % slower."""
    cdef KnownPlace *known = &self.places[((key * MIX) >> 32) % PLACES]
    if known.key != key:
        known.key, known.place = key, mac_place(self.table, key)
    return &known.place


cdef inline bint learn(L2Switch self, Context *ctx, const Place *place, uint64_t key, uint32_t port,
                       uint64_t now_ms, Flows *flows) noexcept nogil:
    """Learns a source address; False: the table refused it."""
    cdef int learned = self.table.learn(place, key, port, now_ms)
    if self.deadline_ns == NEVER:
        self.set_timer(ctx, ctx.now_ns + self.tick_ns)   # the table is no longer empty
    if learned == LEARN_KNOWN:
        return True
    if learned == LEARN_REFUSED:
        self.counters.extra[COUNT_REFUSED] += 1
        return False
    flows.valid = 0                                      # the change may affect cached verdicts
    if learned == LEARN_NEW or learned == LEARN_AGED:
        self.counters.extra[COUNT_LEARNED] += 1
        self.counters.extra[COUNT_AGED] += learned == LEARN_AGED
    else:
        self.counters.extra[COUNT_MOVED] += 1
    return True


cdef inline int unfit(L2Switch self, const Packet *p, const uint8_t *data) noexcept nogil:
    """Checks that precede reading the addresses: -1 - drop reason, or 0."""
    if p.port >= MAX_PORTS or self.ports[p.port] == NULL:
        return -1 - DROP_UNKNOWN_PORT
    if p.length < TAGGED_BYTES and (p.length < ETHERNET_BYTES or has_tag(data)):
        return -1 - DROP_RUNT
    return 0


cdef inline Verdict rule(L2Switch self, Context *ctx, const uint8_t *data, uint32_t ingress,
                         Flows *flows, bint *refused,
                         bint alone) noexcept nogil:
    """See L2Switch.decide. alone: see `known_place`; callers pass a constant, so that the compiler
    makes a version for each."""
    cdef SwitchPort *port = self.ports[ingress]
    cdef uint64_t destination = mac_key(data, 0) >> 16, source = mac_key(data + 6, 0) >> 16
    cdef uint64_t source_key, destination_key, now_ms = ctx.now_ns // NS_A_MS
    cdef Place source_place, destination_place
    cdef Verdict verdict
    cdef int vlan, out
    verdict.vlan = verdict.retag = 0
    if source == 0 or source & GROUP:
        verdict.out = -1 - DROP_BAD_SOURCE
        return verdict
    if port.source and source != port.source:
        verdict.out = -1 - DROP_SPOOFED
        return verdict
    if destination & ~<uint64_t>0xF == RESERVED:
        verdict.out = -1 - DROP_RESERVED
        return verdict
    vlan = ingress_vlan(data, port)
    if vlan == NO_VLAN:
        verdict.out = -1 - DROP_VLAN
        return verdict
    verdict.vlan = <uint16_t>vlan
    source_key, destination_key = mac_key(data + 6, vlan), mac_key(data, vlan)
    out = -1
    if alone:
        learn(self, ctx, known_place(self, source_key), source_key, ingress, now_ms, flows)
        if not destination & GROUP:
            out = self.table.lookup(known_place(self, destination_key), destination_key, now_ms)
    else:
        destination_place = mac_place(self.table, destination_key)
        if source_key != flows.source_key or ingress != flows.source_port:
            vnic_prefetch(destination_place.bucket[0])       # while the source is learned
            source_place = mac_place(self.table, source_key)
            refused[0] = not learn(self, ctx, &source_place, source_key, ingress, now_ms, flows)
            flows.source_key, flows.source_port = 0 if refused[0] else source_key, ingress
        if not destination & GROUP:
            out = self.table.lookup(&destination_place, destination_key, now_ms)
    if out < 0:
        verdict.out, verdict.retag = FLOOD, 1
    elif <uint32_t>out == ingress:
        verdict.out = -1 - DROP_HAIRPIN
    elif not self.takes(out, vlan):
        verdict.out = -1 - DROP_NO_DESTINATION
    else:
        verdict.out, verdict.retag = out, not (port.plain and self.ports[out].plain)
    return verdict


@cython.final
cdef class L2Switch(Element):
    """Forwards by destination address and learns source addresses, per VLAN; floods frames to
    unknown addresses.

    Synopsis:  switch = L2Switch(MacTable(), 2); a.rx >> Parse() >> switch;
               switch[1] >> PortTx(b); switch.activate(1)
    Ports:     any number of inputs (Packet.port is a packet's ingress port), one output per port,
               at most 1024. set_gates, connect, activate and deactivate work while it runs, on its
               engine's thread. A frame never leaves through its ingress port.
    Config:    table; ports: initial number of ports; per port (`activate`): a trunk of all VLANs, a
               trunk of some with an optional native VLAN, an access port, or a port for untagged
               frames only; and the only permitted source address
    Counters:  learned, moved, aged, learn_refused (frames whose source the table had no room for,
               see MacTable), flooded (frames to a group or an unknown address)
               Drops: unknown_port (not active), runt (shorter than its header and tag), bad_source
               (group or zero address), reserved_multicast (01-80-C2-00-00-0X, which bridges do not
               forward: 802.1Q, 8.6.3), vlan_filtered, hairpin (the destination is at the ingress
               port), no_destination (no other active port carries its VLAN), no_buffer (for a
               flooded copy, or no headroom for a tag), spoofed (not the port's permitted source
               address), flood_limit (64 packets of its port, or 256 in all, were waiting to be
               flooded), released (waiting to be flooded when the switch was removed)
    Handlers:  counters; ports (read): each open port's VLANs; table (read): the known addresses;
               flush (write, live): forget addresses: "all" learned ones, those learned at a port
               {"port": 3}, or one, also a static one, {"mac": "02:00:00:00:00:01", "vlan": 10}, in
               all VLANs without vlan. table and flush access the table that all instances share,
               without waiting for an engine.
    Threads:   one engine per instance; instances share the table without locks
    Cost:      see dataplane/README.md

    The outer tag (type 8100 or 88A8) selects the VLAN; everything behind it is payload. An access
    port, or one for untagged frames only, filters tagged frames. It accepts a priority tag (VLAN 0)
    unless another tag follows: after removal of the first tag, the second one would select a VLAN.
    A trunk accepts two tags. Frames leave without a tag through an access port or in a trunk's
    native VLAN, else with one (pushed with type 8100 and priority 0; a priority tag gets the VLAN
    and keeps its priority). A trunk of all VLANs without a native one passes frames unchanged; its
    untagged frames are VLAN 0, which only such trunks and ports without tags carry.

    A port with a `source` (Linux's spoofchk of a virtual function) drops frames from other
    addresses without learning them. Only the Ethernet source is compared: ARP and IP may still
    claim any address.

    Flooding copies the frame for each further port of the VLAN. flood_credit.pxd bounds an engine's
    copies: a packet that exceeds the bound waits and continues in the next iteration, round-robin
    with those of other ports, so that one port's broadcasts do not delay the packets of others. At
    most 64 packets of a port wait, and 256 in all. The engine pauses the source of a port that has
    packets waiting and sends more than these.
    """

    OUTPUTS = 0
    DROP_REASONS = ("unknown_port", "runt", "bad_source", "reserved_multicast", "vlan_filtered",
                    "hairpin", "no_destination", "no_buffer", "spoofed", "flood_limit", "released")
    COUNTERS = ("learned", "moved", "aged", "learn_refused", "flooded")
    STATE_VERSION = 4
    # Missing counters are 0; before version 3 no packet waited.
    UPGRADES = {1: lambda entry: entry,
                2: lambda entry: {**entry,
                                  "state": {**entry["state"], "packets": [], "floods": []}},
                3: with_packed_packets}
    TICKS = True
    DEFERRABLE = True            # lookups ignore aged entries: an idle engine need not wake to age
    HANDLERS = {
        "ports": Handler(read="get_ports", help="open ports and their VLANs"),
        "table": Handler(read="get_table", shared=True,
                         help="addresses known, by VLAN, with port and age"),
        # live, since an entry is removed by a single atomic operation
        "flush": Handler(write="prepare_flush", shared=True,
                         help='forget addresses: "all" (that were learned), {"port": 3}, '
                              'or {"mac": "02:00:00:00:00:01", "vlan": 10}'),
    }

    def __init__(self, MacTable table not None, uint32_t ports=0, *, name=None):
        self.set_table(table)
        self.set_gates(ports)

    def __dealloc__(self):
        cdef int i
        for i in range(MAX_PORTS):
            free(self.ports[i])
        free(self.floods)

    # -- control, on the engine's thread -----------------------------------------------------------

    def set_table(self, MacTable table not None):
        """Goes by another table from the next batch on."""
        # A sweep of the table takes a tenth of the ageing time: lookups ignore aged entries, the
        # sweep only frees their slots.
        cdef uint64_t sweep_ns = min(max(<uint64_t>table.ageing_ns // 10, SWEEP_MIN_NS),
                                     SWEEP_MAX_NS)
        self.tick_ns = sweep_ns
        if table.header.slots > AGEING_SLICE:
            self.tick_ns = max(sweep_ns * AGEING_SLICE // table.header.slots, <uint64_t>1000000)
        self.table = table
        memset(&self.places[0], 0, sizeof(self.places))          # places in the table before
        if self.engine is not None and va_load_relaxed_u32(&table.header.count):
            self.deadline_ns = <uint64_t>self.engine.clock.now_ns + self.tick_ns

    cpdef int set_gates(self, uint32_t count) except -1:
        """Changes the number of outputs; deactivates ports whose outputs are removed."""
        cdef int port
        if count > MAX_PORTS:
            raise ConfigError(f"{self.name}: {count} ports: expected at most {MAX_PORTS}")
        for port in range(<int>count, MAX_PORTS):
            self.deactivate(port)
        return Element.set_gates(self, count)

    def activate(self, uint32_t port, *, access=None, trunk=None, native=None, bint untagged=False,
                 source=None):
        """Opens a port, or changes an open one.

        It becomes a trunk of all VLANs (default), a trunk of the VLANs in `trunk` with its untagged
        frames in VLAN `native`, an access port of VLAN `access`, or with `untagged` a port for
        untagged frames (VLAN 0) only. source: the only permitted source address, such as
        "02:00:00:00:00:01"; None: any. Raises ConfigError for a port without an output, a VLAN
        outside 1 to 4094 and an invalid address.
        """
        cdef SwitchPort *state
        cdef uint32_t vlan, place
        if port >= self.gate_count:
            raise ConfigError(f"{self.name}: port {port}: there is no such gate; "
                              f"it has {self.gate_count}")
        if access is not None and (trunk is not None or native is not None):
            raise ConfigError(f"{self.name}: port {port}: is either an access port or a trunk; "
                              "give access alone, or trunk and native")
        if untagged and (access is not None or trunk is not None or native is not None):
            raise ConfigError(f"{self.name}: port {port}: untagged frames only are VLAN 0's; "
                              "give untagged alone")
        cdef uint64_t only = 0 if source is None else <uint64_t>_key(source, 0) >> 16
        if untagged:
            vlans = []
        elif access is not None:
            vlans = [access]
        else:
            vlans = list(range(1, VLAN_MAX + 1) if trunk is None else trunk)
        for number in vlans + ([] if native is None else [native]):
            if type(number) is not int or not 1 <= number <= VLAN_MAX:
                raise ConfigError(f"{self.name}: port {port}: VLAN {number!r}: "
                                  f"expected 1 to {VLAN_MAX}")
        state = self.ports[port]
        if state == NULL:
            state = <SwitchPort *>calloc(1, sizeof(SwitchPort))
            if state == NULL:
                raise MemoryError(f"{self.name}: port {port}")
            self.ports[port] = state
            place = self.active_count
            # sorted: a flood continues by number
            while place and self.active[place - 1] > port:
                self.active[place] = self.active[place - 1]
                place -= 1
            self.active[place] = <uint16_t>port
            self.active_count += 1
        state.access, state.native, state.source = access or 0, native or 0, only
        state.one_vlan = untagged or access is not None
        state.plain = access is None and trunk is None and native is None
        for i in range(sizeof(state.carries)):
            state.carries[i] = 0
        for vlan in vlans + [each for each in (native,) if each] + [0] * state.plain:
            state.carries[vlan >> 3] |= <uint8_t>(1 << (vlan & 7))

    def deactivate(self, uint32_t port):
        """Closes a port, if it is open: drops all frames from it and to it. Its addresses stay in
        the table until `MacTable.forget_port`."""
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

    @property
    def active_ports(self):
        """Numbers of the open ports, in flooding order."""
        return [self.active[i] for i in range(self.active_count)]

    def get_ports(self):
        """The open ports by number, each {"port", "access"}, {"port", "untagged": True} or {"port",
        "trunk", "native"}, with VLANs such as "1-4094" or "10,20-29". With native None, a trunk of
        all VLANs passes untagged frames unchanged, other trunks filter them. An optional "source"
        is the only permitted source address."""
        cdef SwitchPort *state
        found = []
        for number in sorted(self.active_ports):
            state = self.ports[<uint32_t>number]
            if state.access:
                found.append({"port": number, "access": state.access})
            elif state.one_vlan:
                found.append({"port": number, "untagged": True})
            else:
                found.append({"port": number, "trunk": vlan_ranges(state),
                              "native": state.native or None})
            if state.source:
                found[len(found) - 1]["source"] = int(state.source).to_bytes(6, "big").hex(":")
        return found

    def get_table(self):
        """See MacTable.entries. Callable from any thread."""
        return self.table.entries(now_ns=None if self.engine is None else self.engine.clock.now_ns)

    def prepare_flush(self, which=None):
        """A function that forgets addresses, see Handlers, and returns their number. Raises
        ConfigError."""
        which = {} if which is None or which == "all" else which
        if not isinstance(which, dict) or set(which) not in (set(), {"port"}, {"mac"},
                                                             {"mac", "vlan"}):
            raise ConfigError(f"{self.name}: flush: {str(which)[:60]!r}: expected all, "
                              '{"port": 3} or {"mac": "02:00:00:00:00:01", "vlan": 10}')
        port, vlan, mac = which.get("port"), which.get("vlan"), which.get("mac")
        for what, number, most in (("port", port, MAX_PORTS - 1), ("vlan", vlan, VLAN_MAX)):
            if what in which and (type(number) is not int or not 0 <= number <= most):
                raise ConfigError(f"{self.name}: flush: {what} {str(number)[:60]!r}: "
                                  f"expected 0 to {most}")
        if "mac" not in which:
            if port is not None and self.ports[<uint32_t>port] == NULL and not any(
                    entry["port"] == port for entry in self.get_table()):
                open_ports = ", ".join(str(number) for number in range(MAX_PORTS)
                                       if self.ports[<uint32_t>number] != NULL)
                raise ConfigError(f"{self.name}: flush: there is no port {port}; "
                                  f"open ports: {open_ports or 'none'}")
            return lambda: self.table.forget_learned(port)
        _key(mac, vlan or 0)             # raises for an invalid address
        return lambda: sum(self.table.forget(mac, each)
                           for each in (range(VLAN_MAX + 1) if vlan is None else [vlan]))

    def initialize(self):
        self.floods_most = max(min(self.engine.pool.large_count // 4, <uint32_t>FLOODS_OF_ALL),
                               <uint32_t>1)
        # an inherited table must age even if no frame teaches a new address
        if va_load_relaxed_u32(&self.table.header.count):
            self.deadline_ns = self.engine.clock.now_ns + self.tick_ns

    def companions(self):
        return (self.table,)

    def save_state(self):
        """`ageing_ns`: when the next slice of the table is due for ageing, or None. `floods`:
        [ingress port, number of packets] for packets that wait to be flooded, in round-robin order;
        `packets`: these packets, packed, port by port. Ports are configuration, addresses are in
        the table's segment."""
        cdef Context records
        cdef Floods *waiting
        cdef uint32_t i
        floods, packets = [], b""
        pool_records(self.engine.pool, &records)
        for i in range(self.flooding_count):
            waiting = &self.floods[self.flooding[i]]
            floods.append([self.flooding[i], waiting.count])
            packets += queue_packed(records.packets, waiting.head, waiting.count)
        return {"ageing_ns": None if self.deadline_ns == NEVER else self.deadline_ns,
                "floods": floods, "packets": packets}

    def load_state(self, dict state):
        cdef Context records
        cdef uint32_t port, count, place = 0
        cdef list floods
        cdef bytes packets
        cdef const uint32_t *indices
        if set(state) != {"ageing_ns", "floods", "packets"}:
            raise VnicError(f"{self.name}: its state is not that of an L2Switch")
        due = state["ageing_ns"]
        if due is not None and (type(due) is not int
                                or not 0 <= due <= self.engine.clock.now_ns + self.tick_ns):
            raise VnicError(f"{self.name}: ageing is due at {due!r}: "
                            f"expected an instant up to {self.tick_ns} ns from now")
        pool_records(self.engine.pool, &records)
        try:
            floods, packets = state["floods"], state["packets"]
            if (len({port for port, _ in floods}) != len(floods)
                    or sum(count for _, count in floods) * 4 != len(packets)):
                raise ValueError("ports do not fit packets")
            if self.counters.held != queue_length(packets):
                raise ValueError(f"{queue_length(packets)} packets, "
                                 f"and its counters say {self.counters.held}")
            for port, count in floods:
                if port >= MAX_PORTS or not 0 < count <= FLOODS_MOST:
                    raise ValueError(f"port {port}, {count} packets")
                queue_head(records.packets, records.total_count,
                           packets[4 * place:4 * (place + count)])
                place += count
        except (IndexError, TypeError, ValueError, OverflowError) as error:
            raise VnicError(f"{self.name}: its state is not that of an L2Switch: {error}") from None
        if floods and not self.make_floods():
            raise MemoryError(f"{self.name}: floods")
        place = self.flooding_count = 0
        indices = queue_indices(packets)
        for port, count in floods:
            self.floods[port].head = indices[place]
            self.floods[port].tail = indices[place + count - 1]
            self.floods[port].count = count
            self.flooding[self.flooding_count] = <uint16_t>port
            self.flooding_count += 1
            place += count
        self.deadline_ns = NEVER if due is None else due

    def forget_state(self):
        self.finish_early()
        self.flooding_count = 0
        if self.floods != NULL:
            memset(self.floods, 0, MAX_PORTS * sizeof(Floods))
        Element.forget_state(self)

    def release(self):
        cdef Context *ctx = self.unfinished_in
        cdef Floods *waiting
        cdef uint32_t i, index
        self.finish_early()
        for i in range(self.flooding_count if ctx != NULL else 0):
            waiting = &self.floods[self.flooding[i]]
            while waiting.count:
                index = waiting.head
                waiting.head = ctx.packets[index].next
                waiting.count -= 1
                self.counters.held -= 1
                self.drop(ctx, index, DROP_RELEASED)
        self.flooding_count = 0

    def describe(self):
        return {"ports": self.active_count, "table": self.table.capacity}

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef Verdict verdicts[BATCH_MAX]
        cdef Verdict verdict
        cdef Flows flows
        cdef uint32_t i
        cdef bint whole = True               # the whole batch leaves unchanged through one output
        # a lone packet needs no Flows: the packet that ends a sleep, most instants of a replay
        if batch.count == 1:
            verdict = self.judge_alone(ctx, batch.index[0])
            if 0 <= verdict.out < FLOOD and not verdict.retag:
                self.emit(ctx, <uint32_t>verdict.out, batch)
            else:
                self.carry_out(ctx, batch.index[0], verdict)
                self.flush(ctx)
            return
        flows.valid = 0
        flows.source_key = 0
        for i in range(batch.count):
            if i + PREFETCH_AHEAD < batch.count:
                vnic_prefetch(&ctx.packets[batch.index[i + PREFETCH_AHEAD]])
            verdicts[i] = self.judge(ctx, batch.index[i], &flows)
            whole = whole and verdicts[i].out == verdicts[0].out and not verdicts[i].retag
        if whole and batch.count and 0 <= verdicts[0].out < FLOOD:
            self.emit(ctx, <uint32_t>verdicts[0].out, batch)
            return
        for i in range(batch.count):
            self.carry_out(ctx, batch.index[i], verdicts[i])
        self.flush(ctx)

    cdef Verdict judge_alone(self, Context *ctx, uint32_t index) noexcept nogil:
        """`judge` for the only packet of a batch."""
        cdef Packet *p = &ctx.packets[index]
        cdef const uint8_t *data = packet_data(ctx, index)
        cdef Flows flows
        cdef Verdict verdict
        cdef bint refused = False
        verdict.out = unfit(self, p, data)
        if verdict.out < 0:
            verdict.vlan = verdict.retag = 0
            return verdict
        flows.source_key = 0
        return rule(self, ctx, data, p.port, &flows, &refused, True)

    cdef Verdict judge(self, Context *ctx, uint32_t index, Flows *flows) noexcept nogil:
        """The verdict on a packet, from `flows` if an earlier packet had the same headers."""
        cdef Packet *p = &ctx.packets[index]
        cdef const uint8_t *data = packet_data(ctx, index)
        cdef uint64_t words[2]
        cdef Verdict verdict
        cdef Flow *flow
        cdef uint32_t number
        cdef bint refused = False
        verdict.vlan = verdict.retag = 0
        verdict.out = unfit(self, p, data)
        if verdict.out < 0:
            return verdict
        if self.ports[p.port].one_vlan and has_tag(data):
            # not cached: the verdict also depends on the bytes after the tag, which Flow.words
            # lacks
            return self.decide(ctx, data, p.port, flows, &refused)
        # of a shorter frame the last two bytes are stale, but then no tag depends on them
        memcpy(words, data, 16)
        number = <uint32_t>(((words[0] + 3 * words[1]) * MIX) >> 32) % FLOWS
        flow = &flows.flow[number]
        if (flows.valid >> number & 1 and words[0] == flow.words[0] and words[1] == flow.words[1]
                and p.port == flow.port):
            self.counters.extra[COUNT_REFUSED] += flow.refused
            return flow.verdict
        flow.refused = False
        flow.words[0], flow.words[1], flow.port = words[0], words[1], p.port
        flow.verdict = self.decide(ctx, data, p.port, flows, &flow.refused)
        flows.valid |= <uint32_t>1 << number
        return flow.verdict

    cdef Verdict decide(self, Context *ctx, const uint8_t *data, uint32_t ingress, Flows *flows,
                        bint *refused) noexcept nogil:
        """Applies the forwarding rules to a frame of a burst and learns its source."""
        return rule(self, ctx, data, ingress, flows, refused, False)

    cdef bint takes(self, uint32_t out, uint32_t vlan) noexcept nogil:
        """Whether a frame of the VLAN may leave through a port. The number is untrusted: it may
        come from the shared table."""
        return (out < MAX_PORTS and self.ports[out] != NULL and self.gates[out] != NULL
                and carries(self.ports[out], vlan))

    cdef void carry_out(self, Context *ctx, uint32_t index, Verdict verdict) noexcept nogil:
        if verdict.out < 0:
            self.drop(ctx, index, <uint32_t>(-1 - verdict.out))
        elif verdict.out == FLOOD:
            self.flood(ctx, index, verdict)
            if self.staged_count >= STAGED_MOST:
                self.flush(ctx)
        else:
            self.send(ctx, index, <uint32_t>verdict.out, verdict)

    cdef void flood(self, Context *ctx, uint32_t index, Verdict verdict) noexcept nogil:
        """Sends a packet to every other active port of the VLAN, as far as this iteration's flood
        budget lasts; then the packet waits for the next iteration."""
        cdef uint32_t ingress = ctx.packets[index].port, at = 0
        if (self.floods == NULL or self.floods[ingress].count == 0) and ctx.flood_budget:
            at = self.copy_out(ctx, index, ingress, verdict.vlan, 0)
            if at == ALL_SENT:
                return
        if (not self.make_floods() or self.floods[ingress].count >= FLOODS_MOST
                or self.counters.held >= self.floods_most):
            # not for a port that others leave no room
            if self.floods != NULL and self.floods[ingress].count:
                flood_refuse(ctx)
            self.drop(ctx, index, DROP_FLOOD_LIMIT)
            return
        self.queue_flood(ctx, index, ingress, verdict.vlan, at)

    cdef bint make_floods(self) noexcept nogil:
        if self.floods == NULL:
            self.floods = <Floods *>calloc(MAX_PORTS, sizeof(Floods))
        return self.floods != NULL

    cdef void queue_flood(self, Context *ctx, uint32_t index, uint32_t ingress, uint32_t vlan,
                          uint32_t at) noexcept nogil:
        """Appends a packet to its ingress port's queue of packets to be flooded. at: the port to
        continue with."""
        cdef Floods *waiting = &self.floods[ingress]
        ctx.packets[index].next = NO_PACKET
        ctx.packets[index].release_ns = <uint64_t>vlan << 32 | at
        if waiting.count:
            ctx.packets[waiting.tail].next = index
        else:
            waiting.head = index
            self.flooding[self.flooding_count] = <uint16_t>ingress
            self.flooding_count += 1
        waiting.tail = index
        waiting.count += 1
        self.counters.held += 1
        self.postpone(ctx)

    cdef void resume(self, Context *ctx) noexcept nogil:
        """Continues to flood waiting packets, as far as this iteration's flood budget lasts, in
        round-robin order of their ingress ports."""
        cdef uint32_t i, ingress, index, at, left = self.flooding_count
        cdef Floods *waiting
        while left and ctx.flood_budget:
            ingress = self.flooding[0]
            waiting = &self.floods[ingress]
            index = waiting.head
            # read before `send` may free the packet
            waiting.head = ctx.packets[index].next
            at = self.copy_out(ctx, index, ingress,
                               ctx.packets[index].release_ns >> 32 & VLAN_ID_MASK,
                               <uint32_t>ctx.packets[index].release_ns)
            if at == ALL_SENT:
                waiting.count -= 1
                self.counters.held -= 1
            else:
                ctx.packets[index].release_ns = (ctx.packets[index].release_ns
                                                 & <uint64_t>0xFFFFFFFF00000000 | at)
                waiting.head = index
            left -= waiting.count == 0
            for i in range(1, self.flooding_count):
                self.flooding[i - 1] = self.flooding[i]
            if waiting.count:
                self.flooding[self.flooding_count - 1] = <uint16_t>ingress
            else:
                self.flooding_count -= 1
        self.flush(ctx)
        if self.flooding_count:
            self.postpone(ctx)

    cdef void take_up(self, Context *ctx) noexcept nogil:
        if self.flooding_count:
            self.postpone(ctx)

    cdef uint32_t first_active(self, uint32_t number) noexcept nogil:
        """Place in `active` of the first port with this or a higher number."""
        cdef uint32_t low = 0, high = self.active_count, middle
        while low < high:
            middle = (low + high) // 2
            if self.active[middle] < number:
                low = middle + 1
            else:
                high = middle
        return low

    cdef uint32_t next_taker(self, uint32_t place, uint32_t ingress, uint32_t vlan) noexcept nogil:
        """The first place in `active`, from `place` on, whose port takes a frame flooded from
        `ingress`; active_count: none."""
        while place < self.active_count and (self.active[place] == ingress
                                             or not self.takes(self.active[place], vlan)):
            place += 1
        return place

    cdef uint32_t copy_out(self, Context *ctx, uint32_t index, uint32_t ingress, uint32_t vlan,
                           uint32_t at) noexcept nogil:
        """Sends copies to the ports from number `at` on, at least one, and the packet itself to the
        last port. Returns ALL_SENT, or the port to continue with in the next iteration."""
        cdef uint32_t place = self.next_taker(self.first_active(at), ingress, vlan), following, copy
        cdef Verdict verdict
        verdict.out, verdict.vlan, verdict.retag = FLOOD, <uint16_t>vlan, 1
        if place == self.active_count:
            self.drop(ctx, index, DROP_NO_DESTINATION)
            return ALL_SENT
        self.counters.extra[COUNT_FLOODED] += at == 0
        while True:
            following = self.next_taker(place + 1, ingress, vlan)
            if following == self.active_count:
                self.send(ctx, index, self.active[place], verdict)
                return ALL_SENT
            copy = packet_copy(ctx, index)
            self.counters.generated += 1
            if copy != NO_PACKET:
                self.send(ctx, copy, self.active[place], verdict)
            else:
                self.counters.drops[DROP_NO_BUFFER] += 1         # counted as generated and dropped
            if self.staged_count >= STAGED_MOST:
                self.flush(ctx)
            place = following
            flood_spend(ctx, ctx.packets[index].length)
            if ctx.flood_budget == 0:
                return self.active[place]

    cdef void send(self, Context *ctx, uint32_t index, uint32_t out,
                   Verdict verdict) noexcept nogil:
        """Stages the packet for a port, with or without a tag as the port requires."""
        if verdict.retag and not retag(ctx, index, self.ports[out], verdict.vlan):
            self.drop(ctx, index, DROP_NO_BUFFER)
            return
        if self.staged[out].count == 0:
            self.touched[self.touched_count] = <uint16_t>out
            self.touched_count += 1
        self.staged_count += 1
        self.stage(ctx, out, index)

    cdef void flush(self, Context *ctx) noexcept nogil:
        """Element.flush for many outputs: visits only those with staged packets."""
        cdef uint32_t i
        for i in range(self.touched_count):
            self.emit(ctx, self.touched[i], &self.staged[self.touched[i]])
            self.staged[self.touched[i]].count = 0
        self.touched_count = self.staged_count = 0

    cdef void tick(self, Context *ctx) noexcept nogil:
        self.counters.extra[COUNT_AGED] += self.table.expire(AGEING_SLICE, ctx.now_ns // NS_A_MS)
        self.deadline_ns = NEVER
        if va_load_relaxed_u32(&self.table.header.count):
            self.deadline_ns = ctx.now_ns + self.tick_ns


cdef str vlan_ranges(const SwitchPort *port):
    """The VLANs that a port carries, such as "1-9,20"."""
    cdef uint32_t vlan = 1, first = 0
    cdef bint inside = False
    parts = []
    while vlan <= VLAN_MAX + 1:
        if (vlan & 7 == 0 and vlan + 7 <= VLAN_MAX
                and port.carries[vlan >> 3] == (0xFF if inside else 0)):
            vlan += 8                    # a byte at once, to be fast for a thousand full trunks
            continue
        if (vlan <= VLAN_MAX and carries(port, vlan)) != inside:
            if inside:
                parts.append(f"{first}" if first == vlan - 1 else f"{first}-{vlan - 1}")
            inside, first = not inside, vlan
        vlan += 1
    return ",".join(parts)


# -- tags ------------------------------------------------------------------------------------------


cdef inline int ingress_vlan(const uint8_t *data, const SwitchPort *port) noexcept nogil:
    """The frame's VLAN (802.1Q, 6.9.1), 0 for none; NO_VLAN: the port does not carry it."""
    cdef uint32_t vlan = load_be16(data + 14) & VLAN_ID_MASK if has_tag(data) else 0
    if port.one_vlan and has_tag(data) and (vlan or has_tag(data + VLAN_BYTES)):
        # reads 18 bytes, which a tagged frame has (else a runt)
        return NO_VLAN
    if vlan == 0:                            # untagged, or tagged with a priority only
        vlan = port.access if port.access else port.native
    return <int>vlan if carries(port, vlan) else NO_VLAN


cdef bint retag(Context *ctx, uint32_t index, const SwitchPort *port, uint32_t vlan) noexcept nogil:
    """Adds, changes or removes the frame's tag as the port requires for this VLAN. False: no
    headroom for a tag."""
    cdef Packet *p = &ctx.packets[index]
    cdef uint8_t *data = packet_data(ctx, index)
    cdef bint tagged = has_tag(data)         # a whole tag, since runts are dropped before
    if vlan == 0:
        return True                          # between ports that pass frames unchanged
    if vlan == port.access or vlan == port.native:
        if tagged:
            pop_tag(ctx, index)
    elif not tagged:
        if p.offset < HEADROOM_KEPT + VLAN_BYTES:
            return False
        push_tag(ctx, index, vlan)
    elif not load_be16(data + 14) & VLAN_ID_MASK:
        store_be16(data + 14, <uint16_t>(load_be16(data + 14) | vlan))
        if p.flags & PACKET_PARSED:
            p.vlan_tci |= <uint16_t>vlan
    return True


cdef inline uint16_t moved(uint16_t place, int bytes) noexcept nogil:
    """An offset from the virtio-net header, moved by `bytes`. Unless a flag uses it, it is not
    validated: one within the addresses or beyond 16 bits becomes 0 (none)."""
    cdef int there = place + bytes
    return <uint16_t>there if place >= ETHERNET_BYTES and there <= 0xFFFF else 0


cdef void move_offsets(Packet *p, int bytes) noexcept nogil:
    """Moves the record's offsets behind the Ethernet addresses by `bytes`; 0 (none) stays."""
    p.offset = <uint16_t>(p.offset - bytes)
    p.length += <uint32_t>bytes
    p.csum_start = moved(p.csum_start, bytes)
    p.header_length = moved(p.header_length, bytes)
    if not p.flags & PACKET_PARSED:
        return
    p.l3_offset = <uint16_t>(p.l3_offset + bytes)
    p.payload_offset = <uint16_t>(p.payload_offset + bytes)
    if p.l4_offset:
        p.l4_offset = <uint16_t>(p.l4_offset + bytes)


cdef void pop_tag(Context *ctx, uint32_t index) noexcept nogil:
    cdef Packet *p = &ctx.packets[index]
    cdef uint8_t *data = packet_data(ctx, index)
    memmove(data + VLAN_BYTES, data, 12)
    move_offsets(p, -VLAN_BYTES)
    if p.flags & PACKET_PARSED and p.vlan_count:
        p.vlan_count -= 1
        p.vlan_tci = p.vlan_inner_tci
        # the record has no room for the third tag of a frame with two and a pushed one
        p.vlan_inner_tci = load_be16(data + VLAN_BYTES + 18) if p.vlan_count > 1 else 0


cdef void push_tag(Context *ctx, uint32_t index, uint32_t vlan) noexcept nogil:
    cdef Packet *p = &ctx.packets[index]
    cdef uint8_t *data = packet_data(ctx, index) - VLAN_BYTES
    memmove(data, data + VLAN_BYTES, 12)
    store_be16(data + 12, 0x8100)
    store_be16(data + 14, <uint16_t>vlan)
    move_offsets(p, VLAN_BYTES)
    if p.flags & PACKET_PARSED:
        p.vlan_count += 1                    # 3 for a frame that had two; all offsets stay valid
        p.vlan_inner_tci = p.vlan_tci
        p.vlan_tci = <uint16_t>vlan
