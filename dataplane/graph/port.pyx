"""Port, PortRx, PortTx. The contract is in port.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from dataplane.graph.element cimport NEVER, Element, Source
from dataplane.graph.offload cimport OFFLOAD_ALL, Cursor, complete_offloads
from dataplane.packet.pool cimport VNET_NEEDS_CSUM, Batch, Context

from dataplane.errors import ConfigError, VnicError

# Why a port did not transmit a packet; indexed by Packet.tx_status, in the order of port.pxd's
# TX_*.
TX_REASONS = ("queue_full", "link_down", "rejected", "io_error", "no_buffer", "too_long",
              "filtered")


cdef class Port:
    """Base of all ports. number: Packet.port of received packets; queues: number of queue pairs;
    offloads: a mask of OFFLOAD_*.

    A subclass overrides rx_burst and tx_burst. One engine at a time serves a port. MOVABLE: another
    process can continue to use a port of this class after a hand-over. RECOVERS: rx_burst handles
    errors of the descriptors; otherwise an error means that the peer is gone.
    """

    MOVABLE = True
    RECOVERS = False

    def __cinit__(self, *args, **kwargs):
        self.stats = NULL

    def __init__(self, str name, uint32_t number=0, uint32_t queues=1, uint32_t offloads=0):
        if not 1 <= queues <= 64:
            raise ConfigError(f"port {name}: {queues} queue pairs: expected 1 to 64")
        self.name, self.number, self.queues, self.offloads = name, number, queues, offloads
        self.mtu = NO_MTU
        self.next_ns = NEVER
        free(self.stats)
        self.stats = <QueueStats *>calloc(queues, sizeof(QueueStats))
        if self.stats == NULL:
            raise MemoryError(f"port {name}")

    def __dealloc__(self):
        free(self.stats)

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        """Appends up to `limit` received packets to the batch, which has room for them, and returns
        their number. Never blocks.

        The caller owns the packets. Each has timestamp_ns, port, queue, length and the virtio-net
        fields set.
        """
        return 0

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        """Transmits packets of the batch, in order, and returns their number. Never blocks.

        Packets that it could not transmit stay in the batch, in order, with the reason in
        tx_status; the caller owns them. The port counts both kinds in stats[queue].
        """
        return 0

    cdef bint arm(self) noexcept nogil:
        """Called before the consumer sleeps; returns True if there is input, so that it must not
        sleep."""
        return False

    cdef void disarm(self) noexcept nogil:
        """Called after the consumer woke up."""

    def descriptors(self):
        """File descriptors to ppoll for input, one per queue pair; empty for a port without any."""
        return []

    def close(self):
        """Frees the port's kernel resources. May be called twice."""

    def change(self, *, uint32_t offloads, uint32_t mtu):
        """Sets other offloads and another MTU, which apply from the next batch on. Must be called
        on the thread of the engine that transmits through the port."""
        self.offloads, self.mtu = offloads, mtu

    def save_state(self, direction):
        """The state of one direction ("rx" or "tx") that another process needs to continue, without
        counters, as plain data."""
        return {}

    def load_state(self, direction, dict state):
        """Loads the `save_state` of another process's port of this class. Raises VnicError."""
        if state:
            raise VnicError(f"port {self.name}: a {type(self).__name__} has no state")

    def forget_state(self, direction):
        """Called when another process has taken over one direction."""

    def load_statistics(self, direction, queues):
        """Sets the counters of one direction ("rx" or "tx"): for every queue pair a list of
        packets, bytes, dropped, and the packets and bytes that a wire carries in addition
        (QueueStats). Raises VnicError, and then nothing has changed."""
        cdef uint64_t packets, octets, dropped, more, more_octets
        try:
            queues = [(packets, octets, dropped, more, more_octets)
                      for packets, octets, dropped, more, more_octets in queues]
        except (TypeError, ValueError, OverflowError):
            raise VnicError(f"port {self.name}: "
                            "counters of a queue that are not five numbers") from None
        if len(queues) != self.queues:
            raise VnicError(f"port {self.name}: "
                            f"has {self.queues} queue pairs, its state {len(queues)}")
        for q, (packets, octets, dropped, more, more_octets) in enumerate(queues):
            if direction == "rx":
                self.stats[q].rx_packets, self.stats[q].rx_bytes = packets, octets
                self.stats[q].rx_dropped = dropped
                self.stats[q].rx_more_packets, self.stats[q].rx_more_bytes = more, more_octets
            else:
                self.stats[q].tx_packets, self.stats[q].tx_bytes = packets, octets
                self.stats[q].tx_dropped = dropped
                self.stats[q].tx_more_packets, self.stats[q].tx_more_bytes = more, more_octets

    def queue_statistics(self):
        """One dict per queue pair. For each direction (rx, tx): packets, bytes and dropped as the
        kernel counts them, a GSO frame as one packet; wire_packets, wire_bytes: the frames that a
        wire would carry after segmentation."""
        cdef QueueStats *s
        found = []
        for q in range(self.queues):
            s = &self.stats[q]
            found.append({
                "rx_packets": s.rx_packets, "rx_bytes": s.rx_bytes, "rx_dropped": s.rx_dropped,
                "rx_wire_packets": s.rx_packets + s.rx_more_packets,
                "rx_wire_bytes": s.rx_bytes + s.rx_more_bytes,
                "tx_packets": s.tx_packets, "tx_bytes": s.tx_bytes, "tx_dropped": s.tx_dropped,
                "tx_wire_packets": s.tx_packets + s.tx_more_packets,
                "tx_wire_bytes": s.tx_bytes + s.tx_more_bytes})
        return found


def _with_segments(entry):
    """Converts a port's state of version 1, which did not count segments, to version 2."""
    state = entry["state"]
    return {**entry, "state": {**state, "queues": [[*queue, 0, 0] for queue in state["queues"]]}}


cdef class PortRx(Source):
    """The receive side of a port as a source: polls all its queues, a burst each.

    Drops:     no_buffer: the pool was exhausted, so the frame was read and lost
               unreadable: the port could not read the frame, as after a change of a TAP's
               virtio-net header from inside the container
    Counters:  none
    Handlers:  counters
    """

    OUTPUTS = 1
    DROP_REASONS = ("no_buffer", "unreadable")
    STATE_VERSION = 2
    UPGRADES = {1: _with_segments}

    def __init__(self, Port port, *, name=None):
        self.port = port
        self.name = name or f"{port.name}.rx"
        self.ready = <uint64_t>-1
        self.deadline_ns = port.next_ns

    cdef uint32_t poll(self, Context *ctx) noexcept nogil:
        cdef uint32_t queue, total = 0, taken
        cdef uint64_t lost, lost_before, unreadable
        cdef Batch batch
        for queue in range(self.port.queues):
            if not (self.ready >> queue) & 1:
                continue
            batch.count = 0
            lost_before = self.port.stats[queue].rx_dropped
            unreadable = self.port.stats[queue].rx_unreadable
            taken = self.port.rx_burst(ctx, queue, &batch, ctx.burst)
            if taken >= ctx.burst:
                ctx.backlog |= 1
            lost = self.port.stats[queue].rx_dropped - lost_before
            if lost:
                unreadable = self.port.stats[queue].rx_unreadable - unreadable
                self.counters.drops[0] += lost - unreadable
                self.counters.drops[1] += unreadable
                self.counters.received += lost
                total += <uint32_t>lost
            if taken:
                self.counters.received += taken
                total += taken
                self.emit(ctx, 0, &batch)
        self.deadline_ns = wake_ns(self.port)
        return total

    @property
    def TICKS(self):
        return self.port.scheduled

    @property
    def RECOVERS(self):
        return self.port.RECOVERS

    cdef void tick(self, Context *ctx) noexcept nogil:
        """Sets the next deadline; the engine polls the source as well."""
        self.deadline_ns = wake_ns(self.port)

    cpdef bint needs_arm(self):
        return self.port.needs_arm

    def companions(self):
        return (self.port,)

    cdef bint arm(self) noexcept nogil:
        return self.port.arm()

    cdef void disarm(self) noexcept nogil:
        self.port.disarm()

    cpdef bint wakes_only(self):
        return self.port.wakes_only

    cdef void set_ready(self, uint32_t which, bint ready) noexcept nogil:
        if ready or self.port.wakes_only:
            self.ready |= <uint64_t>1 << which
        else:
            self.ready &= ~(<uint64_t>1 << which)

    cdef void clear_ready(self) noexcept nogil:
        if not self.port.wakes_only:
            self.ready = 0

    cpdef list poll_descriptors(self):
        return list(self.port.descriptors())

    def save_state(self):
        """`queues`: for every queue pair the numbers of `Port.load_statistics`, as received.
        `port`: the port's own state, if it has any."""
        return _save_queues(self.port, "rx")

    def load_state(self, dict state):
        _load_queues(self.port, "rx", state)

    def forget_state(self):
        Element.forget_state(self)
        self.port.load_statistics("rx", [(0,) * 5] * self.port.queues)
        self.port.forget_state("rx")


def _save_queues(Port port, direction):
    if not type(port).MOVABLE:
        raise VnicError(f"port {port.name}: a {type(port).__name__} cannot be handed over; "
                        "take it out of the graph first")
    queues = []
    for queue in port.queue_statistics():
        packets, octets, dropped, wire_packets, wire_bytes = (
            queue[f"{direction}_{what}"]
            for what in ("packets", "bytes", "dropped", "wire_packets", "wire_bytes"))
        queues.append([packets, octets, dropped, wire_packets - packets, wire_bytes - octets])
    extra = port.save_state(direction)
    return {"queues": queues, **({"port": extra} if extra else {})}


def _load_queues(Port port, direction, state):
    extra = state.get("port", {})
    if (set(state) - {"port"} != {"queues"} or not isinstance(state["queues"], list)
            or not isinstance(extra, dict)):
        raise VnicError(f"port {port.name}: its state is not a list of queues")
    port.load_statistics(direction, state["queues"])
    port.load_state(direction, extra)


cdef inline uint64_t wake_ns(Port port) noexcept nogil:
    """When to poll a scheduled port again: lead_ns before its next packet."""
    if port.next_ns == NEVER or port.next_ns < port.lead_ns:
        return port.next_ns
    return port.next_ns - port.lead_ns


cdef class PortTx(Element):
    """The transmit side of a port: performs in software the offloads that the port lacks, then
    transmits through queue 0.

    Drops: TX_REASONS. Handlers: counters. A subclass for several queues overrides process and calls
    `send` with each queue's packets.
    """

    OUTPUTS = 0
    DROP_REASONS = TX_REASONS
    STATE_VERSION = 3  # 3: one more drop reason, which an older class would not know
    UPGRADES = {1: _with_segments, 2: lambda entry: entry}

    def __init__(self, Port port, *, name=None):
        self.port = port
        self.name = name or f"{port.name}.tx"

    def companions(self):
        return (self.port,)

    def save_state(self):
        """`queues`, `port`: as PortRx, as transmitted."""
        return _save_queues(self.port, "tx")

    def load_state(self, dict state):
        _load_queues(self.port, "tx", state)

    def forget_state(self):
        Element.forget_state(self)
        self.port.load_statistics("tx", [(0,) * 5] * self.port.queues)
        self.port.forget_state("tx")

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        self.send(ctx, 0, batch)

    @cython.final
    cdef void send(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        """Completes offloads, transmits through one queue, and drops the packets that the port
        refused."""
        cdef Batch ready
        cdef Cursor cursor
        cdef uint32_t i, offloaded = 0
        if self.port.offloads != OFFLOAD_ALL:
            for i in range(batch.count):
                offloaded |= (ctx.packets[batch.index[i]].gso_type
                              | (ctx.packets[batch.index[i]].vnet_flags & VNET_NEEDS_CSUM))
        if offloaded == 0:
            self.transmit(ctx, queue, batch)
            return
        cursor.packet = cursor.payload = 0
        # in rounds, since a GSO frame may become more segments than a batch holds
        while cursor.packet < batch.count:
            ready.count = 0
            complete_offloads(ctx, batch, &cursor, &ready, self.port.offloads,
                              &self.counters.generated,
                              &self.counters.drops[TX_NO_BUFFER])
            self.transmit(ctx, queue, &ready)
        batch.count = 0

    @cython.final
    cdef void transmit(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i
        self.counters.transmitted += self.port.tx_burst(ctx, queue, batch)
        if batch.count:
            for i in range(batch.count):
                self.drop(ctx, batch.index[i], ctx.packets[batch.index[i]].tx_status)
            batch.count = 0
