"""Polling. The contract is in polling.pxd.

Sources: epoll(7), epoll_ctl(2), poll(2).
"""
import os

from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.errno cimport EEXIST, errno
from libc.stdlib cimport calloc, free
from dataplane.graph.element cimport Source

from dataplane.errors import VnicError

cdef extern from "<poll.h>" nogil:
    short POLLIN, POLLERR, POLLHUP, POLLNVAL

cdef extern from "<sys/epoll.h>" nogil:
    cdef union epoll_data:
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    uint32_t EPOLLIN, EPOLLERR, EPOLLHUP
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    # Events taken per epoll_wait. The kernel reports the other descriptors first next time, so none
    # starves.
    EVENTS_MOST = 64

_generation = 0


cdef enum:
    SPARE = 64                   # room for the sources and descriptors of a few more NICs


cdef bint is_always(Source source, list own) except -1:
    """Whether a source with these descriptors is polled in every iteration."""
    return not source.TAKES_INPUT and (not own or source.wakes_only() or source.TICKS)


cdef class Polling:
    """The state of `sources`. The descriptors are the eventfds of the engine's mailbox and of its
    thread (-1: not running). Raises VnicError, MemoryError."""

    def __cinit__(self, *args, **kwargs):
        self.epoll = -1

    def __init__(self, sources, int mailbox_descriptor, int wake_descriptor):
        global _generation
        cdef uint32_t number, which
        self.sources, self.duplicates = list(sources), []
        descriptors = [source.poll_descriptors() for source in self.sources]
        always = {source: None for source, own in zip(self.sources, descriptors)
                  if is_always(source, own)}
        armed = {source: None for source in self.sources if source.needs_arm()}
        total = sum(len(each) for each in descriptors)
        many = total > FEW_DESCRIPTORS
        spare = SPARE + len(self.sources) // 8
        self.source_room = <uint32_t>(len(self.sources) + spare)
        self.input_room = <uint32_t>(total + spare)
        self.always = <PyObject **>calloc(self.source_room, sizeof(PyObject *))
        self.active = <PyObject **>calloc(self.source_room, sizeof(PyObject *))
        self.active_inputs = <uint32_t *>calloc(self.source_room, sizeof(uint32_t))
        self.armed = <PyObject **>calloc(self.source_room, sizeof(PyObject *))
        self.inputs = <Input *>calloc(self.input_room, sizeof(Input))
        self.descriptors = <pollfd *>calloc(OWN_DESCRIPTORS + max(total, 1), sizeof(pollfd))
        if not (self.always and self.active and self.active_inputs and self.armed and self.inputs
                and self.descriptors):
            raise MemoryError("polling")
        # The engine may run a source meanwhile: each is a single store, of the value it has
        # already.
        for source in self.sources:
            (<Source>source).always = source in always
            (<Source>source).arms = source in armed and source not in always
        for number, source in enumerate(always):
            self.always[number] = <PyObject *>source
        for number, source in enumerate(armed):
            self.armed[number] = <PyObject *>source
            self.arms = self.arms or (<Source>source).arms
        self.always_count, self.armed_count = <uint32_t>len(always), <uint32_t>len(armed)
        self.descriptor_count = OWN_DESCRIPTORS
        self.set_descriptor(0, mailbox_descriptor)
        self.set_descriptor(1, wake_descriptor)
        if many:
            self.epoll = epoll_create1(EPOLL_CLOEXEC)
            many = self.epoll >= 0       # if it failed for lack of descriptors, ppoll has all
        if many:
            self.set_descriptor(self.descriptor_count, self.epoll)
            self.descriptor_count += 1
        for source, own in zip(self.sources, descriptors):
            for which, descriptor in enumerate(own):
                self.add_input(source, which, descriptor, many)
        _generation += 1
        self.generation = _generation << 20  # the low bits count failed inputs

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)
        for descriptor in self.duplicates or ():
            close(descriptor)
        free(self.always)
        free(self.active)
        free(self.active_inputs)
        free(self.armed)
        free(self.inputs)
        free(self.descriptors)

    cdef bint fits(self, list sources) except -1:
        """Whether `append` has room for these sources; only with an epoll instance."""
        cdef size_t count = 0
        for source in sources:
            count += len(source.poll_descriptors())
        return (self.epoll >= 0 and len(self.sources) + len(sources) <= self.source_room
                and self.input_count + count <= self.input_room)

    cdef int append(self, list sources) except -1:
        """Adds sources after `fits` returned True. Runs on the engine's thread, between two
        batches. Raises VnicError, and then nothing has changed."""
        global _generation
        cdef Source source
        cdef uint32_t which, before = self.input_count, i
        cdef size_t duplicates = len(self.duplicates)
        cdef epoll_event event
        try:
            for source in sources:
                for which, descriptor in enumerate(source.poll_descriptors()):
                    self.add_input(source, which, descriptor, True)
        except BaseException:
            for i in range(before, self.input_count):
                epoll_ctl(self.epoll, EPOLL_CTL_DEL, self.inputs[i].fd, &event)
            self.input_count = before
            while len(self.duplicates) > duplicates:
                close(self.duplicates.pop())
            raise
        for source in sources:
            self.sources.append(source)
            source.always, source.arms = is_always(source, source.poll_descriptors()), False
            if source.always:
                self.always[self.always_count] = <PyObject *>source
                self.always_count += 1
            if source.needs_arm():
                source.arms = not source.always
                self.arms = self.arms or source.arms
                self.armed[self.armed_count] = <PyObject *>source
                self.armed_count += 1
        _generation += 1
        self.generation = _generation << 20
        return 0

    cdef void set_descriptor(self, uint32_t at, int fd) noexcept:
        self.descriptors[at].fd, self.descriptors[at].events = fd, POLLIN

    cdef int add_input(self, Source source, uint32_t which, int fd, bint many) except -1:
        cdef epoll_event event
        cdef Input *input = &self.inputs[self.input_count]
        if many:
            event.events, event.data.u32 = EPOLLIN, self.input_count
            failed = epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0
            if failed and errno == EEXIST:   # the queues of a MemoryPort share a descriptor
                fd = os.dup(fd)
                self.duplicates.append(fd)
                failed = epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0
            if failed:
                raise VnicError(f"{source.name}: its descriptor {fd} cannot be watched: "
                                "fs.epoll.max_user_watches may be too low")
        else:
            self.set_descriptor(self.descriptor_count, fd)
            self.descriptor_count += 1
        input.source, input.which = <PyObject *>source, which
        input.fd, input.recovers = fd, source.RECOVERS
        self.input_count += 1
        return 0

    # -- on the engine's thread --------------------------------------------------------------------

    cdef void activate(self, Input *input) noexcept nogil:
        (<Source>input.source).set_ready(input.which, True)
        if not (<Source>input.source).always and not (<Source>input.source).active:
            (<Source>input.source).active = True
            self.active[self.active_count] = input.source
            self.active_inputs[self.active_count] = <uint32_t>(input - self.inputs)
            self.active_count += 1

    cdef void settle_down(self) noexcept nogil:
        """Makes all sources inactive."""
        cdef uint32_t i
        for i in range(self.active_count):
            (<Source>self.active[i]).active = False
            (<Source>self.active[i]).clear_ready()
        self.active_count = 0

    cdef void watch(self, uint32_t number, bint on) noexcept nogil:
        """Starts or ends that an input with packets ends a sleep."""
        cdef epoll_event event
        self.inputs[number].paused = not on
        if self.inputs[number].fd < 0:
            return
        if self.epoll >= 0:
            event.events, event.data.u32 = EPOLLIN if on else 0, number
            epoll_ctl(self.epoll, EPOLL_CTL_MOD, self.inputs[number].fd, &event)
        else:
            # ppoll skips -1
            self.descriptors[OWN_DESCRIPTORS + number].fd = self.inputs[number].fd if on else -1
            self.generation += 1

    cdef bint pause(self, uint32_t place, uint64_t until_ns) noexcept nogil:
        """Leaves the input that activated the source at `place` of `active` unread until then, and
        takes the source out of `active`, where the last one takes its place. False: too many are
        paused."""
        cdef PyObject *source = self.active[place]
        if self.pause_count == PAUSED_MOST or self.inputs[self.active_inputs[place]].paused:
            return False
        self.pauses[self.pause_count].input = self.active_inputs[place]
        self.pauses[self.pause_count].until_ns = until_ns
        self.pause_count += 1
        self.watch(self.active_inputs[place], False)
        (<Source>source).active = False
        (<Source>source).clear_ready()
        self.active_count -= 1
        self.active[place] = self.active[self.active_count]
        self.active_inputs[place] = self.active_inputs[self.active_count]
        return True

    cdef void resume(self, uint64_t now_ns) noexcept nogil:
        """Ends the pauses that are over."""
        cdef uint32_t i, kept = 0
        for i in range(self.pause_count):
            if self.pauses[i].until_ns <= now_ns:
                self.watch(self.pauses[i].input, True)
                continue
            self.pauses[kept] = self.pauses[i]
            kept += 1
        self.pause_count = kept

    cdef bint is_paused(self, const void *source) noexcept nogil:
        """Whether an input of the source is paused, so that its packets do not end a sleep."""
        cdef uint32_t i
        for i in range(self.pause_count):
            if <const void *>self.inputs[self.pauses[i].input].source == source:
                return True
        return False

    cdef void fail(self, Input *input) noexcept nogil:
        """Removes an input whose interface is gone: its descriptor, always ready, would keep the
        engine awake."""
        cdef epoll_event event
        if self.epoll >= 0:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, input.fd, &event)
        input.fd = -1
        self.failed_inputs += 1
        self.generation += 1

    cdef void collect(self) noexcept nogil:
        cdef epoll_event[EVENTS_MOST] events
        cdef int i, count = epoll_wait(self.epoll, events, EVENTS_MOST, 0)
        for i in range(count):
            if (events[i].events & (EPOLLERR | EPOLLHUP) and not events[i].events & EPOLLIN
                    and not self.inputs[events[i].data.u32].recovers):
                self.fail(&self.inputs[events[i].data.u32])
            else:
                self.activate(&self.inputs[events[i].data.u32])

    cdef void look(self) noexcept nogil:
        """Activates the inputs that may be readable now, without waiting: all of them, or with an
        epoll instance those that it reports, and those of sources to be armed, which may have input
        although no descriptor is readable."""
        cdef uint32_t i
        if self.epoll >= 0:
            self.settle_down()
            self.collect()
        for i in range(self.input_count if self.epoll < 0 or self.arms else 0):
            if (self.inputs[i].fd >= 0 and not self.inputs[i].paused
                    and (self.epoll < 0 or (<Source>self.inputs[i].source).arms)):
                self.activate(&self.inputs[i])

    cdef void after_sleep(self, bint any) noexcept nogil:
        """Activates the inputs that the thread's ppoll reported in `descriptors`. any: it reported
        some descriptor."""
        cdef uint32_t i
        cdef short events
        self.settle_down()
        if not any:
            return
        if self.epoll >= 0:
            if self.descriptors[OWN_DESCRIPTORS].revents:
                self.collect()
            return
        for i in range(self.input_count):
            events = self.descriptors[OWN_DESCRIPTORS + i].revents
            if events & POLLERR and self.inputs[i].recovers:
                self.activate(&self.inputs[i])
            elif events & (POLLERR | POLLHUP | POLLNVAL) and not events & POLLIN:
                self.descriptors[OWN_DESCRIPTORS + i].fd = -1  # ppoll skips it
                self.fail(&self.inputs[i])
            elif events & POLLIN:
                self.activate(&self.inputs[i])
