"""VirtualTime. The contract is in virtual_time.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from dataplane.graph.element cimport NEVER, Element, Source
from dataplane.engine.engine cimport Engine
from dataplane.graph.link cimport drain_links
from dataplane.packet.pool cimport BURST, Context
from dataplane.graph.port cimport PortRx

from dataplane.errors import VnicError


cdef class VirtualTime:
    """Runs `engines`, which share one virtual clock and have loaded their graphs. A changed graph
    needs a new VirtualTime.

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
                raise VnicError(f"engine {engine.name}: has another clock than engine {self.engines[0].name}")
        polled = [(source, each) for each in self.engines for source in each.sources if not source.TAKES_INPUT]
        rings = [pair for pair in polled if isinstance(pair[0], PortRx) and pair[0].port.wakes_only]
        sources = sorted((pair for pair in polled if pair not in rings), key=_place)
        timed = sorted(((element, each) for each in self.engines for element in each.elements
                        if element.TICKS and not isinstance(element, Source)), key=lambda pair: pair[0].name)
        self._kept = [sources, rings, timed]
        self.contexts = <Context **>calloc(len(self.engines), sizeof(Context *))
        self.sources = <Polled *>calloc(len(sources) + 1, sizeof(Polled))
        self.rings = <Polled *>calloc(len(rings) + 1, sizeof(Polled))
        self.timed = <Timed *>calloc(len(timed) + 1, sizeof(Timed))
        if self.contexts == NULL or self.sources == NULL or self.rings == NULL or self.timed == NULL:
            raise MemoryError("virtual time")
        for i, engine in enumerate(self.engines):
            self.contexts[i] = engine.ctx
        for i, (source, engine) in enumerate(sources):
            self.sources[i].source, self.sources[i].ctx, self.sources[i].scheduled = <void *>source, engine.ctx, source.TICKS
        for i, (source, engine) in enumerate(rings):
            self.rings[i].source, self.rings[i].ctx = <void *>source, engine.ctx
        for i, (element, engine) in enumerate(timed):
            self.timed[i].element, self.timed[i].ctx, self.timed[i].deferrable = <void *>element, engine.ctx, element.DEFERRABLE
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
            while True:
                total += self.instant()
                deadline = self.next_deadline(False)
                if deadline > until_ns:
                    break
                if deadline > self.clock.virtual_ns:
                    self.clock.virtual_ns = deadline
            if until_ns > self.clock.virtual_ns:
                self.clock.virtual_ns = until_ns
        return total

    def run(self, uint64_t most):
        """Runs until nothing is due any more, or sources have delivered `most` packets; returns
        their number, 0 at the end. Deferrable timers (a table's ageing) run when due, but do not
        keep the run going."""
        cdef uint64_t total = 0, deadline
        with nogil:
            while total < most:
                total += self.instant()
                if self.next_deadline(True) == NEVER:
                    break
                deadline = self.next_deadline(False)
                if deadline > self.clock.virtual_ns:
                    self.clock.virtual_ns = deadline
        return total

    cdef void set_now(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.context_count):
            self.contexts[i].now_ns = self.clock.virtual_ns
            self.contexts[i].burst = BURST
            self.contexts[i].flood_budget = <uint64_t>-1   # in virtual time no packet waits for another's copies

    cdef uint64_t cross(self) noexcept nogil:
        """Delivers packets that wait in rings between engines, and those that follow from them;
        returns how many."""
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
        """Runs everything that is due now; returns how many packets sources delivered."""
        cdef uint64_t total = 0, now = self.clock.virtual_ns
        cdef uint32_t i, got
        cdef bint again = True
        self.set_now()
        for i in range(self.context_count):
            drain_all(self.contexts[i])
        total += self.cross()
        while again:
            again = False
            for i in range(self.source_count):
                if self.sources[i].scheduled and (<Element>self.sources[i].source).deadline_ns > now:
                    continue
                got = (<Source>self.sources[i].source).poll(self.sources[i].ctx)
                drain_all(self.sources[i].ctx)
                if got:
                    total += got
                    if self.ring_count:
                        self.cross()
                    again = again or not self.sources[i].scheduled
                again = again or (self.sources[i].scheduled and (<Element>self.sources[i].source).deadline_ns <= now)
            for i in range(self.timed_count):
                if (<Element>self.timed[i].element).deadline_ns <= now:
                    (<Element>self.timed[i].element).tick(self.timed[i].ctx)
                    drain_all(self.timed[i].ctx)
                    if self.ring_count:
                        self.cross()
                    again = again or (<Element>self.timed[i].element).deadline_ns <= now
        return total

    cdef uint64_t next_deadline(self, bint waking) noexcept nogil:
        """The next deadline of all sources and timers; waking: without deferrable timers."""
        cdef uint64_t deadline = NEVER, due
        cdef uint32_t i
        for i in range(self.source_count):
            due = (<Element>self.sources[i].source).deadline_ns
            deadline = due if due < deadline else deadline
        for i in range(self.timed_count):
            due = (<Element>self.timed[i].element).deadline_ns
            if due < deadline and not (waking and self.timed[i].deferrable):
                deadline = due
        return deadline


cdef inline void drain_all(Context *ctx) noexcept nogil:
    """Lets go what the links of an engine hold. What circulates there goes on at the next instant."""
    if ctx.links != NULL:
        drain_links(ctx)


def _place(pair):
    """The sort key of a source within an instant."""
    source = pair[0]
    return (source.port.number if isinstance(source, PortRx) else 1 << 32, source.name)
