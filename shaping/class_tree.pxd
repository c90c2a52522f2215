"""ClassTree: the classes of a Scheduler in C arrays, and what is saved of them."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet.pool cimport Context
from shaping.class_heap cimport ClassHeap, HeapEntry
from shaping.class_queue cimport ClassQueue, Outlet, QueueSetting
from shaping.queue_state cimport Packed
from shaping.virtual_clock cimport VirtualClock

cdef enum:
    LEVELS_MOST = 9              # with the root
    NO_CLASS = 0xFFFFFFFF

cdef struct Band:                # the children of a class that have one priority
    uint32_t priority
    uint64_t tag                 # start tag of the last excess service: virtual time
    ClassHeap green              # those that offer and have a guarantee, by when it is due
    ClassHeap excess             # all that offer, by start tag

cdef struct TreeClass:
    # settings
    uint64_t id                  # of the path: which class of another tree is the same
    uint32_t parent
    bint leaf
    uint64_t guarantee_bps       # 0: none
    uint64_t ceiling_bps         # its own; 0: none
    uint64_t credit_ns           # of the guarantee after a pause
    uint64_t cost                # of a byte in tags: the inverse of the weight
    uint32_t quantum_bytes       # longer GSO frames are cut, bytes on the line
    Band *band                   # of the parent: the one that it is in
    Band *bands                  # of its children, by priority
    uint32_t band_count
    # state
    VirtualClock guarantee
    VirtualClock ceiling
    uint64_t tag
    uint64_t emptied_ns          # when it ceased to have anything to send
    uint64_t excess_bytes        # sent beyond the guarantee
    uint32_t offering            # children that offer
    uint32_t green_place         # 1 + place in each heap; 0: not there
    uint32_t excess_place
    uint32_t parked_place
    ClassQueue queue             # of a leaf

cdef struct Tree:
    TreeClass *classes           # parents before children; [0] is the root
    uint32_t count
    uint32_t *by_id              # classes by ascending id
    Band *bands
    HeapEntry *entries           # of all heaps
    ClassHeap parked             # classes that wait for their ceiling, by when it is due
    uint32_t *leaves             # by mark; 0: none has it
    uint32_t mark_count
    uint32_t default_leaf
    uint64_t piece_ns            # time that the longest piece of a class takes at the tree's rate

cdef struct ClassRates:          # what follows from a class's ceilings
    uint32_t which
    uint64_t ceiling_bps
    uint64_t credit_ns
    uint32_t quantum_bytes
    QueueSetting queue           # of a leaf

cdef class ClassTree:
    # Classes as configured, and compiled. The engine's thread owns the tree that is installed.
    cdef readonly object setting         # class_settings.TreeSetting, with the shares of the moment
    cdef readonly object given           # as the configuration has it, copied
    cdef readonly dict shared            # path -> index, of the classes whose ceiling a share sets
    cdef Tree tree
    cdef int keep_shares(self, ClassTree before) except -1
    cdef int note(self, dict changed) except -1          # other settings, by index
    cdef int build(self) except -1

# What follows from a class's ceilings; each: its class_settings.ClassSetting.
cdef int read_rates(ClassRates *made, uint32_t which, each, uint64_t burst_ns) except -1

# Gives a class other rates while it may have packets.
cdef void change_rates(Tree *tree, const ClassRates *rates, uint64_t now_ns,
                       uint64_t burst_ns) noexcept nogil

# [ceiling in bit/s, bytes sent, whether it waits for its ceiling] of a class of a share, with those
# in it, for control while the engine runs: loads of aligned words.
cdef tuple share_row(const Tree *tree, classes, uint32_t which)

# Gives the classes of one tree what those of the same path have in another one: clocks, what waits,
# what was counted. What is left there are packets of classes that are gone.
cdef void take_over_tree(Tree *tree, Tree *old, Outlet *outlet, uint64_t burst_ns) noexcept nogil

# Whether a leaf of one tree is none of the other.
cdef bint has_new_leaf(const Tree *tree, const Tree *old) noexcept nogil

# What a class has sent, dropped and holds, by name.
cdef dict class_row(const TreeClass *c, path)

# The state of a class, see Scheduler.save_state; appends the packets of its flows to `packed`.
cdef dict saved_class(const TreeClass *c, const Context *ctx, list packed)

# The opposite of `saved_class`. Raises ValueError and the like.
cdef int load_class(TreeClass *c, dict saved, Packed packed, Outlet *outlet,
                    uint64_t now_ns) except -1
