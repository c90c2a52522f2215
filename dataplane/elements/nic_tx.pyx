"""NicTx. The contract is in nic_tx.pxd."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from dataplane.packet.pool cimport Batch, Context, batch_add
from dataplane.graph.port cimport Port, PortTx
from dataplane.elements.rss cimport Rss

from dataplane.errors import ConfigError, VnicError


cdef class NicTx(PortTx):
    """Steers each packet to a queue by its Toeplitz hash and the indirection table, and transmits.

    Synopsis:  ... >> NicTx(port, Rss(queues=port.queues))
    Ports:     1 in, 0 out
    Config:    port, rss
    Counters:  transmitted; drops as PortTx; per queue in port.queue_statistics()
    Handlers:  counters. The Rss object has its own setters, to be called on the engine's thread
    Threads:   the engine that serves the port
    Cost:      see vnic/README.md
    """

    def __cinit__(self, *args, **kwargs):
        self.shares = NULL

    def __init__(self, Port port not None, Rss rss not None, *, name=None):
        if rss.queues > port.queues:
            raise ConfigError(f"{port.name}: RSS over {rss.queues} queues, but the port has "
                              f"{port.queues}")
        super().__init__(port, name=name)
        self.rss = rss
        free(self.shares)
        self.shares = <Batch *>calloc(port.queues, sizeof(Batch))
        if self.shares == NULL:
            raise MemoryError(f"{self.name}")

    def __dealloc__(self):
        free(self.shares)

    def companions(self):
        return (self.port, self.rss)

    def save_state(self):
        """As PortTx, and `rss_key` and `rss_table`, which may have been set at run time."""
        return {**PortTx.save_state(self), "rss_key": self.rss.key, "rss_table": self.rss.table}

    def load_state(self, dict state):
        if set(state) - {"port"} != {"queues", "rss_key", "rss_table"}:
            raise VnicError(f"{self.name}: its state is not that of a NicTx")
        self.rss.set_key(state["rss_key"])
        self.rss.set_table(state["rss_table"])
        PortTx.load_state(self, {key: state[key] for key in ("queues", "port") if key in state})

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, queue
        if self.port.queues == 1:
            self.send(ctx, 0, batch)
            return
        for i in range(batch.count):
            # A queue's batch cannot overflow: it is empty before and gets at most the whole batch.
            queue = self.rss.queue_of(self.rss.hash_packet(ctx, batch.index[i]))
            batch_add(&self.shares[queue], batch.index[i])
        for queue in range(self.port.queues):
            if self.shares[queue].count:
                self.send(ctx, queue, &self.shares[queue])
                self.shares[queue].count = 0
