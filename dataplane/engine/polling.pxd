"""Polling: which of an engine's sources have input, so that a turn costs what is ready, not what is attached.

A source whose descriptors say when it has input is polled while one of them is readable: it is active. A
source without descriptors, or whose descriptors only end a sleep (a ring), is polled in every turn.

Up to FEW_DESCRIPTORS the thread's ppoll has all descriptors, and an engine that looks for input takes
all sources for active, since reading a few queues costs less than asking which are readable. Beyond
that, the descriptors are in an epoll instance, whose cost follows the readable ones.

The object is made beside the engine and put in place between two turns. Only the engine's thread uses it
then. It has room to spare, so that a few more sources are appended in constant time.
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
    # of `descriptors`: [0] is the mailbox's eventfd, [1] that of the thread that runs the engine
    OWN_DESCRIPTORS = 2
    FEW_DESCRIPTORS = 8

cdef struct Input:           # one descriptor of one source
    PyObject *source
    uint32_t which           # number of the descriptor within the source
    int fd                   # -1: it failed
    bint recovers            # an error of it passes: the source takes it

cdef class Polling:
    cdef list sources                    # owning references; the C arrays borrow them
    cdef list duplicates                 # descriptors of its own, of queues that share one
    cdef PyObject **always               # polled in every turn
    cdef uint32_t always_count
    cdef PyObject **active               # those of the others that have input
    cdef uint32_t active_count
    cdef PyObject **armed                # to arm before a sleep
    cdef uint32_t armed_count
    cdef bint arms                       # one of them is not polled in every turn
    cdef Input *inputs
    cdef uint32_t input_count
    cdef uint32_t source_room, input_room
    cdef int epoll                       # -1: `descriptors` has all inputs
    cdef pollfd *descriptors             # OWN_DESCRIPTORS, then the inputs' or the epoll instance
    cdef uint32_t descriptor_count
    cdef uint64_t generation             # unlike that of any other state of any Polling's descriptors
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
