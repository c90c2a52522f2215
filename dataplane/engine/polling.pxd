"""Polling: selects the sources that have input, so that an iteration's cost grows with the ready
sources, not with the attached ones.

A source is active, and polled, while one of its descriptors is readable. A source without
descriptors, or whose descriptors only end a sleep (a ring), is polled in every iteration.

Up to FEW_DESCRIPTORS, the thread's ppoll has all descriptors, and an engine that looks for input
treats all sources as active: reading a few queues costs less than asking which are readable. Beyond
that, the descriptors are in an epoll instance, whose cost grows with the readable ones.

An input may be paused: its descriptor is not watched until an instant, so that its packets end no
sleep.

A caller's thread builds the object and the engine swaps it in between two iterations. From then on
only the engine's thread uses it. Spare room lets a few more sources be appended in constant time.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Source

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    ctypedef unsigned long nfds_t

cdef enum:
    # `descriptors` begins with the mailbox's eventfd [0] and the engine thread's [1]
    OWN_DESCRIPTORS = 2
    FEW_DESCRIPTORS = 8
    PAUSED_MOST = 64             # inputs paused at once: a scan of them is short

cdef struct Input:           # one descriptor of one source
    PyObject *source
    uint32_t which           # number of the descriptor within the source
    int fd                   # -1: failed
    bint recovers            # the source handles its errors, so that it may continue after one
    bint paused

cdef struct Pause:
    uint32_t input           # its place in `inputs`
    uint64_t until_ns

cdef class Polling:
    cdef list sources                    # owning references; the C arrays borrow them
    cdef list duplicates                 # dup()ed descriptors, of queues that share one
    cdef PyObject **always               # sources polled in every iteration
    cdef uint32_t always_count
    cdef PyObject **active               # other sources that have input
    cdef uint32_t *active_inputs         # by place in `active`: the input that activated it
    cdef uint32_t active_count
    cdef Pause[PAUSED_MOST] pauses
    cdef uint32_t pause_count
    cdef PyObject **armed                # sources to arm before a sleep
    cdef uint32_t armed_count
    cdef bint arms                       # some armed source is not polled in every iteration
    cdef Input *inputs
    cdef uint32_t input_count
    cdef uint32_t source_room, input_room        # capacities
    cdef int epoll                       # -1: `descriptors` has all inputs
    cdef pollfd *descriptors             # OWN_DESCRIPTORS, then all inputs or the epoll instance
    cdef uint32_t descriptor_count
    cdef uint64_t generation             # changes with `descriptors`; unique among all Pollings
    cdef uint64_t failed_inputs
    cdef bint fits(self, list sources) except -1
    cdef int append(self, list sources) except -1
    cdef void set_descriptor(self, uint32_t at, int fd) noexcept
    cdef int add_input(self, Source source, uint32_t which, int fd, bint many) except -1
    cdef void activate(self, Input *input) noexcept nogil
    cdef void fail(self, Input *input) noexcept nogil
    cdef void collect(self) noexcept nogil
    cdef void look(self) noexcept nogil
    cdef void after_sleep(self, bint any) noexcept nogil
    cdef void settle_down(self) noexcept nogil
    cdef void watch(self, uint32_t number, bint on) noexcept nogil
    cdef bint pause(self, uint32_t place, uint64_t until_ns) noexcept nogil
    cdef void resume(self, uint64_t now_ns) noexcept nogil
    cdef bint is_paused(self, const void *source) noexcept nogil
