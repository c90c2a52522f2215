"""Scheduler. The contract is in scheduler.pxd; class_settings.py reads the classes."""
cimport cython
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport NEVER, Element
from dataplane.graph.offload cimport can_segment
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport (BATCH_MAX, GSO_NONE, NO_PACKET, Batch, Context, Packet,
                                    batch_add, packet_memory, packet_wire_bytes)
from dataplane.packet.queue cimport queue_head, queue_indices, queue_length, queue_packed
from dataplane.vatomic cimport va_load_acquire_ptr, va_store_release_ptr
from shaping.class_heap cimport heap_add, heap_move, heap_remove
from shaping.class_queue cimport (LIST_NONE, LIST_OLD, OVER_MEMORY, ClassQueue, Flow,
                                  QueueSetting, queue_add, queue_move, queue_release,
                                  queue_relieve, queue_restore, queue_take)
from shaping.codel cimport PENDING_KEEP
from shaping.framing cimport Load, framed_bytes
from shaping.pool_share cimport PoolShare, share_count, share_is_full
from shaping.virtual_clock cimport (BYTE_COST, VirtualClock, clock_charge, clock_due_ns,
                                    clock_end_idle, clock_is_due, clock_is_possible,
                                    clock_limit_credit, clock_set_rate)

import copy
import hashlib

from dataplane.config.convert import shown
from dataplane.errors import ConfigError, VnicError
from dataplane.graph.handlers import Handler
from shaping.class_settings import read_tree
from shaping.overhead import CELLS, overhead_of, overhead_text
from shaping.settings import nanoseconds_of, rate_text

# A GSO frame is forwarded in pieces of 1 ms at the class's least ceiling, and of at most so many
# bytes on the line: more would let one packet with tiny segments take the turns of many.
QUANTUM_NS = 1_000_000
QUANTUM_MOST_BYTES = 131_072
# Of a weight of 1, tags per byte. A frame's bytes on the line are below 1.5e9, so tags that are
# compared differ by less than 2^63; the least weight is rounded to 1e-5.
TAG_COST = 1_048_576_000

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


@cython.final
cdef class ClassTree:
    """The classes of a Scheduler, checked and compiled; Scheduler documents `given`. Raises
    ConfigError."""

    def __cinit__(self, *args, **kwargs):
        memset(&self.tree, 0, sizeof(Tree))

    def __init__(self, str name, given, uint64_t burst_ns):
        self.given = copy.deepcopy(given)
        self.setting = read_tree(name, self.given)
        self.build()
        compile_tree(self, burst_ns)

    def __dealloc__(self):
        cdef uint32_t i
        if self.tree.classes != NULL:
            for i in range(self.tree.count):
                free(self.tree.classes[i].queue.flows)
        free(self.tree.classes)
        free(self.tree.bands)
        free(self.tree.entries)
        free(self.tree.leaves)

    cdef int build(self) except -1:
        """Allocates the arrays. Flows are touched, and take memory, when packets use them."""
        cdef Tree *tree = &self.tree
        cdef uint32_t i, flows
        classes = self.setting.classes
        tree.count = <uint32_t>len(classes)
        bands = len({(each.parent, each.priority) for each in classes[1:]})
        marks = [each.mark for each in classes if each.mark is not None]
        tree.mark_count = max(marks, default=-1) + 1
        tree.default_leaf = self.setting.default
        tree.classes = <TreeClass *>calloc(tree.count, sizeof(TreeClass))
        tree.bands = <Band *>calloc(bands, sizeof(Band))
        # each class is in three heaps at most
        tree.entries = <HeapEntry *>calloc(<size_t>3 * tree.count, sizeof(HeapEntry))
        tree.leaves = <uint32_t *>calloc(tree.mark_count + 1, sizeof(uint32_t))
        if NULL in (tree.classes, tree.bands, tree.entries, tree.leaves):
            raise MemoryError(f"{tree.count} classes")
        for i, each in enumerate(classes):
            if each.queue is None:
                continue
            flows = each.queue.flows
            tree.classes[i].leaf = True
            tree.classes[i].queue.setting.flow_count = flows
            tree.classes[i].queue.flows = <Flow *>calloc(flows, sizeof(Flow))
            if tree.classes[i].queue.flows == NULL:
                raise MemoryError(f"{flows} flows")
        return 0


cdef int compile_tree(ClassTree made, uint64_t burst_ns) except -1:
    """Fills the arrays with the settings."""
    cdef Tree *tree = &made.tree
    cdef TreeClass *c
    cdef Band *band
    cdef HeapEntry *entries = tree.entries
    cdef uint32_t i, next_band = 0
    classes = made.setting.classes
    children = [{} for _ in classes]             # of each class, by priority
    for number, each in enumerate(classes):
        if number:
            children[each.parent].setdefault(each.priority, []).append(number)
    tree.parked.entries = entries
    entries += tree.count
    for i, each in enumerate(classes):
        c = &tree.classes[i]
        c.id = int.from_bytes(hashlib.blake2b(each.path.encode(), digest_size=8).digest(), "little")
        c.parent = max(each.parent, 0)
        c.guarantee_bps, c.ceiling_bps = each.guarantee_bps, each.ceiling_bps
        c.credit_ns = _credit_ns(each, burst_ns)
        c.cost = TAG_COST // each.weight
        c.quantum_bytes = QUANTUM_MOST_BYTES
        if each.effective_bps:
            c.quantum_bytes = min(each.effective_bps * QUANTUM_NS // int(BYTE_COST),
                                  QUANTUM_MOST_BYTES)
        c.bands, c.band_count = &tree.bands[next_band], <uint32_t>len(children[i])
        for priority, numbers in sorted(children[i].items()):
            band = &tree.bands[next_band]
            next_band += 1
            band.priority = priority
            band.green.entries, band.excess.entries = entries, entries + <size_t>len(numbers)
            entries += <size_t>(2 * len(numbers))
            for number in numbers:
                tree.classes[<uint32_t>number].band = band
        if each.mark is not None:
            if tree.leaves[<uint32_t>each.mark]:
                other = classes[tree.leaves[<uint32_t>each.mark]].path
                raise ConfigError(f"classes {other} and {each.path} both have mark {each.mark}: "
                                  "expected a mark of its own for each")
            tree.leaves[<uint32_t>each.mark] = i
        if each.queue is not None:
            _compile_queue(&c.queue.setting, each.queue, each.effective_bps)
    return 0


def _credit_ns(each, burst_ns):
    """Of a class's guarantee: the burst, or what lets it send at its ceiling for the time
    `latency`."""
    if not each.latency_ns:
        return burst_ns
    faster = each.effective_bps or each.guarantee_bps
    return burst_ns + each.latency_ns * (faster - each.guarantee_bps) // each.guarantee_bps


cdef int _compile_queue(QueueSetting *setting, queue, rate_bps) except -1:
    setting.aqm, setting.fair, setting.quantum = queue.aqm, queue.fair, queue.quantum
    setting.codel.target_ns, setting.codel.interval_ns = queue.codel_ns(rate_bps)
    setting.codel.ecn = queue.ecn
    setting.limit_bytes, setting.limit_segments = queue.limits(rate_bps)
    return 0


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
                   queue: fifo, codel, fq, fq_codel, or a mapping of discipline and: time, size or
                   packets (the bound; default: 100ms at the ceiling for fifo, 1000 packets for
                   codel, 10240 for fq and fq_codel); target and interval of CoDel (default: 5ms, or
                   1.5 frames at the ceiling where that is longer, and 100ms); ecn (whether CoDel
                   marks ECN-capable packets in place of drops, default: yes); flows (a power of 2,
                   default: 1024) and quantum (bytes that a flow sends in its turn, default: 1514).
                   Default: fifo.
                   tree: its own classes; then it has neither mark nor queue nor latency.
               overhead: What the line adds to each frame, as for a Link.
               burst: Credit of the rate and of ceilings after a pause, as time ("250us", int ns).
    Drops:     queue_full: the class's queue was full; of several flows, packets of the longest one
               codel: CoDel found that the queue had been too long for too long
               over_memory: all classes together held as many buffers as they may, a quarter of the
                   pool's of either size; packets of the longest queue
               no_buffer: no buffer for a segment of a GSO frame
               released: packets that waited when the element was removed
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
               write, live): `classes`, as configured. A change keeps what waits, in order: classes
               of the same path keep their packets and their place, and those of a class that is
               gone leave first.
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

    DROP_REASONS = ("queue_full", "codel", "over_memory", "no_buffer", "released")
    COUNTERS = ("passed", "delayed", "split", "sent_bytes", "queue_bytes", "queue_bytes_max",
                "sojourn_max_ns", "sojourn_ns", "unclassified")
    TICKS = True
    STATE_VERSION = 1
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
        self.leaving.flows = &self.leaving_flow
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
        self.outlet.salt = self.seed("flow")

    # -- arrival -----------------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, passed = 0
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
        self.release_due(ctx)
        self.settle_share()

    cdef uint32_t leaf_of(self, const Packet *p) noexcept nogil:
        cdef uint32_t leaf = 0
        if p.mark < self.tree.mark_count:
            leaf = self.tree.leaves[p.mark]
        if leaf == 0:                          # the root is no leaf
            self.counters.extra[UNCLASSIFIED] += 1
            return self.tree.default_leaf
        return leaf

    cdef bint pass_at_once(self, Context *ctx, uint32_t index) noexcept nogil:
        """The fast path for a packet that finds nothing waiting and may leave at once. Counts it as
        enqueue and dequeue would, except that nothing is left over to be shared by weight. False,
        with nothing counted: it must wait, or may have to be split."""
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t which, leaf, bytes
        cdef TreeClass *c
        if p.gso_type != GSO_NONE:
            return False
        leaf = which = (self.tree.leaves[p.mark] if p.mark < self.tree.mark_count else 0)
        if leaf == 0:
            leaf = which = self.tree.default_leaf
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
        self.leaf_of(p)                        # counts it
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
        cdef uint32_t leaf = self.leaf_of(&ctx.packets[index])
        cdef TreeClass *c = &self.tree.classes[leaf]
        cdef bint empty, large = index >= ctx.small_count
        if self.counters.held and ((self.outlet.large >= self.large_limit if large
                                    else self.outlet.small >= self.small_limit)
                                   or (self.share != NULL and share_is_full(self.share, large))):
            self.relieve(ctx)
        empty = c.queue.packets == 0
        queue_add(&c.queue, &self.outlet, index)
        self.counters.extra[QUEUE_BYTES] = self.outlet.bytes
        self.counters.extra[QUEUE_BYTES_MAX] = max(self.counters.extra[QUEUE_BYTES_MAX],
                                                   self.outlet.bytes)
        if empty and c.queue.packets:
            self.begin(ctx, leaf, ctx.now_ns)

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
        cdef uint32_t path[DEPTH_MOST]
        cdef bint green[DEPTH_MOST]
        cdef uint32_t depth = 0, which = 0, i, index
        cdef TreeClass *c
        while not self.tree.classes[which].leaf:
            c = &self.tree.classes[which]
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
        while depth:                           # leaf first: what it does decides for its parents
            depth -= 1
            self.settle(ctx, path[depth], green[depth], load if index != NO_PACKET else NULL)
        if self.tree.classes[0].offering == 0:
            self.tree.classes[0].emptied_ns = ctx.now_ns
        return index

    cdef void settle(self, Context *ctx, uint32_t which, bint green,
                     const Load *load) noexcept nogil:
        """Charges a class for a packet that was sent (NULL: none was) and moves it in, or out of,
        its parent's heaps."""
        cdef TreeClass *c = &self.tree.classes[which]
        if load != NULL:
            if c.ceiling_bps:
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
        cdef uint32_t i, was
        for i in range(tree.count):
            was = find_class(old, tree.classes[i].id, i)
            if was != NO_CLASS:
                take_over(&tree.classes[i], &old.classes[was], &self.outlet, self.burst_ns)
        for i in range(old.count):
            if old.classes[i].leaf and old.classes[i].queue.packets:
                queue_move(&self.leaving, &old.classes[i].queue, &self.outlet)
        self.tree = tree
        # Release: control, which reads the pointer, sees the tree's contents.
        va_store_release_ptr(<void **>&self.installed, installed)
        for i in range(1, tree.count):
            if tree.classes[i].leaf and tree.classes[i].queue.packets:
                self.begin(ctx, i, ctx.now_ns)
        self.release_due(ctx)

    def join(self, PoolShare share not None):
        """Makes the element count its packets in `share` and respect its bounds. Raises ConfigError
        for one that runs."""
        if self.engine is not None or self.share != NULL:
            raise ConfigError(f"{self.name}: runs already, or has a share; make a new one")
        self._share, self.share = share, &share.held

    def prepare_tree(self, classes):
        """The Work that replaces the classes. Raises ConfigError for invalid ones."""
        return SetClasses(self, ClassTree(self.name, classes, self.burst_ns))

    def get_tree(self):
        """`classes`, as configured."""
        return self.current().given

    def get_classes(self):
        """Of each class, by path ("" is all of them): `sent_packets`, `sent_bytes`, `excess_bytes`
        (of these, beyond the guarantee), `waiting_packets`, `waiting_bytes`, `sojourn_ns` (the sum
        of what sent packets waited) and `sojourn_max_ns`, `marked` (CE), `dropped` by reason. Of a
        class with a tree, the sums of its classes."""
        cdef ClassTree installed = self.current()
        rows = [class_row(&installed.tree.classes[<uint32_t>number], each)
                for number, each in enumerate(installed.setting.classes)]
        for number in range(len(rows) - 1, 0, -1):
            add_row(rows[installed.setting.classes[number].parent], rows[number])
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
        """`classes`: of each class by path `clocks` ([next_ns, remainder] of guarantee and ceiling),
        `ahead` (its tag, from the virtual time of its band on), `emptied_ns`, `excess_bytes`; of a
        leaf `counts` (in the order of ClassCounts) and `flows`, those in which packets wait, in the
        order of their turns: [number, list, deficit, bytes of its head that are sent, the fields of
        Codel, its packets packed]. `leaving`: packets of classes that are gone, as one flow, or
        None. The classes are configuration."""
        cdef ClassTree installed = self.current()
        cdef Context *ctx = self.outlet.ctx
        classes = {
            each.path: saved_class(&installed.tree.classes[<uint32_t>number], ctx)
            for number, each in enumerate(installed.setting.classes)
        }
        leaving = saved_flow(0, &self.leaving_flow, ctx) if self.leaving.packets else None
        return {"classes": classes, "leaving": leaving}

    def load_state(self, dict state):
        cdef Engine engine = self.engine
        cdef Context *ctx = engine.ctx
        cdef Tree *tree = self.tree
        cdef uint32_t i
        cdef uint64_t now_ns = engine.clock.now_ns
        settings = self.current().setting.classes
        try:
            if (set(state) != {"classes", "leaving"}
                    or set(state["classes"]) != {each.path for each in settings}):
                raise ValueError("other classes")
            for i, each in enumerate(settings):
                load_class(&tree.classes[i], state["classes"][each.path], ctx, &self.outlet, now_ns)
            if state["leaving"] is not None:
                read_flow(&self.leaving_flow, state["leaving"], ctx)
                queue_restore(&self.leaving, &self.outlet, 0)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise VnicError(f"{self.name}: its state is not that of a Scheduler: {error}") from None
        if (self.counters.held != self.outlet.small + self.outlet.large
                or self.counters.extra[QUEUE_BYTES] != self.outlet.bytes):
            raise VnicError(f"{self.name}: {self.outlet.small + self.outlet.large} packets of "
                            f"{self.outlet.bytes} bytes wait, its counters say "
                            f"{self.counters.held} of {self.counters.extra[QUEUE_BYTES]}")
        for i in range(1, tree.count):
            if tree.classes[i].leaf and tree.classes[i].queue.packets:
                self.begin(ctx, i, now_ns)
        self.settle_share()
        self.set_deadline(ctx)

    def forget_state(self):
        """The classes go on with empty queues."""
        cdef ClassTree fresh = ClassTree(self.name, self.current().given, self.burst_ns)
        cdef PyObject *old = self.installed
        Element.forget_state(self)
        Py_INCREF(fresh)
        self.installed, self.tree = <PyObject *>fresh, &fresh.tree
        Py_XDECREF(old)
        self.outlet.small = self.outlet.large = 0
        self.outlet.bytes = 0
        memset(&self.leaving_flow, 0, sizeof(Flow))
        self.leaving.packets = 0
        self.leaving.bytes = self.leaving.segments = 0
        self.settle_share()

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


# -- classes of two trees --------------------------------------------------------------------------

cdef enum:
    NO_CLASS = 0xFFFFFFFF


cdef uint32_t find_class(const Tree *tree, uint64_t id, uint32_t near) noexcept nogil:
    """The class of this path. Most are where they were, or a little before or behind."""
    cdef uint32_t i, step
    for step in range(tree.count + near + 1):
        i = near + step
        if i < tree.count and tree.classes[i].id == id:
            return i
        i = near - step                        # wraps around below 0
        if i < tree.count and tree.classes[i].id == id:
            return i
    return NO_CLASS


cdef void take_over(TreeClass *c, TreeClass *old, Outlet *outlet, uint64_t burst_ns) noexcept nogil:
    """Gives a class the clocks and packets that it had in another tree."""
    cdef uint64_t now_ns = outlet.ctx.now_ns
    c.guarantee, c.ceiling, c.emptied_ns = old.guarantee, old.ceiling, old.emptied_ns
    if c.guarantee_bps != old.guarantee_bps:   # else the fraction of a nanosecond stays, too
        clock_set_rate(&c.guarantee, now_ns, old.guarantee_bps, c.guarantee_bps, c.credit_ns)
    if c.ceiling_bps != old.ceiling_bps:
        clock_set_rate(&c.ceiling, now_ns, old.ceiling_bps, c.ceiling_bps, burst_ns)
    c.excess_bytes = old.excess_bytes
    if old.band != NULL and <int64_t>(old.tag - old.band.tag) > 0:
        c.tag = old.tag - old.band.tag         # what it is ahead; virtual time begins at 0
    if not c.leaf or not old.leaf:
        return
    c.queue.counts = old.queue.counts
    if (c.queue.setting.flow_count == old.queue.setting.flow_count
            and c.queue.setting.fair == old.queue.setting.fair):
        # the flows as they are, with deficits and CoDel's state
        c.queue.flows, old.queue.flows = old.queue.flows, c.queue.flows
        c.queue.new_flows, c.queue.old_flows = old.queue.new_flows, old.queue.old_flows
        c.queue.packets, c.queue.bytes = old.queue.packets, old.queue.bytes
        c.queue.segments = old.queue.segments
        old.queue.packets = 0
        old.queue.bytes = old.queue.segments = 0
        old.queue.new_flows.head = old.queue.old_flows.head = 0
    else:
        queue_move(&c.queue, &old.queue, outlet)


cdef dict class_row(const TreeClass *c, each):
    cdef const ClassQueue *queue = &c.queue
    return {"path": each.path, "sent_packets": queue.counts.sent_packets,
            "sent_bytes": queue.counts.sent_bytes, "excess_bytes": c.excess_bytes,
            "waiting_packets": queue.packets, "waiting_bytes": queue.bytes,
            "sojourn_ns": queue.counts.sojourn_ns, "sojourn_max_ns": queue.counts.sojourn_max_ns,
            "marked": queue.counts.marked,
            "dropped": {"queue_full": queue.counts.full, "codel": queue.counts.codel,
                        "over_memory": queue.counts.memory}}


def add_row(to, row):
    """Adds a class's numbers to its parent's; what is beyond the guarantee is the parent's own."""
    for key, value in row.items():
        if key == "dropped":
            for reason, count in value.items():
                to[key][reason] += count
        elif key == "sojourn_max_ns":
            to[key] = max(to[key], value)
        elif key not in ("path", "excess_bytes"):
            to[key] += value


# -- saved state -----------------------------------------------------------------------------------


cdef dict saved_class(const TreeClass *c, const Context *ctx):
    cdef const ClassQueue *queue = &c.queue
    cdef uint32_t i, number
    found = {"clocks": [[c.guarantee.next_ns, c.guarantee.remainder],
                        [c.ceiling.next_ns, c.ceiling.remainder]],
             "ahead": 0, "emptied_ns": c.emptied_ns, "excess_bytes": c.excess_bytes}
    if c.band != NULL and <int64_t>(c.tag - c.band.tag) > 0:
        found["ahead"] = c.tag - c.band.tag
    if not c.leaf:
        return found
    flows = []
    if not queue.setting.fair:
        if queue.packets:
            flows.append(saved_flow(0, &queue.flows[0], ctx))
    else:
        for i in (queue.new_flows.head, queue.old_flows.head):
            number = i
            while number:
                if queue.flows[number - 1].packets:
                    flows.append(saved_flow(number - 1, &queue.flows[number - 1], ctx))
                number = queue.flows[number - 1].next
    counts = queue.counts
    found["counts"] = [counts.sent_packets, counts.sent_bytes, counts.sojourn_ns,
                       counts.sojourn_max_ns, counts.marked, counts.full, counts.codel,
                       counts.memory]
    found["flows"] = flows
    return found


cdef list saved_flow(uint32_t number, const Flow *flow, const Context *ctx):
    codel = [flow.codel.above_ns, flow.codel.drop_ns, flow.codel.count, flow.codel.last_count,
             flow.codel.dropping, flow.codel.pending]
    packets = queue_packed(ctx.packets, flow.head, flow.packets)
    return [number, flow.list, flow.deficit, flow.done, codel, packets]


cdef int load_class(TreeClass *c, dict saved, Context *ctx, Outlet *outlet,
                    uint64_t now_ns) except -1:
    """Gives a class its saved clocks and flows. Raises ValueError and the like."""
    cdef Flow flow
    cdef uint32_t number
    read_clock(&c.guarantee, saved["clocks"][0], c.guarantee_bps, now_ns)
    read_clock(&c.ceiling, saved["clocks"][1], c.ceiling_bps, now_ns)
    c.tag, c.emptied_ns, c.excess_bytes = saved["ahead"], saved["emptied_ns"], saved["excess_bytes"]
    if c.emptied_ns > now_ns or c.tag >> 62:
        raise ValueError("times of the future")
    if not c.leaf:
        return 0
    (c.queue.counts.sent_packets, c.queue.counts.sent_bytes, c.queue.counts.sojourn_ns,
     c.queue.counts.sojourn_max_ns, c.queue.counts.marked, c.queue.counts.full,
     c.queue.counts.codel, c.queue.counts.memory) = saved["counts"]
    for each in saved["flows"]:
        number = each[0]
        if number >= c.queue.setting.flow_count or c.queue.flows[number].packets:
            raise ValueError(f"flow {number} twice, or of another queue")
        read_flow(&flow, each, ctx)
        if (flow.list != LIST_NONE) != c.queue.setting.fair:
            raise ValueError(f"flow {number} is of another discipline")
        c.queue.flows[number] = flow
        queue_restore(&c.queue, outlet, number)
    return 0


cdef int read_clock(VirtualClock *clock, list saved, uint64_t rate_bps,
                    uint64_t now_ns) except -1:
    clock.next_ns, clock.remainder = saved
    if not clock_is_possible(clock.next_ns, clock.remainder, rate_bps, now_ns):
        raise ValueError(f"a clock says {clock.next_ns} ns, which cannot be at {now_ns} ns and "
                         f"{rate_bps} bit/s")
    return 0


cdef int read_flow(Flow *flow, list saved, Context *ctx) except -1:
    """A flow in which packets wait."""
    cdef const Packet *p
    cdef bytes packets
    memset(flow, 0, sizeof(Flow))
    _, flow.list, flow.deficit, flow.done, codel, packets = saved
    (flow.codel.above_ns, flow.codel.drop_ns, flow.codel.count, flow.codel.last_count,
     flow.codel.dropping, flow.codel.pending) = codel
    flow.head = queue_head(ctx.packets, ctx.total_count, packets)
    flow.packets = queue_length(packets)
    if (flow.packets == 0 or flow.list > LIST_OLD or flow.codel.pending > PENDING_KEEP
            or (flow.codel.dropping and flow.codel.count == 0)):
        raise ValueError("a flow that cannot be")
    p = &ctx.packets[flow.head]
    if flow.done and (not can_segment(p) or flow.done >= p.length - p.header_length
                      or flow.done % p.gso_size):
        raise ValueError(f"packet {flow.head} cannot be the one that is being cut")
    return 0
