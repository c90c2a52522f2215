"""Engine, the run loop. The contract is in engine.pxd."""
import os
import select
import threading

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport clock_gettime, clockid_t, timespec
from posix.unistd cimport read, write
from dataplane.clock cimport Clock
from dataplane.element cimport NEVER, Counters, Element, Source, counters_dict
from dataplane.packet cimport BURST, Context, PacketPool, packet_return_cache
from dataplane.vatomic cimport (va_fence, va_load_acquire_ptr, va_load_acquire_u32, va_load_relaxed_u32, va_pause,
                                va_prefetch, va_store_relaxed_u32, va_store_release_ptr, va_store_release_u32)
from dataplane.warm_up cimport WarmUp
from dataplane.work cimport Work

from dataplane.errors import ConfigError, GraphError, VnicError
from dataplane.work import Call

cdef extern from "<poll.h>" nogil:
    int ppoll(pollfd *fds, nfds_t count, const timespec *timeout, const void *mask)
    short POLLIN, POLLERR, POLLHUP, POLLNVAL

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()
    int pthread_getcpuclockid(pthread_t thread, clockid_t *clock)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long argument)
    int PR_SET_TIMERSLACK

cdef enum:
    LONE_ROUNDS = 2          # after a sleep: the packet that woke us, and what else was there
    FEW_DESCRIPTORS = 8      # up to so many, reading in vain costs less than asking ppoll which are ready


class MailboxFull(VnicError):
    """The engine has not taken the last piece of work yet (the mailbox is one deep)."""


cdef class Snapshot(Work):
    """Copies the counters of all elements between two batches, without the GIL."""

    def __init__(self, Engine engine):
        self.engine = engine
        self.copies = <Counters *>calloc(engine.member_count + 1, sizeof(Counters))
        if self.copies == NULL:
            raise MemoryError("snapshot")

    def __dealloc__(self):
        free(self.copies)

    cdef void run(self, Context *ctx) noexcept nogil:
        cdef uint32_t i
        for i in range(self.engine.member_count):
            (<Element>self.engine.members[i]).copy_counters(&self.copies[i])


cdef class Engine:
    """A single-threaded, run-to-completion task: polls its sources, pushes each batch through the graph, runs timers.

    spin_ns: how long it goes on polling in vain before it sleeps in ppoll on its sources, its mailbox and its next timer.
    cpu: the CPU its thread is pinned to, None for any. With a virtual
    clock there is no thread: `advance` runs everything that is due, on the caller's.
    """

    def __cinit__(self, *args, **kwargs):
        self.mailbox_descriptor = self.done_descriptor = -1
        self.cpu_clock = -1
        self.ctx = <Context *>calloc(1, sizeof(Context))
        if self.ctx == NULL:
            raise MemoryError("engine")

    def __init__(self, str name, PacketPool pool, *, Clock clock=None, uint64_t spin_ns=0, cpu=None, uint64_t seed=1):
        self.name, self.pool, self.clock, self.spin_ns, self.cpu = name, pool, clock or Clock(), spin_ns, cpu
        self.mailbox_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.done_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        pool.attach(self.ctx)
        self.ctx.random_state = seed or 1
        self.ctx.burst = BURST
        self.ctx.now_ns = self.clock.now()
        self.sources, self.elements = [], []
        self._lock = threading.Lock()          # among posters; never taken by the engine
        self._reload = threading.RLock()       # graph changes and snapshots exclude each other
        self.rebuild()

    def __dealloc__(self):
        free(self.ctx)
        free(self.polled)
        free(self.armed)
        free(self.members)
        free(self.timed)
        free(self.descriptors)
        free(self.inputs)
        for descriptor in (self.mailbox_descriptor, self.done_descriptor):
            if descriptor >= 0:
                os.close(descriptor)

    # -- the graph ---------------------------------------------------------------------------------------------------------

    def load(self, sources):
        """Takes the graph that hangs on `sources`: validates it, binds and initializes what is new. While the engine runs, this goes
        through the mailbox. Raises GraphError, and then nothing has changed."""
        from dataplane.graph import walk
        sources = list(sources)
        elements = walk(sources)
        names = [element.name for element in elements]
        for name in names:
            if names.count(name) > 1:
                raise GraphError(f"{name}: two elements of engine {self.name} have this name")
        fresh = [element for element in elements if element.engine is None]
        bound = []
        try:
            for element in elements:
                if element.engine is not None and element.engine is not self:
                    raise GraphError(f"{element.name}: runs in engine {element.engine.name} already")
            for element in fresh:
                element.bind(self)
                bound.append(element)
                element.initialize()
        except BaseException:
            for element in reversed(bound):
                element.cleanup()
                element.bind(None)
            raise
        gone = [element for element in self.elements if element not in elements]

        def swap():
            for element in gone:
                element.release()
            self.sources, self.elements = sources, elements
            self.rebuild()
            return [(element.name, element.statistics()) for element in gone]

        with self._reload:
            retired = self.call(swap)
        for element in gone:
            element.cleanup()
            element.bind(None)
        return retired

    cdef int rebuild(self) except -1:
        """The C arrays anew from `sources` and `elements`. Only while the engine is between two batches."""
        cdef uint32_t total = 1
        descriptors = [source.poll_descriptors() for source in self.sources]
        total += <uint32_t>sum(len(each) for each in descriptors)
        armed = [source for source in self.sources if source.needs_arm()]
        timed = sorted((element for element in self.elements if element.TICKS), key=lambda element: element.DEFERRABLE)
        free(self.polled)
        free(self.armed)
        free(self.members)
        free(self.timed)
        free(self.descriptors)
        free(self.inputs)
        self.armed = <PyObject **>calloc(len(armed) + 1, sizeof(PyObject *))
        self.polled = <PyObject **>calloc(len(self.sources) + 1, sizeof(PyObject *))
        self.members = <PyObject **>calloc(len(self.elements) + 1, sizeof(PyObject *))
        self.timed = <PyObject **>calloc(len(timed) + 1, sizeof(PyObject *))
        self.descriptors = <pollfd *>calloc(total, sizeof(pollfd))
        self.inputs = <Input *>calloc(total, sizeof(Input))
        if not (self.polled and self.armed and self.members and self.timed and self.descriptors and self.inputs):
            raise MemoryError(f"engine {self.name}")
        self.descriptors[0].fd, self.descriptors[0].events = self.mailbox_descriptor, POLLIN
        cdef uint32_t next_descriptor = 1, number, which
        for number, (source, numbers) in enumerate(zip(self.sources, descriptors)):
            self.polled[number] = <PyObject *>source
            for which, descriptor in enumerate(numbers):
                self.descriptors[next_descriptor].fd = descriptor
                self.descriptors[next_descriptor].events = POLLIN
                self.inputs[next_descriptor - 1].source = <PyObject *>source
                self.inputs[next_descriptor - 1].which = which
                next_descriptor += 1
        for number, source in enumerate(armed):
            self.armed[number] = <PyObject *>source
        for number, element in enumerate(self.elements):
            self.members[number] = <PyObject *>element
        for number, element in enumerate(timed):
            self.timed[number] = <PyObject *>element
        self.armed_count = <uint32_t>len(armed)
        self.polled_count = <uint32_t>len(self.sources)
        self.member_count = <uint32_t>len(self.elements)
        self.timed_count = <uint32_t>len(timed)
        self.waking_count = sum(not element.DEFERRABLE for element in timed)
        self.descriptor_count = total
        self.warm = WarmUp(self.elements)
        return 0

    # -- control -----------------------------------------------------------------------------------------------------------

    def post(self, Work work, *, bint wait=True):
        """Puts `work` into the mailbox and waits until the engine has run it; raises what it raised. With wait=False and the mailbox
        taken: MailboxFull. An engine that has no thread runs it here."""
        if self._thread is None or threading.current_thread() is self._thread:
            with nogil:
                self.ctx.now_ns = self.clock.now()
                work.run(self.ctx)
        else:
            if not self._lock.acquire(wait):
                raise MailboxFull(f"engine {self.name}: busy with the last piece of work")
            try:
                self._hand_over(work)
            finally:
                self._lock.release()
        if work.error is not None:
            raise work.error
        return work.result

    def _hand_over(self, Work work):
        cdef uint64_t one = 1
        # The lock made us the only poster, so the slot is empty: the engine emptied it before it reported the last work done.
        va_store_release_ptr(&self.mailbox, <void *><PyObject *>work)
        with nogil:
            va_fence()                       # the slot before the flag is read; pairs with the fence in sleep()
            if va_load_relaxed_u32(&self.sleeping):
                write(self.mailbox_descriptor, &one, 8)
        # The work must not be freed while the engine may run it: this thread holds it and does not leave before it is done.
        interrupted = None
        while not work.finished():
            try:
                select.select([self.done_descriptor], [], [], 1.0)
            except KeyboardInterrupt as error:
                interrupted = error
            read(self.done_descriptor, &one, 8)
            if not self._thread.is_alive() and not work.finished():
                va_store_release_ptr(&self.mailbox, NULL)
                raise VnicError(f"engine {self.name}: its thread has ended")
        if interrupted is not None:
            raise interrupted

    def call(self, function):
        """Runs a Python callable on the engine's thread between two batches; returns or raises what it does."""
        return self.post(Call(function))

    def snapshot(self):
        """Counters of all elements at one instant between two batches: list of (name, statistics)."""
        cdef Snapshot work
        with self._reload:                   # the list of elements stays what it is meanwhile
            work = Snapshot(self)
            self.post(work)
            return [(element.name, counters_dict(type(element), &work.copies[i]))
                    for i, element in enumerate(self.elements)]

    def conservation(self):
        """The terms of the law at one instant: received, generated, transmitted, dropped, held, and `conserved`."""
        terms = {"received": 0, "generated": 0, "transmitted": 0, "dropped": 0, "held": 0}
        for _, statistics in self.snapshot():
            for term in ("received", "generated", "transmitted", "held"):
                terms[term] += statistics[term]
            terms["dropped"] += sum(statistics["dropped"].values())
        terms["conserved"] = terms["received"] + terms["generated"] == terms["transmitted"] + terms["dropped"] + terms["held"]
        return terms

    @property
    def cpu_ns(self):
        """CPU time of the engine's threads so far."""
        cdef timespec t
        cdef int64_t clock = self.cpu_clock
        if clock != -1 and clock_gettime(<clockid_t>clock, &t) == 0:
            return self.cpu_before_ns + <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec
        return self.cpu_before_ns

    @property
    def running(self):
        """True while the engine has a thread."""
        return self._thread is not None and self._thread.is_alive()

    def status(self):
        """What the engine did so far, as a dict."""
        return {"name": self.name, "running": self.running, "spin_ns": self.spin_ns, "cpu_ns": self.cpu_ns, "polls": self.polls,
                "busy_polls": self.busy_polls, "sleeps": self.sleeps, "works": self.works, "failed_inputs": self.failed_inputs}

    def start(self):
        """Starts the thread. Raises ConfigError for a CPU that this process may not use."""
        if self.cpu is not None and self.cpu not in os.sched_getaffinity(0):
            usable = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise ConfigError(f"engine {self.name}: cpu {self.cpu}: not usable here; want one of {usable}")
        if self.clock.virtual:
            raise VnicError(f"engine {self.name}: has a virtual clock; use advance()")
        if self._thread is not None:
            raise VnicError(f"engine {self.name}: runs already")
        self.stopping = 0
        # The thread must not keep the engine alive, or an engine nobody stopped would never be collected; `stop` joins it.
        self._thread = threading.Thread(target=self._main, name=f"vnic-{self.name}", daemon=True)
        self._thread.start()

    def stop(self):
        """Ends the thread at a batch boundary. Held packets stay held. May be called twice."""
        cdef uint64_t one = 1
        if self._thread is None:
            return
        va_store_release_u32(&self.stopping, 1)
        write(self.mailbox_descriptor, &one, 8)
        self._thread.join()
        self._thread = None

    def close(self):
        """Stops, drops what is held, cleans every element up."""
        self.stop()
        for element in self.elements:
            element.release()
        for element in self.elements:
            element.cleanup()
            element.bind(None)
        self.sources, self.elements = [], []
        self.rebuild()
        packet_return_cache(self.ctx)

    def _main(self):
        cdef clockid_t clock
        cdef timespec t
        if self.cpu is not None:
            os.sched_setaffinity(0, [self.cpu])
        prctl(PR_SET_TIMERSLACK, 1)            # nanoseconds: the default of 50 us would be most of a shaper's error
        if pthread_getcpuclockid(pthread_self(), &clock) == 0:
            self.cpu_clock = clock
        with nogil:
            self.run()
        if self.cpu_clock != -1 and clock_gettime(clock, &t) == 0:
            self.cpu_before_ns += <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec
        self.cpu_clock = -1

    # -- the loop ----------------------------------------------------------------------------------------------------------

    cdef void run_mailbox(self) noexcept nogil:
        cdef void *slot = va_load_acquire_ptr(&self.mailbox)
        cdef uint64_t one = 1
        if slot == NULL:
            return
        self.ctx.now_ns = self.clock.now()     # may be as old as the last sleep was long
        (<Work>slot).run(self.ctx)
        self.works += 1
        va_store_release_ptr(&self.mailbox, NULL)   # empty before done: the next poster finds room
        (<Work>slot).finish()                       # from here on the work may be freed
        write(self.done_descriptor, &one, 8)

    cdef uint32_t poll_once(self) noexcept nogil:
        """One round over the sources; returns how many packets there were."""
        cdef uint32_t i, got = 0
        for i in range(self.polled_count):
            self.ctx.now_ns = self.clock.now()
            got += (<Source>self.polled[i]).poll(self.ctx)
        self.drained = got < self.ctx.burst and self.ctx.burst > 1
        self.ctx.burst = BURST
        self.polls += 1
        if got:
            self.busy_polls += 1
        return got

    cdef uint64_t run_timers(self) noexcept nogil:
        """Ticks what is due; returns the next deadline. A deferrable one does not count, except in virtual time."""
        cdef uint32_t i
        cdef uint64_t deadline = NEVER, due
        self.ctx.now_ns = self.clock.now()
        for i in range(self.timed_count):
            due = (<Element>self.timed[i]).deadline_ns
            if due <= self.ctx.now_ns:
                (<Element>self.timed[i]).tick(self.ctx)
                due = (<Element>self.timed[i]).deadline_ns
            if due < deadline and (i < self.waking_count or self.clock.virtual):
                deadline = due
        return deadline

    cdef void ask_ready(self, const timespec *timeout) noexcept nogil:
        """ppoll over all descriptors; tells each source which of its queues are readable and gives up descriptors that failed."""
        cdef uint32_t i
        cdef short events
        cdef int count = ppoll(self.descriptors, self.descriptor_count, timeout, NULL)
        for i in range(1, self.descriptor_count):
            events = self.descriptors[i].revents if count > 0 else 0
            if events & (POLLERR | POLLHUP | POLLNVAL) and not events & POLLIN:
                # The interface is gone: a descriptor that is always ready would keep the engine awake. Negative: ppoll skips it.
                self.descriptors[i].fd = -1
                self.failed_inputs += 1
            (<Source>self.inputs[i - 1].source).set_ready(self.inputs[i - 1].which, events & POLLIN)

    cdef void set_all_ready(self) noexcept nogil:
        cdef uint32_t i
        for i in range(1, self.descriptor_count):
            if self.descriptors[i].fd >= 0:
                (<Source>self.inputs[i - 1].source).set_ready(self.inputs[i - 1].which, True)

    cdef void sleep(self, uint64_t deadline_ns) noexcept nogil:
        """Sleeps until input, mailbox or deadline, unless one of them is there already."""
        cdef timespec timeout
        cdef timespec *limit = NULL
        cdef uint64_t now, value
        cdef uint32_t i
        cdef bint pending = False
        va_store_relaxed_u32(&self.sleeping, 1)
        va_fence()                             # the flag before the slot is read; pairs with the fence in _hand_over
        for i in range(self.armed_count):
            pending = (<Source>self.armed[i]).arm() or pending
        if not pending and va_load_acquire_ptr(&self.mailbox) == NULL and not va_load_acquire_u32(&self.stopping):
            if deadline_ns != NEVER:
                now = self.clock.now()
                timeout.tv_sec = timeout.tv_nsec = 0
                if deadline_ns > now:
                    timeout.tv_sec = <long>((deadline_ns - now) // 1000000000)
                    timeout.tv_nsec = <long>((deadline_ns - now) % 1000000000)
                limit = &timeout
            self.sleeps += 1
            self.ask_ready(limit)
            self.warm.prefetch()
            if self.ctx.large_cached:
                va_prefetch(&self.ctx.packets[self.ctx.large_cache[self.ctx.large_cached - 1]])
            if self.ctx.small_cached:
                va_prefetch(&self.ctx.packets[self.ctx.small_cache[self.ctx.small_cached - 1]])
        elif pending:
            self.set_all_ready()               # what the last ppoll said is older than that: without this, nobody would look
        va_store_relaxed_u32(&self.sleeping, 0)
        if self.descriptors[0].revents:
            read(self.mailbox_descriptor, &value, 8)
            self.descriptors[0].revents = 0
        for i in range(self.armed_count):
            (<Source>self.armed[i]).disarm()
        # What woke us goes on its way before we look for more: half of a short round trip's time here is cold memory and system calls.
        self.ctx.burst = 1

    cdef void run(self) noexcept nogil:
        cdef uint64_t deadline, idle_since = 0
        cdef uint32_t rounds = 0               # with packets, since the last sleep
        cdef timespec none
        cdef bint awake = True
        memset(&none, 0, sizeof(none))
        while not va_load_relaxed_u32(&self.stopping):
            if va_load_acquire_ptr(&self.mailbox) != NULL:
                self.run_mailbox()
            if awake:
                if self.descriptor_count - 1 <= FEW_DESCRIPTORS:
                    self.set_all_ready()
                else:
                    self.ask_ready(&none)
            awake = self.poll_once() > 0
            deadline = self.run_timers()
            if awake:
                idle_since = 0
                rounds += 1
                # A lone packet is followed by nothing, most times: ppoll looks at all queues at once, cheaper than a read from each.
                if rounds > LONE_ROUNDS or not self.drained or self.spin_ns:
                    continue
            elif self.spin_ns:
                if idle_since == 0:
                    idle_since = self.ctx.now_ns
                if self.ctx.now_ns - idle_since < self.spin_ns:
                    awake = True               # look again at every queue
                    va_pause()
                    continue
                idle_since = 0
            awake = False
            rounds = 0
            self.sleep(deadline)

    def advance(self, uint64_t until_ns):
        """Virtual time: runs everything that is due up to and including `until_ns`, each timer at its own instant, and leaves the
        clock there. Returns the number of packets that sources delivered."""
        from dataplane.virtual_time import VirtualTime
        return VirtualTime([self]).advance(until_ns)
