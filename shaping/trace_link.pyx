"""TraceLink. The contract is in trace_link.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport NEVER
from dataplane.graph.offload cimport can_segment
from dataplane.packet.pool cimport GSO_NONE, NO_PACKET, Batch, Context, Packet
from shaping.framing cimport Load, packet_load
from shaping.link cimport Link
from shaping.schedule cimport Position, Schedule
from shaping.shaper cimport work_out

from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from dataplane.units import format_rate, format_time
from shaping.settings import rate_text
from shaping.trace_setting import overhead_for, queue_of, trace_setting

# For Shaper's code, to which a rate of 0 is no limit. The least one, so that the clock of a state
# may lie 213 days ahead.
NOMINAL_BPS = 1000
QUEUE = {"packets": 1000}


cdef class TraceLink(Link):
    """Emulates a line whose rate varies: opportunities of a Mahimahi trace, or steps of rates.

    A queue with a bound, then the line: packets leave when their last byte has been sent and has
    travelled the delay.

    Synopsis:  a >> TraceLink(trace=read_trace("lte.up"), queue={"packets": 100}) >> b
    Ports:     1 input, 1 output; packets leave in order.
    Config:    trace: In a file: the path of a trace, or {file: PATH, loop: no}, which vnic reads
                   when it reads the file; formats are those of `vnic shape trace import`. Or steps
                   [{for: 10s, rate: 5mbit}, {for: 2s, rate: 0bit}], also {steps: [...], loop: no};
                   {at: TIME, rate: RATE} in place of `for`, with {at: TIME} alone as the end. In
                   Python: what shaping.trace_files.read_trace returns, or steps.
                   A trace begins when the element is put in place, and begins again at its end.
                   With `loop: no` opportunities end, and packets wait until the element is removed;
                   of steps, the last rate stays.
               queue: Bound on packets that wait, as a number, where each segment of a GSO frame
                   counts, or as a size on the line ("256kb"). A time is none, since the rate
                   varies. Default: {packets: 1000}. An empty queue takes one packet of any length.
                   At most a quarter of the packet pool's buffers of either size may wait, and as
                   many be on the line.
               overhead: What a packet takes of the line, as for a Link. Default: of opportunities,
                   {bytes: -10}: the IP packet and 4 bytes, as Mahimahi counts, so that a packet of
                   1500 bytes takes one opportunity; of rates, none: bits of layer-2 frames.
               delay: Propagation delay ("20ms", int ns), at most 1h.
    Drops:     queue_full: the queue was full when the packet arrived (tail drop); the cut-off end
                   of a GSO frame counts as one
               no_buffer: no buffer for a segment of a GSO frame
               released: packets that the element held when its NIC was removed
               delay_line_full: a quarter of the pool was on the line when the packet's transmission
                   began; a larger `pool:` helps
    Counters:  passed: packets whose transmission began at once
               delayed: packets that waited for it
               split: GSO frames that were split
               sent_bytes: bytes sent, with the overhead
               queue_bytes: bytes that wait now
               queue_bytes_max: maximum of queue_bytes
               sojourn_max_ns: longest wait in the queue
               sojourn_ns: sum of all waits; divide it by passed + delayed for the mean
               line_packets: packets on the line now, or being sent
               line_packets_max: maximum of line_packets
    Handlers:  counters; trace, delay (read, write, live); rate (read): the trace's mean; queue
               (read). A new trace begins at its beginning; the packet that is being sent goes on by
               it with the bytes that it has left. Nothing is lost or overtaken.
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   The container's uplink has 20 Mbit/s, and none for 2 s of each 30.
               nics:
                 web:
                   netns: /run/netns/web
                   egress:
                     elements:
                       - {element: TraceLink, queue: {packets: 100}, delay: 30ms,
                          trace: [{for: 28s, rate: 20mbit}, {for: 2s, rate: 0bit}]}
                 db: {netns: /run/netns/db}

    Each line of a Mahimahi trace is one opportunity to send 1504 bytes at that millisecond. Bytes
    of several packets share an opportunity, and a packet may need several; it leaves with its last
    byte. What is not used is lost, and a packet that arrives at the instant of an opportunity
    misses it. The last line is the period: lines of 0 ms coincide with it from the second period
    on. That is what Mahimahi's mm-link does (Netravali et al., USENIX ATC 2015, section 4), without
    rounding of arrivals to milliseconds.

    Of steps, each rate holds for its time. A packet that finds the line free takes its full time,
    through as many steps as it needs, in exact fractions of nanoseconds.

    A GSO frame is split into its segments when it reaches the head of the queue, so that each
    leaves at the instant at which it would have without GSO. Packets that wait lose nothing when
    the engine is late: they use the opportunities that have passed meanwhile.
    """

    STATE_VERSION = 1
    UPGRADES = {}
    HANDLERS = {
        "rate": Handler(read="get_rate", help="the mean rate of the trace"),
        "trace": Handler(read="get_trace", write="prepare_trace", argument="trace",
                         help="the trace and how far it has been played"),
    }

    def __init__(self, trace, queue=None, overhead=None, delay=0, *, name=None):
        setting = trace_setting(self.name, trace)
        self.default_overhead = overhead is None
        if overhead is None:
            overhead = overhead_for(setting.trace)
        queue = QUEUE if queue is None else queue_of(self.name, queue)
        Link.__init__(self, None, queue, overhead, delay)
        self.framing.counts = True
        self.schedule, self.label = setting.trace.schedule(), setting.label
        self.schedule.begin(&self.position, 0, setting.loop)
        work_out(self, &self.setting, NOMINAL_BPS)

    def initialize(self):
        cdef Engine engine = self.engine
        Link.initialize(self)
        self.schedule.begin(&self.position, engine.clock.now_ns, self.position.loop)

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        self.enqueue_batch(ctx, batch)

    @cython.final
    cdef uint64_t ready_ns(self, const Context *ctx) noexcept nogil:
        """When the transmission of the first packet in the queue can begin; there must be one."""
        return self.schedule.ready_ns(&self.position, ctx.packets[self.head].release_ns)

    @cython.final
    cdef bint is_to_split(self, const Context *ctx) noexcept nogil:
        """Whether the first packet in the queue is a GSO frame of several segments."""
        cdef const Packet *p = &ctx.packets[self.head]
        # can_segment: without Parse the offload fields are not validated, so such a frame is not
        # split
        return (self.head == self.split_index
                or (p.gso_type != GSO_NONE and can_segment(p)
                    and p.length - p.header_length > p.gso_size))

    cdef void start_due(self, Context *ctx) noexcept nogil:
        cdef Load load
        cdef uint64_t sent_ns
        while self.head != NO_PACKET and self.ready_ns(ctx) <= ctx.now_ns:
            load = packet_load(&self.framing, &ctx.packets[self.head])
            if self.is_to_split(ctx) and self.split_head(ctx, 1, load):
                continue                       # the queue has another head now
            sent_ns = self.schedule.charge(&self.position, load.bytes)
            if sent_ns == NEVER:
                break
            self.clock.next_ns, self.clock.remainder = sent_ns, 0
            self.put(ctx, self.dequeue(ctx, load))

    cdef void set_deadline(self, Context *ctx) noexcept nogil:
        cdef uint64_t due_ns = NEVER
        if self.head != NO_PACKET:
            due_ns = self.ready_ns(ctx)
        if self.line_head != NO_PACKET:
            due_ns = min(due_ns, ctx.packets[self.line_head].release_ns)
        if due_ns != NEVER or self.deadline_ns != NEVER:
            self.set_timer(ctx, due_ns)

    # -- control -----------------------------------------------------------------------------------

    def prepare_trace(self, trace):
        """The change of the trace, a callable for the engine's thread. Raises ConfigError."""
        setting = trace_setting(self.name, trace)
        schedule = setting.trace.schedule()
        if self.default_overhead and type(schedule) is not type(self.schedule):
            raise ConfigError(f"{self.name}: trace {setting.label}: its overhead by default is "
                              f"another one than that of {self.label}: give overhead, such as none")
        return lambda: self.use(schedule, setting.label, setting.loop)

    def use(self, Schedule schedule, str label, bint loop):
        """Plays another trace from now on; on the engine's thread."""
        cdef Engine engine = self.engine
        cdef Context *ctx = engine.ctx
        cdef uint64_t now_ns = ctx.now_ns, unsent, sent_ns
        cdef bint sending
        self.start_due(ctx)
        sending = self.is_sending(now_ns)
        unsent = self.schedule.unsent_bytes(&self.position, now_ns, self.clock.next_ns)
        self.schedule, self.label = schedule, label
        schedule.begin(&self.position, now_ns, loop)
        if sending:
            schedule.ready_ns(&self.position, now_ns)
            sent_ns = schedule.charge(&self.position, <uint32_t>max(unsent, <uint64_t>1))
            # A trace that ends before the packet does: the packet leaves, the trace has ended.
            self.clock.next_ns = now_ns if sent_ns == NEVER else sent_ns
            self.retime(ctx)
        self.set_deadline(ctx)

    def get_trace(self):
        """The trace: `file`, `digest` of its content, `loop`, and `period_ns`, of which `played_ns`
        have been played; None: it has ended, or the element does not run."""
        cdef Engine engine = self.engine
        played = None
        if engine is not None and self.position.time_ns != NEVER:
            played = int(engine.clock.now_ns) - int(self.position.base_ns)
            # The position may be ahead, in a later period, or behind while no packet waits.
            played = played % self.schedule.period_ns if self.position.loop else max(played, 0)
        return {"file": self.label, "digest": self.schedule.digest, "loop": self.position.loop,
                "period_ns": self.schedule.period_ns, "played_ns": played}

    def prepare_rate(self, rate):
        """Raises ConfigError: the trace says the rate."""
        raise ConfigError(f"{self.name}: its rate follows from its trace: change trace")

    def get_rate(self):
        """The trace's mean rate as text."""
        return rate_text(self.schedule.mean_bps)

    @property
    def rate_bps(self):
        """The trace's mean rate in bit/s."""
        return self.schedule.mean_bps

    def describe(self):
        found = Link.describe(self)
        found["rate"] = f"{format_rate(self.schedule.mean_bps)} on average"
        return {"trace": self.label, **found, "period": format_time(self.schedule.period_ns)}

    # -- state -------------------------------------------------------------------------------------

    def save_state(self):
        """As Link's; `rate_bps` and `remainder` mean nothing, and `next_ns` is when the last bit of
        the packets on the line is sent. `trace`: digest of the trace; `base_ns`, `time_ns`, `left`,
        `index`, `loop`: the position on it, see schedule.pxd."""
        return {**Link.save_state(self), "trace": self.schedule.digest,
                "base_ns": self.position.base_ns, "time_ns": self.position.time_ns,
                "left": self.position.left, "index": self.position.index,
                "loop": self.position.loop}

    def load_state(self, dict state):
        cdef Position position, before = self.position
        try:
            state = dict(state)
            digest = state.pop("trace")
            for key in ("base_ns", "time_ns", "left", "index"):
                if type(state[key]) is not int:
                    raise ValueError(f"{key} is not a number")
            if type(state["loop"]) is not bool:
                raise ValueError("loop is not a boolean")
            position.base_ns, position.time_ns = state.pop("base_ns"), state.pop("time_ns")
            position.left, position.index = state.pop("left"), state.pop("index")
            position.loop = state.pop("loop")
            if state["rate_bps"] != NOMINAL_BPS:
                raise ValueError(f"a rate of {state['rate_bps']}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise VnicError(f"{self.name}: its state is not that of a TraceLink: "
                            f"{error}") from None
        if digest != self.schedule.digest:
            raise VnicError(f"{self.name}: its state is of another trace than {self.label}")
        if not self.schedule.is_possible(&position):
            raise VnicError(f"{self.name}: its trace has no position {position.index} with "
                            f"{position.left} left at {position.time_ns} ns")
        self.position = position
        try:
            Link.load_state(self, state)
        except VnicError:
            self.position = before
            raise
