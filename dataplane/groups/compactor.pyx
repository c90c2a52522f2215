"""Compactor. The contract is in compactor.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport NEVER
from dataplane.engine.engine cimport Engine
from dataplane.engine.balancer cimport Balancer
from dataplane.engine.thread cimport ENGINES_MOST
from posix.unistd cimport write
from dataplane.vatomic cimport (va_exchange_u32, va_fence, va_load_acquire_ptr,
                                va_load_relaxed_u32, va_load_relaxed_u64, va_pause,
                                va_store_relaxed_u64, va_store_release_ptr, va_store_release_u32)

from dataplane.errors import VnicError

cdef enum:
    # consecutive late checks, as in Shenango: one may be an interrupt, two are a queue
    LATE_LOOKS = 2
    # time without delay before engines are packed again: a superfluous hand-off between threads
    # costs less than two useless moves
    CALM_NS = 50_000_000
    # checks after a move before the next one: the loads, smoothed over five checks, have to show
    # its effect
    SETTLED_LOOKS = 10
    NONE_FOUND = ENGINES_MOST

# share of a thread to pack engines up to: the rest lets their loads grow before they are late
cdef double FULL = 0.7
# a tenth of this load is negligible: such an engine also fits on a thread that is full
cdef double LIGHT = 0.05
cdef double SMOOTHING = 0.2      # weight of the newest measurement
# a move must bring the fuller thread's load below this fraction, or noise would move engines
cdef double WORTHWHILE = 0.9
cdef double TAKEN = 2.0          # above any thread's load: nothing more is packed on this thread


cdef class Compactor(Balancer):
    """Distributes the engines of one group over `threads`; engines are compacted on the first.

    slo_ns: queueing delay to keep below. period_ns: interval between two checks; the reaction time
    is LATE_LOOKS of them.
    """

    def __init__(self, *, uint64_t slo_ns=50_000, uint64_t period_ns=100_000):
        if slo_ns == 0 or period_ns == 0:
            raise VnicError("compacting: the objective and the period are at least 1 ns")
        self.slo_ns, self.period_ns = slo_ns, period_ns
        self._threads, self._engines = [], []

    # -- control: no engine moves between `pause` and `resume` ------------------------------------

    def pause(self):
        """Waits until a check in progress has ended (microseconds), and prevents further ones."""
        while va_exchange_u32(&self.held, 1):
            va_pause()

    def resume(self):
        """Allows checks again."""
        va_store_release_u32(&self.held, 0)

    def set_threads(self, threads):
        """Sets the threads. Only while paused, or before any thread has this balancer. Raises
        VnicError for more than ENGINES_MOST."""
        cdef uint32_t i
        threads = list(threads)
        if len(threads) > ENGINES_MOST:        # the capacity of the arrays
            raise VnicError(f"compacting: {len(threads)} threads; {ENGINES_MOST} at most")
        self._threads = threads
        self.thread_count = <uint32_t>len(self._threads)
        for i in range(self.thread_count):
            self.threads[i] = <PyObject *>self._threads[i]
        self.watch()

    def add(self, Engine engine not None):
        """Includes `engine` in the balancing. Only while paused."""
        cdef Member *member = &self.members[self.member_count]
        if self.member_count == ENGINES_MOST:
            raise VnicError(f"compacting: {ENGINES_MOST} engines at most")
        self._engines.append(engine)
        member.engine, member.busy_ns = <PyObject *>engine, engine.busy_ns
        member.load, member.late, member.late_at_ns = 0.0, 0, 0
        self.member_count += 1
        self.watch()

    def remove(self, Engine engine not None):
        """Excludes `engine` from the balancing. Only while paused."""
        cdef uint32_t place = self._engines.index(engine), i
        del self._engines[place]
        self.member_count -= 1
        for i in range(place, self.member_count):
            self.members[i] = self.members[i + 1]
        self.watch()

    cdef int watch(self) except -1:
        """Disables the checks while there is only one thread or one engine: nothing could move."""
        self.next_ns = 0 if self.thread_count > 1 and self.member_count > 1 else NEVER
        return 0

    def status(self):
        """Number of moves by their reason, and each engine's load as a share of a CPU."""
        return {"slo_ns": self.slo_ns, "period_ns": self.period_ns, "scaled_out": self.scaled_out,
                "migrated_back": self.migrated_back, "compacted": self.compacted,
                "loads": {engine.name: round(self.members[i].load, 4)
                          for i, engine in enumerate(self._engines)}}

    # -- a check ----------------------------------------------------------------------------------

    def consider(self, uint64_t now_ns, uint32_t threads, members):
        """Decides as a check at `now_ns` would, on given values; for a compactor without threads
        and engines (tests, simulation).

        members: for each engine (number of its thread, load, whether it is late). Returns the
        number of the thread that each engine should go to.
        """
        cdef uint32_t i
        if (self._engines or self._threads or len(members) > ENGINES_MOST
                or not 0 < threads <= ENGINES_MOST):
            raise VnicError(f"compacting: what is considered has no engines, "
                            f"at most {ENGINES_MOST} members, 1 to {ENGINES_MOST} threads")
        if any(not 0 <= place < threads for place, _, _ in members):
            raise VnicError(f"compacting: members are on threads 0 to {threads - 1}")
        self.thread_count, self.member_count = threads, <uint32_t>len(members)
        for i, (place, load, late) in enumerate(members):
            self.members[i].place, self.members[i].load, self.members[i].moving = place, load, False
            self.note_lateness(&self.members[i], late, now_ns)
        self.sum_up()
        self.decide(now_ns)
        return [self.members[i].goal for i in range(self.member_count)]

    cdef void balance(self, uint64_t now_ns) noexcept nogil:
        cdef uint32_t i
        if va_exchange_u32(&self.held, 1):     # another thread is checking
            return
        if now_ns >= self.next_ns and self.thread_count > 1 and self.member_count > 1:
            if self.measure(now_ns):
                self.decide(now_ns)
                for i in range(self.member_count):
                    if self.members[i].goal != self.members[i].place:
                        self.move(i, self.members[i].goal)
            self.looked_at_ns = now_ns
            self.next_ns = now_ns + self.period_ns
        # release: the next check's thread sees what this one wrote
        va_store_release_u32(&self.held, 0)

    cdef bint measure(self, uint64_t now_ns) noexcept nogil:
        """Measures loads and delays since the last check. False: there was none, or it is too long
        ago (all threads slept) for meaningful averages."""
        cdef uint64_t elapsed = now_ns - self.looked_at_ns, busy, delay
        cdef uint32_t i, k
        cdef bint known = self.looked_at_ns != 0 and elapsed < 100 * self.period_ns
        cdef double part, weight = SMOOTHING
        cdef Member *member
        cdef void *owner
        if not known:
            weight = 1.0                       # the old average is outdated
        for i in range(self.member_count):
            member = &self.members[i]
            owner = va_load_acquire_ptr(&(<Engine>member.engine).owner)
            member.moving = (owner == NULL
                             or va_load_acquire_ptr(&(<Engine>member.engine).destination) != owner)
            busy = va_load_relaxed_u64(&(<Engine>member.engine).busy_ns)
            part = <double>(busy - member.busy_ns) / <double>(elapsed if elapsed else 1)
            member.load += weight * ((part if part < 1.0 else 1.0) - member.load)
            member.busy_ns = busy
            delay = va_load_relaxed_u64(&(<Engine>member.engine).delay_ns)
            # may race with the engine's thread and lose one maximum; the next check sees the next
            # one
            va_store_relaxed_u64(&(<Engine>member.engine).delay_ns, 0)
            self.note_lateness(member, delay > self.slo_ns and not member.moving, now_ns)
            for k in range(self.thread_count):
                if <void *>self.threads[k] == owner:
                    member.place = k
        self.sum_up()
        return known

    cdef void note_lateness(self, Member *member, bint late, uint64_t now_ns) noexcept nogil:
        member.late = member.late + 1 if late else 0
        if member.late >= LATE_LOOKS:
            member.late_at_ns = now_ns

    cdef void sum_up(self) noexcept nogil:
        """Sums loads and engines by thread, and sets each engine's goal to where it is."""
        cdef uint32_t i, k
        for k in range(self.thread_count):
            self.loads[k] = 0.0
            self.counts[k] = 0
        for i in range(self.member_count):
            self.members[i].goal = self.members[i].place
            if not self.members[i].moving:
                self.loads[self.members[i].place] += self.members[i].load
                self.counts[self.members[i].place] += 1

    cdef void move(self, uint32_t member, uint32_t thread) noexcept nogil:
        """Sets the engine's destination, which its thread reads between two iterations; wakes that
        thread if it sleeps."""
        cdef uint64_t one = 1
        self.members[member].late = 0
        va_store_release_ptr(&(<Engine>self.members[member].engine).destination,
                             <void *>self.threads[thread])
        va_fence()  # write the destination before reading `sleeping`, as in Engine.post
        if va_load_relaxed_u32(&(<Engine>self.members[member].engine).sleeping):
            write((<Engine>self.members[member].engine).mailbox_descriptor, &one, 8)

    cdef void decide(self, uint64_t now_ns) noexcept nogil:
        """Sets the engines' goals. Of the late engines that share a thread, those on the thread
        with the highest load come first. A late engine alone on its thread cannot be helped, and
        does not prevent packing."""
        cdef uint32_t i, worst
        cdef uint64_t tried = 0                # bit mask of threads, at most 64
        while True:
            worst = NONE_FOUND
            for i in range(self.member_count):
                if (self.members[i].late >= LATE_LOOKS and not self.members[i].moving
                        and self.counts[self.members[i].place] > 1
                        and not tried >> self.members[i].place & 1
                        and (worst == NONE_FOUND or self.loads[self.members[i].place]
                             > self.loads[self.members[worst].place])):
                    worst = i
            if worst == NONE_FOUND:
                break
            self.late_at_ns = now_ns
            if now_ns - self.moved_at_ns < SETTLED_LOOKS * self.period_ns:
                break
            if self.scale_out(worst):
                self.moved_at_ns = now_ns
                break
            tried |= <uint64_t>1 << self.members[worst].place
        if now_ns - self.late_at_ns >= CALM_NS:
            self.compact(now_ns)

    cdef bint scale_out(self, uint32_t late) noexcept nogil:
        """Resolves a queue: moves the busiest engine of the late engine's thread, possibly the late
        one itself, to the thread with the lowest load. False: that would not help."""
        cdef uint32_t i, k, source = self.members[late].place, chosen = late, target = NONE_FOUND
        for i in range(self.member_count):
            if (self.members[i].place == source and not self.members[i].moving
                    and self.members[i].load > self.members[chosen].load):
                chosen = i
        for k in range(self.thread_count):
            if k != source and (target == NONE_FOUND or self.loads[k] < self.loads[target] or (
                    self.loads[k] == self.loads[target] and self.counts[k] < self.counts[target])):
                target = k
        if target == NONE_FOUND or (
                self.counts[target] and (self.loads[target] + self.members[chosen].load
                                         >= WORTHWHILE * self.loads[source])):
            return False
        self.members[chosen].goal = target
        self.scaled_out += 1
        return True

    cdef void compact(self, uint64_t now_ns) noexcept nogil:
        """Packs engines in order of falling load on as few threads as possible, each up to FULL,
        the first thread first (first fit decreasing). Engines are moved only if that frees a
        thread: to the first thread, together on another one, or in exchange.

        An engine that was late within CALM_NS keeps its thread for itself (it is alone there, since
        there is no packing otherwise): an engine added there would be moved away again.
        """
        cdef uint32_t order[ENGINES_MOST]
        cdef uint32_t goal[ENGINES_MOST]
        cdef double packed[ENGINES_MOST]
        cdef uint32_t i, j, k, used = 0, needed = 0, movable = 0
        for k in range(self.thread_count):
            packed[k] = 0.0
            used += self.counts[k] > 0
        for i in range(self.member_count):
            if self.members[i].moving:
                return                         # decided when it has arrived
            goal[i] = self.members[i].place
            if now_ns - self.members[i].late_at_ns < CALM_NS:
                needed += packed[goal[i]] == 0.0
                packed[goal[i]] = TAKEN
                continue
            j = movable
            while j > 0 and self.members[order[j - 1]].load < self.members[i].load:
                order[j] = order[j - 1]
                j -= 1
            order[j] = i
            movable += 1
        for j in range(movable):
            i = order[j]
            for k in range(self.thread_count):
                if packed[k] == 0.0 or packed[k] + self.members[i].load <= FULL or (
                        self.members[i].load < LIGHT * 0.1 and packed[k] < TAKEN):
                    goal[i] = k
                    needed += packed[k] == 0.0
                    packed[k] += self.members[i].load + 1e-9
                    break
            else:
                return
        if needed >= used:
            return
        for i in range(self.member_count):
            self.members[i].goal = goal[i]
            if goal[i] != self.members[i].place:
                if goal[i] == 0:
                    self.migrated_back += 1
                else:
                    self.compacted += 1
