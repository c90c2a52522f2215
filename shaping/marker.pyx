"""Marker. The contract is in marker.pxd."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport (PACKET_IPV4, PACKET_IPV6, Batch, Context, Packet, packet_data)
from dataplane.wire.headers cimport ETHERNET_BYTES, store_be16
from dataplane.vatomic cimport va_prefetch
from dataplane.wire.tos cimport ECN_BITS, set_tos

from dataplane.config.convert import shown
from dataplane.elements.classifier_rules import DSCP
from dataplane.errors import ConfigError

# COUNTERS
cdef enum:
    MARKED = 0
    UNMARKED = 1
    NOT_ECT = 2

cdef enum:
    # Frames are fetched so many packets before they are marked; 2 was the best of 0, 2, 4, 8 and a
    # whole batch where frames are in the second-level cache.
    LOOK_AHEAD = 2

# Codepoints of the ECN field (RFC 3168, section 5)
ECN = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}


@cython.final
cdef class Marker(Element):
    """Sets the DSCP, the ECN field and the VLAN priority of packets, and their class.

    Synopsis:  policer[1] >> Marker(dscp="af13") >> b
    Ports:     1 input, 1 output; every packet goes on.
    Config:    dscp: Differentiated services codepoint (RFC 2474), a name such as "ef", "af41",
                   "cs1" or "be", or 0 to 63.
               ecn: "not-ect", "ect0", "ect1" or "ce". CE is set on ECN-capable packets (ECT) only.
               pcp: Priority in the outer VLAN tag (IEEE 802.1Q), 0 to 7. A NIC's packets have a tag
                   where its container sends them with one, and on the way to a trunk.
               mark: Class, 0 to 4294967295, for elements behind this one; not seen on the wire.
    Counters:  marked: packets that were marked
               unmarked: packets without the header that was to be changed: no IP, or no VLAN tag
               not_ect: packets that are not ECN-capable, where ecn is "ce"
    Handlers:  counters
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   All that the container sends is marked for expedited forwarding.
               nics:
                 web:
                   netns: /run/netns/web
                   egress: {elements: [{element: Marker, dscp: ef}]}
                 db: {netns: /run/netns/db}

    Headers are those that Parse has found: of a tunnel, the outer ones. The IPv4 header checksum is
    updated by the difference (RFC 1624): a wrong one stays wrong. All segments of a GSO frame are
    marked.
    """

    COUNTERS = ("marked", "unmarked", "not_ect")

    def __init__(self, dscp=None, ecn=None, pcp=None, mark=None, *, name=None):
        self._settings = {key: value for key, value in (("dscp", dscp), ("ecn", ecn), ("pcp", pcp),
                                                        ("mark", mark)) if value is not None}
        if not self._settings:
            raise ConfigError(f"{self.name}: marks nothing: expected dscp, ecn, pcp or mark")
        self.keep_tos, self.set_tos, self.pcp, self.mark = 0xFF, 0, -1, -1
        if dscp is not None:
            self.set_tos |= _codepoint(self.name, "dscp", dscp, 63, DSCP) << 2
            self.keep_tos &= ECN_BITS
        if ecn is not None:
            self.set_tos |= _codepoint(self.name, "ecn", ecn, -1, ECN)
            self.keep_tos &= <uint8_t>~ECN_BITS
            self.capable_only = ecn == "ce"
        self.marks_tos = self.keep_tos != 0xFF
        if pcp is not None:
            self.pcp = _codepoint(self.name, "pcp", pcp, 7, {})
        if mark is not None:
            self.mark = _codepoint(self.name, "mark", mark, 0xFFFFFFFF, {})

    def describe(self):
        return self._settings

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t unmarked
        if self.marks_tos and self.pcp < 0 and self.mark < 0 and not self.capable_only:
            unmarked = self.mark_tos(ctx, batch)
        else:
            unmarked = self.mark_all(ctx, batch)
        self.counters.extra[MARKED] += batch.count - unmarked
        self.counters.extra[UNMARKED] += unmarked
        self.emit(ctx, 0, batch)

    cdef uint32_t mark_tos(self, Context *ctx, Batch *batch) noexcept nogil:
        """Most markers set the TOS byte alone: a loop without the other settings takes two thirds
        of the time. Returns the number of packets without an IP header."""
        cdef uint8_t keep = self.keep_tos, tos = self.set_tos
        cdef uint32_t i, unmarked = 0
        cdef Packet *p
        for i in range(batch.count):
            if i + LOOK_AHEAD < batch.count:
                va_prefetch(packet_data(ctx, batch.index[i + LOOK_AHEAD]) + ETHERNET_BYTES)
            p = &ctx.packets[batch.index[i]]
            if p.flags & (PACKET_IPV4 | PACKET_IPV6):
                set_tos(packet_data(ctx, batch.index[i]), p, tos | (p.tos & keep))
            else:
                unmarked += 1
        return unmarked

    cdef uint32_t mark_all(self, Context *ctx, Batch *batch) noexcept nogil:
        """Marks by all settings. Returns the number of packets without a header of theirs."""
        cdef uint32_t i, unmarked = 0
        cdef Packet *p
        cdef uint8_t *data
        cdef bint done
        for i in range(batch.count):
            p = &ctx.packets[batch.index[i]]
            data = packet_data(ctx, batch.index[i])
            done = True
            if self.marks_tos:
                done = self.set_tos_of(data, p)
            if self.pcp >= 0:
                done = self.set_pcp_of(data, p) and done
            if self.mark >= 0:
                p.mark = <uint32_t>self.mark
            unmarked += not done
        return unmarked

    cdef bint set_tos_of(self, uint8_t *data, Packet *p) noexcept nogil:
        """False: the packet has no IP header. Parse has found the whole header within the frame."""
        cdef uint8_t keep = self.keep_tos, tos = self.set_tos
        if not p.flags & (PACKET_IPV4 | PACKET_IPV6):
            return False
        if self.capable_only and not p.tos & ECN_BITS:
            self.counters.extra[NOT_ECT] += 1
            keep |= ECN_BITS                     # the DSCP is set all the same
            tos &= <uint8_t>~ECN_BITS
            if keep == 0xFF:
                return True
        set_tos(data, p, tos | (p.tos & keep))
        return True

    cdef bint set_pcp_of(self, uint8_t *data, Packet *p) noexcept nogil:
        """False: the packet has no VLAN tag."""
        if p.vlan_count == 0:
            return False
        p.vlan_tci = (p.vlan_tci & 0x1FFF) | <uint16_t>(self.pcp << 13)
        store_be16(data + ETHERNET_BYTES, p.vlan_tci)   # behind the tag's own EtherType
        return True


def _codepoint(name, what, value, most, names):
    """A number up to `most`, or one of `names`. Raises ConfigError."""
    if isinstance(value, str) and value.strip().lower() in names:
        return names[value.strip().lower()]
    if isinstance(value, str) and len(value) <= 12 and value.isascii() and value.isdecimal():
        value = int(value)
    if type(value) is int and 0 <= value <= most:
        return value
    known = [f"0 to {most}"] if most >= 0 else []
    if names:
        known.append("one of " + ", ".join(names))
    raise ConfigError(f"{name}: {what} {shown(value)}: expected {' or '.join(known)}")
