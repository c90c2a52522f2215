"""GuestTx. The contract is in guest_tx.pxd."""
from libc.stdint cimport uint32_t
from dataplane.elements.nic_tx cimport NicTx
from dataplane.elements.rss cimport Rss
from dataplane.packet.pool cimport Batch, Context, batch_add
from virt.flow_memory cimport FlowMemory, pair_of_flow
from virt.guest_hash cimport hash_by_types
from virt.virtio_port cimport VirtioPort

from dataplane.errors import ConfigError

cdef class GuestTx(NicTx):
    """Transmits to a guest's driver: steers each frame to a queue pair by the driver's hash and
    table, by the pair on which the guest last transmitted the flow, or as NicTx; and calls the
    driver when notifications that it has had postponed are due.

    Synopsis:  ... >> GuestTx(port, Rss(queues=port.queues), flows)
    Ports:     1 in, 0 out
    Config:    port; rss: as configured, for frames that the driver leaves to the device; flows: the
               FlowMemory of what the guest transmits, or None
    Counters:  as NicTx
    Handlers:  counters
    Threads:   the engine that serves the port
    Cost:      that of NicTx until the driver wants more; see bench/elements.py
    """

    TICKS = True

    def __init__(self, VirtioPort port not None, Rss rss not None, FlowMemory flows=None, *,
                 name=None):
        super().__init__(port, rss, name=name)
        self.guest, self.flows = port, flows
        self.pairs, self.usual = 1, True
        port.set_timer_of(self)

    def steer(self, table, *, pairs, by_flow=False, Rss driver=None, types=0, unclassified=None):
        """Steers as the driver wants from the next batch on; on the engine's thread.

        table: of `rss`. pairs: that are in use. by_flow: to the pair on which the guest last
        transmitted the flow. driver: hashes are calculated by its key, for frames of these `types`,
        and reported if the driver negotiated that; with `unclassified`, the pair for other frames,
        its table steers. Raises ConfigError for a table that cannot be.
        """
        if not 1 <= pairs <= self.port.queues or (unclassified or 0) >= self.port.queues:
            raise ConfigError(f"{self.name}: {pairs} queue pairs, {unclassified} for frames "
                              f"without a hash; the port has {self.port.queues}")
        if driver is not None and driver.queues > self.port.queues:
            raise ConfigError(f"{self.name}: RSS over {driver.queues} queues, but the port has "
                              f"{self.port.queues}")
        self.rss.set_table(table)
        self.pairs = pairs
        self.driver, self.types = driver, types
        self.steers = driver is not None and unclassified is not None
        self.unclassified = unclassified or 0
        self.hashes = driver is not None and (self.steers or self.guest.reports)
        self.by_flow = by_flow and self.flows is not None
        if self.flows is not None:
            self.flows.learn(by_flow)
        self.guest.set_hash_types(types if self.hashes else 0)
        self.usual = not self.hashes and not self.by_flow

    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil:
        cdef uint32_t i, queue
        if self.usual:
            NicTx.process(self, ctx, batch)
            return
        for i in range(batch.count):
            queue = self.pair_of(ctx, batch.index[i])
            batch_add(&self.shares[queue], batch.index[i])
        for queue in range(self.port.queues):
            if self.shares[queue].count:
                self.send(ctx, queue, &self.shares[queue])
                self.shares[queue].count = 0

    cdef uint32_t pair_of(self, Context *ctx, uint32_t index) noexcept nogil:
        cdef uint32_t queue = 0, hash
        if self.port.queues > 1 and not self.steers:
            hash = self.rss.hash_packet(ctx, index)
            queue = self.rss.queue_of(hash)
            if self.by_flow:
                queue = pair_of_flow(self.flows, hash, self.pairs, queue)
        if self.hashes:
            # after the hash above, whose place it takes
            if hash_by_types(self.driver, ctx, index, self.types) == 0:
                return self.unclassified if self.steers else queue
            if self.steers:
                return self.driver.queue_of(ctx.packets[index].hash)
        return queue

    cdef void tick(self, Context *ctx) noexcept nogil:
        self.deadline_ns = self.guest.call_due(ctx.now_ns)
