"""Impairment: loss, duplication, corruption, reordering and delay of packets."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.random_stream cimport RandomStream
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport Batch, Context
from shaping.timing_wheel cimport TimingWheel
from shaping.loss_chain cimport ChainSetting, LossChain

cdef enum:                       # events, each with a chain and a random stream of its own
    LOSS = 0
    DUPLICATE = 1
    CORRUPT = 2
    REORDER = 3
    EVENTS = 4
    DELAY = 4                    # the setting that is no event
    SETTINGS = 5

cdef enum:
    LATE_MOST = 64               # packets that wait for others to overtake them

cdef struct Event:               # something that happens to some of the packets
    ChainSetting setting
    LossChain chain
    # number of the packet that it happens to, or before which to draw again (chain.lost)
    uint64_t at

cdef struct EventDetails:
    uint32_t part                # that is corrupted: PARTS
    bint mend                    # the checksums of what is corrupted
    uint32_t by                  # packets that overtake a late one
    uint64_t within_ns           # the longest wait for them

cdef struct DelaySetting:
    bint active
    uint64_t mean_ns
    double jitter_ns
    uint32_t shape               # SHAPES
    double correlation
    double rest                  # sqrt(1 - correlation^2)
    bint keep_order

cdef class Impairment(Element):
    cdef Event events[EVENTS]
    cdef EventDetails details
    cdef DelaySetting delay
    cdef uint64_t position       # wire packets so far, the number of the next one
    cdef uint64_t next_at        # the next event, or late packet, of all
    cdef RandomStream bits       # which bit is corrupted
    cdef RandomStream delays
    cdef double z                # the last packet's normal score, for correlated jitter
    cdef uint64_t last_ns        # the last release time
    cdef TimingWheel line
    # packets that others overtake, oldest first; each leaves once `position` reaches its late_at
    cdef uint32_t late[LATE_MOST]
    cdef uint64_t late_at[LATE_MOST]
    cdef uint32_t late_count
    cdef uint32_t small_limit, large_limit       # buffers in the line, by size
    cdef object _seed            # int; None: the instance's
    cdef PyObject *values[SETTINGS]              # the settings as they were given, owned
    cdef void keep(self, uint32_t which, value)
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef void number(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil
    cdef void cut(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil
    cdef void happen(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil
    cdef void find_next(self, Context *ctx, Batch *out) noexcept nogil
    cdef void set_next(self) noexcept nogil
    cdef void draw_next(self, Event *event) noexcept nogil
    cdef void skip_to(self, uint64_t position) noexcept nogil
    cdef void corrupt(self, Context *ctx, uint32_t index) noexcept nogil
    cdef void deliver(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil
    cdef uint64_t draw_delay(self) noexcept nogil
    cdef void forward(self, Context *ctx, uint32_t index, Batch *out) noexcept nogil
    cdef void release_late(self, Context *ctx, Batch *out) noexcept nogil
    cdef void finish(self, Context *ctx, Batch *out) noexcept nogil
    cdef void leave(self, Context *ctx, Batch *out) noexcept nogil
    cdef void set_deadline(self, Context *ctx) noexcept nogil
    cdef void release_due(self, Context *ctx, Batch *out) noexcept nogil
    cdef void begin_event(self, uint32_t which, const ChainSetting *setting) noexcept nogil

cdef class Change(Work):
    cdef Impairment impairment
    cdef uint32_t which
    cdef PyObject *value         # owned: the new setting, later the old one
    cdef void exchange(self) noexcept nogil

cdef class SetEvent(Change):
    cdef ChainSetting setting
    cdef EventDetails details
    cdef void run(self, Context *ctx) noexcept nogil

cdef class SetDelay(Change):
    cdef DelaySetting setting
    cdef void run(self, Context *ctx) noexcept nogil
