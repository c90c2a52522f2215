"""Impairment. The contract is in impairment.pxd."""
cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.math cimport cbrt, erfc, sqrt
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport NEVER, Element
from dataplane.graph.offload cimport complete_checksum, segment
from dataplane.graph.random_stream cimport random_below, random_next
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport (BATCH_MAX, NO_PACKET, PACKET_L4, VNET_DATA_VALID,
                                    VNET_NEEDS_CSUM, Batch, Context, Packet, batch_add,
                                    packet_copy, packet_data, packet_free, packet_memory,
                                    packet_wire_bytes)
from dataplane.packet.queue cimport queue_head, queue_indices, queue_length, queue_packed
from dataplane.wire.headers cimport PROTOCOL_TCP, TCP_CHECKSUM_AT, load_be16, store_be16
from shaping.delivered cimport count_delivered, wire_packets
from shaping.normal cimport normal_score
from shaping.loss_chain cimport NO_EVENT, ChainSetting, LossChain, chain_next, chain_start
from shaping.timing_wheel cimport TimingWheel

from dataplane.config.convert import shown
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from shaping.impairment_settings import PARTS, SHAPES, corruption_of, delay_of, reordering_of
from shaping.loss_model import chain_of, random_chain, share_of

cdef enum:                       # PARTS
    PART_ANY = 0
    PART_HEADER = 1
    PART_PAYLOAD = 2

cdef enum:                       # SHAPES
    SHAPE_UNIFORM = 0
    SHAPE_NORMAL = 1
    SHAPE_PARETO = 2

cdef enum:
    PROTOCOL_UDP = 17
    UDP_CHECKSUM_AT = 6          # in the UDP header

cdef enum:                       # DROP_REASONS
    LOST = 0
    LINE_FULL = 1
    NO_BUFFER = 2
    RELEASED = 3

cdef enum:                       # COUNTERS
    WIRE_PACKETS = 0
    LOST_PACKETS = 1
    DUPLICATED = 2
    CORRUPTED = 3
    REORDERED = 4
    DELAYED = 5
    SPLIT = 6
    DELAY_NS = 7
    DELAY_MAX_NS = 8
    DELIVERED_PACKETS = 9
    DELIVERED_BYTES = 10

NAMES = ("loss", "duplicate", "corrupt", "reorder", "delay")     # of settings and streams
# A Pareto distribution with the exponent 3 and the minimum 1 has this mean and standard deviation.
cdef double PARETO_MEAN = 1.5
cdef double PARETO_DEVIATION = 0.8660254037844386
cdef double JITTER_MOST = 20.0   # deviations from the mean: the distribution's tail has no end


@cython.final
cdef class Impairment(Element):
    """Loses, duplicates, corrupts, reorders and delays packets, as a bad line does.

    Synopsis:  a >> Impairment(loss="1%", delay={"mean": "40ms", "jitter": "10ms"}) >> b
    Ports:     1 input, 1 output
    Config:    Shares are in percent of the packets on the wire, such as "0.1%": a GSO frame counts
                   as its segments do, and only the segment that is hit is cut out of it.
               loss: A share, each packet alone; or a mapping: {share: 1%, burst: 4} with the mean
                   number of packets lost in a row (Gilbert's model); {share: 1%, correlation: 25%}
                   with the correlation between one packet and the next; {to_bad: 1%, to_good: 25%,
                   bad: 50%, good: 0.1%}: a good and a bad state (Elliott's model), the
                   probabilities to go to the other, and the loss in each (100% and 0 if not given);
                   or p13, p31, p32, p23, p14 of the 4-state model, as in tc-netem(8).
               duplicate: A share of packets of which a copy follows. Of a lost packet the copy
                   remains.
               corrupt: A share of packets of which one bit is changed; or {share: 1%, part: any,
                   header or payload, checksum: keep or mend}. With keep, the receiver's checksums
                   find it; with mend, a changed TCP or UDP payload arrives as if it were right.
               reorder: A share of packets that the next one overtakes; or {share: 1%, by: 3,
                   within: 100ms}: the next 3, or what comes within this time (1 to 64 packets; at
                   most 64 packets wait).
               delay: A time, such as "40ms"; or {mean: 40ms, jitter: 10ms, shape: uniform, normal
                   or pareto, correlation: 30%, order: keep or any}. jitter: the most that a uniform
                   delay differs from the mean; of normal and pareto delays the standard deviation.
                   No packet leaves before it has come, and none is later than 20 times the jitter.
                   correlation: between the delays of one packet and the next. order: with keep, a
                   packet waits for those before it; with any, a later one may overtake it. A GSO
                   frame has one delay.
               seed: Number that the random numbers follow from, in place of the instance's seed.
    Drops:     loss: lost, as asked
               line_full: the packets that are delayed would have more than a quarter of the pool's
                   buffers of a size: make the pool larger, or the delay shorter
               no_buffer: no buffer for a copy, or a segment of a GSO frame
               released: packets that waited when its NIC was removed
    Counters:  wire_packets: packets on the wire that came
               lost: packets lost
               duplicated: copies made
               corrupted: packets corrupted
               reordered: packets that others were to overtake
               delayed: packets that waited for their release time
               split: GSO frames that were split
               delay_ns: sum of all delays of `delayed` packets
               delay_max_ns: longest delay
               delivered_packets: packets on the wire that left
               delivered_bytes: their bytes
    Handlers:  counters; loss, duplicate, corrupt, reorder, delay (read, write, live): the settings.
               A change of one leaves the others' random numbers as they are, and packets that wait
               leave when they were to leave.
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   A line by satellite: what the container sends arrives 300 ms later, 1 % never.
               nics:
                 web:
                   netns: /run/netns/web
                   egress: {elements: [{element: Impairment, delay: 300ms, loss: 1%}]}
                 db: {netns: /run/netns/db}

    The random numbers of each setting depend on the seed, the element's name and the number of the
    packet on the wire alone (loss_chain.pxd), so the same packets are lost with and without GSO, in
    batches of any size, on any engine, and after an upgrade.
    """

    DROP_REASONS = ("loss", "line_full", "no_buffer", "released")
    COUNTERS = ("wire_packets", "lost", "duplicated", "corrupted", "reordered", "delayed", "split",
                "delay_ns", "delay_max_ns", "delivered_packets", "delivered_bytes")
    TICKS = True
    STATE_VERSION = 2
    HANDLERS = {
        "loss": Handler(read="get_loss", write="prepare_loss", argument="loss",
                        help='share of packets lost, such as 1%, or {"share": "1%", "burst": 4}'),
        "duplicate": Handler(read="get_duplicate", write="prepare_duplicate",
                             argument="duplicate", help="share of packets that come twice"),
        "corrupt": Handler(read="get_corrupt", write="prepare_corrupt", argument="corrupt",
                           help="share of packets of which a bit is changed"),
        "reorder": Handler(read="get_reorder", write="prepare_reorder", argument="reorder",
                           help="share of packets that others overtake"),
        "delay": Handler(read="get_delay", write="prepare_delay", argument="delay",
                         help='delay, such as 40ms, or {"mean": "40ms", "jitter": "10ms"}'),
    }

    def __cinit__(self, *args, **kwargs):
        cdef uint32_t i
        for i in range(<uint32_t>SETTINGS):
            Py_INCREF(None)
            self.values[i] = <PyObject *>None

    def __init__(self, loss=None, duplicate=None, corrupt=None, reorder=None, delay=None, seed=None,
                 *, name=None):
        cdef uint32_t i
        if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 63):
            raise ConfigError(f"{self.name}: seed {shown(seed)}: expected 0 to 2^63 - 1")
        self._seed = seed
        self.line = TimingWheel()
        for i, value in enumerate((loss, duplicate, corrupt, reorder)):
            _fill_event(self, i, value, &self.events[i].setting, &self.details)
            self.events[i].at = NO_EVENT
            self.keep(i, value)
        _fill_delay(self, delay, &self.delay)
        self.keep(DELAY, delay)
        self.next_at = NO_EVENT

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(<uint32_t>SETTINGS):
            Py_DECREF(<object>self.values[i])

    cdef void keep(self, uint32_t which, value):
        """Keeps a setting as it was given."""
        Py_INCREF(value)
        Py_DECREF(<object>self.values[which])
        self.values[which] = <PyObject *>value

    def initialize(self):
        cdef Engine engine = self.engine
        cdef uint32_t which
        for which in range(<uint32_t>EVENTS):
            self.events[which].chain.stream.key = self.seed(NAMES[which], self._seed)
            self.events[which].chain.stream.count = 0
            self.begin_event(which, &self.events[which].setting)
        self.bits.key = self.seed("bit", self._seed)
        self.delays.key = self.seed("delay", self._seed)
        # A long delay can be many packets: leave most of the pool to other elements.
        self.small_limit = max(engine.pool.small_count // 4, 1)
        self.large_limit = max(engine.pool.large_count // 4, 1)

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef Batch out
        cdef uint32_t i, total = 0
        cdef uint64_t octets = 0
        if not self.delay.active and self.line.is_empty():
            for i in range(batch.count):
                total += wire_packets(&ctx.packets[batch.index[i]])
                octets += packet_wire_bytes(&ctx.packets[batch.index[i]])
            if self.position + total <= self.next_at:        # nothing happens to this batch
                self.position += total
                self.counters.extra[WIRE_PACKETS] += total
                self.counters.extra[DELIVERED_PACKETS] += total
                self.counters.extra[DELIVERED_BYTES] += octets
                self.emit(ctx, 0, batch)
                if self.position >= self.next_at:
                    out.count = 0
                    self.find_next(ctx, &out)
                    self.finish(ctx, &out)
                return
        out.count = 0
        self.release_due(ctx, &out)
        for i in range(batch.count):
            self.number(ctx, batch.index[i], &out)
        self.finish(ctx, &out)

    cdef void tick(self, Context *ctx) noexcept nogil:
        cdef Batch out
        out.count = 0
        self.release_due(ctx, &out)
        self.finish(ctx, &out)

    cdef void finish(self, Context *ctx, Batch *out) noexcept nogil:
        """Sets the timer and forwards the batch."""
        self.set_deadline(ctx)
        self.leave(ctx, out)

    cdef void leave(self, Context *ctx, Batch *out) noexcept nogil:
        count_delivered(ctx, out, &self.counters.extra[DELIVERED_PACKETS],
                        &self.counters.extra[DELIVERED_BYTES])
        self.emit(ctx, 0, out)

    cdef void set_deadline(self, Context *ctx) noexcept nogil:
        cdef uint64_t deadline = self.line.due_ns
        if self.late_count:
            deadline = min(deadline, ctx.packets[self.late[0]].release_ns)
        if deadline != self.deadline_ns:
            self.set_timer(ctx, deadline)

    cdef void number(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil:
        """Counts a packet, and delivers it with what happens to it."""
        cdef uint32_t count = wire_packets(&ctx.packets[index])
        self.counters.extra[WIRE_PACKETS] += count
        if self.position + count <= self.next_at:
            self.position += count
            self.deliver(ctx, index, out)
        elif count == 1:
            self.happen(ctx, index, out)
        else:
            self.cut(ctx, index, out)
        if self.position >= self.next_at:
            self.find_next(ctx, out)

    cdef void cut(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil:
        """Cuts the segments to which something happens out of a GSO frame; what lies between them
        stays whole."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t payload = p.length - p.header_length, done = 0, before, run, lost, went
        cdef bint hit
        cdef Batch piece
        self.counters.extra[SPLIT] += 1
        self.counters.generated -= 1             # the pieces replace the frame
        while done < payload:
            hit = self.next_at <= self.position
            run = 1
            if not hit:                          # at most 0xFFFF, as a frame has fewer segments
                run = <uint32_t>min(self.next_at - self.position, <uint64_t>0xFFFF)
            before, piece.count = done, 0
            lost = segment(ctx, index, run, &done, &piece, 1)
            self.counters.generated += piece.count + lost
            self.counters.drops[NO_BUFFER] += lost
            went = (done - before + p.gso_size - 1) // p.gso_size
            if lost or done == before:
                # there is no memory: what would have happened to the lost segments is skipped
                self.skip_to(self.position + went)
                if piece.count:
                    self.deliver(ctx, piece.index[0], out)
                if done == before:
                    break
            elif hit:
                self.happen(ctx, piece.index[0], out)
            else:
                self.position += went
                self.deliver(ctx, piece.index[0], out)
            if self.position >= self.next_at:
                self.find_next(ctx, out)
        packet_free(ctx, index)

    cdef void happen(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil:
        """Delivers the packet with the number `position`, to which something happens."""
        cdef uint32_t which, copy = NO_PACKET, hits = 0
        cdef Event *event
        for which in range(<uint32_t>EVENTS):
            event = &self.events[which]
            if event.at == self.position:
                hits |= <uint32_t>1 << which
                event.at += 1
                self.draw_next(event)
        self.position += 1
        if hits & (1 << DUPLICATE):
            copy = packet_copy(ctx, index)
            self.counters.generated += 1
            if copy == NO_PACKET:
                self.counters.drops[NO_BUFFER] += 1
            else:
                self.counters.extra[DUPLICATED] += 1
        if hits & (1 << LOSS):
            self.counters.extra[LOST_PACKETS] += 1
            self.drop(ctx, index, LOST)
        else:
            if hits & (1 << CORRUPT):
                self.corrupt(ctx, index)
            if hits & (1 << REORDER) and self.late_count < LATE_MOST:
                self.counters.extra[REORDERED] += 1
                self.counters.held += 1
                ctx.packets[index].next = NO_PACKET
                ctx.packets[index].release_ns = ctx.now_ns + self.details.within_ns
                self.late[self.late_count] = index
                self.late_at[self.late_count] = self.position + self.details.by
                self.late_count += 1
            else:
                self.deliver(ctx, index, out)
        if copy != NO_PACKET:
            self.deliver(ctx, copy, out)

    cdef void find_next(self, Context *ctx, Batch *out) noexcept nogil:
        """Finds the next event; before that, delivers the late packets that enough others have
        overtaken."""
        while self.late_count and self.late_at[0] <= self.position:
            self.release_late(ctx, out)
        self.set_next()

    cdef void set_next(self) noexcept nogil:
        """Sets `next_at` to the number of the next packet to which something happens, or behind
        which a late one follows."""
        cdef uint32_t which
        cdef Event *event
        self.next_at = self.late_at[0] if self.late_count else NO_EVENT
        for which in range(<uint32_t>EVENTS):
            event = &self.events[which]
            while event.at == self.position and not event.chain.lost:
                self.draw_next(event)
            self.next_at = min(self.next_at, event.at)

    cdef void draw_next(self, Event *event) noexcept nogil:
        """Draws the next packet, from `event.at` on, to which it happens."""
        event.at += min(chain_next(&event.setting, &event.chain), NO_EVENT - event.at)

    cdef void skip_to(self, uint64_t position) noexcept nogil:
        """Counts packets to which nothing happens, whatever was to happen."""
        cdef uint32_t which
        cdef Event *event
        self.position = position
        for which in range(<uint32_t>EVENTS):
            event = &self.events[which]
            while event.at < position:
                event.at += event.chain.lost
                self.draw_next(event)
        self.next_at = position                  # for find_next

    cdef void release_late(self, Context *ctx, Batch *out) noexcept nogil:
        """Delivers the oldest late packet."""
        cdef uint32_t i, index = self.late[0]
        self.late_count -= 1
        self.counters.held -= 1
        for i in range(self.late_count):
            self.late[i], self.late_at[i] = self.late[i + 1], self.late_at[i + 1]
        self.deliver(ctx, index, out)

    cdef void corrupt(self, Context *ctx, uint32_t index) noexcept nogil:
        """Changes one bit of a part of the frame."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint8_t *data = packet_data(ctx, index)
        cdef uint32_t begin = 0, end = p.length, at, field
        cdef uint64_t bit
        cdef uint16_t before
        cdef bint has_payload = p.flags & PACKET_L4 and p.payload_offset < p.length
        # of other protocols the checksum cannot be mended
        if self.details.mend and p.ip_protocol not in (PROTOCOL_TCP, PROTOCOL_UDP):
            has_payload = False
        if self.details.part == PART_PAYLOAD:
            begin = p.payload_offset if has_payload else end
        elif self.details.part == PART_HEADER and has_payload:
            end = p.payload_offset
        # One number for each packet that is to be corrupted, so that the next one's bit does not
        # depend on this one's length.
        bit = random_below(&self.bits, 1 << 32)
        if begin >= end:
            return                               # it has no such part
        at = begin + <uint32_t>((bit >> 3) * (end - begin) >> 29)
        if not self.details.mend:
            # the receiver computes the checksum of what was sent
            if p.vnet_flags & VNET_NEEDS_CSUM:
                complete_checksum(ctx, index)
            p.vnet_flags &= <uint8_t>~VNET_DATA_VALID
        elif not p.vnet_flags & VNET_NEEDS_CSUM:
            field = p.l4_offset + (TCP_CHECKSUM_AT if p.ip_protocol == PROTOCOL_TCP
                                   else UDP_CHECKSUM_AT)
            before = <uint16_t>(data[at] << 8 if (at - p.l4_offset) % 2 == 0 else data[at])
            data[at] ^= <uint8_t>(1 << (bit & 7))
            mend_checksum(data + field, before,
                          <uint16_t>(data[at] << 8 if (at - p.l4_offset) % 2 == 0 else data[at]),
                          p.ip_protocol != PROTOCOL_TCP)
            self.counters.extra[CORRUPTED] += 1
            return
        data[at] ^= <uint8_t>(1 << (bit & 7))
        self.counters.extra[CORRUPTED] += 1

    # -- delay -------------------------------------------------------------------------------------

    cdef void deliver(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil:
        """Forwards the packet, now or after its delay."""
        cdef uint64_t release_ns = ctx.now_ns
        if not self.delay.active and (self.line.is_empty() or not self.delay.keep_order):
            self.forward(ctx, index, out)
            return
        if self.delay.active:
            release_ns += self.draw_delay()
        if self.delay.keep_order:
            release_ns = max(release_ns, self.last_ns)
        self.last_ns = max(self.last_ns, release_ns)
        if release_ns <= ctx.now_ns:
            self.forward(ctx, index, out)        # all that was due has left already
            return
        if (self.line.small >= self.small_limit if index < ctx.small_count
                else self.line.large >= self.large_limit):
            self.drop(ctx, index, LINE_FULL)
            return
        self.counters.held += 1
        self.counters.extra[DELAYED] += 1
        self.counters.extra[DELAY_NS] += release_ns - ctx.now_ns
        if release_ns - ctx.now_ns > self.counters.extra[DELAY_MAX_NS]:
            self.counters.extra[DELAY_MAX_NS] = release_ns - ctx.now_ns
        self.line.put(ctx, index, release_ns)

    cdef uint64_t draw_delay(self) noexcept nogil:
        """The next delay in ns. Correlated delays of any shape: the packets' normal scores are an
        autoregressive process of order 1, so each delay has the distribution asked for, and the
        scores of neighbours the correlation (a Gaussian copula)."""
        cdef DelaySetting *setting = &self.delay
        cdef double u, z = 0.0, jitter
        if setting.jitter_ns == 0.0:
            return setting.mean_ns
        # in (0, 1): the middles of 2^53 intervals
        u = (<double>(random_next(&self.delays) >> 11) + 0.5) * (1.0 / 9007199254740992.0)
        if setting.correlation > 0.0 or setting.shape == SHAPE_NORMAL:
            z = setting.correlation * self.z + setting.rest * normal_score(u)
            self.z = z
            if setting.shape != SHAPE_NORMAL:
                u = 0.5 * erfc(-z * sqrt(0.5))   # the normal distribution function
        if setting.shape == SHAPE_NORMAL:
            jitter = z
        elif setting.shape == SHAPE_UNIFORM:
            jitter = 2.0 * u - 1.0
        else:
            jitter = (1.0 / cbrt(max(1.0 - u, 1e-18)) - PARETO_MEAN) / PARETO_DEVIATION
        jitter = setting.jitter_ns * min(jitter, JITTER_MOST) + <double>setting.mean_ns + 0.5
        return <uint64_t>jitter if jitter > 0.0 else 0           # rounded, without a call of libm

    cdef void forward(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil:
        if out.count == BATCH_MAX:
            self.leave(ctx, out)
            out.count = 0
        batch_add(out, index)

    cdef void release_due(self, Context *ctx, Batch *out) noexcept nogil:
        """Forwards what is due: delayed packets, and late ones that too few others overtook."""
        while self.line.due_ns <= ctx.now_ns:
            self.counters.held -= 1
            self.forward(ctx, self.line.take(ctx), out)
        if self.late_count and ctx.packets[self.late[0]].release_ns <= ctx.now_ns:
            while self.late_count and ctx.packets[self.late[0]].release_ns <= ctx.now_ns:
                self.release_late(ctx, out)
            self.set_next()                      # no GSO frame is cut where they would have left

    # -- control -----------------------------------------------------------------------------------

    cdef void begin_event(self, uint32_t which, const ChainSetting *setting) noexcept nogil:
        """Starts an event with a setting, from the next packet on."""
        cdef Event *event = &self.events[which]
        event.setting, event.at = setting[0], self.position
        chain_start(&event.setting, &event.chain)
        self.draw_next(event)
        self.set_next()

    def get_loss(self):
        """The setting, as it was given."""
        return <object>self.values[LOSS]

    def get_duplicate(self):
        """The setting, as it was given."""
        return <object>self.values[DUPLICATE]

    def get_corrupt(self):
        """The setting, as it was given."""
        return <object>self.values[CORRUPT]

    def get_reorder(self):
        """The setting, as it was given."""
        return <object>self.values[REORDER]

    def get_delay(self):
        """The setting, as it was given."""
        return <object>self.values[DELAY]

    def prepare_loss(self, value=None):
        """The Work that changes the loss. Raises ConfigError for an invalid value."""
        return SetEvent(self, LOSS, value)

    def prepare_duplicate(self, value=None):
        """The Work that changes the duplication. Raises ConfigError for an invalid value."""
        return SetEvent(self, DUPLICATE, value)

    def prepare_corrupt(self, value=None):
        """The Work that changes the corruption. Raises ConfigError for an invalid value."""
        return SetEvent(self, CORRUPT, value)

    def prepare_reorder(self, value=None):
        """The Work that changes the reordering. Raises ConfigError for an invalid value."""
        return SetEvent(self, REORDER, value)

    def prepare_delay(self, value=None):
        """The Work that changes the delay. Raises ConfigError for an invalid value."""
        return SetDelay(self, DELAY, value)

    def describe(self):
        return {name: value for name, value in self._given().items() if value is not None}

    def _given(self):
        return {name: <object>self.values[<uint32_t>i] for i, name in enumerate(NAMES)}

    def memory_bytes(self):
        """The pool's bytes that the waiting packets use."""
        return packet_memory(self.line.small + self.late_count, self.line.large)

    # -- hand-over ---------------------------------------------------------------------------------

    def save_state(self):
        """`settings`, which handlers may have changed; `position`; `events`: [next packet, lost,
        state, packets left in it, numbers drawn] for loss, duplicate, corrupt and reorder; `bits`,
        `delays`: numbers drawn; `z`, `last_ns`: of the last delay; `late`: the numbers of the
        packets that release the late ones; `wheel`, `packets`: the delayed packets, see
        TimingWheel.packed, and then the late ones."""
        cdef Engine engine = self.engine
        cdef uint32_t which
        cdef Event *event
        events = []
        for which in range(<uint32_t>EVENTS):
            event = &self.events[which]
            events.append([event.at, bool(event.chain.lost), event.chain.state, event.chain.left,
                           event.chain.stream.count])
        wheel, packets = [0, 0], b""
        if engine is not None:
            wheel, packets = self.line.packed(engine.ctx.packets)
            for which in range(self.late_count):
                packets += queue_packed(engine.ctx.packets, self.late[which], 1)
        return {"settings": self._given(), "position": self.position, "events": events,
                "bits": self.bits.count, "delays": self.delays.count, "z": self.z,
                "last_ns": self.last_ns,
                "late": [self.late_at[which] for which in range(self.late_count)],
                "wheel": wheel, "packets": packets}

    def load_state(self, dict state):
        cdef Engine engine = self.engine
        cdef Context *ctx = engine.ctx
        cdef EventDetails details
        cdef DelaySetting delay
        cdef ChainSetting chains[EVENTS]
        cdef LossChain found[EVENTS]
        cdef uint64_t at[EVENTS]
        cdef uint64_t position, last_ns, bits, delays, left, drawn
        cdef uint64_t late_at[LATE_MOST]
        cdef double z
        cdef uint32_t i, count, late
        cdef bytes packets
        cdef TimingWheel line
        cdef const uint32_t *indices
        try:
            settings, events, packets = state["settings"], state["events"], state["packets"]
            position, last_ns, z = state["position"], state["last_ns"], state["z"]
            bits, delays, wheel = state["bits"], state["delays"], state["wheel"]
            late = <uint32_t>len(state["late"])
            if len(state) != 10 or tuple(settings) != NAMES or len(events) != EVENTS:
                raise ValueError("other members")
            for i in range(<uint32_t>EVENTS):
                _fill_event(self, i, settings[NAMES[i]], &chains[i], &details)
                at[i], found[i].lost, found[i].state, left, drawn = events[i]
                found[i].left, found[i].stream.count = left, drawn
                if (at[i] < position or at[i] > NO_EVENT
                        or found[i].state >= max(chains[i].states, <uint32_t>1)):
                    raise ValueError(f"{NAMES[i]} at packet {at[i]}, state {found[i].state}")
            _fill_delay(self, settings["delay"], &delay)
            count = queue_length(packets)
            if len(packets) % 4 or late > min(count, <uint32_t>LATE_MOST) or not -1e3 < z < 1e3:
                raise ValueError(f"{late} late packets of {count}")
            for i in range(late):
                late_at[i] = state["late"][i]
                queue_head(ctx.packets, ctx.total_count,
                           packets[4 * (count - late + i):4 * (count - late + i + 1)])
            indices = queue_indices(packets)
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise VnicError(f"{self.name}: its state is not that of an Impairment: "
                            f"{error}") from None
        if self.counters.held != count:
            raise VnicError(f"{self.name}: {count} packets wait, its counters say "
                            f"{self.counters.held}")
        line = TimingWheel()
        try:
            line.adopt(ctx.packets, ctx.small_count, ctx.total_count, engine.clock.now_ns,
                       (wheel, packets[:4 * (count - late)]))
        except (TypeError, ValueError, OverflowError) as error:
            raise VnicError(f"{self.name}: its delayed packets: {error}") from None
        for i in range(<uint32_t>SETTINGS):
            self.keep(i, settings[NAMES[i]])
        self.details, self.delay, self.line = details, delay, line
        self.position, self.last_ns, self.z = position, last_ns, z
        self.bits.count, self.delays.count = bits, delays
        self.next_at = NO_EVENT
        for i in range(<uint32_t>EVENTS):
            found[i].stream.key = self.events[i].chain.stream.key
            self.events[i].setting, self.events[i].chain = chains[i], found[i]
            self.events[i].at = at[i]
            self.next_at = min(self.next_at, at[i])
        self.late_count = late
        for i in range(late):
            self.late[i], self.late_at[i] = indices[count - late + i], late_at[i]
            self.next_at = min(self.next_at, late_at[i])
        self.set_deadline(ctx)

    def forget_state(self):
        Element.forget_state(self)
        self.line.clear()
        self.late_count = 0

    def drain(self, uint32_t most=0xFFFFFFFF):
        cdef Engine engine = self.engine
        cdef Batch out
        cdef uint32_t i, done = 0
        if engine is None:
            return
        out.count = 0
        while done < most and not self.line.is_empty():
            self.counters.held -= 1
            self.forward(engine.ctx, self.line.take(engine.ctx), &out)
            done += 1
        if done < most:
            for i in range(self.late_count):
                self.counters.held -= 1
                self.forward(engine.ctx, self.late[i], &out)
            self.late_count = 0
            self.set_next()
        self.finish(engine.ctx, &out)

    def release(self):
        cdef Engine engine = self.engine
        cdef uint32_t i
        if engine is None:
            return
        while not self.line.is_empty():
            self.counters.held -= 1
            self.drop(engine.ctx, self.line.take(engine.ctx), RELEASED)
        for i in range(self.late_count):
            self.counters.held -= 1
            self.drop(engine.ctx, self.late[i], RELEASED)
        self.late_count = 0
        self.deadline_ns = NEVER


cdef class Change(Work):
    """A change of one setting, made on the engine's thread without the GIL: so the Python value is
    exchanged as a pointer, and the change frees the old one."""

    def __cinit__(self, Impairment impairment not None, uint32_t which, value):
        self.impairment, self.which = impairment, which
        Py_INCREF(value)
        self.value = <PyObject *>value

    def __dealloc__(self):
        Py_DECREF(<object>self.value)

    cdef void exchange(self) noexcept nogil:
        cdef PyObject *old = self.impairment.values[self.which]
        self.impairment.values[self.which] = self.value
        self.value = old


cdef class SetEvent(Change):
    """A change of the loss, duplication, corruption or reordering."""

    def __init__(self, Impairment impairment, uint32_t which, value):
        _fill_event(impairment, which, value, &self.setting, &self.details)

    cdef void run(self, Context *ctx) noexcept nogil:
        cdef EventDetails *details = &self.impairment.details
        if self.which == CORRUPT:
            details.part, details.mend = self.details.part, self.details.mend
        elif self.which == REORDER:
            details.by, details.within_ns = self.details.by, self.details.within_ns
        self.impairment.begin_event(self.which, &self.setting)
        self.exchange()


cdef class SetDelay(Change):
    """A change of the delay."""

    def __init__(self, Impairment impairment, uint32_t which, value):
        _fill_delay(impairment, value, &self.setting)

    cdef void run(self, Context *ctx) noexcept nogil:
        self.impairment.delay = self.setting
        self.exchange()


cdef int _fill_event(Impairment self, uint32_t which, value, ChainSetting *setting,
                     EventDetails *details) except -1:
    """Fills an event's setting, and the details of corruption and reordering."""
    what = f"{self.name}: {NAMES[which]}"
    if which == LOSS:
        chain = chain_of(what, value)
    elif which == DUPLICATE:
        chain = None if value is None else random_chain(share_of(what, value))
    elif which == CORRUPT:
        corruption = corruption_of(what, value)
        chain = corruption.chain
        details.part, details.mend = PARTS.index(corruption.part), corruption.mend
    else:
        reordering = reordering_of(what, value)
        chain = reordering.chain
        details.by, details.within_ns = reordering.by, reordering.within_ns
    return _fill_chain(setting, chain)


cdef int _fill_chain(ChainSetting *setting, chain) except -1:
    cdef uint32_t i, j, states
    memset(setting, 0, sizeof(ChainSetting))
    if chain is None:
        return 0
    states = setting.states = <uint32_t>len(chain.loss)
    for i in range(states):
        row = chain.moves[i]
        setting.loss[i], setting.stay[i] = chain.loss[i], row[i]
        others = [0.0 if j == i else row[j] for j in range(states)]
        total, so_far = sum(others), 0.0
        last = max((j for j in range(states) if others[j]), default=0)
        for j in range(states):
            so_far += others[j]
            # 1, not almost 1, from the last possible state on
            setting.go[i][j] = 1.0 if j >= last or total == 0.0 else so_far / total
    return 0


cdef int _fill_delay(Impairment self, value, DelaySetting *setting) except -1:
    found = delay_of(f"{self.name}: delay", value)
    setting.active = found.mean_ns > 0 or found.jitter_ns > 0
    setting.mean_ns, setting.jitter_ns = found.mean_ns, found.jitter_ns
    setting.shape, setting.correlation = SHAPES.index(found.shape), found.correlation
    setting.rest = sqrt(1.0 - found.correlation * found.correlation)
    setting.keep_order = found.keep_order
    return 0


cdef inline void mend_checksum(uint8_t *field, uint16_t before, uint16_t after,
                               bint zero_is_none) noexcept nogil:
    """Updates a checksum for a changed word (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')).
    zero_is_none: a checksum of 0 says that there is none (UDP, RFC 768)."""
    cdef uint32_t sum = load_be16(field)
    if zero_is_none and sum == 0:
        return
    sum = <uint16_t>~<uint16_t>sum + <uint16_t>~before + after
    sum = (sum & 0xFFFF) + (sum >> 16)
    sum = <uint16_t>~<uint16_t>((sum & 0xFFFF) + (sum >> 16))
    store_be16(field, <uint16_t>(0xFFFF if zero_is_none and sum == 0 else sum))
