"""Scheduler: shares a rate among a tree of classes.

At each class the decision is made among its children that have something to send and whose ceiling
lets them (they `offer`): first those within their guarantee, by priority, the longest overdue
first; then, by priority, whatever is left over in the proportion of weights (start-time fair
queueing: Goyal, Vin, Cheng, SIGCOMM 1996). So a packet costs a few steps in each level's heaps,
whatever the number of classes that are configured.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport Batch, Context, Packet
from shaping.class_queue cimport ClassQueue, Outlet
from shaping.class_tree cimport ClassRates, ClassTree, Tree
from shaping.flow_turns cimport Flow
from shaping.framing cimport Load
from shaping.pool_share cimport Held, PoolShare

cdef class SetCeilings

cdef class Scheduler(Element):
    cdef Tree *tree                      # that of `installed`
    cdef PyObject *installed             # the ClassTree, an owned reference
    cdef object _overhead                # shaping.overhead.Overhead, as configured
    cdef readonly uint64_t burst_ns      # credit of ceilings after a pause
    cdef Outlet outlet
    cdef ClassQueue leaving              # packets of classes that were removed
    cdef Flow leaving_flow
    cdef uint32_t small_limit            # bounds on the outlet's buffers
    cdef uint32_t large_limit
    cdef uint32_t small_shared           # what of them the share has counted
    cdef uint32_t large_shared
    cdef Held *share                     # counts shared with other elements; NULL: none
    cdef PoolShare _share                # the owner of `share`
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef void tick(self, Context *ctx) noexcept nogil
    cdef inline uint32_t marked_leaf(self, const Packet *p) noexcept nogil
    cdef bint pass_at_once(self, Context *ctx, uint32_t index) noexcept nogil
    cdef void enqueue(self, Context *ctx, uint32_t index) noexcept nogil
    cdef void relieve(self, Context *ctx) noexcept nogil
    cdef void release_due(self, Context *ctx) noexcept nogil
    cdef uint32_t take(self, Context *ctx, Load *load) noexcept nogil
    cdef uint32_t serve(self, Context *ctx, Load *load) noexcept nogil
    cdef void settle(self, Context *ctx, uint32_t which, bint green, const Load *load,
                     uint64_t credit_ns) noexcept nogil
    cdef void begin(self, Context *ctx, uint32_t which, uint64_t at_ns) noexcept nogil
    cdef void go_on(self, Context *ctx) noexcept nogil
    cdef void join_heaps(self, uint32_t which) noexcept nogil
    cdef void leave_heaps(self, uint32_t which) noexcept nogil
    cdef void withdraw(self, Context *ctx, uint32_t which) noexcept nogil
    cdef void unpark(self, Context *ctx) noexcept nogil
    cdef void set_deadline(self, Context *ctx) noexcept nogil
    cdef void settle_share(self) noexcept nogil
    cdef void change_ceilings(self, Context *ctx, const Tree *tree, const ClassRates *rates,
                              uint32_t count) noexcept nogil
    cdef void replace(self, Context *ctx, PyObject *tree) noexcept nogil
    cdef ClassTree current(self)
    cdef load_ceiling(self, path, rate_bps)
    cdef use_now(self, SetCeilings work)

cdef class SetClasses(Work):
    # Posts another tree to the engine's mailbox: needs no GIL there.
    cdef Scheduler scheduler
    # an owned reference: to the new tree before `run`, to the old one after it
    cdef PyObject *tree
    cdef void run(self, Context *ctx) noexcept nogil

cdef class SetCeilings(Work):
    # Gives a class of the tree that runs another ceiling, and those in it what follows.
    cdef Scheduler scheduler
    cdef ClassTree tree                  # of which the classes are
    cdef dict changed                    # class_settings.ClassSetting by index
    cdef ClassRates *rates
    cdef uint32_t count
    cdef void run(self, Context *ctx) noexcept nogil
