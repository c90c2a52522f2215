"""Pacer. The contract is in pacer.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport NEVER, Element
from dataplane.graph.offload cimport can_segment, segment
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport (BATCH_MAX, GSO_NONE, Batch, Context, Packet, batch_add,
                                    packet_free, packet_memory, packet_wire_bytes)
from dataplane.packet.queue cimport queue_indices, queue_length
from shaping.flow_clocks cimport (FlowClock, FlowClocks, flow_is_idle, flow_load, flow_prefetch,
                                  flow_remainder, flow_store)
from shaping.flow_hash cimport flow_hash, number_hash
from shaping.mark_table cimport (MARKS_MOST, MarkEntry, MarkTable, Policy, mark_policy,
                                 mark_table_fill, mark_table_free)
from shaping.pool_share cimport PoolShare, share_count, share_is_full
from shaping.timing_wheel cimport TimingWheel
from shaping.virtual_clock cimport (VirtualClock, clock_charge, clock_due_ns, clock_is_due,
                                    clock_set_rate)

from dataplane import units
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from dataplane.units import format_time
from shaping.pacer_settings import EXCEED, PER, choice_of, flows_of, horizon_of, rates_of
from shaping.settings import rate_of, rate_text

cdef extern from *:
    """
    /* a * b / c, rounded up; a * b may exceed 64 bits, the result does not */
    static inline unsigned long long vnic_share_of(unsigned long long a, unsigned long long b,
                                                   unsigned long long c)
    {
        return (unsigned long long)(((unsigned __int128)a * b + c - 1) / c);
    }
    """
    uint64_t vnic_share_of(uint64_t a, uint64_t b, uint64_t c) nogil

cdef enum:
    QUANTUM_NS = 1000000         # GSO frames that take longer are cut into pieces of at most this
    # A frame of n bytes takes longer than QUANTUM_NS if n * QUANTUM_FACTOR > rate.
    QUANTUM_FACTOR = 8000        # 8 * 10^9 / QUANTUM_NS
    SAMPLE = 65536               # clocks that the handler `flows` looks at, so that it is short

cdef uint64_t RATE_MOST_BPS = units.RATE_MOST_BPS
# A clock is at most the horizon and one packet at the lowest rate, 2^64 / RATE_LEAST_BPS ns, ahead.
cdef uint64_t AHEAD_MOST_NS = (1 << 64) // units.RATE_LEAST_BPS

cdef enum:                       # DROP_REASONS
    BEYOND_HORIZON = 0
    QUEUE_FULL = 1
    NO_BUFFER = 2
    RELEASED = 3

cdef enum:                       # COUNTERS
    PASSED = 0
    DELAYED = 1
    SPLIT = 2
    SENT_BYTES = 3
    DELAY_NS = 4
    DELAY_MAX_NS = 5
    SHARED = 6
    AT_HORIZON = 7


cdef inline uint64_t segmented_bytes(const Packet *p, uint32_t payload) noexcept nogil:
    """Bytes on the wire of a part of a GSO frame's payload, with the headers of its segments."""
    return payload + <uint64_t>((payload + p.gso_size - 1) // p.gso_size) * p.header_length


@cython.final
cdef class Pacer(Element):
    """Limits the rates of many flows, or of classes of packets, in one element.

    Each packet gets its release time when it comes, and waits for it in a timing wheel that all
    flows have in common: ten thousand flows cost no more than one. A Shaper limits one rate with
    one queue.

    Synopsis:  a >> Pacer(rate="5mbit", per="flow", name="pace") >> b
    Ports:     1 input, 1 output; packets of the same policies leave in order.
    Config:    rate: A rate such as "100mbit" or a number of bit/s, 1 kbit/s to 10 Tbit/s, of what
                   `per` says. None, "none" or 0: no limit. Bits of layer-2 frames count, without
                   preamble and FCS; a GSO frame counts as its segments do.
               per: "all": the rate is that of all packets together. "flow": each flow has it, that
                   is, packets with the same addresses, protocol and ports; fragments have no ports,
                   and all that is not IP is one flow. "mark": each mark (Packet.mark, which
                   Classifier and Marker set) has it.
               rates: Rates of marks, {mark: rate}, at most 1024. With per: flow or all, packets of
                   the mark together have this rate besides; with per: mark, the mark has it in
                   place of `rate`.
               horizon: The longest time that a policy may hold a packet ("2s", int ns), 1us to 1h.
               exceed: What happens to packets that would wait longer: "drop" them, or "pace" them
                   at the horizon, which exceeds the rate.
               flows: Number of clocks for flows, or for marks without a rate of their own, that
                   wait at the same time, rounded up to a power of two, at most 4194304; 16 bytes
                   each. Only with per: flow or mark.
    Drops:     horizon: packets that would wait longer than the horizon
               queue_full: packets for which a quarter of the pool's buffers of a size waited, or
                   what the share allows (see `join`)
               no_buffer: no buffer for a piece of a GSO frame
               released: packets that waited when its NIC was removed
    Counters:  passed: packets that left at once
               delayed: packets that waited
               split: GSO frames that were split
               sent_bytes: bytes on the wire that left while there was a rate
               delay_ns: sum of all waits; divide it by passed + delayed for the mean
               delay_max_ns: longest wait for a policy
               shared: packets of flows that shared a clock with another flow, since all of theirs
                   were taken: make `flows` larger
               at_horizon: packets that left at the horizon, with exceed: pace
    Handlers:  counters; rate, rates (read, write, live); flows (read): the number of clocks, and
               how many of them flows wait for now (of more than 65536, estimated from as many). A
               change of rate applies to packets that come after it; those that wait keep their
               times, and are not overtaken.
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   Each connection of the container sends at most 2 Mbit/s.
               nics:
                 web:
                   netns: /run/netns/web
                   egress: {elements: [{element: Pacer, rate: 2mbit, per: flow, name: pace}]}
                 db: {netns: /run/netns/db}

    A packet has at most two policies, and waits for them one after the other: its flow's before its
    mark's, or its mark's before that of all packets. Each policy's clock is exact: the packet that
    finds it at T goes on at the first whole nanosecond from T on, or at once, and the clock
    advances to T + length / rate. There is no burst. A late engine changes no times but those of
    the packets that it should have sent already.

    A GSO frame that takes more than 1 ms at the rate of a policy is cut, while it waits for it,
    into pieces of at most 1 ms (at least one segment), which go on at the times of their first
    bytes. The rest stays one packet.

    The algorithm is Carousel's (SIGCOMM'17, section 4): one time-indexed queue, into which a packet
    goes with the time that its policy gives it, and a horizon. Differences: a release time is
    exact, not that of its slot; and of two policies the second one's clock is charged once the
    packet has passed the first one, not on arrival, so that a slow flow does not use up its class's
    rate ahead of time.
    """

    DROP_REASONS = ("horizon", "queue_full", "no_buffer", "released")
    COUNTERS = ("passed", "delayed", "split", "sent_bytes", "delay_ns", "delay_max_ns", "shared",
                "at_horizon")
    TICKS = True
    STATE_VERSION = 1
    HANDLERS = {
        "rate": Handler(read="get_rate", write="prepare_rate", argument="rate",
                        help="the rate, such as 10mbit; none: no limit"),
        "rates": Handler(read="get_rates", write="prepare_rates", argument="rates",
                         help='rates of marks, such as {"1": "10mbit"}'),
        "flows": Handler(read="get_flows", help="clocks for flows, and those that flows wait for"),
    }

    def __init__(self, rate=None, per="all", rates=None, horizon="2s", exceed="drop", flows=65536,
                 *, name=None):
        self.per = choice_of(self.name, "per", per, PER)
        self.at_horizon = EXCEED[choice_of(self.name, "exceed", exceed, EXCEED)] == "pace"
        self.horizon_ns = horizon_of(self.name, horizon)
        count = flows_of(self.name, flows)
        self.flows = FlowClocks(1 if self.per == PER_ALL else count)
        rate_bps = rate_of(self.name, rate)
        if self.per == PER_ALL:
            self.whole.rate_bps = rate_bps
        else:
            self.flow_bps = rate_bps
        mark_table_free(&self.marks)
        mark_table_fill(&self.marks, rates_of(self.name, rates), ())
        self.wheel = TimingWheel()

    def __dealloc__(self):
        mark_table_free(&self.marks)

    def initialize(self):
        cdef Engine engine = self.engine
        self.keys.first, self.keys.second = self.seed("flows"), self.seed("flows, second")
        self.flows.touch()
        # Packets that wait can be many: leave most of the pool to other elements.
        self.small_limit = max(engine.pool.small_count // 4, 1)
        self.large_limit = max(engine.pool.large_count // 4, 1)

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint64_t[BATCH_MAX] keys
        cdef uint64_t key = 0, held, passed = 0
        cdef uint32_t i
        cdef Batch out
        cdef Packet *p
        if not (self.whole.rate_bps or self.flow_bps or self.marks.count
                or not self.wheel.is_empty()):
            self.counters.extra[PASSED] += batch.count
            self.emit(ctx, 0, batch)
            return
        out.count = 0
        self.collect_due(ctx, &out)              # first: what is due precedes what comes now
        if self.per != PER_ALL:
            # The clocks of a million flows are in no cache: all are requested before the first one
            # is needed.
            for i in range(batch.count):
                p = &ctx.packets[batch.index[i]]
                keys[i] = (flow_hash(p, &self.keys) if self.per == PER_FLOW
                           else number_hash(p.mark, &self.keys))
                flow_prefetch(self.flows, keys[i])
        held = self.counters.held
        for i in range(batch.count):
            if self.per != PER_ALL:
                key = keys[i]
            passed += admit(self, ctx, batch.index[i], key, FIRST, ctx.now_ns, &out)
        self.counters.extra[PASSED] += passed
        self.counters.extra[DELAYED] += self.counters.held - held
        self.collect_due(ctx, &out)              # GSO frames whose first piece is due at once
        self.finish(ctx, &out)

    cdef void tick(self, Context *ctx) noexcept nogil:
        cdef Batch out
        out.count = 0
        self.collect_due(ctx, &out)
        self.finish(ctx, &out)

    cdef void finish(self, Context *ctx, Batch *out) noexcept nogil:
        """Sets the timer and forwards the batch."""
        cdef uint64_t due_ns = self.wheel.due_ns
        if due_ns != self.deadline_ns:
            self.set_timer(ctx, due_ns)
        self.emit(ctx, 0, out)

    cdef void collect_due(self, Context *ctx, Batch *out) noexcept nogil:
        """Takes what is due out of the wheel, and leads it on at the time at which it was due: a
        late engine changes neither the order nor later times."""
        cdef uint64_t due_ns = self.wheel.due_ns
        cdef uint32_t index, word
        while due_ns <= ctx.now_ns:
            index = take(self, ctx)
            word = ctx.packets[index].held_word
            if word & HELD_CUT:
                self.cut(ctx, index, out)
            else:
                admit(self, ctx, index, 0, STAGES if word & HELD_SECOND else SECOND, due_ns, out)
            due_ns = self.wheel.due_ns

    cdef void cut(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil:
        """Cuts the next piece off a GSO frame whose turn has come, and leads it on; the rest waits
        for the piece's time."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t payload = p.length - p.header_length, begun = p.held_word & HELD_BYTES
        cdef uint32_t word = p.held_word - begun, done = begun, lost
        cdef uint64_t due_ns = p.release_ns, left_bytes, cut_bytes
        cdef Batch piece
        piece.count = 0
        lost = segment(ctx, index, word >> HELD_EACH_SHIFT & HELD_EACH_MOST, &done, &piece, 1)
        self.counters.extra[SPLIT] += begun == 0
        self.counters.generated += piece.count + lost
        self.counters.drops[NO_BUFFER] += lost
        if done >= payload:
            self.counters.generated -= 1         # the pieces replace the frame
            packet_free(ctx, index)
        else:
            # Linear between the frame's begin and end, which the clock was charged for. The rest is
            # put back before the piece goes on, since its time may be past, see TimingWheel.put.
            left_bytes = segmented_bytes(p, payload - begun)
            cut_bytes = segmented_bytes(p, done - begun)
            p.held_word = word | done
            hold(self, ctx, index,
                 due_ns + vnic_share_of(p.held_ns - due_ns, cut_bytes, left_bytes))
        if piece.count:
            admit(self, ctx, piece.index[0], 0, STAGES if word & HELD_SECOND else SECOND, due_ns,
                  out)

    # -- control -----------------------------------------------------------------------------------

    def join(self, PoolShare share not None):
        """Makes the element count its packets in `share` and respect its bounds. Raises ConfigError
        for an element that runs."""
        if self.engine is not None or self.share != NULL:
            raise ConfigError(f"{self.name}: runs already, or has a share; make a new one")
        self._share, self.share = share, &share.held

    def prepare_rate(self, rate):
        """The Work that changes the rate. Raises ConfigError for an invalid rate."""
        cdef SetPacerRate work = SetPacerRate(self)
        work.rate_bps = rate_of(self.name, rate)
        return work

    def prepare_rates(self, rates=None):
        """The Work that changes the rates of marks. Raises ConfigError for invalid ones."""
        return SetMarkRates(self, rates_of(self.name, rates))

    def get_rate(self):
        """The rate as text: "10mbit", or "none"."""
        return rate_text(self.rate_bps)

    def get_rates(self):
        """The rates of marks as text, by mark."""
        return {str(mark): rate_text(rate_bps) for mark, rate_bps in self._rates().items()}

    def get_flows(self):
        """`clocks`: their number; `active`: how many of them flows wait for; of more than SAMPLE an
        estimate."""
        cdef Engine engine = self.engine
        cdef uint32_t looked = min(self.flows.count, <uint32_t>SAMPLE)
        if self.per == PER_ALL or engine is None:
            return {"clocks": 0 if self.per == PER_ALL else self.flows.count, "active": 0}
        # any part of the table is a sample, since a flow's place is its hash
        return {"clocks": self.flows.count,
                "active": self.flows.busy_of(0, looked, engine.clock.now_ns)
                * (self.flows.count // looked)}

    @property
    def rate_bps(self):
        """The rate in bit/s; 0 means unlimited."""
        return self.whole.rate_bps if self.per == PER_ALL else self.flow_bps

    def _rates(self):
        cdef uint32_t i
        return {self.marks.entries[i].mark: self.marks.entries[i].policy.rate_bps
                for i in range(self.marks.mask + 1)
                if self.marks.entries[i].used and not self.marks.entries[i].policy.kept}

    def memory_bytes(self):
        """The pool's bytes that the waiting packets use, and the table of clocks."""
        return (packet_memory(self.wheel.small, self.wheel.large)
                + self.flows.count * sizeof(FlowClock))

    def describe(self):
        found = {"rate": rate_text(self.rate_bps), "per": PER[self.per]}
        if rates := self.get_rates():
            found["rates"] = ", ".join(f"{mark}: {rate}" for mark, rate in
                                       [*rates.items()][:4]) + (", ..." if len(rates) > 4 else "")
        return {**found, "horizon": format_time(self.horizon_ns),
                "exceed": "pace" if self.at_horizon else "drop"}

    # -- hand-over ---------------------------------------------------------------------------------

    def save_state(self):
        """`rate_bps`; `clock`: [next_ns, remainder, last_ns] of the policy of all packets; `marks`:
        [mark, rate_bps or None, next_ns, remainder, last_ns] of each mark, None: it has no rate any
        more; `flows`: packed clocks of flows, see flow_clocks.pyx; `wheel`, `packets`: see
        TimingWheel.packed. Packets have their release time in Packet.release_ns,
        and Packet.held_word and held_ns as in pacer.pxd."""
        cdef Engine engine = self.engine
        cdef uint32_t i
        cdef Policy *policy
        marks = []
        for i in range(self.marks.mask + 1):
            policy = &self.marks.entries[i].policy
            if self.marks.entries[i].used:
                marks.append([self.marks.entries[i].mark, None if policy.kept else policy.rate_bps,
                              policy.clock.next_ns, policy.clock.remainder, policy.last_ns])
        wheel, packets = [0, 0], b""
        if engine is not None:
            wheel, packets = self.wheel.packed(engine.ctx.packets)
        return {"rate_bps": self.rate_bps,
                "clock": [self.whole.clock.next_ns, self.whole.clock.remainder,
                          self.whole.last_ns],
                "marks": marks,
                "flows": b"" if engine is None else self.flows.packed(engine.clock.now_ns),
                "wheel": wheel, "packets": packets}

    def load_state(self, dict state):
        cdef Engine engine = self.engine
        cdef Context *ctx = engine.ctx
        cdef uint64_t now_ns = engine.clock.now_ns
        cdef bytes packets, flows
        cdef TimingWheel wheel = TimingWheel()
        cdef MarkTable marks
        cdef Policy whole
        cdef Policy *policy
        try:
            if len(state) != 6 or type(state["rate_bps"]) is not int:
                raise ValueError("other members")
            packets, flows = state["packets"], state["flows"]
            rate_bps = rate_of(self.name, state["rate_bps"])
            clocks = {mark: (rate, clock) for mark, rate, *clock in state["marks"]}
            if len(clocks) > 3 * int(MARKS_MOST):
                raise ValueError(f"{len(clocks)} marks")
            rates = rates_of(self.name, {mark: rate for mark, (rate, _) in clocks.items()
                                         if rate is not None})
            kept = [mark for mark in clocks if mark not in rates]
            if not all(type(mark) is int and 0 <= mark <= 0xFFFFFFFF for mark in kept):
                raise ValueError("a mark is not a number")
            whole.rate_bps, whole.kept = rate_bps if self.per == PER_ALL else 0, False
            _fill_policy(&whole, state["clock"], now_ns + self.horizon_ns)
            mark_table_fill(&marks, rates, kept)
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise VnicError(f"{self.name}: its state is not that of a Pacer: {error}") from None
        try:
            for mark, (_, clock) in clocks.items():
                policy = mark_policy(&marks, mark)
                _fill_policy(policy, clock, now_ns + self.horizon_ns)
            self._check_packets(packets)
            wheel.adopt(ctx.packets, ctx.small_count, ctx.total_count, now_ns,
                        (state["wheel"], packets))
            if not self.flows.adopt(flows, now_ns + self.horizon_ns + AHEAD_MOST_NS):
                raise ValueError("clocks of another table")
        except (TypeError, ValueError, OverflowError) as error:
            mark_table_free(&marks)
            raise VnicError(f"{self.name}: its state is not that of a Pacer: {error}") from None
        # as of a Shaper, the rates that were in use replace the configuration's
        mark_table_free(&self.marks)
        self.marks, self.whole, self.wheel = marks, whole, wheel
        if self.per != PER_ALL:
            self.flow_bps = rate_bps
        if self.share != NULL:
            share_count(self.share, self.wheel.small, self.wheel.large)
        self.set_timer(ctx, self.wheel.due_ns)

    def _check_packets(self, bytes packets):
        """Raises ValueError for packets that cannot be those of a wheel."""
        cdef Engine engine = self.engine
        cdef const Packet *p
        cdef const uint32_t *indices = queue_indices(packets)
        cdef uint32_t i
        if len(packets) % sizeof(uint32_t) or self.counters.held != queue_length(packets):
            raise ValueError(f"{len(packets)} bytes are no list of the {self.counters.held} "
                             "packets that wait")
        for i in range(queue_length(packets)):
            if indices[i] >= engine.ctx.total_count:
                raise ValueError(f"packet {indices[i]} is not in the pool")
            p = &engine.ctx.packets[indices[i]]
            if p.held_word & HELD_CUT and (
                    not can_segment(p) or p.held_ns < p.release_ns
                    or p.held_word & HELD_BYTES >= p.length - p.header_length):
                raise ValueError(f"packet {indices[i]} cannot be one that is being cut")

    def forget_state(self):
        Element.forget_state(self)
        if self.share != NULL:
            share_count(self.share, -self.wheel.small, -self.wheel.large)
        self.wheel.clear()

    def drain(self, uint32_t most=0xFFFFFFFF):
        cdef Engine engine = self.engine
        cdef uint32_t index, word
        cdef Batch out
        if engine is None:
            return
        out.count = 0
        while most and not self.wheel.is_empty():
            most -= 1
            index = take(self, engine.ctx)
            word = engine.ctx.packets[index].held_word
            if word & HELD_CUT and word & HELD_BYTES:
                # what is left of the frame, as one piece, and past the policy that may follow
                engine.ctx.packets[index].held_word = (
                    word & HELD_BYTES | HELD_CUT | HELD_SECOND | HELD_EACH_MOST << HELD_EACH_SHIFT)
                self.cut(engine.ctx, index, &out)
            else:
                forward(self, engine.ctx, index, &out)
        self.finish(engine.ctx, &out)

    def release(self):
        cdef Engine engine = self.engine
        if engine is None:
            return
        while not self.wheel.is_empty():
            self.drop(engine.ctx, take(self, engine.ctx), RELEASED)
        self.deadline_ns = NEVER


# -- policies --------------------------------------------------------------------------------------
# Functions, which the compiler makes inline, and not methods: a tenth of a packet's cost.


cdef inline bint admit(Pacer pacer, Context *ctx, uint32_t index, uint64_t key, uint32_t stage,
                       uint64_t at_ns, Batch *out) noexcept nogil:
    """Leads a packet past its policies from `stage` on, which it reaches at `at_ns`. True: it is
    forwarded; False: it waits, or is dropped."""
    while stage < STAGES:
        if not passes(pacer, ctx, index, key, stage, at_ns):
            return False
        stage += 1
    forward(pacer, ctx, index, out)
    return True


cdef inline bint passes(Pacer pacer, Context *ctx, uint32_t index, uint64_t key, uint32_t stage,
                        uint64_t at_ns) noexcept nogil:
    """Whether the policy of a stage lets a packet pass at once. False: it waits, or is dropped."""
    cdef Policy *policy = NULL
    cdef uint64_t rate_bps
    if stage == FIRST and pacer.per == PER_FLOW:
        return passes_flow(pacer, ctx, index, key)
    if stage == FIRST or pacer.per == PER_FLOW:
        if pacer.marks.count:
            policy = mark_policy(&pacer.marks, ctx.packets[index].mark)
        if policy != NULL and policy.kept and clock_is_due(&policy.clock, at_ns):
            policy = NULL
        if policy == NULL and pacer.per == PER_MARK:
            return passes_flow(pacer, ctx, index, key)
    elif pacer.per == PER_ALL:
        policy = &pacer.whole
    if policy == NULL:
        return True
    rate_bps = policy.rate_bps
    if rate_bps == 0:
        if clock_is_due(&policy.clock, at_ns):
            return True
        rate_bps = RATE_MOST_BPS             # behind those that wait since there was a rate
    return reserve(pacer, ctx, index, stage, at_ns, rate_bps, &policy.clock, &policy.last_ns)


cdef inline bint passes_flow(Pacer pacer, Context *ctx, uint32_t index,
                             uint64_t key) noexcept nogil:
    """`passes` for the rate of each flow, or mark."""
    cdef uint64_t rate_bps = pacer.flow_bps, last_ns
    cdef FlowClock *flow
    cdef VirtualClock clock
    cdef bint shared, passes
    if rate_bps == 0 and pacer.wheel.is_empty():
        return True
    flow = pacer.flows.find(key, ctx.now_ns, &shared)
    if rate_bps == 0:
        if flow_is_idle(flow, ctx.now_ns):
            return True
        rate_bps = RATE_MOST_BPS             # as in `passes`
    pacer.counters.extra[SHARED] += shared
    clock = flow_load(flow, rate_bps)
    passes = reserve(pacer, ctx, index, FIRST, ctx.now_ns, rate_bps, &clock, &last_ns)
    flow_store(flow, &clock)
    return passes


cdef inline bint reserve(Pacer pacer, Context *ctx, uint32_t index, uint32_t stage,
                         uint64_t at_ns, uint64_t rate_bps, VirtualClock *clock,
                         uint64_t *last_ns) noexcept nogil:
    """Takes a packet's turn of a policy's clock, which it reaches at `at_ns`, and charges the
    clock. True: the turn is then; False: the packet waits in the wheel, or is dropped, without a
    charge."""
    cdef Packet *p = &ctx.packets[index]
    cdef uint32_t wire_bytes = packet_wire_bytes(p)
    cdef uint64_t release_ns = at_ns, each
    # can_segment: without Parse the offload fields are not validated, so such a frame is not cut
    cdef bint cuts = (p.gso_type != GSO_NONE
                      and <uint64_t>wire_bytes * QUANTUM_FACTOR > rate_bps
                      and p.length > <uint32_t>p.header_length + p.gso_size and can_segment(p))
    cdef bint anew = clock_is_due(clock, at_ns)       # the clock goes on from release_ns
    if not anew:
        release_ns = clock_due_ns(clock)
        if release_ns - at_ns > pacer.horizon_ns:
            if not pacer.at_horizon:
                pacer.drop(ctx, index, BEYOND_HORIZON)
                return False
            anew, release_ns = True, at_ns + pacer.horizon_ns
    # Pieces, too, leave at the horizon, since later packets do: a frame that would have one only
    # before it is not cut.
    if pacer.at_horizon and at_ns + pacer.horizon_ns - release_ns < QUANTUM_NS:
        cuts = False
    if (release_ns > at_ns or cuts) and is_full(pacer, ctx, index):
        pacer.drop(ctx, index, QUEUE_FULL)
        return False
    if anew:
        clock.next_ns, clock.remainder = release_ns, 0
        pacer.counters.extra[AT_HORIZON] += release_ns > at_ns
    clock_charge(clock, rate_bps, wire_bytes)
    last_ns[0] = release_ns
    if release_ns == at_ns and not cuts:
        return True
    p.held_word = HELD_SECOND if stage == SECOND else 0
    if cuts:
        # its pieces keep their times, also when the rate changes
        last_ns[0] = clock.next_ns
        p.held_ns = clock_due_ns(clock)
        if pacer.at_horizon and p.held_ns > at_ns + pacer.horizon_ns:
            last_ns[0] = p.held_ns = at_ns + pacer.horizon_ns
            pacer.counters.extra[AT_HORIZON] += 1
        each = rate_bps // QUANTUM_FACTOR // (<uint64_t>p.header_length + p.gso_size)
        each = min(max(each, <uint64_t>1), <uint64_t>HELD_EACH_MOST)
        p.held_word |= HELD_CUT | <uint32_t>each << HELD_EACH_SHIFT
    pacer.counters.extra[DELAY_NS] += release_ns - at_ns
    if release_ns - at_ns > pacer.counters.extra[DELAY_MAX_NS]:
        pacer.counters.extra[DELAY_MAX_NS] = release_ns - at_ns
    hold(pacer, ctx, index, release_ns)
    return False


cdef inline bint is_full(Pacer pacer, const Context *ctx, uint32_t index) noexcept nogil:
    """Whether there is no place for a packet; there is always one for the first."""
    cdef bint large = index >= ctx.small_count
    if pacer.counters.held == 0:
        return False
    return ((pacer.wheel.large >= pacer.large_limit if large
             else pacer.wheel.small >= pacer.small_limit)
            or (pacer.share != NULL and share_is_full(pacer.share, large)))


cdef inline void hold(Pacer pacer, Context *ctx, uint32_t index,
                      uint64_t release_ns) noexcept nogil:
    cdef bint large = index >= ctx.small_count
    pacer.counters.held += 1
    if pacer.share != NULL:
        share_count(pacer.share, 0 if large else 1, 1 if large else 0)
    pacer.wheel.put(ctx, index, release_ns)


cdef inline uint32_t take(Pacer pacer, Context *ctx) noexcept nogil:
    """Removes and returns the first packet of the wheel, which there must be."""
    cdef uint32_t index = pacer.wheel.take(ctx)
    cdef bint large = index >= ctx.small_count
    pacer.counters.held -= 1
    if pacer.share != NULL:
        share_count(pacer.share, 0 if large else -1, -1 if large else 0)
    return index


cdef inline void forward(Pacer pacer, Context *ctx, uint32_t index, Batch *out) noexcept nogil:
    pacer.counters.extra[SENT_BYTES] += packet_wire_bytes(&ctx.packets[index])
    if out.count == BATCH_MAX:
        pacer.emit(ctx, 0, out)
        out.count = 0
    batch_add(out, index)


cdef class SetPacerRate(Work):
    """A change of rate, made on the engine's thread."""

    def __init__(self, Pacer pacer not None):
        self.pacer = pacer

    cdef void run(self, Context *ctx) noexcept nogil:
        if self.pacer.per == PER_ALL:
            policy_set_rate(&self.pacer.whole, self.rate_bps, ctx.now_ns)
        else:
            self.pacer.flow_bps = self.rate_bps


cdef class SetMarkRates(Work):
    """A change of the rates of marks, made on the engine's thread."""

    def __init__(self, Pacer pacer not None, dict rates):
        cdef uint32_t i
        cdef MarkEntry *entry
        cdef uint64_t now_ns = 0
        cdef Engine engine = pacer.engine
        self.pacer = pacer
        if engine is not None:
            now_ns = engine.clock.now_ns
        # Marks whose packets may wait when this is run. Control changes the table, one change after
        # the other; the engine its clocks only.
        kept = []
        for i in range(pacer.marks.mask + 1):
            entry = &pacer.marks.entries[i]
            if entry.used and (entry.policy.rate_bps
                               or not clock_is_due(&entry.policy.clock, now_ns)):
                kept.append(entry.mark)
        if len(kept) > 2 * int(MARKS_MOST):
            raise ConfigError(f"{pacer.name}: packets of {len(kept)} marks wait by earlier rates; "
                              "try again when some have left")
        mark_table_free(&self.marks)
        mark_table_fill(&self.marks, rates, kept)

    def __dealloc__(self):
        mark_table_free(&self.marks)

    cdef void run(self, Context *ctx) noexcept nogil:
        cdef uint32_t i
        cdef uint64_t rate_bps, behind_ns
        cdef FlowClock *flow
        cdef bint shared
        cdef Policy *before
        cdef Policy *policy
        for i in range(self.marks.mask + 1):
            if not self.marks.entries[i].used:
                continue
            policy = &self.marks.entries[i].policy
            before = mark_policy(&self.pacer.marks, self.marks.entries[i].mark)
            if before != NULL:
                rate_bps = policy.rate_bps
                policy.clock, policy.last_ns = before.clock, before.last_ns
                policy.rate_bps = before.rate_bps
                policy_set_rate(policy, rate_bps, ctx.now_ns)
            if self.pacer.per == PER_MARK and (before == NULL or before.kept):
                # behind the packets of the mark that wait for `rate`
                flow = self.pacer.flows.find(
                    number_hash(self.marks.entries[i].mark, &self.pacer.keys), ctx.now_ns, &shared)
                behind_ns = flow.next_ns + (flow_remainder(flow) != 0)
                if behind_ns > clock_due_ns(&policy.clock):
                    policy.clock.next_ns, policy.clock.remainder = behind_ns, 0
                    policy.last_ns = behind_ns
        self.marks, self.pacer.marks = self.pacer.marks, self.marks


cdef inline void policy_set_rate(Policy *policy, uint64_t rate_bps, uint64_t now_ns) noexcept nogil:
    """Changes the rate; packets that wait are not overtaken. What is left of the last one's time,
    unless it is cut, is converted to the new rate."""
    cdef uint64_t from_ns = max(now_ns, policy.last_ns)
    if policy.rate_bps and rate_bps and policy.clock.next_ns >= from_ns:
        clock_set_rate(&policy.clock, from_ns, policy.rate_bps, rate_bps, 0)
    elif policy.clock.remainder:
        policy.clock.next_ns, policy.clock.remainder = policy.clock.next_ns + 1, 0
    policy.rate_bps = rate_bps


cdef int _fill_policy(Policy *policy, clock, uint64_t most_ns) except -1:
    """Sets the clock of a policy that was handed over. Raises ValueError."""
    cdef uint64_t rate = policy.rate_bps if policy.rate_bps else RATE_MOST_BPS
    policy.clock.next_ns, policy.clock.remainder, policy.last_ns = clock
    # a packet that takes less than a nanosecond may leave behind next_ns
    if (policy.clock.remainder >= rate or policy.last_ns > clock_due_ns(&policy.clock)
            or policy.clock.next_ns > most_ns + AHEAD_MOST_NS):
        raise ValueError(f"a clock says {policy.clock.next_ns} ns and {policy.last_ns} ns")
    return 0
