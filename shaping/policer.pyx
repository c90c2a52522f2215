"""Policer. The contract is in policer.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport Element
from dataplane.graph.offload cimport can_segment, segment
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport (GSO_NONE, NO_PACKET, Batch, Context, Packet, packet_free,
                                    packet_wire_bytes)
from shaping.virtual_clock cimport (BYTE_COST, clock_charge, clock_is_due, clock_is_possible,
                                    clock_limit_credit, clock_set_rate)

from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from shaping.settings import rate_of, rate_text, time_or_size_of, time_or_size_text

BURST_MOST_BYTES = 1 << 30       # burst_ns * rate_bps stays below 2^63

# DROP_REASONS
cdef enum:
    EXCEEDED = 0
    NO_BUFFER = 1

# COUNTERS
cdef enum:
    CONFORMING = 0
    EXCESS = 1
    SPLIT = 2
    CONFORMING_BYTES = 3


@cython.final
cdef class Policer(Element):
    """Lets packets pass up to a rate and burst; drops the excess or leads it to output 1.

    Nothing waits, so a policer adds no delay; but TCP through one reaches far less than the rate if
    the burst is shorter than its round trip. A Shaper lets the excess wait instead.

    Synopsis:  a >> Policer(rate="100mbit", burst="50ms", name="police") >> b
    Ports:     1 input; output 0: packets that conform. With exceed: output also output 1: the
               others, to be marked, counted or led elsewhere.
    Config:    rate: A rate such as "100mbit" or a number of bit/s, 1 kbit/s to 10 Tbit/s. None,
                   "none" or 0: every packet conforms. Bits of layer-2 frames count, without
                   preamble and FCS; a GSO frame counts as its segments do.
               burst: Bytes on the wire that may exceed the rate after a pause, as time at the
                   current rate ("100ms", int ns) or as a size ("256kb"), at most 1 GiB. A packet of
                   any length conforms if no earlier packet has used the burst up.
               exceed: "drop", or "output" for output 1.
    Drops:     exceeded: packets that exceed rate and burst; the cut-off end of a GSO frame counts
                   as one
               no_buffer: no buffer for a part of a GSO frame
    Counters:  conforming: packets that left by output 0
               excess: packets that did not conform, dropped or not
               split: GSO frames of which a part conformed
               conforming_bytes: their bytes on the wire
    Handlers:  counters; rate (read, write, live); burst (read)
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   What exceeds 5 Mbit/s is marked as lower effort, and passes all the same.
               nics:
                 web:
                   netns: /run/netns/web
                   egress:
                     elements:
                       - {element: Policer, rate: 5mbit, burst: 64kb, exceed: output,
                          branches: {1: [{element: Marker, dscp: le}]}}
                 db: {netns: /run/netns/db}

    The algorithm is the generic cell rate algorithm in its virtual scheduling form (ITU-T I.371,
    annex A), exact to the fraction of a nanosecond: in any interval of length t at most rate * t +
    burst + one packet conform. Of a GSO frame, its first segments conform and the others do not, as
    if it had been segmented before.
    """

    DROP_REASONS = ("exceeded", "no_buffer")
    COUNTERS = ("conforming", "excess", "split", "conforming_bytes")
    STATE_VERSION = 1
    HANDLERS = {
        "rate": Handler(read="get_rate", write="prepare_rate", argument="rate",
                        help="the rate, such as 10mbit; none: no limit"),
        "burst": Handler(read="get_burst", help="the burst in bytes; null without a rate"),
    }

    def __init__(self, rate, burst="100ms", exceed="drop", *, name=None):
        if exceed not in ("drop", "output"):
            raise ConfigError(f"{self.name}: exceed {exceed!r}: expected drop or output")
        self.leads = exceed == "output"
        self.set_gates(2 if self.leads else 1)
        self._burst_ns, self._burst_bytes = time_or_size_of(self.name, "burst", burst)
        _work_out(self, &self.setting, rate_of(self.name, rate))

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, count, kept = 0
        cdef Packet *p
        if self.setting.rate_bps == 0:
            self.counters.extra[CONFORMING] += batch.count
            self.emit(ctx, 0, batch)
            return
        clock_limit_credit(&self.clock, ctx.now_ns, self.setting.burst_ns)
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            if not clock_is_due(&self.clock, ctx.now_ns):
                self.exceed(ctx, index)
                continue
            if p.gso_type != GSO_NONE and can_segment(p):
                count = self.conforming_segments(p, ctx.now_ns)
                if <uint64_t>count * p.gso_size < p.length - p.header_length:
                    index = self.take_part(ctx, index, count)
                    if index == NO_PACKET:
                        continue
                    p = &ctx.packets[index]
            clock_charge(&self.clock, self.setting.rate_bps, packet_wire_bytes(p))
            self.counters.extra[CONFORMING] += 1
            self.counters.extra[CONFORMING_BYTES] += packet_wire_bytes(p)
            batch.index[kept] = index
            kept += 1
        batch.count = kept
        self.emit(ctx, 0, batch)
        if self.leads:
            self.flush(ctx)

    cdef uint32_t conforming_segments(self, const Packet *p, uint64_t now_ns) noexcept nogil:
        """How many segments of a GSO frame conform, of which the first one does: those that begin,
        on a wire of the rate, by now."""
        # below 2^63: the clock is at most burst_ns behind, see BURST_MOST_BYTES
        cdef uint64_t credit = ((now_ns - self.clock.next_ns) * self.setting.rate_bps
                                - self.clock.remainder)
        cdef uint64_t count = credit // ((<uint64_t>p.header_length + p.gso_size) * BYTE_COST) + 1
        return <uint32_t>min(count, <uint64_t>0xFFFFFFFF)

    cdef uint32_t take_part(self, Context *ctx, uint32_t index, uint32_t count) noexcept nogil:
        """Cuts a GSO frame behind its first `count` segments, and returns these as a packet; the
        rest exceeds. NO_PACKET: there is no buffer."""
        cdef Batch first, rest
        cdef uint32_t done = 0, lost
        first.count = rest.count = 0
        self.counters.extra[SPLIT] += 1
        lost = segment(ctx, index, count, &done, &first, 1)
        if lost and first.count:                 # not the first segments, but later ones
            self.counters.generated += 1
            self.drop(ctx, first.index[0], NO_BUFFER)
            first.count = 0
        if not self.leads:
            self.counters.generated += first.count + lost
            self.counters.drops[NO_BUFFER] += lost
            self.exceed(ctx, index)              # the frame stands for its cut-off end
            return first.index[0] if first.count else NO_PACKET
        # 0xFFFF: all others, since a frame has fewer segments
        lost += segment(ctx, index, 0xFFFF, &done, &rest, 1)
        self.counters.generated += first.count + rest.count + lost - 1
        self.counters.drops[NO_BUFFER] += lost
        packet_free(ctx, index)
        if rest.count:
            self.exceed(ctx, rest.index[0])
        return first.index[0] if first.count else NO_PACKET

    cdef void exceed(self, Context *ctx, uint32_t index) noexcept nogil:
        self.counters.extra[EXCESS] += 1
        if self.leads:
            self.stage(ctx, 1, index)
        else:
            self.drop(ctx, index, EXCEEDED)

    # -- control -----------------------------------------------------------------------------------

    cdef void apply(self, const PolicerSetting *setting, uint64_t now_ns) noexcept nogil:
        clock_set_rate(&self.clock, now_ns, self.setting.rate_bps, setting.rate_bps,
                       setting.burst_ns)
        self.setting = setting[0]

    def prepare_rate(self, rate):
        """The Work that changes the rate. Raises ConfigError for an invalid rate."""
        cdef SetPolicerRate work = SetPolicerRate(self)
        _work_out(self, &work.setting, rate_of(self.name, rate))
        return work

    def get_rate(self):
        """The rate as text: "10mbit", or "none"."""
        return rate_text(self.setting.rate_bps)

    def get_burst(self):
        """The burst in bytes on the wire; None without a rate."""
        if self.setting.rate_bps == 0:
            return None
        if self._burst_bytes is not None:
            return self._burst_bytes
        return self.setting.burst_ns * self.setting.rate_bps // int(BYTE_COST)

    @property
    def rate_bps(self):
        """The rate in bit/s; 0 means unlimited."""
        return self.setting.rate_bps

    def describe(self):
        if self.setting.rate_bps == 0:
            return {"rate": "unlimited"}
        return {"rate": rate_text(self.setting.rate_bps),
                "burst": time_or_size_text(self._burst_ns, self._burst_bytes)}

    def save_state(self):
        """`rate_bps`; `next_ns` and `remainder`: the virtual clock (virtual_clock.pxd)."""
        return {"rate_bps": self.setting.rate_bps, "next_ns": self.clock.next_ns,
                "remainder": self.clock.remainder}

    def load_state(self, dict state):
        cdef Engine engine = self.engine
        cdef uint64_t rate, next_ns, remainder, now_ns = engine.clock.now_ns
        try:
            if type(state["rate_bps"]) is not int or len(state) != 3:
                raise ValueError("other members")
            rate = rate_of(self.name, state["rate_bps"])
            next_ns, remainder = state["next_ns"], state["remainder"]
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise VnicError(f"{self.name}: its state is not that of a Policer: {error}") from None
        if not clock_is_possible(next_ns, remainder, rate, now_ns):
            raise VnicError(f"{self.name}: its clock says {next_ns} ns, "
                            f"which cannot be at {now_ns} ns and {rate} bit/s")
        _work_out(self, &self.setting, rate)
        self.clock.next_ns, self.clock.remainder = next_ns, remainder


cdef class SetPolicerRate(Work):
    """A change of rate, made on the engine's thread."""

    def __init__(self, Policer policer):
        self.policer = policer

    cdef void run(self, Context *ctx) noexcept nogil:
        self.policer.apply(&self.setting, ctx.now_ns)


cdef int _work_out(Policer policer, PolicerSetting *setting, rate_bps) except -1:
    """Fills `setting` for a rate, without overflow at any rate."""
    burst_ns = policer._burst_ns
    if rate_bps and burst_ns is None:
        burst_ns = policer._burst_bytes * int(BYTE_COST) // rate_bps
    if rate_bps and burst_ns * rate_bps > BURST_MOST_BYTES * int(BYTE_COST):
        raise ConfigError(f"{policer.name}: burst of {burst_ns * rate_bps // int(BYTE_COST)} "
                          "bytes: expected at most 1gb")
    setting.rate_bps = rate_bps
    setting.burst_ns = burst_ns if rate_bps else 0
    return 0
