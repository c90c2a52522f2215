"""ControlRing: the control queue of a virtio-net device (virtio 1.3, 5.1.6.5)."""
from libc.stdint cimport uint32_t, uint64_t
from virt.chain cimport FAULTS_COUNT, Chain
from virt.guest_memory cimport DirtyLog, GuestMemory
from virt.notifier cimport Notifier
from virt.virtqueue cimport Mark, Taken, Virtqueue

cdef enum:
    # Bytes of a command. The longest legal one is a table of MAC addresses, which has no bound of
    # its own: these are more than 10,000 addresses.
    COMMAND_MOST = 65536
    COMMAND_LEAST = 2        # class and command
    # chains without a command that are given back by one call of `take`
    FAULTY_MOST = 8

cdef class ControlRing:
    cdef Virtqueue _queue
    cdef Chain *_chain                   # of the command at hand
    cdef Taken _taken
    cdef Mark _before                    # where that command is
    cdef bint _pending                   # it waits for its answer
    cdef Notifier _kick
    cdef Notifier _call
    cdef Notifier _error
    cdef GuestMemory _memory
    cdef DirtyLog _log
    cdef object _stored
    cdef uint64_t *_position             # of `_stored`: two words, or NULL
    cdef uint64_t _generation
    cdef readonly bint started
    cdef uint32_t _broken                # CHAIN_* for which it was stopped; 0: none
    cdef uint64_t[FAULTS_COUNT] _faults  # chains, by CHAIN_*
    cdef readonly str name
    cdef bint is_cut(self) noexcept
    cdef void stop_broken(self, uint32_t why) noexcept
    cdef void give_back(self, uint32_t written) noexcept
    cdef Notifier notifier(self, str kind, fd) except *
