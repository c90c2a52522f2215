"""Sets up a Virtqueue: checks where its parts are and at which positions it begins."""
from libc.stdint cimport uint32_t, uint64_t
from virt.guest_memory cimport MemoryTable
from virt.virtqueue cimport Virtqueue

# Finds the ring's parts by addresses of the front end. False where they are not in the memory.
cdef bint place(Virtqueue *q, const MemoryTable *memory, uint64_t descriptors, uint64_t driver,
                uint64_t device) noexcept
# The positions, as vhost-user's messages have them for a packed ring. A split ring's are available
# | used << 16.
cdef uint32_t position_of(const Virtqueue *q) noexcept
cdef void set_position(Virtqueue *q, uint32_t position) noexcept
cdef uint32_t recovered(const Virtqueue *q, uint64_t stored) noexcept
# Where a ring starts: `base` is SET_VRING_BASE's, `stored` the two words of `begin_storing`, or
# NULL.
cdef uint32_t first_position(const Virtqueue *q, uint32_t base, bint resumed,
                             const uint64_t *stored, uint64_t generation) noexcept
# Stores the position there from now on, and of which generation of the ring it is.
cdef void begin_storing(Virtqueue *q, uint64_t *words, uint64_t generation) noexcept
# Whether the ring cannot have been left at the position that is set: see queue_setup.pyx. resumed:
# the process that left it may have been killed.
cdef bint contradicts(const Virtqueue *q, bint resumed) noexcept
# Whether a packed ring was never used.
cdef bint is_fresh(const Virtqueue *q) noexcept
