"""Engine: a single-threaded task that runs elements (Snap, section 2.2)."""
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport timespec
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
    cdef readonly object cpu             # CPU number or None
    cdef readonly list sources           # owning references; what the C arrays below borrow from
    cdef readonly list elements
    cdef public uint64_t spin_ns         # how long it polls in vain before it sleeps
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
    cdef pollfd *descriptors             # [0] is the mailbox's eventfd
    cdef Input *inputs                   # inputs[i] belongs to descriptors[i + 1]
    cdef uint32_t descriptor_count
    cdef int mailbox_descriptor          # eventfd: there is work
    cdef int done_descriptor             # eventfd: it is done
    cdef void *mailbox                   # the Work posted, or NULL: a queue of depth 1
    cdef uint32_t stopping
    cdef uint32_t sleeping
    cdef bint drained                    # the last round left no queue with more than it took
    cdef WarmUp warm
    cdef uint64_t sleeps, polls, busy_polls, works, failed_inputs
    cdef int64_t cpu_clock               # clockid_t of the thread, -1 when it does not run
    cdef uint64_t cpu_before_ns          # CPU time of earlier threads of this engine
    cdef object _thread
    cdef object _lock
    cdef object _reload
    cdef int rebuild(self) except -1
    cdef void run_mailbox(self) noexcept nogil
    cdef void ask_ready(self, const timespec *timeout) noexcept nogil
    cdef void set_all_ready(self) noexcept nogil
    cdef uint32_t poll_once(self) noexcept nogil
    cdef uint64_t run_timers(self) noexcept nogil
    cdef void sleep(self, uint64_t deadline_ns) noexcept nogil
    cdef void run(self) noexcept nogil
