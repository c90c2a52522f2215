"""VirtualTime. The contract is in virtual_time.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from dataplane.graph.element cimport NEVER, Element, Source
from dataplane.engine.engine cimport Engine
from dataplane.graph.link cimport drain_links
from dataplane.graph.timers cimport Timers
from dataplane.packet.pool cimport BURST, Context
from dataplane.graph.port cimport PortRx

from dataplane.errors import VnicError


@cython.final
cdef class VirtualTime:
    """Runs `engines`, which share one virtual clock and have loaded their graphs. After a change of
    a graph, make a new VirtualTime.

    Raises VnicError for an engine with the machine's clock.
    """

    def __init__(self, engines):
        cdef Engine engine
        cdef uint32_t i
        self.engines = list(engines)
        if not self.engines:
            raise VnicError("virtual time: no engine to run")
        self.clock = self.engines[0].clock
        for engine in self.engines:
            if not engine.clock.virtual:
                raise VnicError(f"engine {engine.name}: has the machine's clock; use start()")
            if engine.clock is not self.clock:
                raise VnicError(f"engine {engine.name}: "
                                f"has another clock than engine {self.engines[0].name}")
        polled = [(source, each) for each in self.engines for source in each.sources
                  if not source.TAKES_INPUT]
        rings = [pair for pair in polled if isinstance(pair[0], PortRx) and pair[0].port.wakes_only]
        sources = sorted((pair for pair in polled if pair not in rings), key=_place)
        timed = sorted(((element, each) for each in self.engines for element in each.elements
                        if element.TICKS and not isinstance(element, Source)),
                       key=lambda pair: pair[0].name)
        self._references = [sources, rings, timed]
        self.contexts = <Context **>calloc(len(self.engines), sizeof(Context *))
        self.sources = <Polled *>calloc(len(sources) + 1, sizeof(Polled))
        self.rings = <Polled *>calloc(len(rings) + 1, sizeof(Polled))
        self.timed = <Timed *>calloc(len(timed) + 1, sizeof(Timed))
        if (self.contexts == NULL or self.sources == NULL or self.rings == NULL
                or self.timed == NULL):
            raise MemoryError("virtual time")
        for i, engine in enumerate(self.engines):
            self.contexts[i] = engine.ctx
        for i, (source, engine) in enumerate(sources):
            self.sources[i].source, self.sources[i].ctx = <void *>source, engine.ctx
            self.sources[i].scheduled = source.TICKS
            self.sources[i].deadline_ns = &(<Element>self.sources[i].source).deadline_ns
        for i, (source, engine) in enumerate(rings):
            self.rings[i].source, self.rings[i].ctx = <void *>source, engine.ctx
        for i, (element, engine) in enumerate(timed):
            self.timed[i].element, self.timed[i].ctx = <void *>element, engine.ctx
            self.timed[i].deferrable = element.DEFERRABLE
            self.timed[i].deadline_ns = &(<Element>self.timed[i].element).deadline_ns
        self.context_count, self.source_count = <uint32_t>len(self.engines), <uint32_t>len(sources)
        self.ring_count, self.timed_count = <uint32_t>len(rings), <uint32_t>len(timed)

    def __dealloc__(self):
        free(self.contexts)
        free(self.sources)
        free(self.rings)
        free(self.timed)

    def advance(self, uint64_t until_ns):
        """Runs everything that is due up to and including `until_ns`, each timer at its own
        instant, and sets the clock to `until_ns`. Returns the number of packets that sources
        delivered."""
        cdef uint64_t total = 0, deadline
        with nogil:
            self.timer_ns = self.next_timer(False)       # control may have set timers meanwhile
            while True:
                total += self.instant()
                deadline = min(self.next_source(), self.timer_ns)
                if deadline > until_ns:
                    break
                if deadline > self.clock.virtual_ns:
                    self.clock.virtual_ns = deadline
            if until_ns > self.clock.virtual_ns:
                self.clock.virtual_ns = until_ns
        return total

    def run(self, uint64_t most, uint64_t until_ns=NEVER):
        """Runs until nothing is due any more, at least not up to and including `until_ns`, or
        sources have delivered `most` packets; returns the number of packets, 0 at the end.
        Deferrable timers (a table's ageing) run when due, but do not prolong the run."""
        cdef uint64_t total = 0, deadline
        with nogil:
            self.timer_ns = self.next_timer(False)       # control may have set timers meanwhile
            while total < most:
                total += self.instant()
                deadline = self.next_source()
                if deadline == NEVER and self.next_timer(True) == NEVER:
                    break
                deadline = min(deadline, self.timer_ns)
                if deadline > until_ns:
                    break
                if deadline > self.clock.virtual_ns:
                    self.clock.virtual_ns = deadline
        return total

    def due_ns(self):
        """After a run, the next instant at which something is due, deferrable timers apart; None:
        nothing is."""
        cdef uint64_t deadline = min(self.next_source(), self.next_timer(True))
        return None if deadline == NEVER else deadline

    cdef void set_now(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.context_count):
            self.contexts[i].now_ns = self.clock.virtual_ns
            self.contexts[i].burst = BURST
            self.contexts[i].flood_budget = <uint64_t>-1   # unlimited in virtual time

    cdef uint64_t cross(self) noexcept nogil:
        """Delivers the packets in rings between engines until all rings are empty; returns their
        number."""
        cdef uint64_t total = 0
        cdef uint32_t i, got = self.ring_count
        while got:
            got = 0
            for i in range(self.ring_count):
                got += (<Source>self.rings[i].source).poll(self.rings[i].ctx)
                drain_all(self.rings[i].ctx)
            total += got
        return total

    cdef uint64_t instant(self) noexcept nogil:
        """Runs everything that is due now; returns the number of packets that sources delivered."""
        cdef uint64_t total = 0, now = self.clock.virtual_ns
        cdef Polled *source
        cdef Polled *end = self.sources + self.source_count
        cdef uint32_t i, got
        cdef bint again = True
        self.set_now()
        for i in range(self.context_count):
            drain_all(self.contexts[i])
        if self.ring_count:
            total += self.cross()
        while again:
            again = False
            source = self.sources
            while source < end:
                if source.deadline_ns[0] <= now or not source.scheduled:
                    got = (<Source>source.source).poll(source.ctx)
                    drain_all(source.ctx)
                    if got:
                        total += got
                        if self.ring_count:
                            self.cross()
                        again = again or not source.scheduled
                    again = again or (source.scheduled and source.deadline_ns[0] <= now)
                source += 1
            # Skipped unless a timer was set or is due: a NIC has several timers.
            if self.timers_changed() or self.timer_ns <= now:
                again = self.run_timers(now) or again
        return total

    cdef bint timers_changed(self) noexcept nogil:
        """Whether an element has set its timer since the last call."""
        cdef Timers *timers
        cdef uint32_t i
        cdef bint changed = False
        for i in range(self.context_count):
            timers = <Timers *>self.contexts[i].timers
            changed = changed or timers.changed
            timers.changed = False
        return changed

    cdef bint run_timers(self, uint64_t now_ns) noexcept nogil:
        """Runs each timer that is due, once, and finds the next deadline; returns whether one is
        due again."""
        cdef uint32_t i
        cdef bint ticked = False, again = False
        self.timer_ns = NEVER
        for i in range(self.timed_count):
            if self.timed[i].deadline_ns[0] <= now_ns:
                ticked = True
                (<Element>self.timed[i].element).tick(self.timed[i].ctx)
                drain_all(self.timed[i].ctx)
                if self.ring_count:
                    self.cross()
                again = again or self.timed[i].deadline_ns[0] <= now_ns
            else:
                self.timer_ns = min(self.timer_ns, self.timed[i].deadline_ns[0])
        if ticked:                           # a tick may have set other timers
            self.timer_ns = self.next_timer(False)
        return again

    cdef uint64_t next_source(self) noexcept nogil:
        """The next deadline of all sources."""
        cdef uint64_t deadline = NEVER
        cdef uint32_t i
        for i in range(self.source_count):
            deadline = min(deadline, self.sources[i].deadline_ns[0])
        return deadline

    cdef uint64_t next_timer(self, bint waking) noexcept nogil:
        """The next deadline of all timers; waking: without deferrable ones."""
        cdef uint64_t deadline = NEVER
        cdef uint32_t i
        for i in range(self.timed_count):
            if not (waking and self.timed[i].deferrable):
                deadline = min(deadline, self.timed[i].deadline_ns[0])
        return deadline


cdef inline void drain_all(Context *ctx) noexcept nogil:
    """Forwards the packets in an engine's links. Packets that go in circles continue at the next
    instant."""
    if ctx.links != NULL:
        drain_links(ctx)


def _place(pair):
    """The sort key of a source within an instant."""
    source = pair[0]
    return (source.port.number if isinstance(source, PortRx) else 1 << 32, source.name)
