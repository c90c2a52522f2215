"""Link. The contract is in link.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t
from dataplane.graph.element cimport Element, Source
from dataplane.packet.pool cimport BATCH_MAX, NO_PACKET, Batch, Context, batch_add
from dataplane.packet.queue cimport (pool_records, queue_head, queue_indices, queue_length,
                                     queue_packed)

from dataplane.errors import VnicError
from dataplane.packet.queue import with_packed_packets

cdef enum:                       # DROP_REASONS
    LINK_FULL = 0
    RELEASED = 1


cdef class Link(Source):
    """Queues packets for the element behind it until the engine has left the elements before it.

    Synopsis:  lan[2] >> Link(5, name="to-dmz") >> dmz; engine.load([..., link])
    Ports:     1 input, 1 output; packets leave in order. It is one of the engine's sources, so that
               two switches may lead to each other.
    Config:    port: Packet.port of departing packets, the number of the next switch's port.
    Drops:     link_full: more than 4096 packets would have waited
               released: packets that waited when the link was removed
    Counters:  none
    Handlers:  counters
    Threads:   any one engine
    """

    OUTPUTS = 1
    DROP_REASONS = ("link_full", "released")
    TAKES_INPUT = True
    STATE_VERSION = 2
    UPGRADES = {1: with_packed_packets}

    def __init__(self, uint32_t port, *, name=None):
        self.port = port
        self.head = self.tail = NO_PACKET

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, index
        for i in range(batch.count):
            index = batch.index[i]
            if self.counters.held >= LINK_CAPACITY:
                self.drop(ctx, index, LINK_FULL)
                continue
            ctx.packets[index].next = NO_PACKET
            if self.head == NO_PACKET:
                self.head = index
            else:
                ctx.packets[self.tail].next = index
            self.tail = index
            self.counters.held += 1
        batch.count = 0
        self.enlist(ctx)

    cdef uint32_t poll(self, Context *ctx) noexcept nogil:
        """Forwards at most one batch. Returns 0, since these packets were counted before."""
        cdef Batch batch
        cdef uint32_t index
        batch.count = 0
        while self.head != NO_PACKET and batch.count < BATCH_MAX:
            index = self.head
            self.head = ctx.packets[index].next
            ctx.packets[index].port = self.port
            batch_add(&batch, index)
        self.counters.held -= batch.count
        if batch.count:
            self.emit(ctx, 0, &batch)
        return 0

    cdef void take_up(self, Context *ctx) noexcept nogil:
        self.enlist(ctx)

    cdef void enlist(self, Context *ctx) noexcept nogil:
        """Appends the link to the engine's list, unless it is listed or empty."""
        if self.listed != NULL or self.head == NO_PACKET:
            return
        self.listed, self.next_listed = ctx, NULL
        if ctx.links == NULL:
            ctx.links = <void *>self
        else:
            (<Link>ctx.last_link).next_listed = <void *>self
        ctx.last_link = <void *>self

    cdef void unlist(self) noexcept nogil:
        cdef Context *ctx = self.listed
        cdef void *each
        if ctx == NULL:
            return
        self.listed = NULL
        if ctx.links == <void *>self:
            ctx.links = self.next_listed
            return
        each = ctx.links
        while (<Link>each).next_listed != <void *>self:
            each = (<Link>each).next_listed
        (<Link>each).next_listed = self.next_listed
        if ctx.last_link == <void *>self:
            ctx.last_link = each

    def drain(self, uint32_t most=0xFFFFFFFF):
        """Forwards all of them, since they were to leave in this iteration."""
        cdef Context *ctx = self.listed
        self.unlist()
        while ctx != NULL and self.head != NO_PACKET:
            self.poll(ctx)

    def release(self):
        cdef Context *ctx = self.listed
        cdef uint32_t index
        self.unlist()
        while ctx != NULL and self.head != NO_PACKET:
            index = self.head
            self.head = ctx.packets[index].next
            self.counters.held -= 1
            self.drop(ctx, index, RELEASED)

    def describe(self):
        return {"port": self.port}

    # -- hand-over ---------------------------------------------------------------------------------

    def save_state(self):
        """`packets`: the held packets, packed, oldest first. There are some only where the engine
        has reached DRAINS_MOST."""
        cdef Context records
        pool_records(self.engine.pool, &records)
        return {"packets": queue_packed(records.packets, self.head, <uint32_t>self.counters.held)}

    def load_state(self, dict state):
        cdef Context records
        cdef uint32_t head
        cdef bytes packets
        pool_records(self.engine.pool, &records)
        try:
            packets = state["packets"]
            if len(state) != 1 or queue_length(packets) != self.counters.held:
                raise ValueError(f"{queue_length(packets)} packets, "
                                 f"and its counters say {self.counters.held}")
            head = queue_head(records.packets, records.total_count, packets)
        except (KeyError, TypeError, ValueError) as error:
            raise VnicError(f"{self.name}: its state is not that of a Link: {error}") from None
        self.head = head
        self.tail = queue_indices(packets)[queue_length(packets) - 1] if packets else NO_PACKET

    def forget_state(self):
        self.unlist()
        self.head = self.tail = NO_PACKET
        Element.forget_state(self)


cdef void drain_links(Context *ctx) noexcept nogil:
    """Empties the engine's links, also those filled meanwhile, in the order in which they got
    packets."""
    cdef uint32_t _
    cdef PyObject *link
    for _ in range(DRAINS_MOST):
        if ctx.links == NULL:
            return
        link = <PyObject *>ctx.links
        ctx.links = (<Link>link).next_listed
        (<Link>link).listed = NULL
        (<Link>link).poll(ctx)
        (<Link>link).enlist(ctx)             # it may hold more than a batch
