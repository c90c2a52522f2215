"""EngineThread, the run loop. The contract is in thread.pxd."""
import os
import threading

from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy
from posix.time cimport clock_gettime, clockid_t, timespec
from posix.unistd cimport read, write
from dataplane.engine.balancer cimport Balancer
from dataplane.engine.clock cimport Clock
from dataplane.graph.element cimport NEVER
from dataplane.engine.engine cimport Engine
from dataplane.engine.polling cimport nfds_t, pollfd
from dataplane.vatomic cimport (va_cas_ptr, va_fence, va_load_acquire_ptr, va_load_acquire_u32,
                                va_load_relaxed_u32, va_pause, va_store_relaxed_u32,
                                va_store_release_ptr, va_store_release_u32, va_store_release_u64)

from dataplane.engine.cgroup import join_all
from dataplane.errors import ConfigError, VnicError

cdef extern from "<poll.h>" nogil:
    int ppoll(pollfd *fds, nfds_t count, const timespec *timeout, const void *mask)
    short POLLIN

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()
    int pthread_getcpuclockid(pthread_t thread, clockid_t *clock)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long argument)
    int PR_SET_TIMERSLACK, PR_SET_NAME

cdef enum:
    # reading a thread's CPU clock is a system call of 0.2 us: 0.02 % at this interval
    SETTLE_NS = 1_000_000
    # interval at which resting engines are polled while others are busy: a fifth of the default
    # delay objective
    LOOK_NS = 10_000
    # how much more time than the others an engine may have had; less than 32 GSO frames take
    FAIR_NS = 20_000
    # A thread that the kernel left waiting is no measure of how long waking up takes.
    LATE_MOST_NS = 100_000
    # At most an eighth of a wait is polled away: where deadlines are close to each other, CPU time
    # is worth more than microseconds.
    EARLY_SHIFT = 3


UNDER_WAY = <void *>1


cdef inline void look(Engine engine) noexcept nogil:
    engine.look = True


cdef class EngineThread:
    """Runs iterations of engines and sleeps when none has work. Engines with work get equal shares
    of the thread's time.

    cpus: CPUs that the thread may run on. spin_ns: how long it polls while idle before it sleeps;
    dataplane.engine.thread.ALWAYS: it does not sleep. guarantee: a
    dataplane.groups.guarantee.Guarantee of CPU time, applied by `reserve`. cgroups:
    dataplane.engine.cgroup.Cgroups to join; `refused` lists those that failed. The threads of one
    `balancer` pass engines to each other. Raises VnicError where no descriptor is available.
    """

    def __cinit__(self, *args, **kwargs):
        self.wake_descriptor = -1
        self.cpu_clock = -1

    def __init__(self, str name, cpus=None, *, uint64_t spin_ns=0, guarantee=None, cgroups=(),
                 Balancer balancer=None):
        self.name, self.cpus, self.spin_ns = name, cpus, spin_ns
        self.guarantee, self.balancer = guarantee, balancer or Balancer()
        self.cgroups, self.refused, self.thread_id = tuple(cgroups), {}, 0
        self.clock = Clock()
        self.scheduling, self.look_ns = "none", LOOK_NS
        self._references = []
        try:
            self.wake_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise VnicError(f"engine thread {name}: no descriptor for it: {error.strerror}; "
                            "raise the limit, see ulimit -n") from None

    def __dealloc__(self):
        free(self.descriptors)
        if self.wake_descriptor >= 0:
            os.close(self.wake_descriptor)

    # -- control -----------------------------------------------------------------------------------

    def start(self, engines=()):
        """Starts the thread with `engines`. Raises ConfigError for CPUs that this process may not
        use, VnicError where the thread cannot start."""
        usable = os.sched_getaffinity(0)
        for cpu in self.cpus or ():
            if cpu not in usable:
                raise ConfigError(f"engine {self.name}: cpu {cpu}: not usable here: "
                                  f"expected one of {', '.join(map(str, sorted(usable)))}")
        if self._thread is not None:
            raise VnicError(f"engine thread {self.name}: runs already")
        self.stopping = 0
        self._error, self._started = None, threading.Event()
        thread = threading.Thread(target=self._main, name=f"vnic-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise VnicError(f"engine thread {self.name}: {error}; "
                            "raise the limit, see ulimit -u and pids.max of its cgroup") from None
        self._started.wait()
        if self._error is not None:
            thread.join()
            raise VnicError(f"engine thread {self.name}: did not start: {self._error}"
                            ) from self._error
        self._thread = thread
        for engine in engines:
            self.take(engine)

    def take(self, Engine engine not None, runner=None):
        """Makes this thread run `engine`, which must not be running. runner: the object that holds
        a reference to the engine and has `alive`; by default this thread."""
        if engine.runner is not None:
            raise VnicError(f"engine {engine.name}: runs already")
        if runner is None:
            self._references.append(engine)  # the C array borrows its references
        engine.runner = runner or self
        va_store_release_ptr(&engine.destination, <void *>self)
        self.accept(<void *>engine)

    def stop(self):
        """Ends the thread between two iterations; its engines then have no runner. May be called
        twice."""
        cdef uint64_t one = 1
        cdef Engine engine
        if self._thread is None:
            return
        va_store_release_u32(&self.stopping, 1)
        write(self.wake_descriptor, &one, 8)
        self._thread.join()
        self._thread = None
        for engine in self._references:
            if engine.runner is self:
                engine.runner = None
        self._references = []

    def reserve(self):
        """Applies the guarantee of CPU time; `scheduling` tells how it is enforced. May be called
        twice."""
        if self.guarantee is None or self.scheduling != "none" or not self.alive:
            return
        self.scheduling = self.guarantee.apply(self.thread_id)
        # SCHED_DEADLINE bounds the CPU time itself; for the other classes throttle() does
        if self.scheduling != "deadline":
            self.period_ns = self.guarantee.period_ns
            # stored last, with release: a thread that reads it also reads the period
            va_store_release_u64(&self.runtime_ns, self.guarantee.runtime_ns)

    @property
    def alive(self):
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def engine_names(self):
        """Names of the engines that the thread runs now."""
        return [(<Engine>self.engines[i]).name for i in range(self.count)]

    @property
    def cpu_ns(self):
        """CPU time of the thread so far; 0 when it does not run."""
        return self.thread_cpu_ns()

    def status(self):
        """The thread's settings and state, as a dict."""
        return {"name": self.name, "cpus": self.cpus, "engines": self.engine_names,
                "scheduling": self.scheduling, "cpu_ns": self.thread_cpu_ns(),
                "overhead_ns": self.overhead_ns, "throttled": self.throttled}

    def _main(self):
        try:
            self._prepare()
        except BaseException as error:             # `start` raises it
            self._error = error
            return
        finally:
            self._started.set()
        with nogil:
            self.run()
        self.cpu_clock = -1

    def _prepare(self):
        cdef clockid_t clock
        self.thread_id = threading.get_native_id()
        # Cgroups first: joining a cpuset resets the affinity. The guarantee follows later, since a
        # cgroup may exclude real-time classes.
        self.refused = join_all(self.cgroups, self.thread_id)
        if self.cpus is not None:
            try:
                os.sched_setaffinity(0, self.cpus)
            except OSError:  # the cpuset has lost these CPUs since the group was checked
                self.cpus = sorted(os.sched_getaffinity(0))
        name = f"vnic-{self.name}".encode()
        # shown by top and perf; the kernel stores 15 bytes
        prctl(PR_SET_NAME, <unsigned long><const char *>name)
        # 1 ns: the default of 50 us would be most of a shaper's error
        prctl(PR_SET_TIMERSLACK, 1)
        if pthread_getcpuclockid(pthread_self(), &clock) == 0:
            self.cpu_clock = clock
        self.settled_cpu_ns = self.window_cpu_ns = self.thread_cpu_ns()
        self.settled_at_ns = self.window_ns = self.clock.now()

    cdef uint64_t thread_cpu_ns(self) noexcept nogil:
        cdef timespec t
        if self.cpu_clock != -1 and clock_gettime(<clockid_t>self.cpu_clock, &t) == 0:
            return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec
        return 0

    # -- moving engines between threads ------------------------------------------------------------

    cdef void accept(self, void *engine) noexcept nogil:
        """Adds `engine`, which no thread runs, to this thread's inbox. Callable from any thread."""
        cdef uint64_t one = 1
        cdef void *top = va_load_acquire_ptr(&self.inbox)
        # not NULL, since Engine.release waits for NULL: an engine in the inbox is not free
        va_store_release_ptr(&(<Engine>engine).owner, UNDER_WAY)
        va_store_release_ptr(&(<Engine>engine).next_engine, top)
        # Release: the next owner sees all that the last one wrote to the engine.
        while not va_cas_ptr(&self.inbox, &top, engine):
            va_store_release_ptr(&(<Engine>engine).next_engine, top)
        va_fence()  # write the inbox before reading `sleeping`; pairs with the fence in sleep()
        if va_load_relaxed_u32(&self.sleeping):
            write(self.wake_descriptor, &one, 8)

    cdef void adopt(self) noexcept nogil:
        """Takes over the engines in the inbox."""
        cdef void *engine = va_load_acquire_ptr(&self.inbox)
        cdef void *following
        while not va_cas_ptr(&self.inbox, &engine, NULL):
            pass
        while engine != NULL:
            following = (<Engine>engine).next_engine
            # only after a bug, since the configuration is bounded: the engine stays in the inbox
            if self.count == ENGINES_MOST:
                self.accept(engine)
            else:
                self.engines[self.count] = <PyObject *>engine
                self.count += 1
                (<Engine>engine).set_owner(<void *>self, self.wake_descriptor, self.fair_ns)
            engine = following

    cdef void give_away(self, uint32_t place) noexcept nogil:
        """Passes the engine at `place` to its destination thread, which owns it afterwards."""
        cdef void *engine = <void *>self.engines[place]
        cdef void *destination = va_load_acquire_ptr(&(<Engine>engine).destination)
        cdef uint64_t one = 1
        cdef int done = (<Engine>engine).done_descriptor
        cdef uint32_t i
        if (<Engine>engine).resting:
            (<Engine>engine).end_sleep()
        self.settle()
        self.count -= 1
        for i in range(place, self.count):
            self.engines[i] = self.engines[i + 1]
        (<Engine>engine).unset_owner(UNDER_WAY if destination != NULL else NULL)
        if destination != NULL:
            (<EngineThread>destination).accept(engine)
        else:
            write(done, &one, 8)

    # -- accounting --------------------------------------------------------------------------------

    cdef void settle(self) noexcept nogil:
        """Distributes the CPU time since the last settlement over the engines' elements, in
        proportion to their weights (the clock time that each took). So no element is charged for
        time that the kernel gave to other threads, and the cost of sleeping and waking is charged
        to the elements that caused it."""
        cdef uint64_t cpu = self.thread_cpu_ns(), weight = 0
        cdef uint32_t i
        cdef double share
        for i in range(self.count):
            weight += (<Engine>self.engines[i]).weight_ns
        if cpu <= self.settled_cpu_ns or (weight == 0 and self.count):
            return
        if weight == 0:
            self.overhead_ns += cpu - self.settled_cpu_ns
        else:
            share = <double>(cpu - self.settled_cpu_ns) / <double>weight
            for i in range(self.count):
                (<Engine>self.engines[i]).settle(share, self.spin_ns == 0)
        self.settled_cpu_ns = cpu
        self.settled_at_ns = self.clock.now()
        self.slept_ns = 0

    cdef void count_overrun(self, Engine engine, uint64_t took_ns) noexcept nogil:
        """Counts an overrun if an iteration took longer than the engine's budget. The kernel may
        have run other threads meanwhile, so all time since the last settlement that this thread was
        neither on a CPU nor asleep is subtracted from this iteration."""
        cdef uint64_t elapsed = engine.ctx.now_ns - self.settled_at_ns - self.slept_ns
        cdef uint64_t ran = self.thread_cpu_ns() - self.settled_cpu_ns
        cdef uint64_t waited = elapsed - ran if elapsed > ran else 0
        took_ns = took_ns - waited if took_ns > waited else 0
        if took_ns > engine.budget_ns:
            engine.overruns += 1
            if took_ns > engine.longest_turn_ns:
                engine.longest_turn_ns = took_ns

    cdef void throttle(self) noexcept nogil:
        """Sleeps until the period ends if the thread has used runtime_ns of CPU time in it; by
        clock time it has."""
        cdef uint64_t now = self.clock.now(), used = self.thread_cpu_ns() - self.window_cpu_ns
        cdef uint64_t end = self.window_ns + self.period_ns
        cdef pollfd wake
        cdef timespec timeout
        if now >= end:
            return
        if used < self.runtime_ns:  # other threads had the CPU meanwhile: count that as sleep
            self.window_slept_ns = now - self.window_ns - used if now > self.window_ns + used else 0
            return
        self.throttled += 1
        timeout.tv_sec = <long>((end - now) // 1000000000)
        timeout.tv_nsec = <long>((end - now) % 1000000000)
        wake.fd, wake.events, wake.revents = self.wake_descriptor, POLLIN, 0
        va_store_relaxed_u32(&self.sleeping, 1)
        va_fence()                             # as in sleep()
        if va_load_acquire_ptr(&self.inbox) == NULL and not va_load_acquire_u32(&self.stopping):
            ppoll(&wake, 1, &timeout, NULL)
        va_store_relaxed_u32(&self.sleeping, 0)
        now = self.clock.now() - now
        self.slept_ns += now
        self.window_slept_ns += now

    # -- the loop ----------------------------------------------------------------------------------

    cdef bint serve(self, Engine engine) noexcept nogil:
        """Runs an iteration, unless the engine has had more than its share while others have work.
        Returns True if the engine wants another iteration."""
        cdef uint64_t took
        if self.count > 1:
            if engine.more and engine.fair_ns > self.fair_ns + FAIR_NS:
                return True
            # unused time is not credited
            if engine.fair_ns < self.fair_ns:
                engine.fair_ns = self.fair_ns
        engine.iterate()
        took = engine.ctx.now_ns - engine.begin_ns
        engine.fair_ns += took
        if engine.budget_ns and took > engine.budget_ns:
            self.count_overrun(engine, took)
        return engine.more

    cdef uint64_t one_pass(self, bint *more, bint *any) noexcept nogil:
        """Runs an iteration of each engine; returns the next timer's deadline. more: an engine
        wants another iteration at once. any: an engine had packets."""
        cdef uint64_t deadline = NEVER, least = NEVER, polls
        cdef uint32_t i = 0
        more[0] = any[0] = False
        while i < self.count:
            if (<Engine>self.engines[i]).resting:
                if self.rests(<Engine>self.engines[i]):
                    if (<Engine>self.engines[i]).next_ns < deadline:
                        deadline = (<Engine>self.engines[i]).next_ns
                    i += 1
                    continue
                (<Engine>self.engines[i]).end_sleep()
            polls = (<Engine>self.engines[i]).busy_polls
            if self.serve(<Engine>self.engines[i]):
                more[0] = True
                if (<Engine>self.engines[i]).fair_ns < least:
                    least = (<Engine>self.engines[i]).fair_ns
            any[0] = any[0] or (<Engine>self.engines[i]).busy_polls != polls
            if (<Engine>self.engines[i]).next_ns < deadline:
                deadline = (<Engine>self.engines[i]).next_ns
            if va_load_acquire_ptr(&(<Engine>self.engines[i]).destination) != <void *>self:
                self.give_away(i)
            else:
                i += 1
        if least != NEVER:
            self.fair_ns = least
        return deadline

    cdef bint rests(self, Engine engine) noexcept nogil:
        """True if a resting engine has nothing to do in this pass: no poll, no posted work, no due
        timer, no move to another thread."""
        return (not engine.look and engine.next_ns > self.pass_ns
                and va_load_acquire_ptr(&engine.mailbox) == NULL
                and va_load_acquire_ptr(&engine.destination) == <void *>self)

    cdef void sleep(self, uint64_t deadline_ns) noexcept nogil:
        """Sleeps until input, work, a new engine or the deadline, unless one is pending already."""
        cdef timespec timeout
        cdef timespec *limit = NULL
        cdef pollfd *polled = self.descriptors
        cdef uint64_t now, value, wait = NEVER
        cdef uint32_t i, total = 0
        cdef int ready = 0
        cdef bint pending = False
        cdef pollfd own
        va_store_relaxed_u32(&self.sleeping, 1)
        for i in range(self.count):
            # a resting engine has `sleeping` set already, so a post has written to its eventfd
            if not (<Engine>self.engines[i]).resting:
                va_store_relaxed_u32(&(<Engine>self.engines[i]).sleeping, 1)
            total += (<Engine>self.engines[i]).polling.descriptor_count
        # write the flags before reading mailboxes and inbox; pairs with the fences in
        # Engine._hand_over and accept()
        va_fence()
        for i in range(self.count):
            if not (<Engine>self.engines[i]).resting:
                pending = (<Engine>self.engines[i]).prepare_sleep() or pending
        pending = (pending or va_load_acquire_ptr(&self.inbox) != NULL
                   or va_load_acquire_u32(&self.stopping))
        if self.count == 0:
            own.fd, own.events, own.revents = self.wake_descriptor, POLLIN, 0
            polled, total = &own, 1
        elif self.count == 1:                  # the common case: nothing to copy
            polled = (<Engine>self.engines[0]).polling.descriptors
        # only after the graphs or the engines have changed; without memory the thread keeps polling
        elif total > self.room:
            polled = <pollfd *>realloc(self.descriptors, total * sizeof(pollfd))
            pending = pending or polled == NULL
            if polled != NULL:
                self.descriptors, self.room, self.gathered = polled, total, 0
        if not pending:
            now = self.clock.now()
            wait = self.wait(deadline_ns, now)
            if wait != NEVER:
                timeout.tv_sec = <long>(wait // 1000000000)
                timeout.tv_nsec = <long>(wait % 1000000000)
                limit = &timeout
            if self.count > 1:
                self.gather(polled)
            ready = ppoll(polled, total, limit, NULL)
            if ready > 0 and (self.count == 0 or polled[1].revents):
                read(self.wake_descriptor, &value, 8)
            self.pass_ns = self.looked_ns = self.clock.now()
            self.slept_ns += self.pass_ns - now
            self.window_slept_ns += self.pass_ns - now
            if ready == 0:
                self.learn(wait, self.pass_ns - now)
        va_store_relaxed_u32(&self.sleeping, 0)
        if self.count == 1 and not pending:
            (<Engine>self.engines[0]).distribute(ready > 0)
        if self.count > 1 and not pending:
            self.scatter(polled, ready > 0)
            return
        for i in range(self.count):
            if not pending or not (<Engine>self.engines[i]).resting:
                (<Engine>self.engines[i]).wake(pending)

    cdef uint64_t wait(self, uint64_t deadline_ns, uint64_t now) noexcept nogil:
        """How long to sleep at most; NEVER: until input. An idle CPU takes 20 to 60 us to run the
        thread again, which would be most of the error of a delay or a rate. So the sleep ends that
        much early, and the thread polls until the deadline."""
        cdef uint64_t left = deadline_ns - now if deadline_ns > now else 0
        if deadline_ns == NEVER:
            return NEVER
        if deadline_ns != self.early_for_ns:
            self.early_for_ns = deadline_ns
            self.early_ns = min(self.late_ns, left >> EARLY_SHIFT)
        return left - self.early_ns if left > self.early_ns else 0

    cdef void learn(self, uint64_t waited_ns, uint64_t slept_ns) noexcept nogil:
        """Takes in how late a sleep has ended that only its timeout ended."""
        cdef uint64_t late = slept_ns - waited_ns if slept_ns > waited_ns else 0
        if waited_ns:
            self.late_ns += (min(late, <uint64_t>LATE_MOST_NS) >> 3) - (self.late_ns >> 3)

    cdef void gather(self, pollfd *into) noexcept nogil:
        """Copies all engines' descriptors into one array, if they or the engines have changed."""
        cdef uint32_t i, at = 0, each
        cdef uint64_t generation = 1
        # a hash of the engines, their order and their descriptors' generations
        for i in range(self.count):
            generation = (generation * 1000003 + (<Engine>self.engines[i]).polling.generation
                          + <uint64_t><size_t>self.engines[i])
        if generation == self.gathered:
            return
        self.gathered = generation
        for i in range(self.count):
            each = (<Engine>self.engines[i]).polling.descriptor_count
            memcpy(into + at, (<Engine>self.engines[i]).polling.descriptors, each * sizeof(pollfd))
            at += each

    cdef void scatter(self, const pollfd *out, bint any) noexcept nogil:
        """Wakes the engines with readable descriptors. The others rest, i.e. stay asleep: waking
        one costs microseconds of cold memory, which is most of a lone packet's cost when four
        engines share a thread."""
        cdef uint32_t i, k, at = 0, each
        cdef bint ready
        for i in range(self.count):
            each = (<Engine>self.engines[i]).polling.descriptor_count
            ready = False
            if any:
                for k in range(each):  # [1] is this thread's eventfd, the same for all engines
                    ready = ready or (out[at + k].revents != 0 and k != 1)
            if ready:
                memcpy((<Engine>self.engines[i]).polling.descriptors, out + at,
                       each * sizeof(pollfd))
                (<Engine>self.engines[i]).distribute(True)
                (<Engine>self.engines[i]).wake(False)
            else:
                (<Engine>self.engines[i]).resting = True
                (<Engine>self.engines[i]).look = False
            at += each

    cdef uint64_t now(self) noexcept nogil:
        """The end of the last iteration of any engine in this pass."""
        cdef uint32_t i
        cdef uint64_t latest = 0
        for i in range(self.count):
            if (<Engine>self.engines[i]).ctx.now_ns > latest:
                latest = (<Engine>self.engines[i]).ctx.now_ns
        return latest if self.count else self.clock.now()

    cdef void run(self) noexcept nogil:
        cdef uint64_t deadline, now, idle_since = 0
        cdef bint more = False, any = False
        cdef uint32_t i
        while not va_load_relaxed_u32(&self.stopping):
            if va_load_acquire_ptr(&self.inbox) != NULL:
                self.adopt()
            deadline = self.one_pass(&more, &any)
            now = self.pass_ns = self.now()
            if now >= self.settled_at_ns + SETTLE_NS:
                self.settle()
            if self.runtime_ns:
                if now >= self.window_ns + self.period_ns:
                    self.window_ns, self.window_slept_ns = now, 0
                    self.window_cpu_ns = self.thread_cpu_ns()
                elif now - self.window_ns >= self.runtime_ns + self.window_slept_ns:
                    self.throttle()
            if now >= self.balancer.next_ns:
                self.balancer.balance(now)
            if more or (any and self.spin_ns):
                idle_since = 0
            elif self.spin_ns and self.count:
                if idle_since == 0:
                    idle_since = now
                if self.spin_ns != NEVER and now - idle_since >= self.spin_ns:
                    idle_since = 0
                    self.sleep(deadline)
                    continue
                va_pause()
            else:
                self.sleep(deadline)
                continue
            # Resting engines may have input: poll them soon, but not after each lone packet of
            # another engine.
            if not more or now - self.looked_ns >= self.look_ns:
                self.looked_ns = now
            for i in range(self.count):
                if not (<Engine>self.engines[i]).resting or self.looked_ns == now:
                    look(<Engine>self.engines[i])
        self.adopt()
        while self.count:
            va_store_release_ptr(&(<Engine>self.engines[0]).destination, NULL)
            self.give_away(0)


ALWAYS = NEVER
