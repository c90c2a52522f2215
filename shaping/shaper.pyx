"""Shaper. The contract is in shaper.pxd."""
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from dataplane.graph.element cimport NEVER, Element
from dataplane.engine.engine cimport Engine
from dataplane.graph.offload cimport can_segment, segment
from dataplane.packet.pool cimport (BATCH_MAX, GSO_NONE, NO_PACKET, Batch, Context, Packet,
                                    batch_add, packet_free, packet_memory, packet_wire_bytes)
from dataplane.packet.queue cimport queue_head, queue_indices, queue_length, queue_packed
from dataplane.vatomic cimport vnic_check
from shaping.framing cimport Load, framed_bytes, packet_load
from shaping.pool_share cimport PoolShare, share_count, share_is_full, share_room
from shaping.virtual_clock cimport (BYTE_COST, clock_charge, clock_due_ns, clock_end_idle,
                                    clock_is_due, clock_is_possible, clock_set_rate)

from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from dataplane.packet.queue import with_packed_packets
from dataplane.units import format_rate, format_size
from shaping.settings import (nanoseconds_of, rate_of, rate_text, time_or_size_of,
                              time_or_size_text)

QUANTUM_NS = 1_000_000           # GSO frames that take longer are split

# DROP_REASONS
cdef enum:
    QUEUE_FULL = 0
    NO_BUFFER = 1
    RELEASED = 2

# COUNTERS
cdef enum:
    PASSED = 0
    DELAYED = 1
    SPLIT = 2
    SENT_BYTES = 3
    QUEUE_BYTES = 4
    QUEUE_BYTES_MAX = 5
    SOJOURN_MAX_NS = 6
    SOJOURN_NS = 7


cdef class Shaper(Element):
    """Limits the rate; packets that exceed it wait in a bounded queue.

    Each NIC has one per direction (`egress: {rate: ...}`); a chain may have more, for some of the
    packets.

    Synopsis:  a >> Shaper(rate="100mbit", queue="100ms", name="limit") >> b
    Ports:     1 input, 1 output; packets leave in order.
    Config:    rate: A rate such as "100mbit" or a number of bit/s, 1 kbit/s to 10 Tbit/s. None,
                   "none" or 0: no limit, batches pass at once. Bits of layer-2 frames count,
                   without preamble and FCS; a GSO frame counts as its segments do.
               queue: Bound on waiting packets, in bytes on the wire: as time at the current rate
                   ("100ms", int ns) or as a size ("256kb"). An empty queue takes one packet of any
                   length. At most a quarter of the packet pool's buffers of either size may wait,
                   and all shapers of a share may hold only as many as it allows (see `join`).
               burst: Credit that the shaper gains while it is idle, as time at the current rate
                   ("250us", int ns): a source that is a little late still gets its full rate. The
                   longest burst of a punctual engine is `burst` and one frame (at most 1 ms, or one
                   packet). An engine's lateness is made up in full by packets that wait meanwhile,
                   and up to 100 ms of it by packets that arrive immediately after these have
                   emptied the queue.
    Drops:     queue_full: the queue was full when the packet arrived (tail drop); the cut-off end
                   of a GSO frame counts as one
               no_buffer: no buffer for a segment of a GSO frame
               released: packets that waited when its NIC was removed
    Counters:  passed: packets that left at once
               delayed: packets that waited
               split: GSO frames that were split
               sent_bytes: bytes on the wire that left while there was a rate
               queue_bytes: bytes that wait now
               queue_bytes_max: maximum of queue_bytes
               sojourn_max_ns: longest wait
               sojourn_ns: sum of all waits; divide it by passed + delayed for the mean
    Handlers:  counters; rate (read, write, live); queue (read). A change of rate leaves waiting
               packets in place, and the rest of the last packet's transmission time is converted to
               the new rate. The rate "none" is no limit.
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   The container sends at most 20 Mbit/s, of which at most 10 ms wait.
               nics:
                 web:
                   netns: /run/netns/web
                   egress: {elements: [{element: Shaper, rate: 20mbit, queue: 10ms, name: limit}]}
                 db: {netns: /run/netns/db}

    A GSO frame that takes more than 1 ms at the rate is split, when it reaches the head of the
    queue, into GSO frames of as many segments as fit into 1 ms (at least one). Until then it stays
    one packet, so that a queue holds few buffers and a change of rate applies to whole frames.

    The queue's bound counts segments, as if GSO frames were segmented before they are queued: of a
    frame that does not fit, the first segments that fit are queued and the others are dropped, as
    Linux' tbf does. So a GSO frame makes no packet wait longer than the bound, and TCP loses only
    the segments that exceed it.

    The algorithm is the generic cell rate algorithm in its virtual scheduling form (ITU-T I.371,
    annex A), with a queue in place of a policer's drop.
    """

    DROP_REASONS = ("queue_full", "no_buffer", "released")
    COUNTERS = ("passed", "delayed", "split", "sent_bytes", "queue_bytes", "queue_bytes_max",
                "sojourn_max_ns", "sojourn_ns")
    TICKS = True
    STATE_VERSION = 2
    UPGRADES = {1: with_packed_packets}
    HANDLERS = {
        "rate": Handler(read="get_rate", write="prepare_rate", argument="rate",
                        help="the rate, such as 10mbit; none: no limit"),
        "queue": Handler(read="get_queue",
                         help="packets and bytes that wait, and the limit in bytes"),
    }

    def __init__(self, rate=None, queue="100ms", burst="250us", *, name=None):
        self._queue_ns, self._queue_bytes = time_or_size_of(self.name, "queue", queue)
        self._queue_segments = 1 << 62
        burst_ns = nanoseconds_of(self.name, "burst", burst)
        if burst_ns > 1_000_000_000:
            raise ConfigError(f"{self.name}: burst {burst!r} is longer than 1s; "
                              "make it about what timers are late, such as 250us")
        self.burst_ns = burst_ns
        self.head = self.tail = self.split_index = NO_PACKET
        work_out(self, &self.setting, rate_of(self.name, rate))

    def initialize(self):
        cdef Engine engine = self.engine
        # A queue bounded by time can be many packets: leave most of the pool to other elements.
        self.small_limit = max(engine.pool.small_count // 4, 1)
        self.large_limit = max(engine.pool.large_count // 4, 1)

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        if self.setting.rate_bps == 0 and self.head == NO_PACKET:
            self.counters.extra[PASSED] += batch.count
            self.emit(ctx, 0, batch)
            return
        if (batch.count == 1 and self.head == NO_PACKET
                and self.pass_at_once(ctx, &ctx.packets[batch.index[0]])):
            if self.deadline_ns != NEVER:
                self.set_timer(ctx, NEVER)
            self.emit(ctx, 0, batch)
            return
        self.enqueue_batch(ctx, batch)

    cdef void tick(self, Context *ctx) noexcept nogil:
        self.release_due(ctx)

    cdef void enqueue_batch(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i
        self.release_due(ctx)                  # first, to make room
        for i in range(batch.count):
            if not self.enqueue(ctx, batch.index[i]):
                self.release_due(ctx)          # packets of this batch may be due already
                if not self.enqueue(ctx, batch.index[i]):
                    self.enqueue_part(ctx, batch.index[i])
        self.release_due(ctx)

    @cython.final
    cdef bint pass_at_once(self, Context *ctx, Packet *p) noexcept nogil:
        """The fast path for a lone packet that finds the queue empty and may leave at once, as most
        do on a link that is not full: counts it as `enqueue` and `dequeue` would. False, with
        nothing counted: it must wait, or may have to be split."""
        cdef uint32_t line_bytes
        if p.gso_type != GSO_NONE:
            return False
        self.end_idle(ctx.now_ns)
        if not clock_is_due(&self.clock, ctx.now_ns):
            return False
        line_bytes = <uint32_t>framed_bytes(&self.framing, packet_wire_bytes(p))
        clock_charge(&self.clock, self.setting.rate_bps, line_bytes)
        self.emptied_ns = self.arrived_ns = p.release_ns = ctx.now_ns
        p.next = NO_PACKET
        self.counters.extra[PASSED] += 1
        self.counters.extra[SENT_BYTES] += line_bytes
        self.counters.extra[QUEUE_BYTES_MAX] = max(self.counters.extra[QUEUE_BYTES_MAX],
                                                   <uint64_t>line_bytes)
        return True

    @cython.final
    cdef bint enqueue(self, Context *ctx, uint32_t index) noexcept nogil:
        """Appends a packet to the queue; False: the queue is full."""
        cdef Packet *p = &ctx.packets[index]
        cdef Load load = packet_load(&self.framing, p)
        cdef bint large = index >= ctx.small_count
        if self.head == NO_PACKET:
            if not self.begin_queue(ctx.now_ns, p, load):
                return False
            self.head = index
        elif (self.counters.extra[QUEUE_BYTES] + load.bytes > self.setting.limit_bytes
              or self.queue_segments + load.segments > self.setting.limit_segments
              or (self.large_held >= self.large_limit if large
                  else self.small_held >= self.small_limit)
              or (self.share != NULL and share_is_full(self.share, large))):
            return False
        else:
            ctx.packets[self.tail].next = index
        self.tail = index
        p.next = NO_PACKET
        p.release_ns = ctx.now_ns              # time of arrival while it waits
        self.count_held(ctx, index, 1)
        self.counters.extra[QUEUE_BYTES] += load.bytes
        self.queue_segments += load.segments
        if self.counters.extra[QUEUE_BYTES] > self.counters.extra[QUEUE_BYTES_MAX]:
            self.counters.extra[QUEUE_BYTES_MAX] = self.counters.extra[QUEUE_BYTES]
        return True

    @cython.final
    cdef uint32_t segments_that_fit(self, const Packet *p) noexcept nogil:
        """How many segments of a GSO frame that does not fit the queue has bytes for; an empty
        queue has room for at least one. 0: none, or not a GSO frame of several segments."""
        cdef uint64_t segment_bytes = framed_bytes(&self.framing,
                                                   <uint32_t>p.header_length + p.gso_size)
        cdef uint64_t waiting = self.counters.extra[QUEUE_BYTES], count = 0
        # can_segment: without Parse the offload fields are not validated, so such a frame is not
        # split
        if p.gso_type == GSO_NONE or not can_segment(p) or p.length - p.header_length <= p.gso_size:
            return 0
        if self.setting.limit_bytes > waiting:
            count = (self.setting.limit_bytes - waiting) // segment_bytes
        if self.framing.counts:
            count = min(count, (self.setting.limit_segments - self.queue_segments
                                if self.setting.limit_segments > self.queue_segments else 0))
        if count == 0 and self.head == NO_PACKET:
            count = 1
        return <uint32_t>min(count, <uint64_t>0xFFFFFFFF)

    @cython.final
    cdef void enqueue_part(self, Context *ctx, uint32_t index) noexcept nogil:
        """Drops a packet that does not fit, except for as many first segments of a GSO frame as the
        queue has room for."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t count = self.segments_that_fit(p), done = 0, lost
        cdef Batch part
        # if all segments would fit by their bytes, the bound on buffers was reached instead
        if count and <uint64_t>count * p.gso_size < p.length - p.header_length:
            part.count = 0
            lost = segment(ctx, index, count, &done, &part, 1)
            self.counters.generated += part.count + lost
            self.counters.drops[NO_BUFFER] += lost
            if part.count and not self.enqueue(ctx, part.index[0]):
                self.drop(ctx, part.index[0], QUEUE_FULL)
        self.drop(ctx, index, QUEUE_FULL)

    @cython.final
    cdef bint begin_queue(self, uint64_t now_ns, const Packet *p, Load load) noexcept nogil:
        """Called for a packet that finds the queue empty, which takes one of any length. False: a
        GSO frame longer than the queue, see enqueue_part."""
        if ((load.bytes > self.setting.limit_bytes or load.segments > self.setting.limit_segments)
                and self.segments_that_fit(p)):
            return False
        self.end_idle(now_ns)
        return True

    @cython.final
    cdef void end_idle(self, uint64_t now_ns) noexcept nogil:
        """Called for a packet that finds the queue empty."""
        clock_end_idle(&self.clock, now_ns, self.emptied_ns, self.burst_ns)

    @cython.final
    cdef void count_held(self, Context *ctx, uint32_t index, int sign) noexcept nogil:
        self.counters.held += sign
        if index < ctx.small_count:
            self.set_held(self.small_held + sign, self.large_held)
        else:
            self.set_held(self.small_held, self.large_held + sign)

    @cython.final
    cdef void set_held(self, uint32_t small, uint32_t large) noexcept nogil:
        if self.share != NULL:
            share_count(self.share, small - self.small_held, large - self.large_held)
        self.small_held, self.large_held = small, large

    @cython.final
    cdef uint32_t dequeue(self, Context *ctx, Load load) noexcept nogil:
        """Removes and returns the head of the queue, which is not empty."""
        cdef uint32_t index = self.head
        cdef Packet *p = &ctx.packets[index]
        cdef uint64_t waited_ns = ctx.now_ns - p.release_ns
        self.head = p.next
        if self.head == NO_PACKET:
            self.tail = NO_PACKET
            self.emptied_ns = ctx.now_ns
        p.next = NO_PACKET
        self.arrived_ns, p.release_ns = p.release_ns, ctx.now_ns
        self.count_held(ctx, index, -1)
        self.counters.extra[QUEUE_BYTES] -= load.bytes
        self.queue_segments -= load.segments
        self.counters.extra[SENT_BYTES] += load.bytes
        self.counters.extra[DELAYED if waited_ns else PASSED] += 1
        self.counters.extra[SOJOURN_NS] += waited_ns
        if waited_ns > self.counters.extra[SOJOURN_MAX_NS]:
            self.counters.extra[SOJOURN_MAX_NS] = waited_ns
        return index

    @cython.final
    cdef uint32_t take_due(self, Context *ctx) noexcept nogil:
        """Removes and returns the first packet if its turn has come, and charges the clock for it;
        splits it before if it is too long. NO_PACKET: none is due."""
        cdef uint64_t rate = self.setting.rate_bps
        cdef uint32_t index, each
        cdef Load load
        while self.head != NO_PACKET:
            if rate and not clock_is_due(&self.clock, ctx.now_ns):
                break
            load = packet_load(&self.framing, &ctx.packets[self.head])
            each = self.segments_each(ctx, self.head, load.bytes)
            if each and self.split_head(ctx, each, load):
                continue                       # the queue has another head now
            index = self.dequeue(ctx, load)
            if rate:
                clock_charge(&self.clock, rate, load.bytes)
            return index
        return NO_PACKET

    cdef void release_due(self, Context *ctx) noexcept nogil:
        """Forwards the packets that are due and sets the deadline for the next one."""
        cdef Batch out
        cdef uint32_t index
        out.count = 0
        while True:
            index = self.take_due(ctx)
            if index == NO_PACKET:
                break
            if out.count == BATCH_MAX:
                self.emit(ctx, 0, &out)
                out.count = 0
            batch_add(&out, index)
        self.set_deadline(ctx)
        self.emit(ctx, 0, &out)

    cdef void set_deadline(self, Context *ctx) noexcept nogil:
        if self.head == NO_PACKET:
            if self.deadline_ns != NEVER:
                self.set_timer(ctx, NEVER)
        elif self.setting.rate_bps == 0:
            self.set_timer(ctx, ctx.now_ns)
        else:
            self.set_timer(ctx, clock_due_ns(&self.clock))

    # -- splitting ---------------------------------------------------------------------------------

    @cython.final
    cdef uint32_t segments_each(self, Context *ctx, uint32_t index,
                                uint32_t line_bytes) noexcept nogil:
        """Segments per piece of this frame; 0 if it is not to be split."""
        cdef const Packet *p = &ctx.packets[index]
        cdef uint32_t each
        if line_bytes <= self.setting.quantum_bytes and index != self.split_index:
            return 0
        # can_segment: without Parse the offload fields are not validated, so such a frame is not
        # split
        if p.gso_type == GSO_NONE or not can_segment(p):
            return 0
        each = <uint32_t>(self.setting.quantum_bytes // framed_bytes(
            &self.framing, <uint32_t>p.header_length + p.gso_size))
        if each == 0:
            each = 1
        if index != self.split_index and p.length - p.header_length <= <uint64_t>each * p.gso_size:
            return 0
        return each

    @cython.final
    cdef bint split_head(self, Context *ctx, uint32_t segments_each, Load load) noexcept nogil:
        """Inserts at most a batch of pieces of the head before it, or in its place once all are
        cut. False: it cannot be split."""
        cdef uint32_t index = self.head, after = self.head, lost, i, done
        cdef Packet *p = &ctx.packets[index]
        cdef bint first = index != self.split_index
        cdef Load piece
        cdef Batch pieces
        pieces.count = 0
        done = 0 if first else self.split_done
        self.split_done = done
        lost = segment(ctx, index, segments_each, &self.split_done, &pieces,
                       BATCH_MAX if self.share == NULL else share_room(self.share))
        if first:
            if self.split_done == done or pieces.count + lost == 0:
                vnic_check(pieces.count == 0, "no pieces without progress")
                return False
            # from now on the counters have the pieces in place of the frame
            self.count_held(ctx, index, -1)
            self.counters.extra[QUEUE_BYTES] -= load.bytes
            self.queue_segments -= load.segments
            self.counters.extra[SPLIT] += 1
            self.split_index = index
        self.counters.generated += pieces.count + lost - (1 if first else 0)
        self.counters.drops[NO_BUFFER] += lost
        if self.split_done == done or self.split_done >= p.length - p.header_length:
            # finished, or no progress: that must not block the queue
            after = p.next
            self.split_index = NO_PACKET
            if self.tail == index:
                self.tail = pieces.index[pieces.count - 1] if pieces.count else NO_PACKET
        self.head = after
        for i in range(pieces.count, 0, -1):   # backwards, since each links to its successor
            ctx.packets[pieces.index[i - 1]].next = self.head
            ctx.packets[pieces.index[i - 1]].release_ns = p.release_ns
            self.head = pieces.index[i - 1]
            self.count_held(ctx, self.head, 1)
            piece = packet_load(&self.framing, &ctx.packets[self.head])
            self.counters.extra[QUEUE_BYTES] += piece.bytes
            self.queue_segments += piece.segments
        if self.split_index == NO_PACKET:
            packet_free(ctx, index)
        return True

    # -- control -----------------------------------------------------------------------------------

    cdef void apply(self, const Setting *setting, Context *ctx) noexcept nogil:
        """Changes the rate now."""
        clock_set_rate(&self.clock, ctx.now_ns, self.setting.rate_bps, setting.rate_bps,
                       self.burst_ns)
        self.setting = setting[0]

    def join(self, PoolShare share not None):
        """Makes the shaper count its packets in `share` and respect its bounds. Raises ConfigError
        for a shaper that runs."""
        if self.engine is not None or self.share != NULL:
            raise ConfigError(f"{self.name}: runs already, or has a share; make a new one")
        self._share, self.share = share, &share.held

    def set_rate(self, rate):
        """Changes the rate of a running element, from any thread; None or 0 removes the limit and
        forwards the waiting packets, in order.

        Raises ConfigError for an invalid rate, and then nothing has changed.
        """
        cdef SetRate work = self.prepare_rate(rate)
        if self.engine is None:
            self.setting = work.setting
        else:
            self.engine.post(work)

    def prepare_rate(self, rate):
        """The Work that changes the rate, see `set_rate`. Raises ConfigError for an invalid
        rate."""
        cdef SetRate work = SetRate(self)
        work_out(self, &work.setting, rate_of(self.name, rate))
        return work

    def get_rate(self):
        """The rate as text: "10mbit", or "none"."""
        return rate_text(self.setting.rate_bps)

    def get_queue(self):
        """The queue: `packets`, `bytes` on the wire, and their bound at the current rate,
        `limit_bytes` (None: no rate)."""
        return {"packets": self.small_held + self.large_held,
                "bytes": self.counters.extra[QUEUE_BYTES],
                "limit_bytes": self.queue_limit_bytes}

    @property
    def rate_bps(self):
        """The rate in bit/s; 0 means unlimited."""
        return self.setting.rate_bps

    @property
    def queue_limit_bytes(self):
        """Wire bytes that may wait at the current rate; None without a rate, when nothing waits,
        and where packets are limited instead."""
        if self.setting.rate_bps == 0 or (self._queue_ns is None and self._queue_bytes is None):
            return None
        return self.setting.limit_bytes

    def memory_bytes(self):
        """The pool's bytes that the waiting packets use, with the frame that is being split."""
        cdef Engine engine = self.engine
        cdef uint32_t cut = self.split_index       # read once: the engine may be running
        cdef uint64_t small = self.small_held, large = self.large_held
        if cut != NO_PACKET and engine is not None:
            small += cut < engine.pool.small_count
            large += cut >= engine.pool.small_count
        return packet_memory(small, large)

    def describe(self):
        queue = time_or_size_text(self._queue_ns, self._queue_bytes)
        if self.setting.rate_bps == 0:
            return {"rate": "unlimited", "queue": queue}
        found = {"rate": format_rate(self.setting.rate_bps), "queue": queue}
        if self._queue_ns is not None:
            found["queue_limit"] = format_size(self.setting.limit_bytes)
        return found

    def save_state(self):
        """`rate_bps`; `next_ns` and `remainder`: the virtual clock (see shaper.pxd); `emptied_ns`;
        `packets`: the queue, packed, oldest first, each with its arrival in Packet.release_ns;
        `split`: [index, bytes done] of the frame in the queue that is being split, or None. Queue
        limit and burst are configuration."""
        cdef Engine engine = self.engine
        # the frame that is being split is in the queue, too, but only its pieces count as held
        cdef uint32_t count = self.small_held + self.large_held + (self.split_index != NO_PACKET)
        packets = b"" if engine is None else queue_packed(engine.ctx.packets, self.head, count)
        split = None if self.split_index == NO_PACKET else [self.split_index, self.split_done]
        return {"rate_bps": self.setting.rate_bps, "next_ns": self.clock.next_ns,
                "remainder": self.clock.remainder, "emptied_ns": self.emptied_ns,
                "packets": packets, "split": split}

    def load_state(self, dict state):
        self.load_queue(state, 0)

    cdef load_queue(self, dict state, uint64_t others):
        """Takes over a queue from `state`, see save_state; besides its packets, the counters have
        `others` as held."""
        cdef Engine engine = self.engine
        cdef Context *ctx = engine.ctx
        cdef uint64_t rate, next_ns, remainder, emptied_ns
        cdef uint64_t now_ns = engine.clock.now_ns, waiting_bytes = 0
        cdef uint32_t i, index, head, split_index = NO_PACKET, split_done = 0
        cdef uint32_t small = 0, large = 0
        cdef uint64_t segments = 0
        cdef bint found = False
        cdef Load load
        cdef bytes packets
        cdef const uint32_t *indices
        try:
            if type(state["rate_bps"]) is not int:
                raise ValueError("no rate")
            rate = rate_of(self.name, state["rate_bps"])
            next_ns, remainder = state["next_ns"], state["remainder"]
            emptied_ns, packets = state["emptied_ns"], state["packets"]
            if state["split"] is not None:
                split_index, split_done = state["split"]
            if len(state) != 6:
                raise ValueError("more than a shaper's")
            head = queue_head(ctx.packets, ctx.total_count, packets)
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise VnicError(f"{self.name}: its state is not that of a {type(self).__name__}: "
                            f"{error}") from None
        if emptied_ns > now_ns or not clock_is_possible(next_ns, remainder, rate, now_ns):
            raise VnicError(f"{self.name}: its clock says {next_ns} ns, "
                            f"which cannot be at {now_ns} ns and {rate} bit/s")
        indices = queue_indices(packets)
        for i in range(queue_length(packets)):
            index = indices[i]
            if index == split_index:               # counted as its pieces
                found = True
                continue
            load = packet_load(&self.framing, &ctx.packets[index])
            waiting_bytes += load.bytes
            segments += load.segments
            small += index < ctx.small_count
            large += index >= ctx.small_count
        if split_index != NO_PACKET and (
                not found or not can_segment(&ctx.packets[split_index])
                or split_done >= (ctx.packets[split_index].length
                                  - ctx.packets[split_index].header_length)):
            raise VnicError(f"{self.name}: packet {split_index} cannot be the one that is being "
                            f"cut")
        if (self.counters.held != others + small + large
                or self.counters.extra[QUEUE_BYTES] != waiting_bytes):
            raise VnicError(f"{self.name}: {small + large} packets of {waiting_bytes} bytes wait, "
                            f"its counters say {<int64_t>(self.counters.held - others)} "
                            f"of {self.counters.extra[QUEUE_BYTES]}")
        work_out(self, &self.setting, rate)
        self.clock.next_ns, self.clock.remainder, self.emptied_ns = next_ns, remainder, emptied_ns
        self.head = head
        self.tail = indices[queue_length(packets) - 1] if packets else NO_PACKET
        self.set_held(small, large)
        self.queue_segments = segments
        self.split_index, self.split_done = split_index, split_done
        self.set_deadline(ctx)

    def forget_state(self):
        Element.forget_state(self)
        self.head = self.tail = self.split_index = NO_PACKET
        self.set_held(0, 0)
        self.queue_segments = 0

    def drain(self, uint32_t most=0xFFFFFFFF):
        cdef Engine engine = self.engine
        cdef Setting setting = self.setting
        cdef uint32_t index
        cdef Batch out
        if engine is None:
            return
        out.count = 0
        work_out(self, &self.setting, 0)           # without a rate, all is due
        while most:
            index = self.take_due(engine.ctx)
            if index == NO_PACKET:
                break
            if out.count == BATCH_MAX:
                self.emit(engine.ctx, 0, &out)
                out.count = 0
            batch_add(&out, index)
            most -= 1
        self.setting = setting
        self.set_deadline(engine.ctx)
        self.emit(engine.ctx, 0, &out)

    def release(self):
        cdef Engine engine = self.engine
        cdef uint32_t index, following
        cdef bint counted
        if engine is None:
            return
        index = self.head
        while index != NO_PACKET:
            following = engine.ctx.packets[index].next
            # a frame being split is counted as its pieces
            counted = index != self.split_index
            if counted:
                self.count_held(engine.ctx, index, -1)
                self.drop(engine.ctx, index, RELEASED)
            else:
                packet_free(engine.ctx, index)
            index = following
        self.head = self.tail = self.split_index = NO_PACKET
        self.counters.extra[QUEUE_BYTES] = self.queue_segments = 0
        self.deadline_ns = NEVER


cdef class SetRate(Work):
    """A change of rate, made on the engine's thread."""

    def __init__(self, Shaper shaper):
        self.shaper = shaper

    @property
    def rate_bps(self):
        """The new rate in bit/s; 0 means unlimited."""
        return self.setting.rate_bps

    cdef void run(self, Context *ctx) noexcept nogil:
        self.shaper.apply(&self.setting, ctx)
        self.shaper.set_deadline(ctx)


cdef int work_out(Shaper shaper, Setting *setting, rate_bps) except -1:
    """Fills `setting` for a rate, without overflow at any rate."""
    limit = shaper._queue_bytes
    if shaper._queue_ns is not None:
        limit = rate_bps * shaper._queue_ns // int(BYTE_COST)
    setting.rate_bps = rate_bps
    # no limit without a rate
    setting.limit_bytes = 1 << 62 if limit is None or not rate_bps else min(limit, 1 << 62)
    setting.limit_segments = shaper._queue_segments if rate_bps else 1 << 62
    setting.quantum_bytes = (min(rate_bps * QUANTUM_NS // int(BYTE_COST), 0xFFFFFFFF)
                             if rate_bps else 0xFFFFFFFF)
    return 0
