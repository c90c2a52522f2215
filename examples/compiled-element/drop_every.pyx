"""Drops every n-th packet. An element compiled outside vnic: see docs/compiled-element.md."""
from libc.stdint cimport uint32_t, uint64_t

from dataplane.abi cimport check_abi
from dataplane.graph.element cimport Element
from dataplane.packet.pool cimport Batch, Context

from dataplane.errors import ConfigError
from dataplane.graph.handlers import Handler

check_abi(__name__)


cdef class DropEvery(Element):
    """Drops every n-th packet.

    Synopsis:  {element: "drop_every:DropEvery", n: 10}
    Ports:     1 in, 1 out
    Config:    n: 1 or more
    Counters:  drops: every_nth
    Handlers:  counters, n (read and write)
    """

    DROP_REASONS = ("every_nth",)
    HANDLERS = {"n": Handler(read="get_n", write="prepare_n", argument="n",
                             help="every which packet is dropped, 1 or more")}

    cdef uint64_t n
    cdef uint64_t seen

    def __init__(self, n=10, *, name=None):
        self.prepare_n(n)()

    # The packets' path: C, without the interpreter.
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, kept = 0
        for i in range(batch.count):
            self.seen += 1
            if self.seen % self.n == 0:
                self.drop(ctx, batch.index[i], 0)
            else:
                batch.index[kept] = batch.index[i]
                kept += 1
        batch.count = kept
        self.emit(ctx, 0, batch)

    # Control.
    def get_n(self):
        return self.n

    def prepare_n(self, value):
        if type(value) is not int or not 1 <= value < 1 << 63:
            raise ConfigError(f"DropEvery: n {value!r}: expected 1 or more")
        return lambda: self.set_n(value)

    def set_n(self, value):
        self.n = value

    # What the next worker goes on with, after an upgrade.
    def save_state(self):
        return {"seen": self.seen}

    def load_state(self, state):
        self.seen = state["seen"]
