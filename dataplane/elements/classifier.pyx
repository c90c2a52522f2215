"""Classifier. classifier_rules.py reads the rules."""
cimport cython
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport (BATCH_MAX, PACKET_IPV4, PACKET_IPV6, PACKET_L4, PACKET_PARSED,
                                    Batch, Context, Packet, packet_data)
from dataplane.vatomic cimport va_load_acquire_ptr, va_store_release_ptr
from dataplane.graph.work cimport Work

from dataplane.errors import ConfigError, VnicError
from dataplane.elements.classifier_rules import Prefix, PortRange, list_rules, read_rules
from dataplane.graph.handlers import Handler

cdef enum:
    MATCHED = 0                  # indices into COUNTERS
    UNMATCHED = 1
    UNPARSED = 2


cdef inline bint matches_packet(const Match *m, const Packet *p, uint64_t key,
                                const uint64_t *source, const uint64_t *destination,
                                uint64_t mac) noexcept nogil:
    # The key decides most rules; ports below `low` wrap around, so that one comparison tests both
    # ends.
    if key & m.key_mask != m.key_value:
        return False
    if (<uint16_t>(p.source_port - m.source_port_low) > m.source_port_span
            or <uint16_t>(p.destination_port - m.destination_port_low) > m.destination_port_span):
        return False
    return not ((source[0] & m.source_mask[0]) ^ m.source_value[0]
                | (source[1] & m.source_mask[1]) ^ m.source_value[1]
                | (destination[0] & m.destination_mask[0]) ^ m.destination_value[0]
                | (destination[1] & m.destination_mask[1]) ^ m.destination_value[1]
                | (mac & m.mac_mask) ^ m.mac_value)


@cython.final
cdef class RuleTable:
    """The rules of a Classifier, checked and compiled; Classifier documents `rules` and `default`.
    Raises ConfigError."""

    def __init__(self, rules, default=None):
        self.settings = list_rules(rules)
        self.rules, self.default_gate, self.gates = read_rules(self.settings, default)
        free(self.matches)
        self.matches = <Match *>calloc(len(self.rules) + 1, sizeof(Match))
        if self.matches == NULL:
            raise MemoryError(f"classifier: {len(self.rules)} rules")
        self.match_count, self.has_macs = <uint32_t>len(self.rules), False
        for number, rule in enumerate(self.rules):
            compile_rule(&self.matches[<uint32_t>number], rule)
            self.has_macs = self.has_macs or rule.source_mac is not None

    def __dealloc__(self):
        free(self.matches)

    def hits(self):
        """Packets that each rule matched, in the order of the rules."""
        return [self.matches[i].hits for i in range(self.match_count)]


@cython.final
cdef class Classifier(Element):
    """Sends each packet to the output of the first rule that it matches.

    Synopsis:  split = Classifier([{"protocol": "tcp", "destination": "10.0.0.0/8",
                                    "destination_port": "80-90"},
                                   {"dscp": "ef"}])
               split[0] >> web;  split[1] >> voice;  split[2] >> rest
    Ports:     1 input. Rule i leads to output i unless it names another one. Packets that match no
               rule leave by one more output, the last.
    Config:    rules: A list of at most 1024 rules. A rule is a mapping of conditions that must all
                   hold; {} matches every packet. Conditions: protocol (a name such as tcp, udp or
                   icmp, or 0 to 255); source and destination (an IPv4 or IPv6 address or prefix);
                   source_port and destination_port (80, or 80-90; for TCP, UDP and SCTP; the second
                   and later fragments of a packet have no ports and match no such rule); dscp (0 to
                   63, or a name such as ef, cs1 or af11); vlan (the number in the outer tag, 0 for
                   frames without a tag or with a priority tag); port (the number of the port that
                   received the packet); source_mac (a MAC address). Actions: gate (the output, by
                   default the rule's own number); mark (sets the packet's mark to 0 to 4294967295,
                   for elements that read it).
               default: The output of packets that match no rule. Default: an output of their own,
                   behind those of the rules.
    Counters:  matched: packets that matched a rule
               unmatched: packets that matched no rule
               unparsed: packets whose headers Parse has not read; they match no rule
    Handlers:  counters; rules (read, write, live); hits (read). A write of `rules` replaces them
               all; the number of outputs and the default stay. Each packet is classified by the old
               rules or by the new ones, never by some of both.
    Threads:   any one engine
    Cost:      Rules are tried in turn; dataplane/README.md has the cost of a match in rule 1, 10
               and 1000.
    Example:   UDP leaves the container at 5 Mbit/s at most, all else without a limit.
               nics:
                 web:
                   netns: /run/netns/web
                   egress:
                     elements:
                       - element: Classifier
                         name: split
                         rules: [{protocol: udp}]
                         branches:
                           0: [{element: Shaper, rate: 5mbit, name: udp}]
                 db: {netns: /run/netns/db}
    """

    DROP_REASONS = ()
    COUNTERS = ("matched", "unmatched", "unparsed")
    HANDLERS = {
        "rules": Handler(read="get_rules", write="prepare_rules", argument="rules",
                         help="the rules, a list as in the configuration"),
        "hits": Handler(read="hits",
                        help="packets that each rule matched since the rules were set"),
    }

    def __cinit__(self, *args, **kwargs):
        cdef RuleTable table = RuleTable([])       # `install` and `current` need a table
        Py_INCREF(table)
        self.install(<PyObject *>table)

    def __init__(self, rules, default=None, *, name=None):
        cdef RuleTable table = RuleTable(rules, default)
        self.default = default
        self.set_gates(table.gates)
        Py_INCREF(table)
        Py_XDECREF(self.install(<PyObject *>table))

    def __dealloc__(self):
        Py_XDECREF(self.table)

    def describe(self):
        return {"rules": len(self.rules)}

    # -- control -----------------------------------------------------------------------------------

    cdef PyObject *install(self, PyObject *table) noexcept nogil:
        """Classifies by `table` from now on: takes over its reference and returns the old table's.
        Runs on the engine's thread while no packet is being processed, so the packets' path, which
        reads the fields one by one, sees those of one table."""
        cdef PyObject *old = self.table
        self.matches, self.match_count = (<RuleTable>table).matches, (<RuleTable>table).match_count
        self.default_gate = (<RuleTable>table).default_gate
        self.has_macs = (<RuleTable>table).has_macs
        # Release: control, which reads the pointer, sees the table's contents. The engine goes on
        # to count in it.
        va_store_release_ptr(<void **>&self.table, table)
        return old

    cdef RuleTable current(self):
        """The current table; any thread with the GIL may call this."""
        # Acquire pairs with the release in `install`. The GIL is held from this load until the new
        # reference is taken, and releasing the old table after `install` needs the GIL, so the
        # table loaded still exists.
        return <RuleTable>va_load_acquire_ptr(<void **>&self.table)

    @property
    def rules(self):
        """The rules as `classifier_rules.Rule`."""
        return self.current().rules

    def get_rules(self):
        """The rules as configured."""
        return self.current().settings

    def prepare_rules(self, rules):
        """Compiles other rules; returns the Work that installs them, with hits from 0. `default`
        and the number of outputs stay, since other elements are connected to them. Raises
        ConfigError with nothing changed."""
        cdef RuleTable table = RuleTable(rules, self.default)
        if table.gates != self.gate_count:
            raise ConfigError(f"{self.name}: with these rules it would have {table.gates} outputs, "
                              f"and {self.gate_count} are connected; expected the highest gate: or "
                              f"default: to be {<int>self.gate_count - 1}")
        return SetRules(self, table)

    def hits(self):
        """Packets that each rule has matched, in the order of the rules."""
        return self.current().hits()

    # -- hand-over ---------------------------------------------------------------------------------

    def save_state(self):
        """`hits`: packets of each rule. The rules themselves are configuration and are stored
        there."""
        return {"hits": self.hits()}

    def load_state(self, dict state):
        cdef uint32_t i
        cdef uint64_t count
        hits = state.get("hits")
        if set(state) != {"hits"} or not isinstance(hits, list) or len(hits) != self.match_count:
            raise VnicError(f"{self.name}: its state does not fit {self.match_count} rules")
        try:
            hits = [count for count in hits]
        except (TypeError, OverflowError):
            raise VnicError(f"{self.name}: hits that are no numbers") from None
        for i, count in enumerate(hits):
            self.matches[i].hits = count

    def forget_state(self):
        cdef uint32_t i
        Element.forget_state(self)
        for i in range(self.match_count):
            self.matches[i].hits = 0

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        # Flushes only the outputs used: there may be a thousand, and checking each costs a cache
        # line.
        cdef uint32_t used[BATCH_MAX]
        cdef uint32_t i, gate, used_count = 0
        for i in range(batch.count):
            gate = self.classify(ctx, batch.index[i])
            if self.staged[gate].count == 0:
                used[used_count] = gate
                used_count += 1
            self.stage(ctx, gate, batch.index[i])
        batch.count = 0
        for i in range(used_count):
            self.emit(ctx, used[i], &self.staged[used[i]])
            self.staged[used[i]].count = 0

    cdef uint32_t classify(self, Context *ctx, uint32_t index) noexcept nogil:
        """The output of a packet; counts the packet and sets its mark."""
        cdef uint64_t source[2]
        cdef uint64_t destination[2]
        cdef uint64_t key, mac
        cdef uint32_t i
        cdef Match *m
        cdef Packet *p = &ctx.packets[index]
        # not parsed: the second cache line is left from another packet
        if not p.flags & PACKET_PARSED:
            self.counters.extra[UNPARSED] += 1
            return self.default_gate
        key = packet_key(p)
        memcpy(source, p.source_address, 16)
        memcpy(destination, p.destination_address, 16)
        # The frame is read for such rules only. Parse leaves no frame shorter than its addresses.
        mac = source_mac(packet_data(ctx, index)) if self.has_macs else 0
        for i in range(self.match_count):
            m = &self.matches[i]
            if matches_packet(m, p, key, source, destination, mac):
                m.hits += 1
                p.mark = p.mark & m.mark_mask | m.mark_value
                self.counters.extra[MATCHED] += 1
                return m.gate
        self.counters.extra[UNMATCHED] += 1
        return self.default_gate


cdef class SetRules(Work):
    """A change of rules, run on the engine's thread."""

    def __init__(self, Classifier classifier not None, RuleTable table not None):
        self.classifier = classifier
        Py_XDECREF(self.table)
        Py_INCREF(table)
        self.table = <PyObject *>table

    def __dealloc__(self):
        Py_XDECREF(self.table)

    cdef void run(self, Context *ctx) noexcept nogil:
        self.table = self.classifier.install(self.table)


cdef int compile_rule(Match *m, object rule) except -1:
    cdef uint64_t mask = 0, value = 0, flags = 0
    cdef const unsigned char[::1] view
    ports = rule.source_port is not None or rule.destination_port is not None
    if rule.protocol is not None:
        flags |= KEY_IP
        mask |= <uint64_t>0xFF << 40
        value |= <uint64_t>rule.protocol << 40
    if rule.dscp is not None:
        flags |= KEY_IP
        mask |= <uint64_t>0xFF << 32
        value |= <uint64_t>rule.dscp << 32
    if rule.vlan is not None:
        mask |= <uint64_t>0xFFFF << 16
        value |= <uint64_t>rule.vlan << 16
    if rule.port is not None:
        mask |= 0xFFFF
        value |= <uint64_t>rule.port
    if ports:
        flags |= PACKET_L4
    source, destination = rule.source or Prefix(), rule.destination or Prefix()
    if 4 in (source.version, destination.version):
        flags |= PACKET_IPV4
    if 6 in (source.version, destination.version):
        flags |= PACKET_IPV6
    m.key_mask, m.key_value = mask | flags << 48, value | flags << 48
    source_port = rule.source_port or PortRange()
    destination_port = rule.destination_port or PortRange()
    m.source_port_low, m.source_port_span = source_port.low, source_port.high - source_port.low
    m.destination_port_low = destination_port.low
    m.destination_port_span = destination_port.high - destination_port.low
    m.mac_mask = m.mac_value = 0
    if rule.source_mac is not None:
        memcpy(&m.mac_mask, <const char *>b"\xff\xff\xff\xff\xff\xff", 6)
        view = rule.source_mac
        memcpy(&m.mac_value, &view[0], 6)
    view = source.mask + source.value + destination.mask + destination.value
    memcpy(m.source_mask, &view[0], 16)
    memcpy(m.source_value, &view[16], 16)
    memcpy(m.destination_mask, &view[32], 16)
    memcpy(m.destination_value, &view[48], 16)
    m.mark_mask = 0xFFFFFFFF if rule.mark is None else 0
    m.mark_value = rule.mark or 0
    m.gate = rule.gate
    return 0
