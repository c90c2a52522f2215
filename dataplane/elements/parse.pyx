"""Parse. What it finds in a packet is in dataplane/wire/headers.pxd."""
cimport cython
from libc.stdint cimport uint32_t
from dataplane.element cimport Element
from dataplane.packet cimport Batch, Context, packet_data
from dataplane.wire.headers cimport PARSE_IPV4_HEADER, PARSE_L4_HEADER, PARSE_OK, check_offloads, parse_packet

from dataplane.errors import ConfigError
from dataplane.wire.headers import PARSE_REASONS


@cython.final
cdef class Parse(Element):
    """Reads the headers of every packet once and validates its virtio-net fields; drops what is malformed.

    Synopsis:  nic.rx >> Parse() >> switch;  Parse(malformed="pass") where the network in between must not judge
    Ports:     1 in, 1 out; sound packets go on, in order, with the second half of their record filled.
    Config:    malformed="drop"; "pass": packets with a malformed IP or transport header go on as plain Ethernet
               frames, counted. Runts and wrong offload fields are dropped in both cases: nobody could work with them.
    Counters:  ipv4_header, ipv4_length, ipv6_header, ipv6_length, l4_header: malformed and passed on.
               Drops: the same, and runt (shorter than its Ethernet header and tags), bad_gso (GSO type, size, checksum start or
               limits do not fit the headers), bad_csum_offset (checksum field outside the frame, or
               summed from within its addresses and tags).
               A packet that a capture cut (PACKET_TRUNCATED) is not malformed for what the capture left out.
    Handlers:  counters
    Threads:   any one engine
    Cost:      see dataplane/README.md
    """

    DROP_REASONS = PARSE_REASONS
    COUNTERS = PARSE_REASONS[1:6]

    def __init__(self, malformed="drop", *, name=None):
        if malformed not in ("drop", "pass"):
            raise ConfigError(f"{self.name}: malformed={malformed!r}; want 'drop' or 'pass'")
        self.tolerant = malformed == "pass"

    def describe(self):
        return {"malformed": "pass"} if self.tolerant else {}

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, kept = 0
        cdef int reason
        for i in range(batch.count):
            index = batch.index[i]
            reason = parse_packet(packet_data(ctx, index), &ctx.packets[index])
            if reason != PARSE_OK and not self.keep_malformed(ctx, index, reason):
                continue
            batch.index[kept] = index
            kept += 1
        batch.count = kept
        self.emit(ctx, 0, batch)

    cdef bint keep_malformed(self, Context *ctx, uint32_t index, int reason) noexcept nogil:
        """Whether the packet goes on; drops it where not."""
        cdef int second
        if self.tolerant and PARSE_IPV4_HEADER <= reason <= PARSE_L4_HEADER:
            second = check_offloads(&ctx.packets[index])
            if second == PARSE_OK:
                self.counters.extra[reason - PARSE_IPV4_HEADER] += 1
                return True
            reason = second
        self.drop(ctx, index, <uint32_t>(reason - 1))
        return False
