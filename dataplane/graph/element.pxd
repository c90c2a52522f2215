"""Elements: the units of packet processing that an engine runs, as in Click.

An element receives batches on one input and forwards packets through numbered outputs (gates).
Before `process` returns, every packet that entered is forwarded (`emit`, `stage`), held (counted
in `counters.held`) or dropped for a reason (`drop`): that is the conservation law. Elements are
configured in Python before they run; then control accesses them only by handlers, on the engine's
thread.

State moves to another engine (of another process, possibly of another version) as plain data: see
`save_state` and docs/state-format.md.
"""
cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet.pool cimport Batch, Context
from dataplane.vatomic cimport vnic_check

cdef enum:
    MAX_REASONS = 16     # drop reasons per class
    MAX_COUNTERS = 16    # COUNTERS per class

cdef uint64_t NEVER      # deadline_ns of an element without a timer

# private to the engine's thread; control reads them without a lock (aligned 64-bit loads)
cdef struct Counters:
    uint64_t packets     # entered
    uint64_t batches
    uint64_t received    # received from a port, by a source
    uint64_t generated   # copies and segments made here
    uint64_t transmitted # transmitted by a port, by a sink
    uint64_t held        # inside now: entered and not yet forwarded or dropped
    uint64_t drops[MAX_REASONS]      # by index into the class's DROP_REASONS
    uint64_t extra[MAX_COUNTERS]     # by index into the class's COUNTERS

cdef class Element:
    cdef readonly str name
    cdef public str owner                # the NIC or other client that it serves; None: shared
    cdef readonly list outputs           # by gate, Element or None: owning references
    cdef readonly object engine          # the Engine that runs it; None before
    cdef PyObject **gates                # the same, borrowed, for use without the GIL
    cdef uint32_t gate_count
    cdef Batch *staged                   # one per gate, for `stage`
    cdef Counters counters
    # When tick() is due; NEVER: not at all. `process` sets it by `set_timer`; `tick` and work from
    # control may assign it.
    cdef uint64_t deadline_ns
    cdef uint32_t timer_place            # in the engine's heap, see timers.pxd
    cdef void *next_unfinished           # link in Context.unfinished
    cdef Context *unfinished_in          # of the engine whose list it is in; NULL: none
    cdef bint left                       # removed from its engine's graph, counters reset
    cdef bint deferrable                 # the class's DEFERRABLE
    # Time of polls and ticks, with the processing of their packets by other elements. Private to
    # the engine's thread.
    cdef uint64_t weight_ns              # clock time, not settled yet
    cdef uint64_t charged_ns             # CPU time, settled
    # To be overridden; the subclass's .pxd declares an override again.
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef void resume(self, Context *ctx) noexcept nogil
    cdef void take_up(self, Context *ctx) noexcept nogil
    # For subclasses to call.
    cdef void postpone(self, Context *ctx) noexcept nogil
    cdef void finish_early(self) noexcept nogil
    cdef void push(self, Context *ctx, Batch *batch) noexcept nogil

    @cython.final
    cdef inline void emit(self, Context *ctx, uint32_t gate, Batch *batch) noexcept nogil:
        """Forwards the whole batch through an output. The batch belongs to the receiver afterwards:
        do not read it again."""
        # inline, so that a hop is one call, the receiver's `process`
        cdef Counters *entered
        vnic_check(gate < self.gate_count and self.gates[gate] != NULL, "gate is connected")
        if batch.count:                      # push(), inlined
            entered = &(<Element>self.gates[gate]).counters
            entered.packets += batch.count
            entered.batches += 1
            (<Element>self.gates[gate]).process(ctx, batch)
    cdef void stage(self, Context *ctx, uint32_t gate, uint32_t index) noexcept nogil
    cdef void flush(self, Context *ctx) noexcept nogil
    cdef void drop(self, Context *ctx, uint32_t index, uint32_t reason) noexcept nogil
    cdef void copy_counters(self, Counters *to) noexcept nogil
    cdef void drop_batch(self, Context *ctx, Batch *batch, uint32_t reason) noexcept nogil
    cdef void set_timer(self, Context *ctx, uint64_t deadline_ns) noexcept nogil
    cpdef int set_gates(self, uint32_t count) except -1
    cpdef int connect(self, uint32_t gate, Element target) except -1

cdef class PyElement(Element):
    cdef object _pool
    cdef readonly object last_error
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil

cdef class Source(Element):
    # A port's receive side, or a generator.
    # Set by the engine (polling.pxd): polled in every iteration; polled now, since it has input.
    cdef bint always, active
    cdef bint arms                       # `arm` may report input that the descriptors do not
    cdef bint slow                       # a poll took long: the engine measures the next ones
    cdef uint32_t burst                  # the bound on packets per queue and poll while `slow`
    cdef uint32_t poll(self, Context *ctx) noexcept nogil
    cpdef bint needs_arm(self)
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
    cpdef list poll_descriptors(self)
    cpdef bint wakes_only(self)
    cdef void set_ready(self, uint32_t which, bint ready) noexcept nogil
    cdef void clear_ready(self) noexcept nogil

cdef dict counters_dict(object cls, const Counters *c)
