"""Link. The contract is in link.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport NEVER
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport (BATCH_MAX, NO_PACKET, Batch, Context, Packet, batch_add,
                                    packet_memory)
from dataplane.packet.queue cimport queue_head, queue_indices, queue_length, queue_packed
from shaping.delivered cimport count_delivered
from shaping.pool_share cimport share_count
from shaping.shaper cimport Setting, Shaper, work_out
from shaping.virtual_clock cimport clock_due_ns, clock_is_due

from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from dataplane.units import format_time
from shaping import settings
from shaping.overhead import cell_number, overhead_of, overhead_text
from shaping.settings import delay_of, packets_of, rate_of, rate_text

# DROP_REASONS and COUNTERS, after those of Shaper
cdef enum:
    RELEASED = 2
    DELAY_LINE_FULL = 3
    PASSED = 0
    LINE_PACKETS = 8
    LINE_PACKETS_MAX = 9
    DELIVERED_PACKETS = 10
    DELIVERED_BYTES = 11


cdef class Link(Shaper):
    """Emulates a line: a bounded queue, a rate with the line's overhead, and a propagation delay.

    A packet leaves when its last bit has been sent and has travelled the delay. A Shaper limits
    what a container may send; a Link is the line that it sends over.

    Synopsis:  a >> Link(rate="16mbit", overhead="pppoe-ptm", delay="20ms", name="dsl") >> b
    Ports:     1 input, 1 output; packets leave in order.
    Config:    rate: Rate of the line, such as "100mbit" or a number of bit/s, 1 kbit/s to 10
                   Tbit/s. None, "none" or 0: no queue, only the delay. Bits of layer-2 frames
                   count, with the overhead; a GSO frame counts as its segments do.
               queue: Bound on packets that wait for their transmission, as time at the current rate
                   ("100ms", int ns), as a size on the line ("256kb") or as a number of packets
                   ({packets: 100}), where each segment of a GSO frame counts. An empty queue takes
                   one packet of any length. At most a quarter of the packet pool's buffers of
                   either size may wait, and as many be on the line.
               overhead: What the line adds to each frame, a keyword of CAKE (see below) or its
                   parts: {bytes: -64 to 256, minimum: 0 to 256, cell: none, atm or ptm}, added to
                   the layer-2 frame in this order.
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
               sent_bytes: bytes sent, with the overhead, while there was a rate
               queue_bytes: bytes that wait now
               queue_bytes_max: maximum of queue_bytes
               sojourn_max_ns: longest wait in the queue
               sojourn_ns: sum of all waits; divide it by passed + delayed for the mean
               line_packets: packets on the line now, or being sent
               line_packets_max: maximum of line_packets
               delivered_packets: packets on a wire that left, a GSO frame as its segments
               delivered_bytes: their bytes, without the overhead
    Handlers:  counters; rate, delay (read, write, live); queue (read). A change loses and reorders
               nothing. It applies to waiting packets and to the one that is being sent; packets
               whose last bit has been sent keep their times, and later ones never overtake them.
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   The container is behind a DSL line of 10 Mbit/s, 15 ms away, with 50 ms of buffer.
               nics:
                 web:
                   netns: /run/netns/web
                   egress:
                     elements:
                       - {element: Link, rate: 10mbit, queue: 50ms, delay: 15ms,
                          overhead: pppoe-ptm}
                 db: {netns: /run/netns/db}

    The last bit of packet n, which arrives at a(n), has been sent at t(n) = max(t(n-1), a(n)) +
    length / rate; the packet leaves at the first whole nanosecond from t(n) + delay on. t(n) is an
    exact fraction, so no rate drifts. There is no burst: a packet that finds the line free takes
    its full time. Only what an engine is late is made up, as by a Shaper: in full by packets that
    wait meanwhile, and up to 100 ms by those that arrive immediately after these; each takes
    the whole delay all the same.

    Overhead keywords are those of tc-cake(8), which count what the line sends with each IP packet.
    Here they replace the Ethernet header, so 14 bytes less are added to a layer-2 frame; VLAN tags
    in the frame are sent besides. Without cells: none +0, raw +0, docsis +4 (at least 64), ethernet
    +24 (preamble, FCS, the gap between frames; at least 84). PTM cells (one byte more for each 64,
    or part of them): bridged-ptm +8, pppoe-ptm +16. ATM cells (53 bytes for each 48, or part of
    them): ipoa-vcmux -6, pppoa-vcmux -4, pppoa-llc +0, ipoa-llcsnap +2, bridged-vcmux +10,
    pppoe-vcmux +18, bridged-llcsnap +18, pppoe-llcsnap +26, conservative +34. ether-vlan adds 4
    bytes more to the keyword before it ("docsis ether-vlan") and may be repeated; alone it is
    "ethernet ether-vlan".

    A GSO frame that takes more than 1 ms at the rate is split into pieces of at most 1 ms, as by a
    Shaper; each piece leaves when its last bit has been sent, and so does a frame that stays whole.

    Packets on the line need buffers of the pool: rate * delay / packet length of them.
    """

    DROP_REASONS = (*Shaper.DROP_REASONS, "delay_line_full")
    COUNTERS = (*Shaper.COUNTERS, "line_packets", "line_packets_max", "delivered_packets",
                "delivered_bytes")
    STATE_VERSION = 1
    UPGRADES = {}
    HANDLERS = {
        "delay": Handler(read="get_delay", write="prepare_delay", argument="delay",
                         help="the propagation delay, such as 20ms"),
        "queue": Handler(read="get_queue",
                         help="packets and bytes that wait, their limits, packets on the line"),
    }

    def __init__(self, rate, queue="100ms", overhead="none", delay=0, *, name=None):
        segments = packets_of(self.name, queue)
        Shaper.__init__(self, None, "0ms" if segments is not None else queue, 0)
        if segments is not None:
            self._queue_ns, self._queue_segments = None, segments
        self._overhead = overhead_of(self.name, overhead)
        self.framing.counts = segments is not None or self._overhead != overhead_of("", "none")
        self.framing.bytes = self._overhead.bytes
        self.framing.minimum = max(self._overhead.minimum, 1)
        self.framing.cell = cell_number(self._overhead)
        self.delay_ns = delay_of(self.name, "delay", delay)
        self.line_head = self.line_tail = self.sending = NO_PACKET
        work_out(self, &self.setting, rate_of(self.name, rate))

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        if self.head == NO_PACKET:
            if self.setting.rate_bps == 0:
                if self.delay_ns == 0 and self.line_head == NO_PACKET:
                    self.counters.extra[PASSED] += batch.count
                    self.leave(ctx, batch)
                    return
            elif batch.count == 1 and self.pass_at_once(ctx, &ctx.packets[batch.index[0]]):
                self.put(ctx, batch.index[0])
                self.send_due(ctx)
                return
        self.enqueue_batch(ctx, batch)

    cdef void release_due(self, Context *ctx) noexcept nogil:
        """Begins the transmissions that are due, forwards what has arrived at the other end, and
        sets the deadline for the next of either."""
        self.start_due(ctx)
        self.send_due(ctx)

    cdef void start_due(self, Context *ctx) noexcept nogil:
        cdef uint32_t index
        while True:
            index = self.take_due(ctx)
            if index == NO_PACKET:
                break
            self.put(ctx, index)

    @cython.final
    cdef void put(self, Context *ctx, uint32_t index) noexcept nogil:
        """Appends a packet to the line, whose transmission the clock has been charged for."""
        cdef Packet *p = &ctx.packets[index]
        # A packet may have been sent, by the clock, before it came: it makes up what the engine is
        # late. It gets no part of the delay for that: no packet is faster than the line.
        cdef uint64_t sent_ns = (max(clock_due_ns(&self.clock), self.arrived_ns)
                                 if self.setting.rate_bps else ctx.now_ns)
        if self.line_head == NO_PACKET:
            self.line_head = index
        elif (self.line_large >= self.large_limit if index >= ctx.small_count
              else self.line_small >= self.small_limit):
            self.sending = NO_PACKET
            self.drop(ctx, index, DELAY_LINE_FULL)
            return
        else:
            ctx.packets[self.line_tail].next = index
        self.line_tail = self.sending = index
        self.settled_ns = self.last_ns
        self.last_ns = max(self.last_ns, sent_ns + self.delay_ns)
        p.release_ns = self.last_ns
        self.count_line(ctx, index, 1)
        if self.counters.extra[LINE_PACKETS] > self.counters.extra[LINE_PACKETS_MAX]:
            self.counters.extra[LINE_PACKETS_MAX] = self.counters.extra[LINE_PACKETS]

    @cython.final
    cdef void send_due(self, Context *ctx) noexcept nogil:
        """Forwards the packets of the line that are due, and sets the deadline."""
        cdef Batch out
        cdef uint32_t index
        cdef Packet *p
        out.count = 0
        while self.line_head != NO_PACKET:
            index = self.line_head
            p = &ctx.packets[index]
            if p.release_ns > ctx.now_ns:
                break
            if out.count == BATCH_MAX:
                self.leave(ctx, &out)
                out.count = 0
            self.line_head = p.next
            p.next = NO_PACKET
            self.count_line(ctx, index, -1)
            batch_add(&out, index)
        if out.count and self.line_head == NO_PACKET and self.head == NO_PACKET:
            self.note_lateness(ctx.now_ns)
        self.set_deadline(ctx)
        self.leave(ctx, &out)

    @cython.final
    cdef void leave(self, Context *ctx, Batch *out) noexcept nogil:
        count_delivered(ctx, out, &self.counters.extra[DELIVERED_PACKETS],
                        &self.counters.extra[DELIVERED_BYTES])
        self.emit(ctx, 0, out)

    @cython.final
    cdef void note_lateness(self, uint64_t now_ns) noexcept nogil:
        """The last packet leaves now: what it is late counts as if the queue had been emptied so
        late, see end_idle."""
        cdef uint64_t emptied_ns = clock_due_ns(&self.clock) + (now_ns - self.last_ns)
        self.emptied_ns = max(self.emptied_ns, min(emptied_ns, now_ns))

    @cython.final
    cdef void count_line(self, Context *ctx, uint32_t index, int sign) noexcept nogil:
        cdef bint large = index >= ctx.small_count
        self.counters.held += sign
        self.counters.extra[LINE_PACKETS] += sign
        if large:
            self.line_large += sign
        else:
            self.line_small += sign
        if self.share != NULL:
            share_count(self.share, 0 if large else sign, sign if large else 0)

    cdef void set_deadline(self, Context *ctx) noexcept nogil:
        cdef uint64_t due_ns = NEVER
        if self.head != NO_PACKET:
            due_ns = clock_due_ns(&self.clock) if self.setting.rate_bps else ctx.now_ns
        if self.line_head != NO_PACKET:
            due_ns = min(due_ns, ctx.packets[self.line_head].release_ns)
        if due_ns != NEVER or self.deadline_ns != NEVER:
            self.set_timer(ctx, due_ns)

    # -- control -----------------------------------------------------------------------------------

    @cython.final
    cdef bint is_sending(self, uint64_t now_ns) noexcept nogil:
        """Whether bits of the packet `sending` are still to be sent."""
        return (self.sending != NO_PACKET and self.setting.rate_bps != 0
                and not clock_is_due(&self.clock, now_ns))

    @cython.final
    cdef void retime(self, Context *ctx) noexcept nogil:
        """The packet that is being sent gets the release time of the current clock and delay."""
        self.last_ns = max(self.settled_ns, clock_due_ns(&self.clock) + self.delay_ns)
        ctx.packets[self.sending].release_ns = self.last_ns

    cdef void apply(self, const Setting *setting, Context *ctx) noexcept nogil:
        """Changes the rate now; packets whose turn came earlier get their times by the old one."""
        cdef bint sending
        self.start_due(ctx)
        sending = self.is_sending(ctx.now_ns)
        Shaper.apply(self, setting, ctx)
        if sending:
            self.retime(ctx)

    cdef void apply_delay(self, uint64_t delay_ns, Context *ctx) noexcept nogil:
        """Changes the delay now, see `apply`."""
        self.start_due(ctx)
        self.delay_ns = delay_ns
        if self.is_sending(ctx.now_ns):
            self.retime(ctx)
        self.set_deadline(ctx)

    def set_delay(self, delay):
        """Changes the delay of a running element, from any thread. Raises ConfigError for an
        invalid delay, and then nothing has changed."""
        cdef SetDelay work = self.prepare_delay(delay)
        if self.engine is None:
            self.delay_ns = work.delay_ns
        else:
            self.engine.post(work)

    def prepare_delay(self, delay):
        """The Work that changes the delay. Raises ConfigError for an invalid delay."""
        cdef SetDelay work = SetDelay(self)
        work.delay_ns = delay_of(self.name, "delay", delay)
        return work

    def get_delay(self):
        """The delay as text, such as "20ms"."""
        return format_time(self.delay_ns)

    def get_queue(self):
        """The queue: `packets`, `bytes` on the line, `limit_bytes`, `limit_packets` (None: there is
        no such limit), and `line_packets`, which have left it."""
        limited = self._queue_ns is None and self._queue_bytes is None
        return {**Shaper.get_queue(self),
                "limit_packets": self._queue_segments if limited else None,
                "line_packets": self.counters.extra[LINE_PACKETS]}

    def memory_bytes(self):
        """The pool's bytes that the packets in the queue and on the line use."""
        return Shaper.memory_bytes(self) + packet_memory(self.line_small, self.line_large)

    def describe(self):
        found = Shaper.describe(self)
        found["rate"] = rate_text(self.setting.rate_bps)
        if self._queue_ns is None and self._queue_bytes is None:
            found["queue"] = f"{self._queue_segments} packets"
            found.pop("queue_limit", None)
        return {**found, "overhead": overhead_text(self._overhead),
                "delay": format_time(self.delay_ns)}

    # -- state -------------------------------------------------------------------------------------

    def save_state(self):
        """As Shaper's; `packets` begins with the `line` packets of the line, each with its release
        time in Packet.release_ns. `delay_ns`; `last_ns`: release time of the last packet that
        entered the line; `settled_ns`: of the one before it; `sending`: whether bits of the last
        one are still to be sent. Overhead is configuration."""
        cdef Engine engine = self.engine
        cdef uint32_t count = self.line_small + self.line_large
        cdef bint sending = False
        state = Shaper.save_state(self)
        if engine is not None:
            state["packets"] = (queue_packed(engine.ctx.packets, self.line_head, count)
                                + state["packets"])
            sending = self.is_sending(engine.clock.now_ns)
        return {**state, "line": count, "delay_ns": self.delay_ns, "last_ns": self.last_ns,
                "settled_ns": self.settled_ns, "sending": sending}

    def load_state(self, dict state):
        cdef Engine engine = self.engine
        cdef Context *ctx = engine.ctx
        cdef uint64_t last_ns, settled_ns, delay_ns, sent_ns = engine.clock.now_ns, before_ns = 0
        cdef uint64_t most_ns = settings.DELAY_MOST_NS
        cdef uint32_t i, count, head, small = 0
        cdef bytes packets, line
        cdef const uint32_t *indices
        cdef bint sending
        try:
            state = dict(state)
            packets = state["packets"]
            for key in ("line", "delay_ns", "last_ns", "settled_ns"):
                if type(state[key]) is not int:
                    raise ValueError(f"{key} is not a number")
            count, last_ns, settled_ns = (state.pop(key)
                                          for key in ("line", "last_ns", "settled_ns"))
            delay_ns = delay_of(self.name, "delay", state.pop("delay_ns"))
            if type(state["sending"]) is not bool:
                raise ValueError("sending is not a boolean")
            sending = state.pop("sending")
            if sending:
                sent_ns = max(sent_ns, <uint64_t>state["next_ns"] + 1)
            line, state["packets"] = packets[:4 * count], packets[4 * count:]
            if queue_length(line) != count:
                raise ValueError(f"{count} packets on the line, but {queue_length(line)} in all")
            head = queue_head(ctx.packets, ctx.total_count, line)
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise VnicError(f"{self.name}: its state is not that of a Link: {error}") from None
        indices = queue_indices(line)
        for i in range(count):
            if ctx.packets[indices[i]].release_ns < before_ns:
                raise VnicError(f"{self.name}: packet {indices[i]} is on the line behind a later "
                                "one")
            before_ns = ctx.packets[indices[i]].release_ns
            small += indices[i] < ctx.small_count
        if (settled_ns > last_ns or settled_ns > engine.clock.now_ns + most_ns
                or last_ns > sent_ns + most_ns or (count and before_ns != last_ns)
                or (sending and not count)
                or (count > 1 and ctx.packets[indices[count - 2]].release_ns > settled_ns)):
            raise VnicError(f"{self.name}: its line ends at {before_ns} ns, which is neither "
                            f"{settled_ns} nor {last_ns} ns")
        if self.counters.extra[LINE_PACKETS] != count:
            raise VnicError(f"{self.name}: {count} packets are on the line, its counters say "
                            f"{self.counters.extra[LINE_PACKETS]}")
        self.load_queue(state, count)
        # as the rate, the delay that was in use replaces the configuration's
        self.delay_ns, self.last_ns, self.settled_ns = delay_ns, last_ns, settled_ns
        self.line_head, self.line_small, self.line_large = head, small, count - small
        self.line_tail = indices[count - 1] if count else NO_PACKET
        self.sending = self.line_tail if sending else NO_PACKET
        if self.share != NULL:
            share_count(self.share, self.line_small, self.line_large)
        self.set_deadline(ctx)

    def forget_state(self):
        Shaper.forget_state(self)
        if self.share != NULL:
            share_count(self.share, -self.line_small, -self.line_large)
        self.line_head = self.line_tail = self.sending = NO_PACKET
        self.line_small = self.line_large = 0

    def drain(self, uint32_t most=0xFFFFFFFF):
        cdef Engine engine = self.engine
        cdef uint32_t index = self.line_head
        if engine is None:
            return
        while index != NO_PACKET and most:
            engine.ctx.packets[index].release_ns = engine.ctx.now_ns
            index = engine.ctx.packets[index].next
            most -= 1
        if index == NO_PACKET:
            self.sending = NO_PACKET
        self.send_due(engine.ctx)
        Shaper.drain(self, most)

    def release(self):
        cdef Engine engine = self.engine
        cdef uint32_t index
        if engine is None:
            return
        while self.line_head != NO_PACKET:
            index = self.line_head
            self.line_head = engine.ctx.packets[index].next
            self.count_line(engine.ctx, index, -1)
            self.drop(engine.ctx, index, RELEASED)
        self.line_tail = self.sending = NO_PACKET
        Shaper.release(self)


cdef class SetDelay(Work):
    """A change of delay, made on the engine's thread."""

    def __init__(self, Link link):
        self.link = link

    cdef void run(self, Context *ctx) noexcept nogil:
        self.link.apply_delay(self.delay_ns, ctx)
