"""Element, Source and PyElement. The contract is in element.pxd."""
import hashlib
import logging
import time

from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from dataplane.packet.pool cimport BATCH_MAX, BURST, Batch, Context, batch_add, packet_free
from dataplane.graph.timers cimport NO_PLACE, Timers, timer_set

from dataplane.abi import require_check
from dataplane.errors import GraphError, VnicError, named
from dataplane.graph.handlers import Handler

np = None        # numpy, loaded by the first PyElement: a worker without one saves the memory

NEVER = 0xFFFFFFFFFFFFFFFF
REPORT_S = 10.0              # at most one log record per PyElement in this time

log = logging.getLogger("vnic")

ctypedef unsigned char uchar


cdef class Element:
    """Base of all elements.

    Class attributes describe an element:

    OUTPUTS        number of outputs
    DROP_REASONS   names, at most 16
    COUNTERS       names, at most 16
    HANDLERS       {name: Handler}, in addition to those of the base classes: what control may read
                   and write while the element runs (dataplane.graph.handlers)
    TICKS          True: it has a timer and overrides `tick`
    DEFERRABLE     True: its timer may wait until the engine is awake for another reason, as Linux's
                   deferrable timers do; in virtual time it does not wait
    STATE_VERSION  version of the dict that `save_state` returns
    UPGRADES       {version: function} that convert a saved entry, a dict of `statistics` and
                   `state`, to the next version
    MOVABLE        False: the element cannot be handed over

    The attribute `owner` names the NIC or other client that is charged for its CPU time and memory.
    """

    OUTPUTS = 1
    DROP_REASONS = ()
    COUNTERS = ()
    HANDLERS = {"counters": Handler(
        read="statistics", help="packets, drops by reason, and what else the element counts")}
    TICKS = False
    DEFERRABLE = False
    STATE_VERSION = 1
    UPGRADES = {}
    MOVABLE = True

    def __cinit__(self, *args, **kwargs):
        cls = type(self)
        require_check(cls, Element)
        if len(cls.DROP_REASONS) > MAX_REASONS or len(cls.COUNTERS) > MAX_COUNTERS:
            raise GraphError(f"{cls.__name__}: "
                             f"at most {MAX_REASONS} drop reasons and {MAX_COUNTERS} counters")
        memset(&self.counters, 0, sizeof(Counters))
        self.deadline_ns, self.deferrable, self.timer_place = NEVER, bool(cls.DEFERRABLE), NO_PLACE
        self.outputs = []
        name = kwargs.get("name")
        self.name = cls.__name__ if name is None else str(name)
        self.set_gates(cls.OUTPUTS)

    def __init__(self, *, name=None):
        pass

    def __dealloc__(self):
        free(self.gates)
        free(self.staged)

    # -- composition -------------------------------------------------------------------------------

    cpdef int set_gates(self, uint32_t count) except -1:
        """Changes the number of outputs; remaining outputs keep their connections. Must not be
        called while the element processes a batch."""
        cdef PyObject **gates = <PyObject **>calloc(max(count, 1), sizeof(PyObject *))
        cdef Batch *staged = <Batch *>calloc(max(count, 1), sizeof(Batch))
        if gates == NULL or staged == NULL:
            free(gates)
            free(staged)
            raise MemoryError(f"{self.name}: {count} gates")
        kept = self.outputs[:count]
        self.outputs = kept + [None] * (count - len(kept))
        for i, target in enumerate(kept):
            gates[i] = <PyObject *>target if target is not None else NULL
        free(self.gates)
        free(self.staged)
        self.gates, self.staged, self.gate_count = gates, staged, count
        return 0

    cpdef int connect(self, uint32_t gate, Element target) except -1:
        """Connects output `gate` to `target`, in place of its present connection."""
        if gate >= self.gate_count:
            raise GraphError(f"{self.name}: has no gate {gate}; "
                             f"it has {self.gate_count} (0 to {<int>self.gate_count - 1})"
                             if self.gate_count else
                             f"{self.name}: has no outputs, so nothing can follow it")
        self.outputs[gate] = target
        self.gates[gate] = <PyObject *>target
        return 0

    def __rshift__(self, other):
        """`a >> b` connects output 0 of a to b. See Path."""
        return Path(self, 0, self) >> other

    def __getitem__(self, gate):
        """`a[1] >> b` connects output 1 of a to b."""
        if not isinstance(gate, int) or not 0 <= gate < self.gate_count:
            raise GraphError(f"{self.name}: has no gate {gate!r}; it has {self.gate_count}")
        return Path(self, gate, self)

    # without this, iterating an element would call __getitem__ without end
    __iter__ = None

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}>"

    def rename(self, str name):
        """Changes the name; only before the element is loaded into an engine, where names are
        unique."""
        if self.engine is not None:
            raise GraphError(f"{self.name}: runs already and keeps its name")
        self.name = name

    def bind(self, engine):
        """Called by an engine when it loads the element, and with None when it removes it."""
        if engine is not None and self.engine is not None and engine is not self.engine:
            raise GraphError(f"{self.name}: runs in engine {self.engine.name} already; "
                             "an element belongs to one engine")
        self.engine = engine

    # -- lifecycle, after __init__ -----------------------------------------------------------------

    def initialize(self):
        """Called once, when the graph is complete and before the first packet: open files, build
        tables. Raise VnicError to refuse."""

    def cleanup(self):
        """Called once, after the last packet, on control's thread: close what initialize opened."""

    def drain(self, uint32_t most=0xFFFFFFFF):
        """Called on the engine's thread, between two batches, before other elements take this one's
        place. Elements that hold packets override it to forward them at once, in their order: then
        none is lost or overtaken by those that go past the element from now on. most: forward only
        so many of them, the oldest; the element goes on with the others."""

    def release(self):
        """Called on the engine's thread before cleanup. Elements that hold packets override it to
        drop them."""

    def memory_bytes(self):
        """Bytes of memory to charge to the owner: buffers of held packets, and the element's own.
        Called on control's thread."""
        return 0

    def companions(self):
        """Other objects that processing a packet touches; prefetched when the engine wakes."""
        return ()

    # -- the packet path ---------------------------------------------------------------------------

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        """Processes a batch, whose packets this element owns from now on."""
        self.emit(ctx, 0, batch)

    cdef void tick(self, Context *ctx) noexcept nogil:
        """Called once ctx.now_ns >= deadline_ns; sets the next deadline_ns."""
        self.deadline_ns = NEVER

    cdef void resume(self, Context *ctx) noexcept nogil:
        """Continues the work for which `postpone` was called."""

    cdef void take_up(self, Context *ctx) noexcept nogil:
        """Called after `load_state`, between two batches: enters an element that holds packets into
        the engine's lists."""

    cdef void postpone(self, Context *ctx) noexcept nogil:
        """Makes the engine call `resume` in its next iteration, which it runs without sleeping: for
        work that would take too long in this one."""
        if self.unfinished_in != NULL:
            return
        self.unfinished_in, self.next_unfinished = ctx, NULL
        if ctx.unfinished == NULL:
            ctx.unfinished = <void *>self
        else:
            (<Element>ctx.last_unfinished).next_unfinished = <void *>self
        ctx.last_unfinished = <void *>self

    cdef void finish_early(self) noexcept nogil:
        """Undoes `postpone`."""
        cdef Context *ctx = self.unfinished_in
        cdef void *each
        if ctx == NULL:
            return
        self.unfinished_in = NULL
        if ctx.unfinished == <void *>self:
            ctx.unfinished = self.next_unfinished
            return
        each = ctx.unfinished
        while (<Element>each).next_unfinished != <void *>self:
            each = (<Element>each).next_unfinished
        (<Element>each).next_unfinished = self.next_unfinished
        if ctx.last_unfinished == <void *>self:
            ctx.last_unfinished = each

    cdef void set_timer(self, Context *ctx, uint64_t deadline_ns) noexcept nogil:
        """Sets when `tick` is due, in nanoseconds of the engine's clock; NEVER: not at all."""
        cdef Timers *timers = <Timers *>ctx.timers
        self.deadline_ns = deadline_ns
        if timers != NULL:
            timers.changed = True
            timer_set(&timers.deferrable if self.deferrable else &timers.waking, <void *>self,
                      &self.timer_place, deadline_ns)

    cdef void push(self, Context *ctx, Batch *batch) noexcept nogil:
        """Passes a batch into the element: counts and processes it."""
        self.counters.packets += batch.count
        self.counters.batches += 1
        self.process(ctx, batch)

    cdef void stage(self, Context *ctx, uint32_t gate, uint32_t index) noexcept nogil:
        """Collects a packet for an output; `flush` forwards them, in the same order."""
        cdef Batch *staged = &self.staged[gate]
        if staged.count == BATCH_MAX:
            self.emit(ctx, gate, staged)
            staged.count = 0
        batch_add(staged, index)

    cdef void flush(self, Context *ctx) noexcept nogil:
        """Forwards all staged packets, output 0 first."""
        cdef uint32_t gate
        for gate in range(self.gate_count):
            if self.staged[gate].count:
                self.emit(ctx, gate, &self.staged[gate])
                self.staged[gate].count = 0

    cdef void drop(self, Context *ctx, uint32_t index, uint32_t reason) noexcept nogil:
        """Frees the packet and counts it under DROP_REASONS[reason]."""
        self.counters.drops[reason] += 1
        if ctx.on_drop != NULL:
            ctx.on_drop(ctx.on_drop_who, ctx, <void *>self, index, reason)
        packet_free(ctx, index)

    cdef void drop_batch(self, Context *ctx, Batch *batch, uint32_t reason) noexcept nogil:
        cdef uint32_t i
        for i in range(batch.count):
            if ctx.on_drop != NULL:
                ctx.on_drop(ctx.on_drop_who, ctx, <void *>self, batch.index[i], reason)
            packet_free(ctx, batch.index[i])
        self.counters.drops[reason] += batch.count
        batch.count = 0

    # -- statistics --------------------------------------------------------------------------------

    def statistics(self):
        """The counters as a dict: packets, batches, the terms of the conservation law (`dropped` by
        reason), and `counters`, the class's own."""
        return counters_dict(type(self), &self.counters)

    cdef void copy_counters(self, Counters *to) noexcept nogil:
        to[0] = self.counters

    def seed(self, str purpose="", of=None):
        """The 64-bit key of one of the element's random streams (random_stream.pxd), or the seed of
        a random.Random. It depends only on the instance's seed (or on the int `of` instead of it),
        the element's name and the purpose. Raises VnicError for an element that is in no engine."""
        if self.engine is None:
            raise VnicError(f"{self.name}: is in no engine, so it has no seed yet; "
                            "ask for it in initialize()")
        words = f"{self.engine.seed if of is None else of}\0{self.name}\0{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")

    # -- hand-over to another engine, between two batches ------------------------------------------

    def save_state(self):
        """The element's state besides its configuration and counters, as a dict of plain data:
        None, bool, int, float, str, bytes, and lists and dicts (with str keys) of them.

        Must not change the element, which may continue to run. The optional key `packets` lists the
        packets that the element holds; times are the engine's clock, CLOCK_MONOTONIC. Raise
        VnicError to refuse.
        """
        return {}

    def load_state(self, dict state):
        """Loads the state that `save_state` returned in another engine, of this STATE_VERSION; the
        counters are loaded already.

        The data is untrusted: raise VnicError for invalid values. Must not write to packets or
        their records: the other engine may still continue with them.
        """
        if state:
            raise VnicError(f"{self.name}: {type(self).__name__} has no state, and was given "
                            f"{', '.join(sorted(map(str, state)))[:80]}")

    def forget_state(self):
        """Called when another engine has taken over: forgets held packets without freeing them, and
        resets the counters."""
        memset(&self.counters, 0, sizeof(Counters))
        self.deadline_ns = NEVER

    def load_statistics(self, dict statistics):
        """Sets the counters to another engine's `statistics`; missing drop reasons and COUNTERS are
        0. Raises VnicError for one that this class does not have, and then nothing has changed."""
        cdef Counters c
        cls = type(self)
        memset(&c, 0, sizeof(c))
        for kind, names in (("dropped", cls.DROP_REASONS), ("counters", cls.COUNTERS)):
            strange = sorted(set(statistics[kind]) - set(names))
            if strange:
                raise VnicError(f"{self.name}: {cls.__name__} does not count "
                                f"{', '.join(strange)[:80]} ({kind}); "
                                "its state is of another class")
        for i, reason in enumerate(cls.DROP_REASONS):
            c.drops[<uint32_t>i] = statistics["dropped"].get(reason, 0)
        for i, counter in enumerate(cls.COUNTERS):
            c.extra[<uint32_t>i] = statistics["counters"].get(counter, 0)
        c.packets, c.batches = statistics["packets"], statistics["batches"]
        c.received, c.generated = statistics["received"], statistics["generated"]
        c.transmitted, c.held = statistics["transmitted"], statistics["held"]
        self.counters = c

    def describe(self):
        """The configuration to show in drawings of the graph, as a dict of short values."""
        return {}


cdef dict counters_dict(object cls, const Counters *c):
    return {
        "packets": c.packets, "batches": c.batches, "received": c.received,
        "generated": c.generated, "transmitted": c.transmitted, "held": c.held,
        "dropped": {reason: c.drops[i] for i, reason in enumerate(cls.DROP_REASONS)},
        "counters": {counter: c.extra[i] for i, counter in enumerate(cls.COUNTERS)},
    }


cdef class Source(Element):
    """A start of the graph, polled by the engine. `poll` returns the number of packets; after 0 the
    engine may sleep.

    TAKES_INPUT: other elements connect to it, as to a Link; its packets come from them alone, and
    it is polled after it got some. RECOVERS: `poll` handles errors of its descriptors; otherwise
    the engine stops watching a descriptor after an error.
    """

    TAKES_INPUT = False
    RECOVERS = False

    def __cinit__(self, *args, **kwargs):
        self.burst = BURST

    cdef uint32_t poll(self, Context *ctx) noexcept nogil:
        return 0

    cpdef bint needs_arm(self):
        """Whether arm and disarm do anything; evaluated when the engine loads the source."""
        return False

    cdef bint arm(self) noexcept nogil:
        """Called before the engine sleeps: requests a wake-up through the descriptors. Returns True
        if there is input already, so that the engine must not sleep."""
        return False

    cdef void disarm(self) noexcept nogil:
        """Called after the engine slept."""

    cpdef list poll_descriptors(self):
        """File descriptors, one per queue, that are readable when there is input; empty for a
        source driven by its timer only."""
        return []

    cpdef bint wakes_only(self):
        """Whether the descriptors only end a sleep and do not signal input while the engine is
        awake, so that the source is polled in every iteration."""
        return False

    cdef void set_ready(self, uint32_t which, bint ready) noexcept nogil:
        """Notes whether descriptor number `which` is readable."""

    cdef void clear_ready(self) noexcept nogil:
        """Notes that no descriptor is known to be readable."""


class BatchView:
    """A batch as a PyElement sees it: columns as numpy arrays, frames as bytes.

    `len(batch)` packets. `batch.length`, `batch.source_port`, ... (every field of
    `dataplane.packet.pool.PACKET_DTYPE`) are copies of the column, one value per packet; write a
    column back with `batch.set("mark", values)`. `batch.frame(i)` is a writable uint8 view of
    packet i's bytes. Packets that are neither dropped nor emitted leave through output 0.
    """

    __slots__ = ("_indices", "_pool", "_fate", "_reasons", "_element")

    def __init__(self, element, pool, indices):
        self._element = element
        self._pool = pool
        self._indices = indices
        self._fate = np.zeros(len(indices), np.int32)       # output, or -1 - drop reason

    def __len__(self):
        return len(self._indices)

    def __getattr__(self, column):
        try:
            return self._pool.records[column][self._indices]
        except ValueError:
            raise AttributeError(f"a packet has no column {column!r}") from None

    @property
    def destination_mac(self):
        """Destination MACs, uint8 array of shape (packets, 6)."""
        return self.head(6)

    def set(self, column, values):
        """Writes a column of the records; `values` is a scalar or one value per packet."""
        self._pool.records[column][self._indices] = values

    def frame(self, i):
        """Writable view of the bytes of frame i. Valid until process returns."""
        return self._pool.frame(int(self._indices[i]))

    def head(self, count):
        """First `count` bytes of every frame as a uint8 array (packets, count); shorter frames are
        padded with 0."""
        out = np.zeros((len(self), count), np.uint8)
        for i in range(len(self)):
            frame = self.frame(i)[:count]
            out[i, :len(frame)] = frame
        return out

    def _where(self, mask):
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (len(self),):
            raise ValueError(f"mask: expected {len(self)} booleans, "
                             f"got {mask.dtype} of shape {mask.shape}")
        return mask

    def drop(self, mask, reason=None):
        """Drops the packets where `mask` is True and counts them under `reason`, one of the class's
        DROP_REASONS (by default the first after "exception")."""
        reasons = type(self._element).DROP_REASONS
        reason = reasons[1] if reason is None and len(reasons) > 1 else reason or reasons[0]
        if reason not in reasons:
            raise ValueError(f"{reason!r} is not among DROP_REASONS {reasons}")
        self._fate[self._where(mask)] = -1 - reasons.index(reason)

    def emit(self, mask, gate):
        """Sends the packets where `mask` is True through output `gate`."""
        if not 0 <= gate < len(self._element.outputs):
            raise ValueError(f"no gate {gate}: {self._element.name} has "
                             f"{len(self._element.outputs)}")
        self._fate[self._where(mask)] = gate


def report_failure(element, error):
    """Logs that `element` raised `error`, at most every REPORT_S; the next record has the number of
    errors that were not logged."""
    now_s = time.monotonic()
    reported_s, left_out = getattr(element, "_reported", (None, 0))
    if reported_s is not None and now_s - reported_s < REPORT_S:
        element._reported = reported_s, left_out + 1
        return
    element._reported = now_s, 0
    fields = {"element": element.name, "exception": named(error),
              **({"unreported": left_out} if left_out else {})}
    log.error("element failed", exc_info=error, extra={"fields": fields})


cdef object checked_fates(PyElement element, object given, uint32_t count):
    """A checked copy of BatchView._fate after `process`: one int per packet, an output or -1 - drop
    reason. Raises ValueError."""
    fates = np.array(given, np.int32)
    reasons = len(type(element).DROP_REASONS)
    if fates.shape != (count,) or count and (fates.min() < -reasons
                                             or fates.max() >= <int>element.gate_count):
        raise ValueError(f"{element.name}: process left fates that are not one gate or drop reason "
                         f"for each of {count} packets")
    return fates


cdef class PyElement(Element):
    """Base of elements written in Python: a subclass defines `process(self, batch)` with a
    BatchView.

    Takes the GIL once per batch. "exception" is prepended to a subclass's DROP_REASONS: when
    `process` raises, the batch is dropped for that reason and the engine continues. The error is
    stored in `last_error` and logged with its traceback, at most every 10 s.

    Drops:     exception: packets of a batch for which `process` raised an exception
               dropped: packets that `process` dropped without a reason of its own
    """

    DROP_REASONS = ("exception", "dropped")

    def __cinit__(self, *args, **kwargs):
        global np
        import numpy
        np = numpy
        cls = type(self)
        if cls.DROP_REASONS[:1] != ("exception",):
            cls.DROP_REASONS = ("exception", *cls.DROP_REASONS)

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i
        cdef int fate
        cdef int[::1] fates
        with gil:
            try:
                indices = np.empty(batch.count, np.uint32)
                for i in range(batch.count):
                    indices[i] = batch.index[i]
                view = BatchView(self, self.engine.pool, indices)
                # the subclass's Python method; `self.process` would be this C method
                getattr(<object>self, "process")(view)
                # All fates are checked before the first packet moves: nothing below raises, so that
                # each packet has exactly one owner.
                fates = checked_fates(self, view._fate, batch.count)
                for i in range(batch.count):
                    fate = fates[i]
                    if fate < 0:
                        self.drop(ctx, batch.index[i], <uint32_t>(-1 - fate))
                    else:
                        self.stage(ctx, <uint32_t>fate, batch.index[i])
                batch.count = 0
            except BaseException as error:
                self.last_error = error
                report_failure(self, error)
        if batch.count:
            self.drop_batch(ctx, batch, 0)
        self.flush(ctx)


class Path:
    """A path in a graph from `head` to output `gate` of `tail`, made and extended by `>>`."""

    def __init__(self, Element head, gate, Element tail):
        self.head, self.gate, self.tail = head, gate, tail

    def __rshift__(self, other):
        head = other.head if isinstance(other, Path) else other
        if not isinstance(head, Element):
            raise GraphError(f"{self.tail.name}: {other!r} cannot follow it: expected an element")
        if isinstance(head, Source) and not head.TAKES_INPUT:
            raise GraphError(f"{head.name}: is a source and takes no input, "
                             f"so it cannot follow {self.tail.name}")
        self.tail.connect(self.gate, head)
        if isinstance(other, Path):
            return Path(self.head, other.gate, other.tail)
        return Path(self.head, 0, other)
