"""HostileGuest: a virtio-net device whose driver writes what the bytes of an input say."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from dataplane.engine.engine cimport Engine
from dataplane.graph.element cimport Element
from dataplane.graph.port cimport PortRx
from dataplane.packet.pool cimport Batch, PacketPool
from virt.guest_memory cimport DirtyLog, GuestMemory
from virt.virtio_port cimport Ring, VirtioPort

cdef enum:
    FORMATS = 256            # combinations of features, one device each
    # The hostile guest's memory: two regions, between them addresses that it does not have.
    LOW_BYTES = 16384
    HIGH_BYTES = 4096
    DATA_AT = 4096           # rings before it
    OPERATIONS_MOST = 64     # of one input
    RESTARTS_MOST = 2        # which cost as much as a hundred other operations
    STARTED_MOST = 16384     # layouts that are kept
    # The neighbour's receive buffers, with a canary behind each.
    BUFFERS = 64
    BUFFER_BYTES = 1600
    CANARY_BYTES = 64
    TABLE_BYTES = 4096       # its rings

# Bytes of an input; zeros after its end.
cdef struct Reader:
    const uint8_t *at
    const uint8_t *end

# What the driver believes of one of its rings.
cdef struct Side:
    uint16_t size
    uint16_t next            # split: index; packed: slot
    bint wrap
    uint64_t descriptors     # places in its memory, which the front end tells as its addresses
    uint64_t available
    uint64_t used

cdef class Device:
    """A device of one combination of features, and its place in the graph."""
    cdef VirtioPort port
    cdef PortRx rx
    cdef Element into                    # for frames that it is to deliver
    cdef bint packed
    cdef uint32_t format

cdef class Started:
    """A device's rings when they have just been started in one layout, so that most inputs cost no
    call of Python."""
    cdef Ring[2] rings

cdef class HostileGuest:
    cdef PacketPool pool
    cdef Engine engine
    cdef list devices
    cdef dict started                    # Started, by format and layout
    cdef GuestMemory memory, neighbours, strangers
    cdef DirtyLog log
    cdef VirtioPort neighbour
    cdef Element to_neighbour
    cdef bytes plain, large
    cdef uint8_t *low
    cdef uint8_t *high
    cdef uint8_t *table                  # the neighbour's memory
    cdef uint8_t *kept                   # a copy of what nothing may change there
    cdef object _files, _positions
    # of the input at hand
    cdef Reader reader
    cdef Device device
    cdef Side[2] sides
    cdef uint32_t restarts
    cdef readonly uint64_t executions, bursts, frames_out, frames_in, ring_faults, chain_faults
    cdef Device device_of(self, uint32_t format)
    cdef void execute(self, const uint8_t *data, size_t size)
    cdef void begin(self)
    cdef void start(self, uint32_t ring)
    cdef void start_both(self, uint32_t layout)
    cdef void operate(self)
    cdef void describe(self)
    cdef void interfere(self)
    cdef void take(self, uint32_t limit)
    cdef void deliver(self)
    cdef void inspect(self)
    cdef uint64_t address(self)
    cdef uint8_t *place(self, uint64_t offset) noexcept
    cdef void write16(self, uint64_t offset, uint16_t value) noexcept
    cdef void fill_neighbour(self) noexcept
