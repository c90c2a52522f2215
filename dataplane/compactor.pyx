"""Compactor. The contract is in compactor.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.element cimport NEVER
from dataplane.engine cimport Engine
from dataplane.balancer cimport Balancer
from dataplane.engine_thread cimport ENGINES_MOST
from posix.unistd cimport write
from dataplane.vatomic cimport (va_exchange_u32, va_fence, va_load_acquire_ptr, va_load_relaxed_u32, va_load_relaxed_u64, va_pause,
                                va_store_relaxed_u64, va_store_release_ptr, va_store_release_u32)

from dataplane.errors import VnicError

cdef enum:
    LATE_LOOKS = 2               # in a row, as in Shenango: one may be an interrupt, two are a queue
    CALM_NS = 50_000_000         # without delay, before engines go back: one more hand-off costs less than two for nothing
    SETTLED_LOOKS = 10           # after a move, until loads, which are smoothed over five, say what it has brought
    NOBODY = ENGINES_MOST

cdef double FULL = 0.7           # of a thread, when engines are packed: room for the engines' loads to grow before they are late
cdef double LIGHT = 0.05         # an engine of so little load relieves nobody by going
cdef double SMOOTHING = 0.2      # weight of the newest look
cdef double WORTHWHILE = 0.9     # what a move must bring the load of the fuller thread down to, or it is noise that moves engines
cdef double TAKEN = 2.0          # more than a thread's load can be: nothing is added


cdef class Compactor(Balancer):
    """Balances `threads`, of which the first is the one to compact on. slo_ns: the queueing delay to keep below. period_ns: how often it
    looks; with LATE_LOOKS that is how fast it reacts."""

    def __init__(self, *, uint64_t slo_ns=50_000, uint64_t period_ns=100_000):
        if slo_ns == 0 or period_ns == 0:
            raise VnicError("compacting: the objective and the period are at least 1 ns")
        self.slo_ns, self.period_ns = slo_ns, period_ns
        self._threads, self._engines = [], []

    # -- control: between `pause` and `resume` nothing moves ---------------------------------------------------------------

    def pause(self):
        """Waits for the look that may be under way (microseconds) and keeps others off."""
        while va_exchange_u32(&self.held, 1):
            va_pause()

    def resume(self):
        """Lets it look again."""
        va_store_release_u32(&self.held, 0)

    def set_threads(self, threads):
        """Paused only, or before any thread knows of it: the threads. Raises VnicError for more than ENGINES_MOST."""
        cdef uint32_t i
        threads = list(threads)
        if len(threads) > ENGINES_MOST:        # what there is room for
            raise VnicError(f"compacting: {len(threads)} threads; {ENGINES_MOST} at most")
        self._threads = threads
        self.thread_count = <uint32_t>len(self._threads)
        for i in range(self.thread_count):
            self.threads[i] = <PyObject *>self._threads[i]
        self.watch()

    def add(self, Engine engine not None):
        """Paused only: moves `engine` too from now on."""
        cdef Member *member = &self.members[self.member_count]
        if self.member_count == ENGINES_MOST:
            raise VnicError(f"compacting: {ENGINES_MOST} engines at most")
        self._engines.append(engine)
        member.engine, member.busy_ns, member.load, member.late, member.late_at_ns = <PyObject *>engine, engine.busy_ns, 0.0, 0, 0
        self.member_count += 1
        self.watch()

    def remove(self, Engine engine not None):
        """Paused only: leaves `engine` alone from now on."""
        cdef uint32_t place = self._engines.index(engine), i
        del self._engines[place]
        self.member_count -= 1
        for i in range(place, self.member_count):
            self.members[i] = self.members[i + 1]
        self.watch()

    cdef int watch(self) except -1:
        """One thread or one engine: nothing to move, so nobody need look."""
        self.next_ns = 0 if self.thread_count > 1 and self.member_count > 1 else NEVER
        return 0

    def status(self):
        """Moves so far by their reason, and the load of each engine as a share of a CPU."""
        return {"slo_ns": self.slo_ns, "period_ns": self.period_ns, "scaled_out": self.scaled_out,
                "migrated_back": self.migrated_back, "compacted": self.compacted,
                "loads": {engine.name: round(self.members[i].load, 4) for i, engine in enumerate(self._engines)}}

    # -- a look ------------------------------------------------------------------------------------------------------------

    def consider(self, uint64_t now_ns, uint32_t threads, members):
        """Instead of a look, for whoever has neither threads nor engines here: what one at `now_ns` decides that finds, for each of
        `members`, (its thread's number, its load, whether it is late); as the number of the thread where each is to be."""
        cdef uint32_t i
        if self._engines or self._threads or len(members) > ENGINES_MOST or not 0 < threads <= ENGINES_MOST:
            raise VnicError(f"compacting: what is considered has no engines, at most {ENGINES_MOST} members, 1 to {ENGINES_MOST} threads")
        if any(not 0 <= place < threads for place, _, _ in members):
            raise VnicError(f"compacting: members are on threads 0 to {threads - 1}")
        self.thread_count, self.member_count = threads, <uint32_t>len(members)
        for i, (place, load, late) in enumerate(members):
            self.members[i].place, self.members[i].load, self.members[i].moving = place, load, False
            self.judge(&self.members[i], late, now_ns)
        self.sum_up()
        self.decide(now_ns)
        return [self.members[i].goal for i in range(self.member_count)]

    cdef void balance(self, uint64_t now_ns) noexcept nogil:
        cdef uint32_t i
        if va_exchange_u32(&self.held, 1):     # another thread looks already
            return
        if now_ns >= self.next_ns and self.thread_count > 1 and self.member_count > 1:
            if self.measure(now_ns):
                self.decide(now_ns)
                for i in range(self.member_count):
                    if self.members[i].goal != self.members[i].place:
                        self.move(i, self.members[i].goal)
            self.looked_at_ns = now_ns
            self.next_ns = now_ns + self.period_ns
        va_store_release_u32(&self.held, 0)    # releases what this look wrote to the next one's thread

    cdef bint measure(self, uint64_t now_ns) noexcept nogil:
        """Loads and delays since the last look. False: there was none, or it lies too far back to say anything (all slept)."""
        cdef uint64_t elapsed = now_ns - self.looked_at_ns, busy, delay
        cdef uint32_t i, k
        cdef bint known = self.looked_at_ns != 0 and elapsed < 100 * self.period_ns
        cdef double part, weight = SMOOTHING
        cdef Member *member
        cdef void *owner
        if not known:
            weight = 1.0                       # the past says nothing any more
        for i in range(self.member_count):
            member = &self.members[i]
            owner = va_load_acquire_ptr(&(<Engine>member.engine).owner)
            member.moving = owner == NULL or va_load_acquire_ptr(&(<Engine>member.engine).destination) != owner
            busy = va_load_relaxed_u64(&(<Engine>member.engine).busy_ns)
            part = <double>(busy - member.busy_ns) / <double>(elapsed if elapsed else 1)
            member.load += weight * ((part if part < 1.0 else 1.0) - member.load)
            member.busy_ns = busy
            delay = va_load_relaxed_u64(&(<Engine>member.engine).delay_ns)
            va_store_relaxed_u64(&(<Engine>member.engine).delay_ns, 0)   # its thread may lose us one maximum: the next look has another
            self.judge(member, delay > self.slo_ns and not member.moving, now_ns)
            for k in range(self.thread_count):
                if <void *>self.threads[k] == owner:
                    member.place = k
        self.sum_up()
        return known

    cdef void judge(self, Member *member, bint late, uint64_t now_ns) noexcept nogil:
        member.late = member.late + 1 if late else 0
        if member.late >= LATE_LOOKS:
            member.late_at_ns = now_ns

    cdef void sum_up(self) noexcept nogil:
        """Loads and engines of the threads; from here on engines stay, unless something is decided."""
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
        """Tells the engine's thread, which looks between two turns, and wakes it if it sleeps."""
        cdef uint64_t one = 1
        self.members[member].late = 0
        va_store_release_ptr(&(<Engine>self.members[member].engine).destination, <void *>self.threads[thread])
        va_fence()                             # as who posts to the mailbox
        if va_load_relaxed_u32(&(<Engine>self.members[member].engine).sleeping):
            write((<Engine>self.members[member].engine).mailbox_descriptor, &one, 8)

    cdef void decide(self, uint64_t now_ns) noexcept nogil:
        """Sets the members' goals. Late engines that share a thread are seen to, the fullest thread first. One that has a thread to itself
        cannot be helped, and keeps nobody from being packed."""
        cdef uint32_t i, worst
        cdef uint64_t asked = 0                # threads, by their bits: there are at most 64
        while True:
            worst = NOBODY
            for i in range(self.member_count):
                if self.members[i].late >= LATE_LOOKS and not self.members[i].moving and self.counts[self.members[i].place] > 1 and (
                        not asked >> self.members[i].place & 1) and (
                        worst == NOBODY or self.loads[self.members[i].place] > self.loads[self.members[worst].place]):
                    worst = i
            if worst == NOBODY:
                break
            self.late_at_ns = now_ns
            if now_ns - self.moved_at_ns < SETTLED_LOOKS * self.period_ns:
                break
            if self.scale_out(worst):
                self.moved_at_ns = now_ns
                break
            asked |= <uint64_t>1 << self.members[worst].place
        if now_ns - self.late_at_ns >= CALM_NS:
            self.compact(now_ns)

    cdef bint scale_out(self, uint32_t late) noexcept nogil:
        """A queue built up: the busiest engine beside it, which may be itself, goes where there is most room. False: that would be no
        better."""
        cdef uint32_t i, k, source = self.members[late].place, chosen = late, target = NOBODY
        for i in range(self.member_count):
            if self.members[i].place == source and not self.members[i].moving and self.members[i].load > self.members[chosen].load:
                chosen = i
        for k in range(self.thread_count):
            if k != source and (target == NOBODY or self.loads[k] < self.loads[target] or (
                    self.loads[k] == self.loads[target] and self.counts[k] < self.counts[target])):
                target = k
        if target == NOBODY or (
                self.counts[target] and self.loads[target] + self.members[chosen].load >= WORTHWHILE * self.loads[source]):
            return False
        self.members[chosen].goal = target
        self.scaled_out += 1
        return True

    cdef void compact(self, uint64_t now_ns) noexcept nogil:
        """Packs engines by falling load into as few threads as will do, each to FULL, the first thread first (first fit, decreasing). Moves
        them if that frees a thread: back to the first one, together on another, or in exchange. Who was late a moment ago, with a thread to
        itself since otherwise there is no packing, keeps that: whoever came would be sent away again."""
        cdef uint32_t order[ENGINES_MOST]
        cdef uint32_t goal[ENGINES_MOST]
        cdef double packed[ENGINES_MOST]
        cdef uint32_t i, j, k, used = 0, needed = 0, movable = 0
        for k in range(self.thread_count):
            packed[k] = 0.0
            used += self.counts[k] > 0
        for i in range(self.member_count):
            if self.members[i].moving:
                return                         # look again when it has arrived
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
