"""The saved state of a class's queue: its flows, with the packets that wait, and their hosts."""
from libc.stdint cimport uint32_t
from dataplane.packet.pool cimport Context
from shaping.class_queue cimport ClassQueue, Outlet
from shaping.flow_turns cimport Flow

# The state of a leaf, see Scheduler.save_state; appends the packets of its flows to `packed`.
cdef dict saved_queue(const ClassQueue *queue, const Context *ctx, list packed)

# Of a single flow without an AQM.
cdef list saved_flow(uint32_t number, const Flow *flow, uint32_t aqm, const Context *ctx,
                     list packed)

cdef class Packed:
    # The packets of a saved state, which its flows take one after the other.
    cdef readonly bytes packets
    cdef readonly Py_ssize_t at
    cdef bytes take(self, uint32_t count)

# The opposite of `saved_queue` and `saved_flow`. Raise ValueError and the like.
cdef int load_queue(ClassQueue *queue, dict saved, Packed packed, Outlet *outlet) except -1

cdef int read_flow(Flow *flow, list saved, uint32_t aqm, Packed packed, Context *ctx) except -1
