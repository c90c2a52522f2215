"""Engine: the graph, the mailbox, and one iteration. The contract is in engine.pxd."""
import os
import threading

from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec
from posix.unistd cimport read, write
from dataplane.engine.clock cimport Clock
from dataplane.graph.element cimport Counters, Element, Source, counters_dict
from dataplane.engine.element_arrays cimport ElementArrays, weigh
from dataplane.graph.flood_credit cimport (FLOOD_MOST, FLOOD_PACKET, FLOOD_RATE, FLOOD_REFUSED,
                                           flood_begin)
from dataplane.graph.link cimport drain_links
from dataplane.packet.pool cimport BURST, Context, PacketPool, packet_return_cache
from dataplane.engine.polling cimport Polling
from dataplane.graph.timers cimport NO_PLACE, Heap, timer_first, timer_remove
from dataplane.vatomic cimport (va_fence, va_load_acquire_ptr, va_load_relaxed_u32,
                                va_load_relaxed_u64, va_prefetch, va_store_relaxed_u32,
                                va_store_relaxed_u64, va_store_release_ptr)
from dataplane.graph.work cimport Work, await_readable

from dataplane.errors import GraphError, VnicError
from dataplane.graph.walk import walk_new
from dataplane.graph.work import Call

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()


class MailboxFull(VnicError):
    """The engine has not taken the last work yet; the mailbox holds one."""


cdef enum:
    # A longer poll halves the source's burst. 32 GSO frames of 64 KiB take half of this.
    LONG_NS = 1_000_000
    # A source whose broadcasts are refused is read a fifth of the time: it rests PAUSE_TIMES as
    # long as its poll took, at most PAUSE_MOST_NS, as its other packets wait, too.
    PAUSE_TIMES = 4
    PAUSE_MOST_NS = 2_000_000


cdef inline uint64_t cpu_ns() noexcept nogil:
    """CPU time of this thread."""
    cdef timespec t
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline void reset_statistics(Element element) noexcept nogil:
    memset(&element.counters, 0, sizeof(Counters))
    element.weight_ns = element.charged_ns = 0


cdef inline uint64_t charge(Element element, double share) noexcept nogil:
    cdef uint64_t part = <uint64_t>(element.weight_ns * share)
    element.weight_ns = 0
    element.charged_ns += part
    return part


cdef class Snapshot(Work):
    """Copies the counters of all elements between two batches, without the GIL."""

    def __init__(self, Engine engine):
        self.engine = engine
        self.copies = <Counters *>calloc(engine.arrays.member_count + 1, sizeof(Counters))
        if self.copies == NULL:
            raise MemoryError("snapshot")

    def __dealloc__(self):
        free(self.copies)

    cdef void run(self, Context *ctx) noexcept nogil:
        cdef uint32_t i
        for i in range(self.engine.arrays.member_count):
            (<Element>self.engine.arrays.members[i]).copy_counters(&self.copies[i])


cdef class Engine:
    """A single-threaded, run-to-completion task: polls its sources, pushes each batch through the
    graph, runs timers.

    The threads of a dataplane.groups.group.EngineGroup run it, or one thread of its own, started by
    dataplane.engine.running.start. That thread polls for spin_ns without input before it sleeps,
    and is pinned to `cpu` unless that is None. budget_ns: longer iterations are counted as
    overruns; 0: none are. seed: of the elements' random streams (Element.seed). An engine with a
    virtual clock has no thread: dataplane.engine.running.advance runs everything that is due on
    the caller's thread.
    """

    def __cinit__(self, *args, **kwargs):
        self.mailbox_descriptor = self.done_descriptor = self.wake_descriptor = -1
        self.ctx = <Context *>calloc(1, sizeof(Context))
        if self.ctx == NULL:
            raise MemoryError("engine")

    def __init__(self, str name, PacketPool pool, *, Clock clock=None, uint64_t spin_ns=0, cpu=None,
                 uint64_t seed=0,
                 uint64_t budget_ns=0):
        self.name, self.pool, self.clock = name, pool, clock or Clock()
        self.spin_ns, self.cpu = spin_ns, cpu
        self.budget_ns, self.look = budget_ns, True
        self.mailbox_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.done_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        pool.attach(self.ctx)
        self.seed = seed
        self.ctx.burst = BURST
        self.ctx.now_ns = self.clock.now()
        self.flood_credit.bytes, self.flood_credit.now_ns = FLOOD_MOST, self.ctx.now_ns
        self._lock = threading.RLock()         # serializes posters; the engine never takes it
        self._reload = threading.RLock()       # serializes graph changes and snapshots
        self.put([], Polling([], self.mailbox_descriptor, -1), ElementArrays([]))

    def __dealloc__(self):
        free(self.ctx)
        for descriptor in (self.mailbox_descriptor, self.done_descriptor):
            if descriptor >= 0:
                os.close(descriptor)

    # -- the graph ---------------------------------------------------------------------------------

    def load(self, sources, also=()):
        """Replaces the graph by the one reachable from `sources`: validates it, binds and
        initializes new elements, and swaps the graphs, through the mailbox while the engine runs.
        also: elements that no source leads to yet.

        Returns the removed elements with their statistics; an element that is added again counts
        from 0. Raises GraphError, and then nothing has changed.
        """
        cdef Element element
        cdef dict names = {}
        cdef list fresh = [], gone = []
        sources = list(sources)
        elements = walk_new(sources, also, {})
        for element in elements:
            if element.engine is None:
                fresh.append(element)
            elif element.engine is not self:
                raise GraphError(f"{element.name}: runs in engine {element.engine.name} already")
            names[element.name] = element
        if len(names) < len(elements):
            twice = next(each.name for each in elements if names[each.name] is not each)
            raise GraphError(f"{twice}: two elements of engine {self.name} have this name")
        self.prepare(fresh)
        try:
            # built here, not in swap(), which delays packets
            polling, arrays = Polling(sources, self.mailbox_descriptor, -1), ElementArrays(elements)
        except BaseException:
            self.abandon(fresh)
            raise
        for element in self.elements:
            if names.get(element.name) is not element:
                gone.append(element)
        before = self.polling, self.arrays     # so that this thread frees them

        def swap():
            for each in gone:
                each.release()
                (<Element>each).timer_place = NO_PLACE
            self.put(sources, polling, arrays)
            removed = [(each, {**each.statistics(), "charged_ns": (<Element>each).charged_ns})
                       for each in gone]
            # Reset here, not at the next load: an element that is connected again may get packets
            # before that.
            for each in gone:
                reset_statistics(<Element>each)
                (<Element>each).left = True
            return removed

        with self._reload:
            removed = self.call(swap)
        del before
        for element in gone:
            element.cleanup()
            element.bind(None)
        return removed

    def extend(self, sources, elements=()):
        """Adds `sources`, `elements` and the elements that they lead to, without visiting the
        present graph, so that the time to add a NIC does not grow with the number of NICs.

        The caller connects present elements to the new ones, without closing a cycle. Returns and
        raises as `load` does.
        """
        cdef list fresh, unbound = [], added = list(sources)
        cdef ElementArrays arrays = self.arrays
        cdef Polling polling = self.polling
        fresh = walk_new(added, elements, arrays.names)
        for element in fresh:
            if element.engine is None:
                unbound.append(element)
            elif element.engine is not self:
                raise GraphError(f"{element.name}: runs in engine {element.engine.name} already")
        names = {element.name for element in fresh}
        if len(names) < len(fresh) or not arrays.names.keys().isdisjoint(names):
            twice = next(each.name for each in fresh if each.name in arrays.names or
                         sum(other.name == each.name for other in fresh) > 1)
            raise GraphError(f"{twice}: two elements of engine {self.name} have this name")
        if not (polling.fits(added) and arrays.fits(fresh)):
            return self.load(self.sources + added)
        self.prepare(unbound)

        def add():
            polling.append(added)
            arrays.append(fresh)
            self.sources.extend(added)
            self.look = True

        try:
            with self._reload:
                self.call(add)
        except BaseException:
            self.abandon(unbound)
            raise
        return []

    def prepare(self, elements):
        """Binds and initializes elements that are in no engine, ahead of a `load`. Raises what
        their `initialize` raises, and then none is bound."""
        bound = []
        try:
            for element in elements:
                if not (<Element>element).left:
                    reset_statistics(<Element>element)
                (<Element>element).left = False
                element.bind(self)
                bound.append(element)
                element.initialize()
        except BaseException:
            self.abandon(bound)
            raise

    def abandon(self, elements):
        """Undoes `prepare` for elements that were not loaded."""
        for element in reversed(list(elements)):
            element.cleanup()
            element.bind(None)

    cdef void put(self, list sources, Polling polling, ElementArrays arrays):
        """Swaps the graph. Only between two batches."""
        if self.polling is not None:
            self.polling.settle_down()
            self.failed_inputs += self.polling.failed_inputs
        polling.descriptors[1].fd = self.wake_descriptor
        self.sources, self.elements = sources, arrays.elements
        self.polling, self.arrays = polling, arrays
        self.ctx.timers = <void *>&arrays.timers
        arrays.gather()
        self.look = True

    def take_up(self):
        """Schedules the packets that elements hold after `load_state`. Only between two batches."""
        cdef Element element
        for element in self.elements:
            element.take_up(self.ctx)

    # -- control -----------------------------------------------------------------------------------

    def post(self, Work work, *, bint wait=True):
        """Puts `work` into the mailbox, waits until the engine has run it, and returns its result
        or raises its exception.

        wait=False: raises MailboxFull instead of waiting for the mailbox. The calling thread runs
        the work itself if no thread runs the engine, or if it is the engine's thread (work that
        posts work).
        """
        if va_load_relaxed_u64(&self.owner_id) == <uint64_t>pthread_self():
            self._run_here(work)
        else:
            if not self._lock.acquire(wait):
                raise MailboxFull(f"engine {self.name}: busy with the last piece of work")
            try:
                if self.runner is None:
                    self._run_here(work)
                else:
                    self._hand_over(work)
            finally:
                self._lock.release()
        if work.error is not None:
            raise work.error
        return work.result

    def _run_here(self, Work work):
        with nogil:
            self.ctx.now_ns = self.clock.now()
            work.run(self.ctx)
            self.arrays.gather_timers()

    def _hand_over(self, Work work):
        cdef uint64_t one = 1
        # This thread holds the lock, so the slot is empty: the engine empties it before it reports
        # the last work done.
        va_store_release_ptr(&self.mailbox, <void *><PyObject *>work)
        with nogil:
            # write the slot before reading the flag; pairs with the fence in EngineThread.sleep
            va_fence()
            if va_load_relaxed_u32(&self.sleeping):
                write(self.mailbox_descriptor, &one, 8)
        # This thread's reference keeps the work alive, so it must not return before the work is
        # done, not even on an interrupt.
        interrupted = None
        while not work.finished():
            try:
                await_readable(self.done_descriptor, 1000)
            except KeyboardInterrupt as error:
                interrupted = error
            read(self.done_descriptor, &one, 8)
            if not self.running and not work.finished():
                va_store_release_ptr(&self.mailbox, NULL)
                raise VnicError(f"engine {self.name}: its thread has ended")
        if interrupted is not None:
            raise interrupted

    def call(self, function):
        """Runs a Python callable on the engine's thread between two batches; returns its result or
        raises its exception."""
        return self.post(Call(function))

    def snapshot(self):
        """Counters of all elements at one instant between two batches: list of (name,
        statistics)."""
        cdef Snapshot work
        with self._reload:                   # so that the list of elements does not change
            work = Snapshot(self)
            self.post(work)
            return [(element.name, counters_dict(type(element), &work.copies[i]))
                    for i, element in enumerate(self.elements)]

    def conservation(self):
        """The terms of the conservation law at one instant (received, generated, transmitted,
        dropped, held), and whether it holds (`conserved`)."""
        terms = {"received": 0, "generated": 0, "transmitted": 0, "dropped": 0, "held": 0}
        for _, statistics in self.snapshot():
            for term in ("received", "generated", "transmitted", "held"):
                terms[term] += statistics[term]
            terms["dropped"] += sum(statistics["dropped"].values())
        entered = terms["received"] + terms["generated"]
        terms["conserved"] = entered == terms["transmitted"] + terms["dropped"] + terms["held"]
        return terms

    def release(self):
        """Stops the engine between two iterations and returns when no thread owns it. The caller
        makes sure that no balancer moves it meanwhile. Elements keep the packets that they hold;
        the engine may be started again."""
        cdef uint64_t one = 1
        with self._lock:                     # only its holder may read the done descriptor
            va_store_release_ptr(&self.destination, NULL)
            write(self.mailbox_descriptor, &one, 8)
            while va_load_acquire_ptr(&self.owner) != NULL and self.running:
                await_readable(self.done_descriptor, 100)
                read(self.done_descriptor, &one, 8)
            read(self.done_descriptor, &one, 8)
            self.runner = None

    @property
    def running(self):
        """True while a thread runs the engine."""
        return self.runner is not None and self.runner.alive

    def status(self):
        """The engine's counters as a dict. Nanoseconds are clock time, except cpu_ns."""
        return {"name": self.name, "running": self.running, "cpu_ns": self.cpu_ns,
                "polls": self.polls, "busy_polls": self.busy_polls, "busy_ns": self.busy_ns,
                "sleeps": self.sleeps, "works": self.works,
                "failed_inputs": self.failed_inputs + self.polling.failed_inputs,
                "overruns": self.overruns, "longest_turn_ns": self.longest_turn_ns,
                "budget_ns": self.budget_ns}

    def charges(self):
        """CPU time in nanoseconds by element name (sources and elements with timers), and
        `overhead`: polls without packets and work from control. The sum is cpu_ns. As of the last
        settlement, see dataplane.engine.settle."""
        return {**{element.name: (<Element>element).charged_ns for element in self.elements
                   if (<Element>element).charged_ns},
                "overhead": self.overhead_ns}

    def stop(self):
        """Ends the engine's own thread between two iterations. Elements keep the packets that they
        hold. May be called twice."""
        if self.runner is not None:
            self.runner.stop()

    def close(self):
        """Stops the engine, drops the packets that it holds, and cleans up every element."""
        self.stop()
        for element in self.elements:
            element.release()
        for element in self.elements:
            element.cleanup()
            element.bind(None)
            (<Element>element).timer_place = NO_PLACE
        self.put([], Polling([], self.mailbox_descriptor, -1), ElementArrays([]))
        packet_return_cache(self.ctx)

    # -- an iteration ------------------------------------------------------------------------------

    cdef void run_mailbox(self) noexcept nogil:
        cdef void *slot = va_load_acquire_ptr(&self.mailbox)
        cdef uint64_t one = 1, begin, took
        if slot == NULL:
            return
        self.ctx.now_ns = begin = self.clock.now()  # the engine may have slept since the last one
        (<Work>slot).run(self.ctx)
        self.arrays.gather_timers()                 # the work may have set timers
        self.works += 1
        va_store_release_ptr(&self.mailbox, NULL)   # empty before done: the next poster needs it
        (<Work>slot).finish()                       # from here on the poster may free the work
        write(self.done_descriptor, &one, 8)
        took = self.clock.now() - begin
        self.weight_ns += took
        self.control_weight_ns += took

    cdef uint32_t poll_source(self, PyObject *source) noexcept nogil:
        """Polls a source and charges it for the time until its packets have left the graph; returns
        the number of packets."""
        cdef uint64_t before = self.ctx.now_ns, took
        cdef uint32_t taken
        if (<Source>source).slow:
            taken = self.poll_slow(source)
        else:
            taken = (<Source>source).poll(self.ctx)
        if self.ctx.links != NULL:
            drain_links(self.ctx)
        self.ctx.now_ns = self.clock.now()
        took = self.ctx.now_ns - before
        self.weight_ns += took
        (<Source>source).slow = (<Source>source).slow or took > LONG_NS
        if taken:
            weigh(self.arrays, <Element>source, took)
        else:
            self.idle_weight_ns += took
        if (<Element>source).timer_place != NO_PLACE:   # its port delivers packets at given times
            (<Element>source).set_timer(self.ctx, (<Element>source).deadline_ns)
        return taken

    cdef uint32_t poll_slow(self, PyObject *source) noexcept nogil:
        """Polls a source that once took longer than LONG_NS, and adapts its burst to the CPU time
        that the poll takes; clock time would include preemption. Flooding a frame to a thousand
        ports takes a millisecond: control and the other sources should wait for one such frame, not
        for 32."""
        cdef uint64_t began = cpu_ns(), took
        cdef uint32_t taken, burst = self.ctx.burst
        if (<Source>source).burst < burst:
            self.ctx.burst = (<Source>source).burst
        taken = (<Source>source).poll(self.ctx)
        self.ctx.burst = burst
        took = cpu_ns() - began
        if took > LONG_NS and taken > 1:
            (<Source>source).burst = max(min(taken, (<Source>source).burst) // 2, 1)
        elif took < LONG_NS // 2:
            if (<Source>source).burst >= BURST:
                (<Source>source).slow = False
            else:
                (<Source>source).burst = (<Source>source).burst * 2
        return taken

    cdef bint pause(self, uint32_t place, uint64_t took) noexcept nogil:
        """Leaves a source unread for a while whose broadcasts are being refused. Frames of 64 KiB
        that are read only to be dropped took about half of a flooded engine's CPU time. What is not
        read is lost in the sender's own queue."""
        return self.polling.pause(
            place, self.ctx.now_ns + min(took * PAUSE_TIMES, <uint64_t>PAUSE_MOST_NS))

    cdef uint32_t poll_once(self) noexcept nogil:
        """Polls each source that may have input once; returns the number of packets."""
        cdef uint32_t i, got = 0
        cdef uint64_t began
        self.ctx.backlog = 0
        self.ctx.now_ns = self.begin_ns = self.clock.now()
        flood_begin(&self.flood_credit, self.ctx)
        for i in range(self.polling.always_count):
            got += self.poll_source(self.polling.always[i])
        i = 0
        while i < self.polling.active_count:
            began = self.ctx.now_ns
            self.ctx.backlog &= ~<uint32_t>FLOOD_REFUSED
            got += self.poll_source(self.polling.active[i])
            if not (self.ctx.backlog & FLOOD_REFUSED and self.pause(i, self.ctx.now_ns - began)):
                i += 1
        self.drained = not self.ctx.backlog and got < self.ctx.burst and self.ctx.burst > 1
        self.ctx.burst = BURST
        self.polls += 1
        if got:
            self.busy_polls += 1
        return got

    cdef void run_unfinished(self) noexcept nogil:
        """Resumes each element that has postponed work, once."""
        cdef void *element = self.ctx.unfinished
        cdef void *following
        cdef uint64_t before
        self.ctx.unfinished = NULL
        while element != NULL:
            following = (<Element>element).next_unfinished
            (<Element>element).unfinished_in = NULL
            before = self.ctx.now_ns
            (<Element>element).resume(self.ctx)
            if self.ctx.links != NULL:
                drain_links(self.ctx)
            self.ctx.now_ns = self.clock.now()
            self.weight_ns += self.ctx.now_ns - before
            weigh(self.arrays, <Element>element, self.ctx.now_ns - before)
            element = following

    cdef void run_due(self, Heap *heap) noexcept nogil:
        """Ticks each element whose timer is due now, once."""
        cdef PyObject **due = self.arrays.due
        cdef uint32_t i, count = 0
        cdef uint64_t before
        while heap.count and heap.entries[0].deadline_ns <= self.ctx.now_ns:
            due[count] = <PyObject *>heap.entries[0].element
            count += 1
            timer_remove(heap, heap.entries[0].place)
        for i in range(count):
            if (<Element>due[i]).deadline_ns > self.ctx.now_ns:
                continue                       # an earlier tick has set it anew
            (<Element>due[i]).tick(self.ctx)
            if self.ctx.links != NULL:
                drain_links(self.ctx)
            (<Element>due[i]).set_timer(self.ctx, (<Element>due[i]).deadline_ns)
            before = self.ctx.now_ns
            self.ctx.now_ns = self.clock.now()
            self.weight_ns += self.ctx.now_ns - before
            weigh(self.arrays, <Element>due[i], self.ctx.now_ns - before)

    cdef uint64_t run_timers(self) noexcept nogil:
        """Ticks due elements; returns the next deadline that ends a sleep. A deferrable timer ends
        one in virtual time only."""
        cdef uint64_t deadline
        self.run_due(&self.arrays.timers.waking)
        self.run_due(&self.arrays.timers.deferrable)
        deadline = timer_first(&self.arrays.timers.waking)
        if self.clock.virtual:
            deadline = min(deadline, timer_first(&self.arrays.timers.deferrable))
        return deadline

    cdef uint32_t iterate(self) noexcept nogil:
        """Runs the mailbox, sources and timers once. Returns the number of packets that sources
        delivered; ctx.now_ns is the end of the iteration."""
        cdef uint32_t got, i
        cdef uint64_t waited
        if va_load_acquire_ptr(&self.mailbox) != NULL:
            self.run_mailbox()
        if self.ctx.links != NULL:
            drain_links(self.ctx)
        if self.polling.pause_count:
            self.polling.resume(self.clock.now())
        if self.look:
            self.polling.look()
        got = self.poll_once()
        if self.ctx.unfinished != NULL and self.ctx.flood_budget:
            self.run_unfinished()
        self.next_ns = self.run_timers()
        if self.ctx.unfinished != NULL:
            # sleep until there is flood credit for some copies again
            waited = 2 if self.ctx.flood_budget else 16 * FLOOD_PACKET * FLOOD_RATE
            self.next_ns = min(self.next_ns, self.begin_ns + waited)
        for i in range(self.polling.pause_count):
            self.next_ns = min(self.next_ns, self.polling.pauses[i].until_ns)
        if self.woken:
            self.woken = False
            self.clear_ns = self.begin_ns
        if got:
            self.rounds += 1
            self.busy_ns += self.ctx.now_ns - self.begin_ns
            # These packets arrived after the last instant at which the queues were empty, so none
            # has waited longer than since then.
            waited = self.begin_ns - self.clear_ns
            if waited > self.delay_ns:
                va_store_relaxed_u64(&self.delay_ns, waited)
        if not self.ctx.backlog:
            self.clear_ns = self.begin_ns
        # After a lone packet the queues are mostly empty: one ppoll of all is cheaper than a read
        # from each.
        self.more = (got > 0 and (self.rounds > LONE_ROUNDS or not self.drained)
                     or self.ctx.links != NULL)
        return got

    # -- sleep: called by the engine's thread before and after ppoll -------------------------------

    cdef void distribute(self, bint any) noexcept nogil:
        """Evaluates a ppoll of the engine's descriptors: marks the sources with input, resets the
        mailbox's eventfd. any: ppoll reported some descriptor."""
        cdef uint64_t value
        self.polling.after_sleep(any)
        if any and self.polling.descriptors[0].revents:
            read(self.mailbox_descriptor, &value, 8)
            self.polling.descriptors[0].revents = 0

    cdef bint prepare_sleep(self) noexcept nogil:
        """Arms the sources; returns True if input or work is pending, so that the thread must not
        sleep. The caller has set `sleeping`, then issued a fence."""
        cdef uint32_t i
        cdef bint pending = False
        for i in range(self.polling.armed_count):
            if not (self.polling.pause_count
                    and self.polling.is_paused(<const void *>self.polling.armed[i])):
                pending = (<Source>self.polling.armed[i]).arm() or pending
        return pending or va_load_acquire_ptr(&self.mailbox) != NULL or self.ctx.links != NULL

    cdef void end_sleep(self) noexcept nogil:
        """Ends a sleep or rest without looking for input."""
        cdef uint32_t i
        va_store_relaxed_u32(&self.sleeping, 0)
        for i in range(self.polling.armed_count):
            (<Source>self.polling.armed[i]).disarm()
        self.rounds = 0
        self.resting, self.woken = False, True

    cdef void wake(self, bint pending) noexcept nogil:
        """Ends a sleep. pending: input or work was pending, so the thread has not slept."""
        self.end_sleep()
        if pending:
            # there was no ppoll, so the sources with input are not known yet
            self.polling.look()
        else:
            self.sleeps += 1
            self.arrays.warm.prefetch()
            if self.ctx.large_cached:
                va_prefetch(&self.ctx.packets[self.ctx.large_cache[self.ctx.large_cached - 1]])
            if self.ctx.small_cached:
                va_prefetch(&self.ctx.packets[self.ctx.small_cache[self.ctx.small_cached - 1]])
        # Forward the packet that ended the sleep before looking for more: cold memory and system
        # calls are half of a short round trip's time here.
        self.ctx.burst, self.look = 1, False

    cdef void set_owner(self, void *thread, int wake_descriptor, uint64_t fair_ns) noexcept nogil:
        """Called on `thread`, which runs the engine from now on."""
        self.wake_descriptor = self.polling.descriptors[1].fd = wake_descriptor
        # look: packets may have arrived while no thread polled the engine's descriptors
        self.fair_ns, self.look = fair_ns, True
        va_store_relaxed_u64(&self.owner_id, <uint64_t>pthread_self())
        va_store_release_ptr(&self.owner, thread)

    cdef void unset_owner(self, void *next_owner) noexcept nogil:
        """Called on the thread that ran the engine until now, which must not use it afterwards."""
        self.wake_descriptor = self.polling.descriptors[1].fd = -1
        va_store_relaxed_u64(&self.owner_id, 0)
        va_store_release_ptr(&self.owner, next_owner)

    # -- accounting --------------------------------------------------------------------------------

    cdef void settle(self, double share, bint caused) noexcept nogil:
        """Converts weights to CPU time, `share` nanoseconds per nanosecond of the clock.

        caused: the thread sleeps when idle, so polls without packets are caused by the packets
        before them. The elements with packets are charged for these polls too, up to doubling their
        charge. The rest is overhead.
        """
        cdef uint64_t busy = self.weight_ns - self.idle_weight_ns - self.control_weight_ns
        cdef uint64_t i, total = <uint64_t>(self.weight_ns * share), charged = 0
        if caused and busy:
            share += share * <double>min(self.idle_weight_ns, busy) / <double>busy
        for i in range(self.arrays.weighed_count):
            charged += charge(<Element>self.arrays.weighed[i], share)
        self.arrays.weighed_count = 0
        self.cpu_ns += max(total, charged)
        self.overhead_ns += max(total, charged) - charged
        self.weight_ns = self.idle_weight_ns = self.control_weight_ns = 0
