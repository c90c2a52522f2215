"""Engine: a single-threaded task that runs elements (Snap, section 2.2).

One EngineThread at a time runs an engine, and may run others too (thread.pxd). Fields that
only this thread accesses need no lock; fields that other threads access are marked `shared`.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.engine.clock cimport Clock
from dataplane.graph.element cimport Counters
from dataplane.engine.element_arrays cimport ElementArrays
from dataplane.graph.flood_credit cimport FloodCredit
from dataplane.packet.pool cimport Context, PacketPool
from dataplane.engine.polling cimport Polling
from dataplane.graph.timers cimport Heap
from dataplane.graph.work cimport Work

cdef enum:
    # iterations after a sleep: one for the packet that woke the thread, one for other input
    LONE_ROUNDS = 2

cdef class Engine

cdef class Snapshot(Work):
    cdef Engine engine
    cdef Counters *copies                # one per element, in the engine's order
    cdef void run(self, Context *ctx) noexcept nogil

cdef class Engine:
    cdef readonly uint64_t seed          # of the elements' random streams, see Element.seed
    cdef readonly str name
    cdef readonly PacketPool pool
    cdef readonly Clock clock
    cdef readonly list sources
    cdef readonly list elements
    # `start` only: how long the thread polls while idle before it sleeps
    cdef readonly uint64_t spin_ns
    cdef readonly object cpu             # `start` only: CPU number or None
    cdef public uint64_t budget_ns       # upper bound of an iteration (Snap, section 2.4); 0: none
    cdef Context *ctx
    cdef FloodCredit flood_credit
    cdef Polling polling                 # of `sources`
    cdef ElementArrays arrays            # of `elements`
    cdef int mailbox_descriptor          # eventfd: work was posted
    # eventfd: the work is done, or the engine has lost its owner
    cdef int done_descriptor
    cdef int wake_descriptor             # eventfd of the thread that runs it; -1
    cdef void *mailbox                   # shared: the posted Work or NULL; a queue of depth 1
    cdef uint32_t sleeping               # shared: a poster must write to the eventfd
    # shared: the EngineThread that runs it; UNDER_WAY: in a thread's inbox; NULL: none
    cdef void *owner
    cdef void *destination  # shared: the EngineThread to run it, written to move it; NULL: none
    cdef void *next_engine               # link in an inbox
    cdef uint64_t owner_id               # shared: pthread_self() of the owner
    # An iteration.
    cdef bint look                       # check the sources for input: the last ppoll is too old
    cdef bint woken                      # this is the first iteration after a sleep
    cdef bint resting                    # asleep while its thread is awake for other engines
    cdef bint drained                    # the last iteration took all packets that were waiting
    cdef bint more                       # run the next iteration at once
    cdef uint32_t rounds                 # iterations with packets since the last sleep
    cdef uint64_t begin_ns               # start of the last iteration
    cdef uint64_t next_ns                # deadline of the next timer
    cdef uint64_t fair_ns                # time used, compared among the engines of its thread
    # Statistics. Shared: balancers and control read them at any time.
    cdef uint64_t sleeps, polls, busy_polls, works, overruns, longest_turn_ns
    cdef uint64_t failed_inputs          # of earlier graphs; `polling` counts those of this graph
    cdef uint64_t busy_ns                # clock time of iterations with packets
    cdef uint64_t clear_ns               # the last instant at which all queues were empty
    # upper bound of a packet's queueing delay since the balancer's last check, which resets it
    cdef uint64_t delay_ns
    # Accounting: clock time since the last settlement, and CPU time settled.
    cdef uint64_t weight_ns              # the elements' weights and the engine's overhead
    # parts of weight_ns: polls without packets, work from the mailbox
    cdef uint64_t idle_weight_ns, control_weight_ns
    cdef uint64_t overhead_ns
    cdef readonly uint64_t cpu_ns        # charged to elements and overhead
    cdef public object runner            # the object that runs it, with `alive`; None: not running
    cdef object _lock
    cdef object _reload
    cdef void put(self, list sources, Polling polling, ElementArrays arrays)
    cdef void run_mailbox(self) noexcept nogil
    cdef void distribute(self, bint any) noexcept nogil
    cdef bint pause(self, uint32_t place, uint64_t took) noexcept nogil
    cdef uint32_t poll_once(self) noexcept nogil
    cdef uint32_t poll_source(self, PyObject *source) noexcept nogil
    cdef uint32_t poll_slow(self, PyObject *source) noexcept nogil
    cdef void run_unfinished(self) noexcept nogil
    cdef uint64_t run_timers(self) noexcept nogil
    cdef void run_due(self, Heap *heap) noexcept nogil
    cdef uint32_t iterate(self) noexcept nogil
    cdef bint prepare_sleep(self) noexcept nogil
    cdef void wake(self, bint pending) noexcept nogil
    cdef void end_sleep(self) noexcept nogil
    cdef void set_owner(self, void *thread, int wake_descriptor, uint64_t fair_ns) noexcept nogil
    cdef void unset_owner(self, void *next_owner) noexcept nogil
    cdef void settle(self, double share, bint caused) noexcept nogil
