"""Parse. The header parser is in dataplane/wire/headers.pxd."""
cimport cython
from libc.stdint cimport uint32_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport GSO_NONE, Batch, Context, Packet, packet_data
from dataplane.graph.port cimport Port, count_segments
from dataplane.wire.headers cimport (PARSE_IPV4_HEADER, PARSE_OK, check_offloads, is_above_link,
                                     parse_packet)

from dataplane.errors import ConfigError
from dataplane.wire.headers import PARSE_REASONS


@cython.final
cdef class Parse(Element):
    """Reads the headers of packets and validates their offload fields.

    Each NIC has one already, in front of its egress elements; a configuration rarely needs another.

    Synopsis:  nic.rx >> Parse() >> switch
               Parse(malformed="drop") where malformed packets must not pass
    Ports:     1 input, 1 output; packets go on in order, with the header fields of their record
               filled in.
    Config:    malformed: "forward": a packet with a malformed IP or transport header is read as far
                   as it is valid, marked PACKET_MALFORMED, counted and forwarded, as a switch does.
                   "drop": it is dropped. A packet that a capture cut (PACKET_TRUNCATED) is not
                   malformed because of the missing bytes.
    Counters:  ipv4_header: malformed packets that were forwarded, as for the drop reason of that
                   name
               ipv4_length: as above
               ipv6_header: as above
               ipv6_length: as above
               l4_header: as above
    Drops:     runt: shorter than its Ethernet header and tags
               ipv4_header: malformed IPv4 header
               ipv4_length: IPv4 length beyond the frame
               ipv6_header: malformed IPv6 or extension header
               ipv6_length: IPv6 length beyond the frame
               l4_header: malformed transport header, such as TCP's or UDP's
               bad_gso: GSO type, size, checksum start or limits that do not fit the headers, or a
                   GSO frame whose headers are malformed, so that it cannot be segmented
               bad_csum_offset: a checksum field outside the frame, or a checksum that starts within
                   its addresses and tags
    Handlers:  counters
    Threads:   any one engine
    Cost:      see dataplane/README.md
    Example:   Read the headers a second time, behind elements that may change them (here Counter).
               nics:
                 web:
                   netns: /run/netns/web
                   egress: {elements: [Counter, {element: Parse, malformed: drop}]}
                 db: {netns: /run/netns/db}

    `port`, for code that builds a graph, is the port that all packets come from: its statistics
    then count their segments, since the header fields of a GSO frame are reliable only once they
    have been checked.
    """

    DROP_REASONS = PARSE_REASONS
    COUNTERS = PARSE_REASONS[1:6]

    def __init__(self, malformed="forward", *, Port port=None, name=None):
        if malformed not in ("forward", "drop"):
            raise ConfigError(f"{self.name}: malformed={malformed!r}: expected 'forward' or 'drop'")
        self.forwards = malformed == "forward"
        self.port = port
        self.stats = NULL if port is None else port.stats
        self.queues = 0 if port is None else port.queues

    def describe(self):
        return {} if self.forwards else {"malformed": "drop"}

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, kept = 0
        cdef int reason
        cdef Packet *p
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            reason = parse_packet(packet_data(ctx, index), p)
            if reason != PARSE_OK and not self.keep_malformed(ctx, index, reason):
                continue
            if p.gso_type != GSO_NONE and p.queue < self.queues:
                count_segments(p, &self.stats[p.queue].rx_more_packets,
                               &self.stats[p.queue].rx_more_bytes)
            batch.index[kept] = index
            kept += 1
        batch.count = kept
        self.emit(ctx, 0, batch)

    cdef bint keep_malformed(self, Context *ctx, uint32_t index, int reason) noexcept nogil:
        """Whether the packet is forwarded; if not, drops it."""
        cdef int second
        if self.forwards and is_above_link(reason):
            second = check_offloads(&ctx.packets[index])
            if second == PARSE_OK:
                self.counters.extra[reason - PARSE_IPV4_HEADER] += 1
                return True
            reason = second
        self.drop(ctx, index, <uint32_t>(reason - 1))
        return False
