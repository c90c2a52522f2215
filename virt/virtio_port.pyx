"""VirtioPort. The contract is in virtio_port.pxd."""
import select

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from dataplane.graph.element cimport NEVER, Element
from dataplane.graph.port cimport (TX_FILTERED, TX_LINK_DOWN, TX_QUEUE_FULL, TX_REJECTED,
                                   TX_TOO_LONG, Port, count_segments, fits_mtu)
from dataplane.packet.pool cimport (BURST, HEADROOM, LARGE_FRAME, NO_PACKET, SMALL_FRAME, Batch,
                                    Context, Packet, batch_add, packet_alloc, packet_buffer,
                                    packet_data, packet_free)
from dataplane.vatomic cimport va_load_relaxed_u32, vnic_check
from virt.chain cimport (BROKEN_LAYOUT, BROKEN_LOOP, BROKEN_MEMORY, CHAIN_BROKEN, CHAIN_DIRECTION,
                         CHAIN_LONG, CHAIN_NONE, CHAIN_SHORT, Chain, Cursor, Segment, chain_clear,
                         chain_read, chain_write, copy_frame)
from virt.coalescing cimport Coalescing, is_due, prepared_slots
from virt.guest_memory cimport DirtyLog, GuestMemory, log_write
from virt.notifier cimport (Notifier, notifier_drain, notifier_prepare, notifier_signal,
                            notifier_unwatch)
from virt.queue_setup cimport (begin_storing, contradicts, first_position, place, position_of,
                               set_position)
from virt.receive_filter cimport (ADDRESSES_MOST, TAKES_BROADCAST, TAKES_LISTED, TAKES_MULTICAST,
                                  TAKES_OWN, TAKES_UNICAST, passes)
from virt.rings cimport (ask_for_kicks, complete, mark, publish, publish_only, refuse_kicks, rewind,
                         take, take_single, wants)
from virt.virtio_net cimport (NET_GUEST_CSUM, NET_GUEST_ECN, NET_GUEST_TSO4, NET_GUEST_TSO6,
                              NET_GUEST_USO4, NET_GUEST_USO6, NET_HASH_REPORT, NET_HEADER_MOST,
                              NET_MRG_RXBUF, RING_EVENT_IDX, RING_IN_ORDER, RING_INDIRECT,
                              RING_PACKED, VIRTIO_VERSION_1, guest_offloads, has, header_bytes,
                              make_header, take_header)
from virt.virtqueue cimport Mark, Taken, Virtqueue

from dataplane.errors import ConfigError, VnicError
from virt import queue_setup
from virt.vhost_user.notifications import check_notifier
from virt.queue_setup import check_places, check_position, check_shape

cdef enum:
    NO_KICK = -1             # the front end sent none: it expects the device to poll
    KICK_CLOSED = -2

# Features that rings and headers depend on: fixed while a ring runs.
cdef uint64_t FORMAT = (<uint64_t>1 << NET_MRG_RXBUF | <uint64_t>1 << RING_INDIRECT
                        | <uint64_t>1 << RING_EVENT_IDX | <uint64_t>1 << VIRTIO_VERSION_1
                        | <uint64_t>1 << RING_PACKED | <uint64_t>1 << RING_IN_ORDER
                        | <uint64_t>1 << NET_HASH_REPORT)

# Features that CTRL_GUEST_OFFLOADS turns off and on again (virtio 1.3, 5.1.6.5.9).
cdef uint64_t GUEST_OFFLOADS = (<uint64_t>1 << NET_GUEST_CSUM | <uint64_t>1 << NET_GUEST_TSO4
                                | <uint64_t>1 << NET_GUEST_TSO6 | <uint64_t>1 << NET_GUEST_ECN
                                | <uint64_t>1 << NET_GUEST_USO4 | <uint64_t>1 << NET_GUEST_USO6)


@cython.final
cdef class VirtioPort(Port):
    """The device of a guest's virtio-net driver: rx_burst takes what the driver transmits, tx_burst
    fills its receive buffers.

    queues: queue pairs. Ring 2q is the driver's receive ring of pair q, 2q + 1 its transmit ring
    (virtio 1.2, 5.1.2). `offloads` follows the features that the driver acknowledged.

    All Python methods are for control and must be called on the engine's thread, between two
    batches. The port borrows the descriptors and memory that it is given: the caller closes them
    after `stop`, and after another one has taken their place.

    Everything in the guest's memory is hostile. A buffer that makes no sense is given back unused
    and counted (`ring_state`); a ring that makes no sense is stopped, and the front end is notified
    by its error descriptor. Other rings, other guests and the engine go on.
    """

    MOVABLE = True
    RECOVERS = True

    def __cinit__(self, *args, **kwargs):
        self._rings, self._chain, self._taken, self._epoll_fds = NULL, NULL, NULL, NULL
        self._positions = NULL

    def __init__(self, str name, *, uint32_t number=0, uint32_t queues=1, uint32_t mtu=1500):
        super().__init__(name, number, queues, 0)
        self.mtu, self.needs_arm = mtu, True
        self._rings = <Ring *>calloc(2 * queues, sizeof(Ring))
        self._chain = <Chain *>calloc(1, sizeof(Chain))
        self._taken = <Taken *>calloc(BUFFERS_MOST, sizeof(Taken))
        self._epoll_fds = <int *>calloc(queues, sizeof(int))
        if not (self._rings and self._chain and self._taken and self._epoll_fds):
            raise MemoryError(f"port {name}")
        for ring in range(2 * queues):
            self._rings[ring].kick.fd = NO_KICK
            self._rings[ring].call.fd = self._rings[ring].error.fd = -1
        # Kicks come and go with the guest's driver, but an engine watches the descriptors that it
        # found when the port was loaded: one per pair, which is readable while the kick is.
        self._epolls = [select.epoll() for _ in range(queues)]
        for queue in range(queues):
            self._epoll_fds[queue] = self._epolls[queue].fileno()
        self.set_features(0)

    def __dealloc__(self):
        free(self._rings)
        free(self._chain)
        free(self._taken)
        free(self._epoll_fds)

    # -- control -----------------------------------------------------------------------------------

    def descriptors(self):
        return [each.fileno() for each in self._epolls]

    def close(self):
        """Stops all rings and forgets memory and descriptors. Only when no engine serves the
        port."""
        for ring in range(2 * self.queues if self._rings != NULL else 0):
            self.stop(ring)
        self.memory = self.log = self._timer = None
        for each in self._epolls or ():
            each.close()
        self._epolls = []

    cdef Ring *ring_at(self, ring) except NULL:
        # a number of the front end, checked before it is stored in fewer bits
        if not 0 <= ring < 2 * self.queues:
            raise ConfigError(f"port {self.name}: ring {ring}; it has {2 * self.queues}")
        return &self._rings[ring]

    def set_memory(self, GuestMemory memory):
        """Uses another memory, or the same one after its regions changed, from the next burst on;
        None: none. Rings keep their positions; those that are not in it are stopped as broken."""
        cdef Ring *each
        self.memory = memory
        for number in range(2 * self.queues):
            each = &self._rings[number]
            each.runs = each.started and not each.broken and memory is not None
            if each.runs and not place(&each.queue, memory.table, each.descriptors, each.available,
                                       each.used):
                self.stop_broken(each, BROKEN_LAYOUT)

    def set_features(self, features):
        """Sets the features that the driver acknowledged. Raises ConfigError if the format of rings
        changes while one is started."""
        if not 0 <= features < 1 << 64:
            raise ConfigError(f"port {self.name}: features {features:#x}; expected 64 bits")
        changed = (features ^ self.features) & FORMAT
        if changed and any(self._rings[ring].started for ring in range(2 * self.queues)):
            raise ConfigError(f"port {self.name}: features {changed:#x} change while rings run; "
                              "the front end has to stop the rings first")
        self.features = features
        self.offloads = guest_offloads(self.features)
        self.header_size = header_bytes(self.features)
        for ring in range(2 * self.queues):
            self.apply_features(&self._rings[ring])

    def set_guest_offloads(self, offloads):
        """Of the features that the driver acknowledged, what it takes now instead of whole
        checksums and segments: a mask of GUEST_CSUM, GUEST_TSO4 and so on. `set_features` sets
        all."""
        self.offloads = guest_offloads(self.features & (offloads | ~GUEST_OFFLOADS))

    def set_receive_filter(self, *, own=None, unicast=(), multicast=(), no_unicast=False,
                           broadcast=True, vlans=None):
        """Transmits only frames that the driver wants, from the next batch on; others are dropped
        as `filtered`. Without arguments, all pass.

        own: the driver's address, six bytes; None: addresses do not count. unicast, multicast:
        further addresses, or None for all of the kind. no_unicast: none, not even `own`. broadcast:
        also frames for all. vlans: 512 bytes, a bit for each VLAN, the lowest first, whose tagged
        frames it wants; None: all. Raises ConfigError for more addresses than the tables take.
        """
        cdef const uint8_t[::1] bits
        if vlans is not None and len(vlans) != sizeof(self._filter.vlans):
            raise ConfigError(f"port {self.name}: {len(vlans)} bytes of VLANs; expected "
                              f"{sizeof(self._filter.vlans)}")
        for what, table in (("unicast", unicast), ("multicast", multicast)):
            if table is not None and len(table) > ADDRESSES_MOST:
                raise ConfigError(f"port {self.name}: {len(table)} {what} addresses; expected at "
                                  f"most {ADDRESSES_MOST}")
        memset(&self._filter, 0, sizeof(self._filter))
        if vlans is not None:
            bits = vlans
            self._filter.filters_vlans = True
            memcpy(self._filter.vlans, &bits[0], sizeof(self._filter.vlans))
        if own is None:
            return
        self._filter.filters, self._filter.own = True, int.from_bytes(own, "little")
        if not no_unicast:
            self._filter.takes |= TAKES_UNICAST if unicast is None else TAKES_OWN
        self._filter.takes |= TAKES_MULTICAST if multicast is None else TAKES_LISTED
        self._filter.takes |= TAKES_BROADCAST if broadcast else 0
        for address in unicast or ():
            self._filter.unicast[self._filter.unicasts] = int.from_bytes(address, "little")
            self._filter.unicasts += 1
        for address in multicast or ():
            self._filter.multicast[self._filter.multicasts] = int.from_bytes(address, "little")
            self._filter.multicasts += 1

    def set_hash_types(self, uint32_t types):
        """With HASH_REPORT, tells the driver the hashes of frames of these types (virt.hash_types),
        which GuestTx calculates; 0: of none."""
        self._hash_types = types

    @property
    def reports(self):
        """Whether headers have a hash."""
        return bool(has(self.features, NET_HASH_REPORT))

    def set_timer_of(self, Element element):
        """`element`, in the same engine, calls `call_due` at the times that the port asks for."""
        self._timer = element

    def set_coalescing(self, ring, uint32_t packets, uint32_t usecs):
        """Notifies a ring's driver with this packet since the last notification, or so many
        microseconds after the first of them; with either 0, or without a timer, after each burst.
        The driver's own wish not to be notified goes before."""
        cdef Ring *found = self.ring_at(ring)
        found.coalescing.most_packets = packets if usecs and self._timer is not None else 0
        found.coalescing.delay_ns = <uint64_t>usecs * 1000
        # What is postponed may be due now: the timer looks.
        if found.coalescing.slots and self._timer is not None:
            self._timer.deadline_ns = 0

    def announce(self, bytes frame):
        """Receives this frame of 60 bytes next, once, as if the driver had sent it, whether or not
        its rings run. One that has not been received is replaced."""
        if len(frame) != ANNOUNCEMENT_BYTES:
            raise ConfigError(f"port {self.name}: an announcement of {len(frame)} bytes; expected "
                              f"{<int>ANNOUNCEMENT_BYTES}")
        memcpy(self._announcement, <const char *>frame, ANNOUNCEMENT_BYTES)
        self._announces = True

    cdef void apply_features(self, Ring *ring) noexcept:
        cdef Virtqueue *q = &ring.queue
        q.packed = has(self.features, RING_PACKED)
        q.fills = not (ring - self._rings) & 1
        q.event_index = has(self.features, RING_EVENT_IDX)
        q.indirect = has(self.features, RING_INDIRECT)
        # A batch says that its buffers were used whole: true of frames that were read, not of
        # receive buffers, each of which has a length of its own.
        q.batches = has(self.features, RING_IN_ORDER) and (ring - self._rings) & 1

    def set_log(self, DirtyLog log):
        """Logs written pages there from now on; None: nowhere. The old log is not written to any
        more when this returns."""
        self.log = log
        for ring in range(2 * self.queues):
            self.apply_log(&self._rings[ring])

    def log_ring(self, ring, address):
        """Also logs what the device writes into this ring, started or not: at `address`, the guest
        physical one of its used ring, or of a packed ring's descriptors; None: not."""
        cdef Ring *found = self.ring_at(ring)
        found.queue.log_ring = address is not None
        found.queue.log_address = address or 0

    cdef void apply_log(self, Ring *ring) noexcept:
        if self.log is not None:
            ring.queue.log = self.log.log
        else:
            ring.queue.log.bits = NULL

    def set_positions(self, positions):
        """Stores the positions of rings in this writable buffer, 16 bytes per ring, where a
        successor finds those of packed rings after a crash (`start` with `resumed`); None:
        nowhere."""
        cdef uint64_t[::1] words
        self._positions, self._stored = NULL, None
        if positions is not None:
            words = memoryview(positions).cast("B").cast("Q")
            if words.shape[0] < 4 * self.queues:
                raise ConfigError(f"port {self.name}: room for {words.shape[0] // 2} positions; "
                                  f"it has {2 * self.queues} rings")
            self._stored, self._positions = words, &words[0]
        for ring in range(2 * self.queues):
            self._rings[ring].queue.stored = NULL
            if self._rings[ring].started:
                self.store(ring)

    cdef void store(self, uint32_t ring) noexcept:
        """Stores a ring's position from now on, if it is to be stored."""
        if self._positions != NULL:
            begin_storing(&self._rings[ring].queue, &self._positions[2 * ring],
                          self._rings[ring].generation)

    def start(self, ring, *, size, descriptors, available, used, base, resumed=False,
              generation=0, kick_fd=None, call_fd=None, error_fd=None):
        """Starts a ring of `size` entries whose parts are at these addresses of the front end; for
        a packed ring, `available` and `used` are the driver's and the device's event structure.

        base: the position in the form of SET_VRING_BASE. resumed: a process that was killed may
        have run the ring beyond that; where it was, the used ring tells, and for a packed ring the
        memory of `set_positions`, if it is of the same `generation`, a number that the caller
        changes whenever a driver sets up the ring anew. The descriptors may be None: no kick
        means that the device is to poll. Raises ConfigError, and then the ring is not started.
        """
        cdef Ring *found = self.ring_at(ring)
        cdef Virtqueue *q = &found.queue
        what = f"port {self.name}: ring {ring}"
        if found.started:
            raise ConfigError(f"{what}: is started; it has to be stopped first")
        if self.memory is None:
            raise ConfigError(f"{what}: the guest's memory is missing; the front end has to send "
                              "it before it starts a ring")
        check_shape(what, size, q.packed)
        check_places(what, q.packed, descriptors, available, used)
        check_position(what, size, q.packed, base)
        logged, log_address = q.log_ring, q.log_address
        memset(q, 0, sizeof(Virtqueue))
        q.log_ring, q.log_address = logged, log_address
        self.apply_features(found)
        self.apply_log(found)
        q.size = size
        if not place(q, self.memory.table, descriptors, available, used):
            raise ConfigError(f"{what}: {queue_setup.FAULTS[BROKEN_LAYOUT]}; "
                              f"descriptors at {descriptors:#x}, available ring at "
                              f"{available:#x}, used ring at {used:#x}")
        found.generation = generation
        base = first_position(q, base, resumed, NULL if self._positions == NULL
                              else &self._positions[2 * ring], generation)
        check_position(what, size, q.packed, base)
        set_position(q, base)
        found.position_lost = contradicts(q, resumed)
        for kind, fd in (("kick", kick_fd), ("call", call_fd), ("error", error_fd)):
            self.set_notifier(ring, kind, fd)
        found.descriptors, found.available, found.used = descriptors, available, used
        self.watch(ring)
        self.store(ring)
        found.coalescing.packets = found.coalescing.slots = 0
        found.started, found.runs, found.broken = True, True, 0
        if resumed:
            # The process that was killed may have published buffers without a notification.
            self.notify(found)

    def stop(self, ring):
        """Stops a ring, forgets its descriptors, and returns its position in the form of
        GET_VRING_BASE. Also for a ring that was not started."""
        cdef Ring *found = self.ring_at(ring)
        if found.runs and found.coalescing.slots:
            self.call_now(found)
        self.set_notifier(ring, "kick", None)
        self.set_notifier(ring, "call", None)
        self.set_notifier(ring, "error", None)
        found.started = found.runs = found.position_lost = False
        return position_of(&found.queue) & (0xFFFFFFFF if found.queue.packed else 0xFFFF)

    def enable(self, ring, bint enabled):
        """Enables or disables a ring, started or not. Disabled, the driver's frames are discarded,
        and it gets none (vhost-user: Ring states)."""
        self.ring_at(ring).enabled = enabled

    def set_notifier(self, ring, str kind, fd):
        """Replaces a ring's descriptor: kind "kick", "call" or "error"; None: none. Raises
        ConfigError for descriptors that could block or that are no means of notification."""
        cdef Ring *found = self.ring_at(ring)
        cdef Notifier new
        new.fd, new.kind = -1, 0
        if fd is not None:
            new.kind = check_notifier(f"port {self.name}: ring {ring}: {kind}", fd)
            new.fd = fd
            notifier_prepare()
        if kind == "call":
            found.call = new
        elif kind == "error":
            found.error = new
        else:
            if found.kick.fd >= 0 and ring & 1:
                notifier_unwatch(self._epoll_fds[ring >> 1], found.kick.fd)
            found.kick = new
            if found.runs:
                self.watch(ring)

    cdef void watch(self, number) except *:
        """Lets a kick wake the engine. Those of receive rings are of no use: what a driver has no
        buffers for is dropped, as on a wire."""
        cdef Ring *ring = &self._rings[number]
        if number & 1 and ring.kick.fd >= 0:
            try:
                self._epolls[number >> 1].register(ring.kick.fd, select.EPOLLIN)
            except OSError as error:
                raise ConfigError(f"port {self.name}: ring {number}: its kick cannot be watched: "
                                  f"{error.strerror}") from None

    def ring_state(self, ring):
        """A ring's state and counters, as a dict. position_lost: the front end did not know where a
        packed ring was left by a former device, so that driver and device wait for each other until
        the driver sets the ring up anew."""
        cdef Ring *found = self.ring_at(ring)
        return {
            "started": bool(found.started), "enabled": bool(found.enabled),
            "broken": queue_setup.FAULTS[found.broken], "kick_closed": found.kick.fd == KICK_CLOSED,
            "size": found.queue.size, "packed": bool(found.queue.packed),
            "position": position_of(&found.queue), "position_lost": bool(found.position_lost),
            "discarded": found.discarded,
            "no_buffers": found.no_buffers, "no_room": found.no_room, "calls": found.calls,
            "calls_failed": found.calls_failed,
            "faults": {queue_setup.FAULTS[i]: found.faults[i] for i in range(<uint32_t>FAULTS_COUNT)
                       if found.faults[i]}}

    def can_sleep(self):
        """Asks the drivers to notify the device, as an engine does before it sleeps; False if there
        are frames already, or a ring has to be polled."""
        return not self.arm()

    def save_state(self, direction):
        """`rings`: number and position of each started ring of one direction."""
        first = 1 if direction == "rx" else 0
        return {"rings": [[ring, position_of(&self._rings[ring].queue)]
                          for ring in range(first, 2 * self.queues, 2)
                          if self._rings[ring].started]}

    def load_state(self, direction, dict state):
        rings = state.get("rings", [])
        try:
            rings = [(int(ring), int(position)) for ring, position in rings]
            for ring, position in rings:
                if self.ring_at(ring).started:
                    check_position(f"ring {ring}", self.ring_at(ring).queue.size,
                                   self.ring_at(ring).queue.packed, position)
        except (TypeError, ValueError, ConfigError) as error:
            raise VnicError(f"port {self.name}: its state: {error}") from None
        for ring, position in rings:
            if self.ring_at(ring).started:
                set_position(&self.ring_at(ring).queue, position)
                self.ring_at(ring).position_lost = contradicts(&self.ring_at(ring).queue, False)
                self.store(ring)
                # the last process may have postponed a notification
                self.notify(self.ring_at(ring))

    # -- on the engine's thread --------------------------------------------------------------------

    cdef bint is_cut(self) noexcept nogil:
        """Whether the guest's memory was truncated, so that it now has zeros in places: stops all
        rings. Asked before each burst, and before a ring is blamed for what it contains."""
        cdef uint32_t i
        if va_load_relaxed_u32(&self.memory.table.broken) == 0:
            return False
        for i in range(2 * self.queues):
            if self._rings[i].runs:
                self.stop_broken(&self._rings[i], BROKEN_MEMORY)
        return True

    cdef void stop_broken(self, Ring *ring, uint32_t why) noexcept nogil:
        cdef uint32_t number = <uint32_t>(ring - self._rings)
        ring.runs, ring.broken = False, why
        ring.faults[why] += 1
        # else each kick of the driver would wake the engine for nothing
        if number & 1 and ring.kick.fd >= 0:
            notifier_unwatch(self._epoll_fds[number >> 1], ring.kick.fd)
        if ring.error.fd >= 0:
            notifier_signal(ring.error.fd, ring.error.kind)

    cdef void drain(self, uint32_t queue, Ring *ring) noexcept nogil:
        """Reads kicks, so that they end one sleep only."""
        if ring.kick.fd >= 0 and not notifier_drain(ring.kick.fd, ring.kick.kind):
            notifier_unwatch(self._epoll_fds[queue], ring.kick.fd)
            ring.kick.fd = KICK_CLOSED

    cdef void notify(self, Ring *ring) noexcept nogil:
        if ring.call.fd >= 0:
            ring.calls += 1
            if notifier_signal(ring.call.fd, ring.call.kind) != 0:
                ring.calls_failed += 1

    cdef void postpone(self, Context *ctx, Ring *ring, uint32_t packets) noexcept nogil:
        """Publishes completed buffers; notifies the driver if that is due, else sets the timer."""
        cdef Coalescing *held = &ring.coalescing
        cdef uint32_t slots = prepared_slots(&ring.queue)
        if held.slots + slots > ring.queue.size:
            # the driver has buffers out again that it was not notified of
            self.call_now(ring)
        if held.slots == 0:
            held.began_ns = ctx.now_ns
        held.packets += packets
        held.slots += slots
        publish_only(&ring.queue)
        if is_due(held, ring.queue.size, ctx.now_ns):
            self.call_now(ring)
        elif held.began_ns + held.delay_ns < self._timer.deadline_ns:
            self._timer.set_timer(ctx, held.began_ns + held.delay_ns)

    cdef void call_now(self, Ring *ring) noexcept nogil:
        """Notifies the driver of what was postponed, unless it does not want that."""
        ring.coalescing.packets = ring.coalescing.slots = 0
        if wants(&ring.queue):
            self.notify(ring)

    cdef uint64_t call_due(self, uint64_t now_ns) noexcept nogil:
        """Notifies the drivers of rings of which that is due; returns when the next is, or
        NEVER."""
        cdef uint32_t i
        cdef uint64_t following = NEVER
        cdef Coalescing *held
        for i in range(2 * self.queues):
            held = &self._rings[i].coalescing
            if held.slots == 0:
                continue
            if not self._rings[i].runs:
                held.packets = held.slots = 0
            elif is_due(held, self._rings[i].queue.size, now_ns):
                self.call_now(&self._rings[i])
            else:
                following = min(following, held.began_ns + held.delay_ns)
        return following

    cdef bint arm(self) noexcept nogil:
        cdef uint32_t queue
        cdef Ring *ring
        cdef bint pending = self._announces
        for queue in range(self.queues):
            ring = &self._rings[2 * queue + 1]
            if ring.runs:
                pending = ask_for_kicks(&ring.queue) or ring.kick.fd == NO_KICK or pending
        return pending

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef Ring *ring = &self._rings[2 * queue + 1]
        cdef uint32_t taken = 0, before = batch.count, budget = READ_BUDGET, status, length
        cdef Taken one
        cdef Segment segment
        # The first iteration after a sleep asks for one packet, only where a kick has come.
        if limit == 1:
            self.drain(queue, ring)
        if self._announces and queue == 0:
            self.receive_announcement(ctx, batch)
            limit -= 1
        if not ring.runs or self.is_cut():
            return batch.count - before
        if not ring.enabled:
            limit = BURST                # of frames to discard: none is appended
        while taken < limit:
            if ring.enabled and take_single(&ring.queue, self.header_size + 1,
                                            self.header_size + SMALL_FRAME, &segment, &one):
                length = self.receive_single(ctx, queue, &segment, batch)
            else:
                chain_clear(self._chain)
                status = take(&ring.queue, self._chain, &one)
                if status >= CHAIN_BROKEN and not self.is_cut():
                    self.stop_broken(ring, status)
                if status != 0:
                    break
                length = self.receive_chain(ctx, ring, queue, batch)
            complete(&ring.queue, &one)
            # lost frames too: an empty pool must not keep the engine here
            taken += 1
            if length >= budget:
                break
            budget -= length
        if taken:
            refuse_kicks(&ring.queue)
            if ring.coalescing.most_packets:
                self.postpone(ctx, ring, taken)
            elif publish(&ring.queue):
                self.notify(ring)
        return batch.count - before

    cdef uint32_t receive_single(self, Context *ctx, uint32_t queue, const Segment *segment,
                                 Batch *batch) noexcept nogil:
        """As receive_chain, of a header and a frame in one segment."""
        cdef uint32_t length = segment.length - self.header_size
        cdef uint32_t index = packet_alloc(ctx, length)
        if index == NO_PACKET:
            self.stats[queue].rx_dropped += 1
            return length
        take_header(ctx, index, segment.data, self.number, queue)
        copy_frame(packet_buffer(ctx, index) + HEADROOM, segment.data + self.header_size, length)
        self.stats[queue].rx_packets += 1
        self.stats[queue].rx_bytes += length
        batch_add(batch, index)
        return length

    cdef void receive_announcement(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint8_t[NET_HEADER_MOST] header
        cdef uint32_t index = packet_alloc(ctx, ANNOUNCEMENT_BYTES)
        self._announces = False
        if index == NO_PACKET:
            self.stats[0].rx_dropped += 1
            return
        memcpy(packet_buffer(ctx, index) + HEADROOM, self._announcement, ANNOUNCEMENT_BYTES)
        memset(header, 0, sizeof(header))
        take_header(ctx, index, header, self.number, 0)
        self.stats[0].rx_packets += 1
        self.stats[0].rx_bytes += ANNOUNCEMENT_BYTES
        batch_add(batch, index)

    cdef uint32_t receive_chain(self, Context *ctx, Ring *ring, uint32_t queue,
                                Batch *batch) noexcept nogil:
        """Copies the frame of the chain at hand into a packet; returns the bytes read."""
        cdef Chain *chain = self._chain
        cdef uint32_t index, length, fault = chain.fault
        cdef uint8_t *frame
        cdef Cursor cursor
        if not ring.enabled:
            ring.discarded += 1
            return 0
        if not fault and chain.writable:
            fault = CHAIN_DIRECTION
        if not fault and chain.readable <= self.header_size:
            fault = CHAIN_SHORT
        if not fault and chain.readable > LARGE_FRAME + self.header_size:
            fault = CHAIN_LONG
        if fault:
            ring.faults[fault] += 1
            self.stats[queue].rx_dropped += 1
            self.stats[queue].rx_unreadable += 1
            return 0
        length = <uint32_t>chain.readable - self.header_size
        index = packet_alloc(ctx, length)
        if index == NO_PACKET:
            self.stats[queue].rx_dropped += 1
            return length
        # The header lands in the headroom, so that mostly one copy takes all.
        cursor.segment = cursor.offset = 0
        frame = packet_buffer(ctx, index) + HEADROOM
        chain_read(chain, &cursor, frame - self.header_size, length + self.header_size)
        take_header(ctx, index, frame - self.header_size, self.number, queue)
        self.stats[queue].rx_packets += 1
        self.stats[queue].rx_bytes += length
        batch_add(batch, index)
        return length

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef Ring *ring = &self._rings[2 * queue]
        cdef uint32_t i, index, status, left = 0, sent = 0
        cdef uint64_t bytes = 0
        cdef bint room = True
        cdef Packet *p
        if ring.runs:
            self.is_cut()
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            if not ring.runs or not ring.enabled:
                status = TX_LINK_DOWN
            elif not passes(&self._filter, packet_data(ctx, index), p.length):
                status = TX_FILTERED
            elif not fits_mtu(p, self.mtu):
                status = TX_TOO_LONG
            elif not room:
                # The driver has no buffers: it is asked once a burst, and frames keep their order.
                ring.no_buffers += 1
                status = TX_QUEUE_FULL
            else:
                status = self.deliver(ctx, ring, index)
                room = status != TX_QUEUE_FULL
            if status == SENT:
                sent += 1
                bytes += p.length
                count_segments(p, &self.stats[queue].tx_more_packets,
                               &self.stats[queue].tx_more_bytes)
                packet_free(ctx, index)
            else:
                p.tx_status = <uint16_t>status
                batch.index[left] = index
                left += 1
        if ring.queue.prepared:
            refuse_kicks(&ring.queue)
            if ring.coalescing.most_packets:
                self.postpone(ctx, ring, sent)
            elif publish(&ring.queue):
                self.notify(ring)
        self.stats[queue].tx_packets += sent
        self.stats[queue].tx_bytes += bytes
        self.stats[queue].tx_dropped += left
        batch.count = left
        return sent

    cdef uint32_t deliver(self, Context *ctx, Ring *ring, uint32_t index) noexcept nogil:
        """Copies a frame into the driver's buffers; SENT or TX_*."""
        cdef Virtqueue *q = &ring.queue
        cdef Packet *p = &ctx.packets[index]
        cdef uint32_t needed = self.header_size + p.length, count = 0, i, status
        cdef uint8_t *header = packet_data(ctx, index) - self.header_size
        cdef Cursor cursor
        cdef Segment segment
        vnic_check(p.offset >= self.header_size, "room for the virtio-net header")
        if take_single(q, needed, <uint32_t>-1, &segment, &self._taken[0]):
            self.deliver_single(ctx, q, index, &segment)
            return SENT
        status = self.gather(ring, needed, &count)
        if status != SENT:
            return status
        # in the headroom, so that mostly one copy takes all
        make_header(header, self.header_size, p, self.offloads, <uint16_t>count, self._hash_types)
        cursor.segment = cursor.offset = 0
        chain_write(self._chain, &cursor, header, needed, &q.log)
        for i in range(count):
            # all but the last are filled (virtio 1.2, 5.1.6.4)
            self._taken[i].written = min(self._taken[i].room, needed)
            needed -= self._taken[i].written
            complete(q, &self._taken[i])
        return SENT

    cdef void deliver_single(self, Context *ctx, Virtqueue *q, uint32_t index,
                             const Segment *segment) noexcept nogil:
        cdef Packet *p = &ctx.packets[index]
        cdef Taken *taken = &self._taken[0]
        make_header(segment.data, self.header_size, p, self.offloads, 1, self._hash_types)
        copy_frame(segment.data + self.header_size, packet_data(ctx, index), p.length)
        taken.written = self.header_size + p.length
        log_write(&q.log, segment.guest, taken.written)
        complete(q, taken)

    cdef uint32_t gather(self, Ring *ring, uint64_t needed, uint32_t *count) noexcept nogil:
        """Takes receive buffers for `needed` bytes: several with MRG_RXBUF, else one; SENT or TX_*.
        If they are too few or too small, all are left to the driver."""
        cdef Virtqueue *q = &ring.queue
        cdef Chain *chain = self._chain
        cdef Mark start = mark(q)
        cdef uint32_t n = 0, status, faulty = 0
        cdef uint64_t before
        chain_clear(chain)
        while chain.writable < needed:
            before = chain.writable
            status = BROKEN_LOOP
            if n == 0 or (n < BUFFERS_MOST and has(self.features, NET_MRG_RXBUF)):
                status = take(q, chain, &self._taken[n])
            if status == CHAIN_NONE:
                rewind(q, &start)
                ring.no_buffers += 1
                return TX_QUEUE_FULL
            if status == BROKEN_LOOP and n:
                # More buffers or segments than a frame may take: each buffer alone is valid.
                rewind(q, &start)
                ring.no_room += 1
                return TX_REJECTED
            if status >= CHAIN_BROKEN:
                if not self.is_cut():
                    self.stop_broken(ring, status)
                return TX_LINK_DOWN
            # saturated: no frame needs as much
            self._taken[n].room = <uint32_t>min(chain.writable - before, <uint64_t>0xFFFFFFFF)
            n += 1
            if self.give_back(ring, n):
                faulty += 1
                if faulty == FAULTY_MOST:
                    return TX_QUEUE_FULL
                start, n = mark(q), 0
                chain_clear(chain)
        count[0] = n
        return SENT

    cdef bint give_back(self, Ring *ring, uint32_t count) noexcept nogil:
        """If the newest of `count` buffers cannot be used, gives all of them back unused, since
        buffers are completed in order; True if so."""
        cdef uint32_t i, fault = self._chain.fault
        if not fault and self._chain.readable:
            fault = CHAIN_DIRECTION
        if not fault and self._taken[count - 1].room < self.header_size:
            fault = CHAIN_SHORT
        if not fault:
            return False
        ring.faults[fault] += 1
        for i in range(count):
            self._taken[i].written = 0
            complete(&ring.queue, &self._taken[i])
        return True
