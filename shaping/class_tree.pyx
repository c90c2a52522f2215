"""ClassTree. The contract is in class_tree.pxd; class_settings.py reads the classes."""
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from dataplane.packet.pool cimport Context
from shaping.class_heap cimport HeapEntry, heap_change
from shaping.class_queue cimport (AQM_CODEL, AQM_COBALT, AQM_NONE, ClassQueue, Outlet,
                                  QueueSetting, queue_move)
from shaping.flow_turns cimport Flow, FlowTurns, Host
from shaping.queue_state cimport Packed, load_queue, saved_queue
from shaping.virtual_clock cimport (BYTE_COST, VirtualClock, clock_due_ns, clock_is_possible,
                                    clock_set_rate)

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_NOHUGEPAGE
    void *MAP_FAILED
    void *mmap(void *at, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *at, size_t length)
    int madvise(void *at, size_t length, int advice)

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)        /* which sees the bounds of what is allocated */
    #define vnic_is_mapped(size) 0
    #else
    #define vnic_is_mapped(size) ((size) >= 16384)
    #endif
    """
    bint vnic_is_mapped(size_t size) nogil

import copy
import hashlib

from dataplane.errors import ConfigError
from shaping.class_settings import read_tree, with_ceiling

cdef enum:
    CACHE_LINE = 64

# A GSO frame is forwarded in pieces of 1 ms at the class's least ceiling, and of at most so many
# bytes on the line: more would let one packet with tiny segments take the turns of many.
QUANTUM_NS = 1_000_000
QUANTUM_MOST_BYTES = 131_072
FRAME_BYTES = 1600               # a full frame of MTU 1500 on most lines
# Of a weight of 1, tags per byte. A frame's bytes on the line are below 1.5e9, so tags that are
# compared differ by less than 2^63; the least weight is rounded to 1e-5.
TAG_COST = 1_048_576_000


@cython.final
cdef class ClassTree:
    """The classes of a Scheduler, checked and compiled; Scheduler documents `given`. Raises
    ConfigError."""

    def __cinit__(self, *args, **kwargs):
        memset(&self.tree, 0, sizeof(Tree))

    def __init__(self, str name, given, uint64_t burst_ns, ClassTree before=None):
        self.given = copy.deepcopy(given)
        self.setting = read_tree(name, self.given)
        self.shared = {each.path: number for number, each in enumerate(self.setting.classes)
                       if each.share}
        if before is not None:
            self.keep_shares(before)
        self.build()
        compile_tree(self, burst_ns)

    def __dealloc__(self):
        cdef uint32_t i
        if self.tree.classes != NULL:
            for i in range(self.tree.count):
                free_queue(&self.tree.classes[i].queue)
        free(self.tree.classes)
        free(self.tree.by_id)
        free(self.tree.bands)
        free(self.tree.entries)
        free(self.tree.leaves)

    cdef int keep_shares(self, ClassTree before) except -1:
        """Classes that are in the same share as in the tree before have what it lets them have."""
        was, now = before.setting.classes, self.setting.classes
        for path, number in self.shared.items():
            if (old := before.shared.get(path)) is not None and was[old].share == now[number].share:
                self.note(with_ceiling(now, number, was[old].own_bps))
        return 0

    cdef int note(self, dict changed) except -1:
        for at, each in changed.items():
            self.setting.classes[at] = each
        return 0

    cdef int build(self) except -1:
        """Allocates the arrays. Flows are touched, and take memory, when packets use them."""
        cdef Tree *tree = &self.tree
        cdef uint32_t i
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
        tree.by_id = <uint32_t *>calloc(tree.count, sizeof(uint32_t))
        if NULL in (tree.classes, tree.bands, tree.entries, tree.leaves, tree.by_id):
            raise MemoryError(f"{tree.count} classes")
        for i, each in enumerate(classes):
            if each.queue is None:
                continue
            tree.classes[i].leaf = True
            build_queue(&tree.classes[i].queue, each.queue)
        return 0


cdef int build_queue(ClassQueue *queue, settings) except -1:
    """Allocates the flows of a leaf, and what finds them."""
    cdef FlowTurns *turns = &queue.turns
    cdef uint32_t flows = settings.flows, sides = <uint32_t>len(settings.sides)
    queue.setting.flow_count = flows
    turns.flows = <Flow *>zeroed(flows, sizeof(Flow))
    queue.longest.entries = <HeapEntry *>zeroed(flows, sizeof(HeapEntry))
    if settings.is_cake:
        turns.ways.words, turns.ways.count = <uint64_t *>zeroed(flows, sizeof(uint64_t)), flows
    if sides:
        turns.sides, turns.first_side = sides, min(settings.sides)
        turns.host_ways.count = sides * flows
        turns.host_ways.words = <uint64_t *>zeroed(turns.host_ways.count, sizeof(uint64_t))
        turns.hosts = <Host *>zeroed(turns.host_ways.count, sizeof(Host))
    return 0


cdef void *zeroed(uint32_t count, size_t size) except NULL:
    """A zeroed array, aligned to a cache line. A large one is in pages of its own, so that those
    that no packet uses take no memory: ten thousand classes of a thousand flows would be gigabytes.
    The bytes before a small one say how far it is from the beginning of what is allocated."""
    cdef char *memory
    cdef size_t shift
    if vnic_is_mapped(count * size):
        memory = <char *>mmap(NULL, count * size, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if <void *>memory == MAP_FAILED:
            raise MemoryError(f"{count} flows")
        madvise(memory, count * size, MADV_NOHUGEPAGE)     # one would be the pages of many classes
        return memory
    memory = <char *>calloc(count + 2 * CACHE_LINE // size + 1, size)
    if memory == NULL:
        raise MemoryError(f"{count} flows")
    shift = CACHE_LINE + (CACHE_LINE - <uintptr_t>memory % CACHE_LINE) % CACHE_LINE
    (<size_t *>(memory + shift) - 1)[0] = shift
    return memory + shift


cdef void release_zeroed(void *array, uint32_t count, size_t size) noexcept:
    if array == NULL:
        return
    if vnic_is_mapped(count * size):
        munmap(array, count * size)
    else:
        free(<char *>array - (<size_t *>array - 1)[0])


cdef void free_queue(ClassQueue *queue) noexcept:
    cdef FlowTurns *turns = &queue.turns
    release_zeroed(turns.flows, queue.setting.flow_count, sizeof(Flow))
    release_zeroed(queue.longest.entries, queue.setting.flow_count, sizeof(HeapEntry))
    release_zeroed(turns.ways.words, turns.ways.count, sizeof(uint64_t))
    release_zeroed(turns.hosts, turns.host_ways.count, sizeof(Host))
    release_zeroed(turns.host_ways.words, turns.host_ways.count, sizeof(uint64_t))


cdef int compile_tree(ClassTree made, uint64_t burst_ns) except -1:
    """Fills the arrays with the settings."""
    cdef Tree *tree = &made.tree
    cdef TreeClass *c
    cdef Band *band
    cdef HeapEntry *entries = tree.entries
    cdef ClassRates rates
    cdef uint32_t i, next_band = 0
    classes = made.setting.classes
    children = [{} for _ in classes]             # of each class, by priority
    for number, each in enumerate(classes):
        if number:
            children[each.parent].setdefault(each.priority, []).append(number)
    tree.parked.entries = entries
    entries += tree.count
    rate = classes[0].effective_bps
    tree.piece_ns = max(QUANTUM_NS, FRAME_BYTES * int(BYTE_COST) // rate) if rate else QUANTUM_NS
    for i, each in enumerate(classes):
        c = &tree.classes[i]
        c.id = int.from_bytes(hashlib.blake2b(each.path.encode(), digest_size=8).digest(), "little")
        c.parent = max(each.parent, 0)
        c.guarantee_bps, c.cost = each.guarantee_bps, TAG_COST // each.weight
        read_rates(&rates, i, each, burst_ns)
        set_rates(c, &rates)
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
    ids = sorted(range(tree.count), key=[tree.classes[i].id for i in range(tree.count)].__getitem__)
    for i, number in enumerate(ids):
        tree.by_id[i] = number
    return 0


cdef int read_rates(ClassRates *made, uint32_t which, each, uint64_t burst_ns) except -1:
    memset(made, 0, sizeof(ClassRates))
    made.which, made.ceiling_bps = which, each.ceiling_bps
    made.credit_ns = _credit_ns(each, burst_ns)
    made.quantum_bytes = QUANTUM_MOST_BYTES
    if each.effective_bps:
        made.quantum_bytes = min(each.effective_bps * QUANTUM_NS // int(BYTE_COST),
                                 QUANTUM_MOST_BYTES)
    if each.queue is not None:
        _compile_queue(&made.queue, each.queue, each.effective_bps)
    return 0


cdef void set_rates(TreeClass *c, const ClassRates *rates) noexcept nogil:
    cdef uint32_t flow_count = c.queue.setting.flow_count    # of what is allocated
    c.ceiling_bps, c.credit_ns, c.quantum_bytes = (rates.ceiling_bps, rates.credit_ns,
                                                   rates.quantum_bytes)
    if c.leaf:
        c.queue.setting = rates.queue
        c.queue.setting.flow_count = flow_count


cdef void change_rates(Tree *tree, const ClassRates *rates, uint64_t now_ns,
                       uint64_t burst_ns) noexcept nogil:
    cdef TreeClass *c = &tree.classes[rates.which]
    if c.ceiling_bps != rates.ceiling_bps:
        clock_set_rate(&c.ceiling, now_ns, c.ceiling_bps, rates.ceiling_bps, burst_ns)
    set_rates(c, rates)
    # One that offers goes on: its clock was due, and a change of rate makes no debt.
    if c.parked_place:
        heap_change(&tree.parked, &c.parked_place, clock_due_ns(&c.ceiling))


cdef tuple share_row(const Tree *tree, classes, uint32_t which):
    cdef const TreeClass *c = &tree.classes[which]
    cdef uint64_t sent_bytes = c.queue.counts.sent_bytes
    cdef uint32_t i
    for i in range(which + 1, tree.count):
        if tree.classes[i].parent < which:
            break
        sent_bytes += tree.classes[i].queue.counts.sent_bytes
    return classes[which].own_bps, sent_bytes, c.parked_place != 0


def _credit_ns(each, burst_ns):
    """Of a class's guarantee: the burst, or what lets it send at its ceiling for the time
    `latency`."""
    if not each.latency_ns:
        return burst_ns
    faster = each.effective_bps or each.guarantee_bps
    return burst_ns + each.latency_ns * (faster - each.guarantee_bps) // each.guarantee_bps


cdef int _compile_queue(QueueSetting *setting, queue, rate_bps) except -1:
    setting.aqm, setting.fair = AQM_NONE, queue.fair
    if queue.aqm:
        setting.aqm = AQM_COBALT if queue.is_cake else AQM_CODEL
    setting.quantum = queue.quantum_bytes(rate_bps)
    setting.codel.target_ns, setting.codel.interval_ns = queue.codel_ns(rate_bps)
    setting.codel.long_ns = queue.long_ns(rate_bps)
    setting.codel.ecn = queue.ecn
    setting.limit_bytes, setting.limit_segments = queue.limits(rate_bps)
    return 0


# -- classes of two trees --------------------------------------------------------------------------


cdef void take_over_tree(Tree *tree, Tree *old, Outlet *outlet, uint64_t burst_ns) noexcept nogil:
    cdef uint32_t i, was
    for i in range(tree.count):
        was = find_class(old, tree.classes[i].id, i)
        if was != NO_CLASS:
            take_over(&tree.classes[i], &old.classes[was], outlet, burst_ns)


cdef bint has_new_leaf(const Tree *tree, const Tree *old) noexcept nogil:
    cdef uint32_t i, was
    for i in range(tree.count):
        if tree.classes[i].leaf:
            was = find_class(old, tree.classes[i].id, i)
            if was == NO_CLASS or not old.classes[was].leaf:
                return True
    return False


cdef uint32_t find_class(const Tree *tree, uint64_t id, uint32_t near) noexcept nogil:
    """The class of this path: most are where they were, at `near`; else by halving, since the
    engine waits while thousands are found."""
    cdef uint32_t low = 0, high = tree.count, middle
    if near < tree.count and tree.classes[near].id == id:
        return near
    while low < high:
        middle = low + (high - low) // 2
        if tree.classes[tree.by_id[middle]].id < id:
            low = middle + 1
        else:
            high = middle
    if low < tree.count and tree.classes[tree.by_id[low]].id == id:
        return tree.by_id[low]
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
    if has_same_flows(&c.queue, &old.queue):
        # as they are, with deficits and the AQM's state
        c.queue.turns, old.queue.turns = old.queue.turns, c.queue.turns
        c.queue.longest, old.queue.longest = old.queue.longest, c.queue.longest
        c.queue.packets, c.queue.bytes = old.queue.packets, old.queue.bytes
        c.queue.segments = old.queue.segments
        old.queue.packets = 0
        old.queue.bytes = old.queue.segments = 0
    else:
        queue_move(&c.queue, &old.queue, outlet)


cdef bint has_same_flows(const ClassQueue *queue, const ClassQueue *old) noexcept nogil:
    """Whether packets belong to the same flows of both queues, and these to the same hosts."""
    return (queue.setting.flow_count == old.setting.flow_count
            and queue.setting.fair == old.setting.fair
            and (queue.turns.ways.words == NULL) == (old.turns.ways.words == NULL)
            and queue.turns.sides == old.turns.sides
            and queue.turns.first_side == old.turns.first_side)


cdef dict class_row(const TreeClass *c, path):
    cdef const ClassQueue *queue = &c.queue
    return {"path": path, "sent_packets": queue.counts.sent_packets,
            "sent_bytes": queue.counts.sent_bytes, "excess_bytes": c.excess_bytes,
            "waiting_packets": queue.packets, "waiting_bytes": queue.bytes,
            "sojourn_ns": queue.counts.sojourn_ns, "sojourn_max_ns": queue.counts.sojourn_max_ns,
            "marked": queue.counts.marked,
            "dropped": {"queue_full": queue.counts.full, "codel": queue.counts.codel,
                        "over_memory": queue.counts.memory, "blue": queue.counts.blue}}


# -- saved state -----------------------------------------------------------------------------------


cdef dict saved_class(const TreeClass *c, const Context *ctx, list packed):
    found = {"clocks": [[c.guarantee.next_ns, c.guarantee.remainder],
                        [c.ceiling.next_ns, c.ceiling.remainder]],
             "parked": c.parked_place != 0, "ahead": 0, "emptied_ns": c.emptied_ns,
             "excess_bytes": c.excess_bytes}
    if c.band != NULL and <int64_t>(c.tag - c.band.tag) > 0:
        found["ahead"] = c.tag - c.band.tag
    if not c.leaf:
        return found
    found.update(saved_queue(&c.queue, ctx, packed))
    return found


cdef int load_class(TreeClass *c, dict saved, Packed packed, Outlet *outlet,
                    uint64_t now_ns) except -1:
    """Gives a class its saved clocks and flows. Raises ValueError and the like."""
    read_clock(&c.guarantee, saved["clocks"][0], c.guarantee_bps, now_ns)
    read_clock(&c.ceiling, saved["clocks"][1], c.ceiling_bps, now_ns)
    c.tag, c.emptied_ns, c.excess_bytes = saved["ahead"], saved["emptied_ns"], saved["excess_bytes"]
    if c.emptied_ns > now_ns or c.tag >> 62:
        raise ValueError("times of the future")
    if not c.leaf:
        return 0
    load_queue(&c.queue, saved, packed, outlet)
    return 0


cdef int read_clock(VirtualClock *clock, list saved, uint64_t rate_bps,
                    uint64_t now_ns) except -1:
    clock.next_ns, clock.remainder = saved
    if not clock_is_possible(clock.next_ns, clock.remainder, rate_bps, now_ns):
        raise ValueError(f"a clock says {clock.next_ns} ns, which cannot be at {now_ns} ns and "
                         f"{rate_bps} bit/s")
    return 0
