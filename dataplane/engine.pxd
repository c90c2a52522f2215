"""Engine: a single-threaded task that runs elements (Snap, section 2.2).

An engine is run by an EngineThread, one at a time, which may run others too (engine_thread.pxd). What only that thread touches needs
no lock; what another thread reads or writes says so below.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.clock cimport Clock
from dataplane.element cimport Counters
from dataplane.packet cimport Context, PacketPool
from dataplane.warm_up cimport WarmUp
from dataplane.work cimport Work

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    ctypedef unsigned long nfds_t

cdef enum:
    OWN_DESCRIPTORS = 2          # of `descriptors`: [0] is the mailbox's eventfd, [1] that of the thread that runs the engine
    FEW_DESCRIPTORS = 8          # up to so many, reading in vain costs less than asking ppoll which are ready
    LONE_ROUNDS = 2              # after a sleep: the packet that woke us, and what else was there

cdef class Engine

cdef class Snapshot(Work):
    cdef Engine engine
    cdef Counters *copies                # one an element, in the engine's order
    cdef void run(self, Context *ctx) noexcept nogil

cdef struct Input:           # one descriptor of one source
    PyObject *source
    uint32_t which           # number of the descriptor within the source

cdef class Engine:
    cdef readonly str name
    cdef readonly PacketPool pool
    cdef readonly Clock clock
    cdef readonly list sources           # owning references; what the C arrays below borrow from
    cdef readonly list elements
    cdef readonly uint64_t spin_ns       # of `start`: how long its thread polls in vain before it sleeps
    cdef readonly object cpu             # of `start`: CPU number or None
    cdef public uint64_t budget_ns       # how long a turn may take (Snap, section 2.4); 0: as long as it likes
    cdef Context *ctx
    cdef PyObject **polled               # sources
    cdef uint32_t polled_count
    cdef PyObject **armed                # those of them that are armed before a sleep
    cdef uint32_t armed_count
    cdef PyObject **members              # all elements
    cdef uint32_t member_count
    cdef PyObject **timed                # elements with a tick of their own
    cdef uint32_t timed_count
    cdef uint32_t waking_count           # the first so many of them end a sleep, the others wait for the engine to be awake
    cdef pollfd *descriptors             # OWN_DESCRIPTORS, then the sources'
    cdef Input *inputs                   # inputs[i] belongs to descriptors[i + OWN_DESCRIPTORS]
    cdef uint32_t descriptor_count
    cdef int mailbox_descriptor          # eventfd: there is work
    cdef int done_descriptor             # eventfd: it is done, or: nobody runs the engine any more
    cdef int wake_descriptor             # of the thread that runs it; -1
    cdef void *mailbox                   # shared: the Work posted, or NULL: a queue of depth 1
    cdef uint32_t sleeping               # shared: whoever posts must ring
    cdef void *owner                     # shared: the EngineThread that runs it; UNDER_WAY: in a thread's inbox; NULL: nobody
    cdef void *destination               # shared: the EngineThread that shall run it, written by whoever moves it; NULL: nobody
    cdef void *next_engine               # link in an inbox
    cdef uint64_t owner_id               # shared: pthread_self() of the owner
    cdef WarmUp warm
    # A turn.
    cdef bint look                       # ask every queue, not only those that ppoll found ready
    cdef bint woken                      # the first turn after a sleep
    cdef bint resting                    # asleep though its thread, which it shares with others, is awake for one of these
    cdef uint64_t generation             # of `descriptors`: grows when they change
    cdef bint drained                    # the last turn left no queue with more than it took
    cdef bint more                       # the last turn wants another at once
    cdef uint32_t rounds                 # with packets, since the last sleep
    cdef uint64_t begin_ns               # of the last turn
    cdef uint64_t next_ns                # next timer
    cdef uint64_t fair_ns                # time it had, among the engines of its thread
    # What it did. Shared: read by balancers and control at any time.
    cdef uint64_t sleeps, polls, busy_polls, works, failed_inputs, overruns, longest_turn_ns
    cdef uint64_t busy_ns                # clock time of turns that had packets
    cdef uint64_t clear_ns               # at this instant nothing waited in any queue
    cdef uint64_t delay_ns               # longest that a packet may have waited for its turn since the balancer looked, which resets it
    # Accounting: clock time since the thread settled, and the CPU time that was settled.
    cdef uint64_t weight_ns              # elements' weights and the overhead's together
    cdef uint64_t vain_weight_ns, control_weight_ns    # of that: polls in vain, work from the mailbox
    cdef uint64_t overhead_ns
    cdef readonly uint64_t cpu_ns        # charged to elements and overhead
    cdef public object runner            # who has threads for it: what says `alive`; None: nobody
    cdef object _lock
    cdef object _reload
    cdef void free_arrays(self) noexcept nogil
    cdef int rebuild(self) except -1
    cdef void run_mailbox(self) noexcept nogil
    cdef void set_all_ready(self) noexcept nogil
    cdef void distribute(self, bint any) noexcept nogil
    cdef uint32_t poll_once(self) noexcept nogil
    cdef uint64_t run_timers(self) noexcept nogil
    cdef uint32_t turn(self) noexcept nogil
    cdef bint prepare_sleep(self) noexcept nogil
    cdef void wake(self, bint pending) noexcept nogil
    cdef void rouse(self) noexcept nogil
    cdef void belong(self, void *thread, int wake_descriptor, uint64_t fair_ns) noexcept nogil
    cdef void part(self, void *next_owner) noexcept nogil
    cdef void settle(self, double share, bint caused) noexcept nogil
