"""ControlRing. The contract is in control_ring.pxd."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from dataplane.vatomic cimport va_load_relaxed_u32
from virt.chain cimport (BROKEN_LAYOUT, BROKEN_MEMORY, CHAIN_BROKEN, CHAIN_LONG, CHAIN_NONE,
                         CHAIN_SHORT, Chain, Cursor, chain_clear, chain_read, chain_write)
from virt.guest_memory cimport DirtyLog, GuestMemory
from virt.notifier cimport Notifier, notifier_drain, notifier_prepare, notifier_signal
from virt.queue_setup cimport (begin_storing, first_position, place, position_of, set_position)
from virt.rings cimport ask_for_kicks, complete, mark, publish, refuse_kicks, rewind, take
from virt.virtio_net cimport RING_EVENT_IDX, RING_INDIRECT, RING_PACKED, has
from virt.virtqueue cimport Virtqueue

from dataplane.errors import ConfigError
from virt import queue_setup
from virt.vhost_user.notifications import check_notifier
from virt.queue_setup import check_places, check_position, check_shape


@cython.final
cdef class ControlRing:
    """The device's side of a control queue: commands one after the other, each answered before the
    next is taken.

    It is rare and slow, and served by control's thread, never by an engine. One thread at a time
    calls its methods. The ring borrows descriptors and memory until `stop`.

    All that it reads is hostile, as in VirtioPort: the same walker with the same bounds. A chain
    that holds no command is given back unused and counted; a ring that makes no sense is stopped,
    and the front end is notified by its error descriptor.
    """

    def __cinit__(self, *args, **kwargs):
        self._chain, self._position = NULL, NULL
        self._kick.fd = self._call.fd = self._error.fd = -1

    def __init__(self, str name):
        self.name = name
        free(self._chain)
        self._chain = <Chain *>calloc(1, sizeof(Chain))
        if self._chain == NULL:
            raise MemoryError(name)

    def __dealloc__(self):
        free(self._chain)

    @property
    def kick(self):
        """The descriptor that is readable when there may be commands; None: there is none, and the
        front end expects the device to look by itself."""
        return self._kick.fd if self._kick.fd >= 0 else None

    @property
    def runs(self):
        """Whether it is started and not broken."""
        return self.started and not self._broken

    def set_positions(self, positions):
        """Stores the position in these 16 writable bytes, where a successor finds it after a crash
        (`start` with `resumed`); None: nowhere."""
        cdef uint64_t[::1] words
        self._position, self._stored, self._queue.stored = NULL, None, NULL
        if positions is None:
            return
        words = memoryview(positions).cast("B").cast("Q")
        if words.shape[0] < 2:
            raise ConfigError(f"{self.name}: no room for a position")
        self._stored, self._position = words, &words[0]
        if self.started:
            begin_storing(&self._queue, self._position, self._generation)

    def set_log(self, DirtyLog log):
        """Logs written pages there from now on; None: nowhere."""
        self._log = log
        if log is not None:
            self._queue.log = log.log
        else:
            self._queue.log.bits = NULL

    def start(self, GuestMemory memory not None, *, features, size, descriptors, available, used,
              base, resumed=False, generation=0, log_address=None, kick_fd=None, call_fd=None,
              error_fd=None):
        """Starts the ring in this memory. Arguments as in VirtioPort.start; log_address: where what
        the device writes into the ring is logged, None: not. Raises ConfigError, and then it is
        not started."""
        cdef Virtqueue *q = &self._queue
        cdef Notifier kick, call, error
        if self.started:
            raise ConfigError(f"{self.name}: is started; it has to be stopped first")
        packed = bool(has(features, RING_PACKED))
        check_shape(self.name, size, packed)
        check_places(self.name, packed, descriptors, available, used)
        check_position(self.name, size, packed, base)
        memset(q, 0, sizeof(Virtqueue))
        q.packed, q.size = packed, size
        q.event_index, q.indirect = has(features, RING_EVENT_IDX), has(features, RING_INDIRECT)
        q.log_ring, q.log_address = log_address is not None, log_address or 0
        self.set_log(self._log)
        if not place(q, memory.table, descriptors, available, used):
            raise ConfigError(f"{self.name}: {queue_setup.FAULTS[BROKEN_LAYOUT]}")
        base = first_position(q, base, resumed, self._position, generation)
        check_position(self.name, size, packed, base)
        set_position(q, base)
        kick = self.notifier("kick", kick_fd)
        call = self.notifier("call", call_fd)
        error = self.notifier("error", error_fd)
        self._kick, self._call, self._error = kick, call, error
        self._memory, self._generation = memory, generation
        if self._position != NULL:
            begin_storing(q, self._position, generation)
        self._pending, self._broken, self.started = False, 0, True

    cdef Notifier notifier(self, str kind, fd) except *:
        cdef Notifier found
        found.fd, found.kind = -1, 0
        if fd is not None:
            found.kind = check_notifier(f"{self.name}: {kind}", fd)
            found.fd = fd
            notifier_prepare()
        return found

    def stop(self):
        """Stops the ring, forgets memory and descriptors, and returns its position in the form of
        GET_VRING_BASE. A command that is not answered is left to the next start."""
        if self._pending:
            rewind(&self._queue, &self._before)
        self._pending = self.started = False
        self._kick.fd = self._call.fd = self._error.fd = -1
        self._memory = None
        return position_of(&self._queue) & (0xFFFFFFFF if self._queue.packed else 0xFFFF)

    def drain(self):
        """Reads kicks. One whose other end was closed is forgotten."""
        if self._kick.fd >= 0 and not notifier_drain(self._kick.fd, self._kick.kind):
            self._kick.fd = -1

    def take(self):
        """The next command, class and command first, which `answer` answers; empty for one of more
        than COMMAND_MOST bytes; None: there is none now (`arm` tells whether to look again)."""
        cdef uint32_t status, fault
        cdef Cursor cursor
        cdef bytes command
        if not self.runs or self._pending:
            return None
        for _ in range(FAULTY_MOST):
            if self.is_cut():
                return None
            chain_clear(self._chain)
            self._before = mark(&self._queue)
            status = take(&self._queue, self._chain, &self._taken)
            if status == CHAIN_NONE:
                return None
            if status >= CHAIN_BROKEN:
                if not self.is_cut():
                    self.stop_broken(status)
                return None
            fault = self._chain.fault
            if not fault and (self._chain.readable < COMMAND_LEAST or self._chain.writable < 1):
                fault = CHAIN_SHORT
            if fault:
                self._faults[fault] += 1
                self.give_back(0)
                continue
            if self._chain.readable > COMMAND_MOST:
                self._faults[<uint32_t>CHAIN_LONG] += 1
                self._pending = True
                return b""
            command = bytes(self._chain.readable)
            cursor.segment = cursor.offset = 0
            chain_read(self._chain, &cursor, <uint8_t *>command, <uint32_t>self._chain.readable)
            if self.is_cut():            # what was read is zeros in places
                return None
            self._pending = True
            return command
        return None

    def answer(self, uint8_t ack, bytes data=b""):
        """Answers the command at hand: the acknowledgement and a result, as far as the driver has
        room for it. Nothing if the ring was stopped meanwhile."""
        cdef Cursor cursor
        cdef uint64_t readable = self._chain.readable
        cdef uint32_t count
        if not self.runs or not self._pending:
            return
        self._pending = False
        cursor.segment = cursor.offset = 0
        while readable:
            readable -= self._chain.segments[cursor.segment].length
            cursor.segment += 1
        count = <uint32_t>min(self._chain.writable - 1, <uint64_t>len(data))
        chain_write(self._chain, &cursor, &ack, 1, &self._queue.log)
        chain_write(self._chain, &cursor, <const uint8_t *>data, count, &self._queue.log)
        self.give_back(1 + count)

    cdef void give_back(self, uint32_t written) noexcept:
        self._taken.written = written
        # so that `arm` asks anew: with EVENT_IDX a driver is asked for one notification at a time
        refuse_kicks(&self._queue)
        complete(&self._queue, &self._taken)
        if publish(&self._queue) and self._call.fd >= 0:
            notifier_signal(self._call.fd, self._call.kind)

    def arm(self):
        """Asks the driver for a kick with the next command; True if there are some already."""
        return bool(self.runs and not self.is_cut() and ask_for_kicks(&self._queue))

    cdef bint is_cut(self) noexcept:
        """Whether the guest's memory was truncated: stops the ring."""
        if not va_load_relaxed_u32(&self._memory.table.broken):
            return False
        if not self._broken:
            self.stop_broken(BROKEN_MEMORY)
        return True

    cdef void stop_broken(self, uint32_t why) noexcept:
        self._broken = why
        self._faults[why] += 1
        if self._error.fd >= 0:
            notifier_signal(self._error.fd, self._error.kind)

    def state(self):
        """Its state and counters, as a dict."""
        return {
            "started": bool(self.started), "broken": queue_setup.FAULTS[self._broken],
            "size": self._queue.size, "packed": bool(self._queue.packed),
            "position": position_of(&self._queue),
            "faults": {queue_setup.FAULTS[i]: self._faults[i] for i in range(<uint32_t>FAULTS_COUNT)
                       if self._faults[i]}}
