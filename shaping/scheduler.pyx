"""Scheduler. The contract is in scheduler.pxd."""
cimport cython
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport NEVER, Element
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport (BATCH_MAX, GSO_NONE, NO_PACKET, Batch, Context, Packet,
                                    batch_add, packet_memory, packet_wire_bytes)
from dataplane.vatomic cimport va_load_acquire_ptr, va_store_release_ptr
from shaping.class_heap cimport ClassHeap, heap_add, heap_move, heap_remove
from shaping.class_queue cimport (AQM_NONE, OVER_MEMORY, queue_add, queue_move, queue_release,
                                  queue_relieve, queue_restore, queue_take)
from shaping.class_tree cimport (LEVELS_MOST, ClassRates, ClassTree, Tree, TreeClass, change_rates,
                                 class_row, has_new_leaf, load_class, read_rates, saved_class,
                                 share_row, take_over_tree)
from shaping.flow_turns cimport Flow
from shaping.framing cimport Load, framed_bytes
from shaping.pool_share cimport PoolShare, share_count, share_is_full
from shaping.queue_state cimport Packed, read_flow, saved_flow
from shaping.virtual_clock cimport (clock_charge, clock_due_ns, clock_end_idle, clock_is_due,
                                    clock_limit_credit)

from dataplane import units
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from shaping.class_rows import add_row
from shaping.class_settings import with_ceiling
from shaping.overhead import CELLS, overhead_of, overhead_text
from shaping.settings import nanoseconds_of, rate_of, rate_text

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
    UNCLASSIFIED = 8


def _with_blue(entry):
    """For UPGRADES: version 1 knew no cake."""
    state = entry["state"]
    for saved in state["classes"].values():
        if "counts" in saved:
            saved["counts"] = [*saved["counts"], 0]
    return {**entry, "state": {**state, "blue": 0}}


@cython.final
cdef class Scheduler(Element):
    """Shares a rate among a tree of classes, by guarantees, ceilings, priorities and weights.

    Synopsis:  split >> Scheduler(classes={"rate": "10mbit", "default": "rest", "tree": {
                   "voice": {"mark": 1, "guarantee": "1mbit", "priority": 0},
                   "rest": {"queue": "fq_codel"}}}, name="classes") >> b
    Ports:     1 input, 1 output; packets of a class (of several flows: of a flow) leave in order.
    Config:    classes: {rate, default, tree}. rate: what all classes share, such as "100mbit", 1
                   kbit/s to 10 Tbit/s; "none": no limit. default: the class, by its path, of
                   packets that no other class has. tree: at most 4096 classes by name, 8 levels
                   deep; a class is a mapping of
                   guarantee: what it gets whenever it has packets, before others get more than
                   theirs. Default: nothing; of a class with a tree, what its classes have together.
                   ceiling: the most that it gets. Default: its parent's.
                   weight: of what its siblings leave over, 1 to 10000. Default: 1.
                   priority: among siblings, 0 (first) to 7: guarantees first, then what is left
                   over. Default: 4.
                   latency: how long it may send at its ceiling after a pause before it has used up
                   its guarantee, such as "5ms". Default: 250us at the guarantee.
                   mark: Packet.mark of its packets, 0 to 65535, set by a Classifier.
                   queue: fifo, codel, fq, fq_codel, cake, or a mapping of discipline and: time,
                   size or packets (the bound; default: 100ms at the ceiling for fifo, 1000 packets
                   for codel, 10240 for fq and fq_codel, four round trips at the ceiling for cake,
                   4 MiB to 15.5 MB); target and interval of CoDel (default: 5ms, or 1.5 frames at
                   the ceiling where that is longer, and 100ms); ecn (whether CoDel marks
                   ECN-capable packets in place of drops, default: yes); flows (a power of 2,
                   default: 1024, of cake: 4096) and quantum (bytes that a flow sends in its turn,
                   default: 1514, of cake below 50mbit less, down to 300); of cake: rtt (round trip
                   of its flows, of which the target is a 20th, default: 100ms) and hosts (none,
                   source, destination or both: what is shared equally before flows share, default:
                   both). Default: fifo.
                   share: name of what sets its ceiling while packets flow; a policy gives it. Then
                   ceiling is what it begins with, and neither it nor a class in it has a guarantee.
                   tree: its own classes; then it has neither mark nor queue nor latency.
               overhead: What the line adds to each frame, as for a Link.
               burst: Credit of the rate and of ceilings after a pause, as time ("250us", int ns).
    Drops:     queue_full: the class's queue was full; of several flows, packets of the longest one
               codel: CoDel found that the queue had been too long for too long
               blue: of cake: the flow had filled the queue, and went on
               over_memory: all classes together held as many buffers as they may, a quarter of the
                   pool's of either size; packets of the longest queue
               no_buffer: no buffer for a segment of a GSO frame
               released: packets that waited when its NIC was removed
    Counters:  passed: packets that left at once
               delayed: packets that waited
               split: GSO frames that were split
               sent_bytes: bytes sent, with the overhead
               queue_bytes: bytes that wait now
               queue_bytes_max: maximum of queue_bytes
               sojourn_max_ns: longest wait
               sojourn_ns: sum of all waits; divide it by passed + delayed for the mean
               unclassified: packets for the default class, without a mark of a class
    Handlers:  counters; classes (read): of each class what it sent, dropped and holds; tree (read,
               write, live): `classes`, as configured. A change keeps what waits: classes of the
               same path keep their packets and their place; packets of a class that is gone, and
               where a class is new those of the default class, leave first, so that flows stay in
               order.
    Threads:   any one engine
    Cost:      see shaping/README.md
    Example:   Voice is served first, up to 5 Mbit/s; the rest shares what is left by flow.
               nics:
                 web:
                   netns: /run/netns/web
                   egress:
                     elements:
                       - {element: Classifier, name: split,
                          rules: [{dscp: ef, gate: 0, mark: 1}], default: 0}
                       - element: Scheduler
                         name: classes
                         classes:
                           rate: 20mbit
                           default: rest
                           tree:
                             voice: {mark: 1, guarantee: 1mbit, ceiling: 5mbit, priority: 0}
                             rest: {queue: fq_codel}
                 db: {netns: /run/netns/db}

    Each class has two virtual clocks, exact fractions of nanoseconds: it is within its guarantee
    when that clock is not ahead, and may send at all when its ceiling's is not. What is sent within
    the guarantee does not count against the share of what is left over. In place of HTB's buckets
    and quanta there is no burst beyond `burst`, and shares hold to one packet.

    A GSO frame that takes more than 1 ms at the class's ceiling is split when its turn comes, as by
    a Shaper; CoDel drops or marks single segments.
    """

    DROP_REASONS = ("queue_full", "codel", "over_memory", "no_buffer", "released", "blue")
    COUNTERS = ("passed", "delayed", "split", "sent_bytes", "queue_bytes", "queue_bytes_max",
                "sojourn_max_ns", "sojourn_ns", "unclassified")
    TICKS = True
    STATE_VERSION = 2
    UPGRADES = {1: _with_blue}
    HANDLERS = {
        "classes": Handler(read="get_classes",
                           help="of each class: packets and bytes sent, dropped and waiting"),
        "tree": Handler(read="get_tree", write="prepare_tree", argument="classes",
                        help="the classes as configured: {rate, default, tree}"),
    }

    def __init__(self, classes, overhead="none", burst="250us", *, name=None):
        cdef ClassTree tree
        self.burst_ns = nanoseconds_of(self.name, "burst", burst)
        if self.burst_ns > 1_000_000_000:
            raise ConfigError(f"{self.name}: burst {burst!r} is longer than 1s; "
                              "make it about what timers are late, such as 250us")
        self._overhead = overhead_of(self.name, overhead)
        self.outlet.framing.counts = True
        self.outlet.framing.bytes = self._overhead.bytes
        self.outlet.framing.minimum = max(self._overhead.minimum, 1)
        self.outlet.framing.cell = CELLS.index(self._overhead.cell)
        self.leaving.setting.flow_count = 1
        self.leaving.setting.limit_bytes = self.leaving.setting.limit_segments = 1 << 62
        self.leaving.turns.flows = &self.leaving_flow
        tree = ClassTree(self.name, classes, self.burst_ns)
        Py_XDECREF(self.installed)
        Py_INCREF(tree)
        self.installed, self.tree = <PyObject *>tree, &tree.tree

    def __dealloc__(self):
        Py_XDECREF(self.installed)

    def initialize(self):
        cdef Engine engine = self.engine
        self.small_limit = max(engine.pool.small_count // 4, 1)
        self.large_limit = max(engine.pool.large_count // 4, 1)
        self.outlet.ctx, self.outlet.element = engine.ctx, <PyObject *>self
        self.outlet.counters = &self.counters
        self.outlet.keys.first = self.seed("flows")
        self.outlet.keys.second = self.seed("more flows")
        self.outlet.blue.key = self.seed("blue")

    # -- arrival -----------------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, passed = 0
        self.outlet.ctx = ctx
        # Most packets find nothing waiting, and the rate not used up.
        while (passed < batch.count and self.counters.held == 0
               and self.pass_at_once(ctx, batch.index[passed])):
            passed += 1
        if passed == batch.count:
            self.emit(ctx, 0, batch)
            return
        if passed == 0:
            self.release_due(ctx)              # first, to make room
        for i in range(passed, batch.count):
            self.enqueue(ctx, batch.index[i])
        batch.count = passed
        self.emit(ctx, 0, batch)
        self.release_due(ctx)
        self.settle_share()

    cdef void tick(self, Context *ctx) noexcept nogil:
        self.outlet.ctx = ctx
        self.release_due(ctx)
        self.settle_share()

    cdef inline uint32_t marked_leaf(self, const Packet *p) noexcept nogil:
        """The leaf with the packet's mark; 0, the root, which is no leaf: there is none."""
        return self.tree.leaves[p.mark] if p.mark < self.tree.mark_count else 0

    cdef bint pass_at_once(self, Context *ctx, uint32_t index) noexcept nogil:
        """The fast path for a packet that finds nothing waiting and may leave at once. Counts it as
        enqueue and dequeue would, except that nothing is left over to be shared by weight. False,
        with nothing counted: it must wait, or may have to be split."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t which, marked, leaf, bytes
        cdef TreeClass *c
        if p.gso_type != GSO_NONE:
            return False
        marked = self.marked_leaf(p)
        leaf = which = marked if marked else self.tree.default_leaf
        while True:
            c = &self.tree.classes[which]
            if c.ceiling_bps:
                clock_end_idle(&c.ceiling, ctx.now_ns, c.emptied_ns, self.burst_ns)
                if not clock_is_due(&c.ceiling, ctx.now_ns):
                    return False
            if which == 0:
                break
            which = c.parent
        bytes = <uint32_t>framed_bytes(&self.outlet.framing, packet_wire_bytes(p))
        self.counters.extra[UNCLASSIFIED] += marked == 0
        which = leaf
        while True:
            c = &self.tree.classes[which]
            c.emptied_ns = ctx.now_ns
            if c.ceiling_bps:
                clock_charge(&c.ceiling, c.ceiling_bps, bytes)
            if c.guarantee_bps:
                clock_limit_credit(&c.guarantee, ctx.now_ns, c.credit_ns)
                if clock_is_due(&c.guarantee, ctx.now_ns):
                    clock_charge(&c.guarantee, c.guarantee_bps, bytes)
                else:
                    c.excess_bytes += bytes
            elif which:
                c.excess_bytes += bytes
            if which == 0:
                break
            which = c.parent
        p.release_ns = ctx.now_ns
        p.next = NO_PACKET
        c = &self.tree.classes[leaf]
        c.queue.counts.sent_packets += 1
        c.queue.counts.sent_bytes += bytes
        self.counters.extra[PASSED] += 1
        self.counters.extra[SENT_BYTES] += bytes
        self.counters.extra[QUEUE_BYTES_MAX] = max(self.counters.extra[QUEUE_BYTES_MAX],
                                                   <uint64_t>bytes)
        return True

    cdef void enqueue(self, Context *ctx, uint32_t index) noexcept nogil:
        cdef uint32_t leaf = self.marked_leaf(&ctx.packets[index])
        cdef TreeClass *c
        cdef bint empty, large = index >= ctx.small_count
        if leaf == 0:
            self.counters.extra[UNCLASSIFIED] += 1
            leaf = self.tree.default_leaf
        c = &self.tree.classes[leaf]
        if self.counters.held and ((self.outlet.large >= self.large_limit if large
                                    else self.outlet.small >= self.small_limit)
                                   or (self.share != NULL and share_is_full(self.share, large))):
            self.relieve(ctx)
        empty = c.queue.packets == 0
        queue_add(&c.queue, &self.outlet, index)
        self.counters.extra[QUEUE_BYTES] = self.outlet.bytes
        self.counters.extra[QUEUE_BYTES_MAX] = max(self.counters.extra[QUEUE_BYTES_MAX],
                                                   self.outlet.bytes)
        if empty:
            if c.queue.packets:
                self.begin(ctx, leaf, ctx.now_ns)
        elif c.queue.packets == 0:             # the longest flow has lost all that it had
            self.withdraw(ctx, leaf)

    cdef void relieve(self, Context *ctx) noexcept nogil:
        """Drops packets of the class that has most of them."""
        cdef uint32_t i, most = self.tree.default_leaf
        for i in range(1, self.tree.count):
            if self.tree.classes[i].queue.bytes > self.tree.classes[most].queue.bytes:
                most = i
        if self.tree.classes[most].queue.packets == 0:
            queue_relieve(&self.leaving, &self.outlet, OVER_MEMORY)
            return
        queue_relieve(&self.tree.classes[most].queue, &self.outlet, OVER_MEMORY)
        if self.tree.classes[most].queue.packets == 0:
            self.withdraw(ctx, most)
        self.settle_share()

    # -- departure ---------------------------------------------------------------------------------

    cdef void release_due(self, Context *ctx) noexcept nogil:
        """Forwards the packets that are due and sets the deadline for the next one."""
        cdef TreeClass *root = &self.tree.classes[0]
        cdef Batch out
        cdef Load load
        cdef uint32_t index
        out.count = 0
        self.unpark(ctx)
        while (self.counters.held
               and (root.ceiling_bps == 0 or clock_is_due(&root.ceiling, ctx.now_ns))):
            if root.offering == 0 and self.leaving.packets == 0:
                break                          # all wait for their ceilings
            index = self.take(ctx, &load)
            if index == NO_PACKET:
                continue                       # CoDel dropped the last ones of a class
            if root.ceiling_bps:
                clock_charge(&root.ceiling, root.ceiling_bps, load.bytes)
            if out.count == BATCH_MAX:
                self.emit(ctx, 0, &out)
                out.count = 0
            batch_add(&out, index)
        self.counters.extra[QUEUE_BYTES] = self.outlet.bytes
        self.counters.extra[SPLIT] += self.outlet.split
        self.outlet.split = 0
        self.set_deadline(ctx)
        self.emit(ctx, 0, &out)

    cdef uint32_t take(self, Context *ctx, Load *load) noexcept nogil:
        """Removes and returns the packet whose turn it is; NO_PACKET: its class has none left."""
        cdef uint32_t index
        cdef uint64_t waited_ns
        if self.leaving.packets:
            index = queue_take(&self.leaving, &self.outlet, self.tree.classes[0].quantum_bytes,
                               load)
        else:
            index = self.serve(ctx, load)
        if index != NO_PACKET:
            waited_ns = ctx.now_ns - ctx.packets[index].release_ns
            ctx.packets[index].release_ns = ctx.now_ns
            self.counters.extra[SENT_BYTES] += load.bytes
            self.counters.extra[DELAYED if waited_ns else PASSED] += 1
            self.counters.extra[SOJOURN_NS] += waited_ns
            self.counters.extra[SOJOURN_MAX_NS] = max(self.counters.extra[SOJOURN_MAX_NS],
                                                      waited_ns)
        return index

    cdef uint32_t serve(self, Context *ctx, Load *load) noexcept nogil:
        """Finds the class whose turn it is, and takes its next packet."""
        cdef uint32_t path[LEVELS_MOST]
        cdef bint green[LEVELS_MOST]
        cdef uint32_t depth = 0, which = 0, i, index, turns = 1
        cdef uint64_t credit_ns
        cdef TreeClass *c
        while not self.tree.classes[which].leaf:
            c = &self.tree.classes[which]
            turns += c.offering
            green[depth] = False
            for i in range(c.band_count):
                if c.bands[i].green.count and (
                        <int64_t>(ctx.now_ns - c.bands[i].green.entries[0].key) >= 0):
                    which, green[depth] = c.bands[i].green.entries[0].which, True
                    break
            else:
                i = 0
                while c.bands[i].excess.count == 0:
                    i += 1                     # a class that offers has a child that does
                which = c.bands[i].excess.entries[0].which
            path[depth] = which
            depth += 1
        c = &self.tree.classes[which]
        index = queue_take(&c.queue, &self.outlet, c.quantum_bytes, load)
        # A class that is due waits for a piece of each other one, as no piece is interrupted, and
        # makes up for that. Where others have more than their turn, because of their priority or
        # their guarantee, it makes up for no more: else it would exceed its ceiling for as long as
        # it waited.
        credit_ns = self.burst_ns + turns * self.tree.piece_ns
        while depth:                           # leaf first: what it does decides for its parents
            depth -= 1
            self.settle(ctx, path[depth], green[depth], load if index != NO_PACKET else NULL,
                        credit_ns)
        if self.tree.classes[0].offering == 0:
            self.tree.classes[0].emptied_ns = ctx.now_ns
        return index

    cdef void settle(self, Context *ctx, uint32_t which, bint green, const Load *load,
                     uint64_t credit_ns) noexcept nogil:
        """Charges a class for a packet that was sent (NULL: none was) and moves it in, or out of,
        its parent's heaps. credit_ns: how far its ceiling's clock may lie behind the tree's, which
        says when the packet's turn was, also where the engine is late."""
        cdef TreeClass *c = &self.tree.classes[which]
        cdef TreeClass *root = &self.tree.classes[0]
        if load != NULL:
            if c.ceiling_bps:
                clock_limit_credit(&c.ceiling, clock_due_ns(&root.ceiling) if root.ceiling_bps
                                   else ctx.now_ns, credit_ns)
                clock_charge(&c.ceiling, c.ceiling_bps, load.bytes)
            if green:
                clock_charge(&c.guarantee, c.guarantee_bps, load.bytes)
            else:
                c.band.tag = c.tag
                c.tag += load.bytes * c.cost
                c.excess_bytes += load.bytes
        if (c.queue.packets if c.leaf else c.offering) == 0:
            self.leave_heaps(which)
            c.emptied_ns = ctx.now_ns
        elif c.ceiling_bps and not clock_is_due(&c.ceiling, ctx.now_ns):
            self.leave_heaps(which)
            heap_add(&self.tree.parked, which, &c.parked_place, clock_due_ns(&c.ceiling))
        elif green:
            heap_move(&c.band.green, &c.green_place, clock_due_ns(&c.guarantee))
        else:
            heap_move(&c.band.excess, &c.excess_place, c.tag)

    # -- which classes offer -----------------------------------------------------------------------

    cdef void begin(self, Context *ctx, uint32_t which, uint64_t at_ns) noexcept nogil:
        """A class that had nothing to send has something since `at_ns`; so may have its parents."""
        cdef TreeClass *c
        while which:
            c = &self.tree.classes[which]
            if c.guarantee_bps:
                clock_limit_credit(&c.guarantee, at_ns, c.credit_ns)
            if c.ceiling_bps:
                clock_end_idle(&c.ceiling, at_ns, c.emptied_ns, self.burst_ns)
                if not clock_is_due(&c.ceiling, ctx.now_ns):
                    heap_add(&self.tree.parked, which, &c.parked_place, clock_due_ns(&c.ceiling))
                    return
            self.join_heaps(which)
            which = c.parent
            if self.tree.classes[which].offering > 1:
                return
        c = &self.tree.classes[0]
        if c.ceiling_bps and self.leaving.packets == 0:
            clock_end_idle(&c.ceiling, at_ns, c.emptied_ns, self.burst_ns)

    cdef void go_on(self, Context *ctx) noexcept nogil:
        """Puts the classes that have packets into the heaps of a tree in which none is yet, with
        the clocks that they have."""
        cdef TreeClass *c
        cdef uint32_t i, which
        for i in range(1, self.tree.count):
            c = &self.tree.classes[i]
            if not c.leaf or c.queue.packets == 0:
                continue
            which = i
            while which:
                c = &self.tree.classes[which]
                if c.parked_place:
                    break
                if c.ceiling_bps and not clock_is_due(&c.ceiling, ctx.now_ns):
                    heap_add(&self.tree.parked, which, &c.parked_place, clock_due_ns(&c.ceiling))
                    break
                self.join_heaps(which)
                which = c.parent
                if self.tree.classes[which].offering > 1:
                    break
        for i in range(1, self.tree.count):    # a state may call parked what has no packets
            c = &self.tree.classes[i]
            if c.parked_place and (c.queue.packets if c.leaf else c.offering) == 0:
                heap_remove(&self.tree.parked, &c.parked_place)

    cdef void join_heaps(self, uint32_t which) noexcept nogil:
        cdef TreeClass *c = &self.tree.classes[which]
        if <int64_t>(c.band.tag - c.tag) > 0:  # a pause earns nothing of what is left over
            c.tag = c.band.tag
        heap_add(&c.band.excess, which, &c.excess_place, c.tag)
        if c.guarantee_bps:
            heap_add(&c.band.green, which, &c.green_place, clock_due_ns(&c.guarantee))
        self.tree.classes[c.parent].offering += 1

    cdef void leave_heaps(self, uint32_t which) noexcept nogil:
        cdef TreeClass *c = &self.tree.classes[which]
        heap_remove(&c.band.excess, &c.excess_place)
        heap_remove(&c.band.green, &c.green_place)
        self.tree.classes[c.parent].offering -= 1

    cdef void withdraw(self, Context *ctx, uint32_t which) noexcept nogil:
        """A class has lost all that it had to send; so may have its parents."""
        cdef TreeClass *c
        while which:
            c = &self.tree.classes[which]
            c.emptied_ns = ctx.now_ns
            if c.parked_place:
                heap_remove(&self.tree.parked, &c.parked_place)
                return
            self.leave_heaps(which)
            which = c.parent
            if self.tree.classes[which].offering:
                return
        self.tree.classes[0].emptied_ns = ctx.now_ns

    cdef void unpark(self, Context *ctx) noexcept nogil:
        """Classes whose ceiling is due offer again."""
        cdef ClassHeap *parked = &self.tree.parked
        cdef uint32_t which, parent
        cdef uint64_t due_ns
        while parked.count and <int64_t>(ctx.now_ns - parked.entries[0].key) >= 0:
            which, due_ns = parked.entries[0].which, parked.entries[0].key
            heap_remove(parked, &self.tree.classes[which].parked_place)
            self.join_heaps(which)
            parent = self.tree.classes[which].parent
            if self.tree.classes[parent].offering == 1:
                # since then, and not since a late engine noticed
                self.begin(ctx, parent, due_ns)

    cdef void set_deadline(self, Context *ctx) noexcept nogil:
        cdef TreeClass *root = &self.tree.classes[0]
        cdef uint64_t due_ns = NEVER
        if self.counters.held:
            due_ns = clock_due_ns(&root.ceiling) if root.ceiling_bps else ctx.now_ns
            if root.offering == 0 and self.leaving.packets == 0:
                due_ns = max(due_ns, self.tree.parked.entries[0].key)
        if due_ns != NEVER or self.deadline_ns != NEVER:
            self.set_timer(ctx, due_ns)

    cdef void settle_share(self) noexcept nogil:
        """Tells the share how many buffers are held: once a batch, since it is a shared cache
        line."""
        if self.share != NULL and (self.small_shared != self.outlet.small
                                   or self.large_shared != self.outlet.large):
            share_count(self.share, self.outlet.small - self.small_shared,
                        self.outlet.large - self.large_shared)
            self.small_shared, self.large_shared = self.outlet.small, self.outlet.large

    # -- control -----------------------------------------------------------------------------------

    cdef ClassTree current(self):
        """The installed tree; any thread with the GIL may call this."""
        # Acquire pairs with the release in `replace`. The GIL is held from this load until the new
        # reference is taken, and releasing the old tree afterwards needs the GIL.
        return <ClassTree>va_load_acquire_ptr(<void **>&self.installed)

    cdef void replace(self, Context *ctx, PyObject *installed) noexcept nogil:
        """Shares by another tree from now on, whose reference it takes over; the old one is left to
        the caller. Runs on the engine's thread."""
        cdef Tree *old = self.tree
        cdef Tree *tree = &(<ClassTree>installed).tree
        cdef uint32_t i
        # A flow of a class that is new was in the default class, and must stay in order.
        if has_new_leaf(tree, old):
            queue_move(&self.leaving, &old.classes[old.default_leaf].queue, &self.outlet)
        take_over_tree(tree, old, &self.outlet, self.burst_ns)
        for i in range(old.count):
            if old.classes[i].leaf and old.classes[i].queue.packets:
                queue_move(&self.leaving, &old.classes[i].queue, &self.outlet)
        self.tree = tree
        # Release: control, which reads the pointer, sees the tree's contents.
        va_store_release_ptr(<void **>&self.installed, installed)
        self.go_on(ctx)
        self.release_due(ctx)

    cdef void change_ceilings(self, Context *ctx, const Tree *tree, const ClassRates *rates,
                              uint32_t count) noexcept nogil:
        """Changes classes of a tree, unless another one runs by now. Runs on the engine's
        thread."""
        cdef uint32_t i
        if tree != self.tree:
            return
        self.outlet.ctx = ctx
        for i in range(count):
            change_rates(self.tree, &rates[i], ctx.now_ns, self.burst_ns)
        self.release_due(ctx)
        self.settle_share()

    def join(self, PoolShare share not None):
        """Makes the element count its packets in `share` and respect its bounds. Raises ConfigError
        for one that runs."""
        if self.engine is not None or self.share != NULL:
            raise ConfigError(f"{self.name}: runs already, or has a share; make a new one")
        self._share, self.share = share, &share.held

    def prepare_tree(self, classes):
        """The Work that replaces the classes. Raises ConfigError for invalid ones."""
        return SetClasses(self, ClassTree(self.name, classes, self.burst_ns, self.current()))

    def set_ceiling(self, str path not None, rate):
        """Gives a class of a share another ceiling, and returns when it holds, which costs what is
        in the class, whatever else the tree has. `classes` stays as configured. Raises ConfigError
        for a class that is in no share, or an invalid rate."""
        cdef SetCeilings work
        if path not in self.current().shared:
            raise ConfigError(f"{self.name}: {path} is no class of a share")
        if not (rate_bps := rate_of(f"{self.name}: {path}: ceiling", rate)):
            raise ConfigError(f"{self.name}: {path}: ceiling none: expected a rate such as 10mbit")
        work = SetCeilings(self, path, rate_bps)
        if self.engine is None:
            self.use_now(work)
        else:
            self.engine.post(work)
        work.tree.note(work.changed)

    def share_of(self, str path not None):
        """(ceiling in bit/s, bytes sent, whether packets wait for this ceiling) of a class of a
        share, with the classes in it; None: there is no such class."""
        cdef ClassTree tree = self.current()
        number = tree.shared.get(path)
        return None if number is None else share_row(&tree.tree, tree.setting.classes, number)

    def get_tree(self):
        """`classes`, as configured."""
        return self.current().given

    def get_classes(self):
        """Of each class, by path ("" is all of them): `sent_packets`, `sent_bytes`, `excess_bytes`
        (of these, beyond the guarantee), `waiting_packets`, `waiting_bytes`, `sojourn_ns` (the sum
        of what sent packets waited) and `sojourn_max_ns`, `marked` (CE), `dropped` by reason. Of a
        class with a tree, the sums of its classes."""
        cdef ClassTree installed = self.current()
        rows = [class_row(&installed.tree.classes[<uint32_t>number], each.path)
                for number, each in enumerate(installed.setting.classes)]
        for number in range(len(rows) - 1, 0, -1):
            # what is beyond the guarantee is a parent's own
            add_row(rows[installed.setting.classes[number].parent], rows[number],
                    ("path", "excess_bytes"))
        return rows

    def memory_bytes(self):
        """The pool's bytes that the waiting packets use."""
        return packet_memory(self.outlet.small, self.outlet.large)

    def describe(self):
        setting = self.current().setting
        return {"rate": rate_text(setting.classes[0].ceiling_bps),
                "classes": len(setting.classes) - 1, "overhead": overhead_text(self._overhead)}

    # -- state -------------------------------------------------------------------------------------

    def save_state(self):
        """`classes`: of each class by path `clocks` ([next_ns, remainder] of guarantee and
        ceiling), of one that is in a share its `ceiling_bps`, `parked` (it waits for its ceiling),
        `ahead` (its tag, from the virtual time of its band on), `emptied_ns`, `excess_bytes`; of a
        leaf `counts` (in the order of ClassCounts)
        and `flows`, those that have a turn, in the order of their turns: [number, list, deficit,
        bytes of its head that are sent, the fields of Codel or Cobalt, number of packets]. Of cake
        these go on with [..., hash, whether it is shared, numbers of its hosts, the one in whose
        list it is], and there are `hosts`, first those that wait for their turn, in that order:
        [number, hash, deficit, whether it waits], and `kept`, of flows that are in no list
        [number, hash, the fields of Cobalt]. `leaving`: packets of classes that are gone, as one
        flow, or None. `blue`: numbers drawn for BLUE. `packets`: all that wait, packed, flow by
        flow in this order. The classes are configuration."""
        cdef ClassTree installed = self.current()
        cdef Context *ctx = self.outlet.ctx
        packed = []
        classes = {
            each.path: saved_class(&installed.tree.classes[<uint32_t>number], ctx, packed)
            for number, each in enumerate(installed.setting.classes)
        }
        for path, number in installed.shared.items():
            classes[path]["ceiling_bps"] = installed.setting.classes[number].own_bps
        leaving = None
        if self.leaving.packets:
            leaving = saved_flow(0, &self.leaving_flow, AQM_NONE, ctx, packed)
        return {"classes": classes, "leaving": leaving, "blue": self.outlet.blue.count,
                "packets": b"".join(packed)}

    def load_state(self, dict state):
        cdef Engine engine = self.engine
        cdef Context *ctx = engine.ctx
        cdef uint32_t i
        cdef uint64_t now_ns = engine.clock.now_ns
        cdef Packed packed
        self.reset()
        settings = self.current().setting.classes
        try:
            packed = Packed(state["packets"])
            if (set(state) != {"classes", "leaving", "blue", "packets"}
                    or set(state["classes"]) != {each.path for each in settings}):
                raise ValueError("other classes")
            for path in self.current().shared:
                if "ceiling_bps" in state["classes"][path]:
                    self.load_ceiling(path, state["classes"][path]["ceiling_bps"])
            for i, each in enumerate(settings):
                load_class(&self.tree.classes[i], state["classes"][each.path], packed, &self.outlet,
                           now_ns)
                if i and state["classes"][each.path]["parked"] is True:
                    heap_add(&self.tree.parked, i, &self.tree.classes[i].parked_place,
                             clock_due_ns(&self.tree.classes[i].ceiling))
            if state["leaving"] is not None:
                read_flow(&self.leaving_flow, state["leaving"], AQM_NONE, packed, ctx)
                queue_restore(&self.leaving, &self.outlet, 0)
            if packed.at != len(packed.packets):
                raise ValueError("packets of no flow")
            self.outlet.blue.count = state["blue"]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise VnicError(f"{self.name}: its state is not that of a Scheduler: {error}") from None
        if (self.counters.held != self.outlet.small + self.outlet.large
                or self.counters.extra[QUEUE_BYTES] != self.outlet.bytes):
            raise VnicError(f"{self.name}: {self.outlet.small + self.outlet.large} packets of "
                            f"{self.outlet.bytes} bytes wait, its counters say "
                            f"{self.counters.held} of {self.counters.extra[QUEUE_BYTES]}")
        self.go_on(ctx)
        self.settle_share()
        self.set_deadline(ctx)

    cdef load_ceiling(self, path, rate_bps):
        """Before any clock: what a share let a class have. Raises ValueError."""
        cdef SetCeilings work
        if type(rate_bps) is not int or not units.RATE_LEAST_BPS <= rate_bps <= units.RATE_MOST_BPS:
            raise ValueError(f"a ceiling of {rate_bps} bit/s")
        work = SetCeilings(self, path, rate_bps)
        self.use_now(work)
        work.tree.note(work.changed)

    cdef use_now(self, SetCeilings work):
        """While no engine uses the tree."""
        cdef uint32_t i
        for i in range(work.count):
            change_rates(&work.tree.tree, &work.rates[i], 0, self.burst_ns)

    def forget_state(self):
        Element.forget_state(self)
        self.reset()

    def reset(self):
        """Forgets all that waits and all that was sent, without freeing packets."""
        cdef ClassTree fresh = ClassTree(self.name, self.current().given, self.burst_ns)
        cdef PyObject *old = self.installed
        Py_INCREF(fresh)
        self.installed, self.tree = <PyObject *>fresh, &fresh.tree
        Py_XDECREF(old)
        self.outlet.small = self.outlet.large = 0
        self.outlet.bytes = self.outlet.blue.count = 0
        memset(&self.leaving_flow, 0, sizeof(Flow))
        self.leaving.packets = 0
        self.leaving.bytes = self.leaving.segments = 0
        self.settle_share()

    def drain(self, uint32_t most=0xFFFFFFFF):
        cdef Engine engine = self.engine
        cdef Context *ctx
        cdef Batch out
        cdef Load load
        cdef uint32_t i, index
        if engine is None:
            return
        ctx = self.outlet.ctx = engine.ctx
        for i in range(self.tree.count):
            if self.tree.classes[i].leaf and self.tree.classes[i].queue.packets:
                queue_move(&self.leaving, &self.tree.classes[i].queue, &self.outlet)
                self.withdraw(ctx, i)
        out.count = 0
        while most and self.leaving.packets:
            most -= 1
            index = queue_take(&self.leaving, &self.outlet, 0xFFFFFFFF, &load)
            if index == NO_PACKET:
                continue                           # there was no buffer for a part of a frame
            self.counters.extra[SENT_BYTES] += load.bytes
            self.counters.extra[DELAYED] += 1
            if out.count == BATCH_MAX:
                self.emit(ctx, 0, &out)
                out.count = 0
            batch_add(&out, index)
        self.counters.extra[QUEUE_BYTES] = self.outlet.bytes
        self.settle_share()
        self.set_deadline(ctx)
        self.emit(ctx, 0, &out)

    def release(self):
        cdef uint32_t i
        if self.engine is None:
            return
        for i in range(self.tree.count):
            if self.tree.classes[i].leaf:
                queue_release(&self.tree.classes[i].queue, &self.outlet)
        queue_release(&self.leaving, &self.outlet)
        self.counters.extra[QUEUE_BYTES] = 0
        self.settle_share()
        self.deadline_ns = NEVER


cdef class SetClasses(Work):
    """A change of classes, run on the engine's thread."""

    def __init__(self, Scheduler scheduler not None, ClassTree tree not None):
        self.scheduler = scheduler
        Py_XDECREF(self.tree)
        Py_INCREF(tree)
        self.tree = <PyObject *>tree

    def __dealloc__(self):
        Py_XDECREF(self.tree)

    cdef void run(self, Context *ctx) noexcept nogil:
        cdef PyObject *old = self.scheduler.installed
        self.scheduler.replace(ctx, self.tree)
        self.tree = old


cdef class SetCeilings(Work):
    """A change of a class's ceiling, run on the engine's thread."""

    def __init__(self, Scheduler scheduler not None, str path not None, rate_bps):
        cdef uint32_t at
        self.scheduler, self.tree = scheduler, scheduler.current()
        self.changed = with_ceiling(self.tree.setting.classes, self.tree.shared[path], rate_bps)
        self.count = <uint32_t>len(self.changed)
        free(self.rates)
        self.rates = <ClassRates *>calloc(self.count, sizeof(ClassRates))
        if self.rates == NULL:
            raise MemoryError(f"{self.count} classes")
        for at, (which, each) in enumerate(self.changed.items()):
            read_rates(&self.rates[at], which, each, scheduler.burst_ns)

    def __dealloc__(self):
        free(self.rates)

    cdef void run(self, Context *ctx) noexcept nogil:
        self.scheduler.change_ceilings(ctx, &self.tree.tree, self.rates, self.count)
