"""The device of a virtual machine's NIC: what a vhost-user session asks of it, done to a
VirtioPort."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dataplane.elements.rss import Rss
from dataplane.errors import ConfigError
from virt.announcement import rarp_request
from virt.control_queue import GUEST_OFFLOADS, ControlQueue, ControlState
from virt.control_ring import ControlRing
from virt.guest_memory import DirtyLog, GuestMemory, MemoryRegion
from virt.guest_tx import GuestTx
from virt.vhost_user.books import Inflight, Log, Region, Ring
from virt.vhost_user.device import RingDescriptors
from virt.vhost_user.features import Feature
from virt.vhost_user.net_config import NetConfig
from virt.vhost_user.protocol import LOG_ALL, Refused

T = TypeVar("T")


class Positions:
    """Where packed rings are: shared memory that outlives the process. 16 bytes a ring, which the
    port writes, and at the end 16 of the control ring."""

    def __init__(self, rings: int, descriptor: int | None = None) -> None:
        if descriptor is None:
            self.fd = os.memfd_create("vnic-positions", os.MFD_CLOEXEC)
        else:
            self.fd = descriptor
        if os.fstat(self.fd).st_size < 16 * rings:  # new, or of a NIC with fewer queues
            os.ftruncate(self.fd, 16 * rings)
        self.memory = mmap.mmap(self.fd, 16 * rings)

    def close(self) -> None:
        """Closes the descriptor; the memory is unmapped with its last user."""
        os.close(self.fd)


class GuestDevice:
    """A network device of `vhost_user.device`.

    owns  whether this process runs the guest's rings; False for a successor that has not taken
          over, whose port gets the rings' positions from the last worker's
    call  runs a function on the thread of the port's engine, between two batches; while no engine
          serves the port, on this one
    """

    def __init__(
        self,
        tx: GuestTx,
        config: NetConfig,
        positions: Positions,
        state: ControlState,
        *,
        owns: bool,
    ) -> None:
        port = tx.guest
        self.port, self.config, self.positions, self.owns = port, config, positions, owns
        self.call: Callable[[Callable[[], object]], object] = lambda function: function()
        self.status = self.mtu = 0
        self.ring = ControlRing(f"port {port.name}: control ring")
        self.control = ControlQueue(port.queues, self._apply_control, state, self._statistics)
        self._tx, self._table = tx, tx.rss.table  # as configured
        self._hashes = _Hashes(port.queues)
        self._generations: dict[int, int] = {}  # of rings, as they were started last
        self._features = 0
        self._memory: GuestMemory | None = None
        self._log: DirtyLog | None = None
        self._receiving: set[int] = set()  # receive rings that run
        # the control ring as it is to run, which it does once this process owns the guest
        self._given: tuple[Ring, RingDescriptors] | None = None
        if owns:
            self._store_positions()

    def own(self) -> None:
        """This process runs the rings from now on. Raises Refused if the control ring cannot be
        carried on with."""
        if not self.owns:
            self.owns = True
            self._run(self._store_positions)
            if self._given is not None:
                self._start_control(*self._given, resumed=True)

    def _store_positions(self) -> None:
        self.port.set_positions(self.positions.memory)
        self.ring.set_positions(memoryview(self.positions.memory)[32 * self.port.queues :])

    def _run(self, function: Callable[[], T]) -> T:
        """Calls a function of the port where its engine is. Raises Refused for what it refuses."""
        found: list[T] = []
        try:
            self.call(lambda: found.append(function()))
        except ConfigError as error:
            raise Refused(str(error)) from None
        return found[0]

    def apply_features(self, features: int) -> None:
        self._features = features
        self._apply_features()
        self.control.begin(features, self.control.state.generation)

    def _apply_features(self) -> None:
        logging = LOG_ALL if self._log is not None else 0
        self._run(lambda: self.port.set_features(self._features | logging))
        self._apply_control(self.control.state)

    def apply_memory(self, regions: Sequence[Region], descriptors: Sequence[int]) -> None:
        try:
            memory = GuestMemory(
                MemoryRegion(
                    guest=region.guest_address,
                    size=region.size,
                    user=region.user_address,
                    offset=region.offset,
                    fd=descriptor,
                )
                for region, descriptor in zip(regions, descriptors, strict=True)
            )
        except ConfigError as error:
            raise Refused(str(error)) from None
        before, self._memory = self._memory, memory
        self._run(lambda: self.port.set_memory(memory))
        if before is not None:
            before.close()

    @property
    def queue_pairs(self) -> int:
        """Queue pairs that the driver uses: a frame for another one would be lost."""
        return self._pairs_of(self.control.state)

    def _pairs_of(self, state: ControlState) -> int:
        """Those that the driver has asked for and whose receive rings run. A front end that serves
        the control queue itself (QEMU) starts the rings of these pairs only."""
        asked = state.queue_pairs if state.sets_pairs else self.port.queues
        running = 0
        while 2 * running in self._receiving:
            running += 1
        return max(1, min(asked, running))

    def _apply_control(self, state: ControlState) -> None:
        """Has port and steering do what the driver wants."""
        offloads = int(GUEST_OFFLOADS) if state.offloads is None else state.offloads
        filters = state.filter_of(self.config.mac)
        pairs = self._pairs_of(state)
        table = [queue % pairs for queue in self._table]
        by_flow = state.steers_by_flow and pairs > 1
        hashes = self._hashes.steering(state, pairs)
        coalescing = [state.coalescing_of(ring) for ring in range(2 * self.port.queues)]

        def apply() -> None:
            self.port.set_guest_offloads(offloads)
            self.port.set_receive_filter(**filters)
            self._tx.steer(table, pairs=pairs, by_flow=by_flow, **hashes)
            for ring, each in enumerate(coalescing):
                self.port.set_coalescing(ring, each.packets, each.usecs)

        self._run(apply)

    def _statistics(self, virtqueue: int) -> Mapping[str, int]:
        """Counters of a queue by their names in virt.device_statistics."""
        queue = self.port.queue_statistics()[virtqueue >> 1]
        ring = self.port.ring_state(virtqueue)
        # what the device receives, the driver transmits
        ours, theirs = ("rx", "tx") if virtqueue & 1 else ("tx", "rx")
        return {
            f"{theirs}_packets": queue[f"{ours}_packets"],
            f"{theirs}_bytes": queue[f"{ours}_bytes"],
            f"{theirs}_drops": queue[f"{ours}_dropped"],
            f"{theirs}_interrupts": ring["calls"],
            "rx_drop_overruns": ring["no_buffers"],
            "tx_drop_malformed": sum(ring["faults"].values()),
        }

    @property
    def _control_index(self) -> int:
        """The control ring: behind those that the driver knows of (Virtio, section 5.1.2)."""
        if not self._features & Feature.CTRL_VQ:
            return -1
        return 2 * self.port.queues if self._features & (Feature.MQ | Feature.RSS) else 2

    def start_ring(
        self, index: int, ring: Ring, descriptors: RingDescriptors, *, resumed: bool
    ) -> None:
        if index == self._control_index:
            self._given = ring, descriptors
            if self.owns:
                self._start_control(ring, descriptors, resumed=resumed)
        elif index < 2 * self.port.queues:
            if self._generations.get(index, ring.generation) != ring.generation:
                self.control.forget_queue(index)
            self._generations[index] = ring.generation
            self._run(lambda: self._start(index, ring, descriptors, resumed))
            self._receives(index, True)

    def _receives(self, index: int, runs: bool) -> None:
        """A ring was started or stopped: other pairs may be in use."""
        if index & 1:
            return
        before = self.queue_pairs
        if runs:
            self._receiving.add(index)
        else:
            self._receiving.discard(index)
        if self.queue_pairs != before:
            self._apply_control(self.control.state)

    def _start_control(self, ring: Ring, descriptors: RingDescriptors, *, resumed: bool) -> None:
        assert self._memory is not None
        self.control.begin(self._features, ring.generation)
        try:
            self.ring.start(
                self._memory,
                features=self._features,
                log_address=_log_address(ring),
                **_start_of(ring, descriptors, resumed=resumed),
            )
        except ConfigError as error:
            raise Refused(str(error)) from None

    def _start(self, index: int, ring: Ring, descriptors: RingDescriptors, resumed: bool) -> None:
        self.port.start(index, **_start_of(ring, descriptors, resumed=resumed))
        self.port.log_ring(index, _log_address(ring))
        self.port.enable(index, True)

    def stop_ring(self, index: int) -> int:
        if index == self._control_index and self._given is not None:
            (ring, _), self._given = self._given, None
            return self.ring.stop() if self.ring.started else ring.base
        if index >= 2 * self.port.queues:
            return 0
        self._receives(index, False)
        return self._run(lambda: self.port.stop(index))

    def set_log(self, log: Log | None, descriptor: int | None) -> None:
        before = self._log
        try:
            self._log = (
                None
                if log is None or descriptor is None
                else DirtyLog(descriptor, log.size, log.offset)
            )
        except ConfigError as error:
            raise Refused(str(error)) from None
        self._run(lambda: self.port.set_log(self._log))
        self.ring.set_log(self._log)
        self._apply_features()
        if before is not None:
            before.close()

    def set_inflight(self, inflight: Inflight | None, descriptor: int | None) -> None:
        """Not offered: a frame is copied when its buffer is taken, so that none is in flight."""

    def set_status(self, status: int) -> None:
        if self.status and not status:  # the driver has reset the device
            self.control.reset()
        self.status = status

    def set_mtu(self, mtu: int) -> None:
        self.mtu = mtu

    def announce(self, mac: bytes) -> None:
        try:
            frame = rarp_request(mac)
        except ConfigError as error:
            raise Refused(f"SEND_RARP: {error}") from None
        self._run(lambda: self.port.announce(frame))

    def read_config(self) -> bytes:
        state = self.control.state
        return msgspec.structs.replace(self.config, mac=self.mac, announce=state.announce).packed()

    @property
    def mac(self) -> bytes:
        """The driver's address, which is the device's own until the driver sets another."""
        return self.config.mac if self.control.state.mac is None else self.control.state.mac


class _Hashes:
    """The hashes of a driver's key, whose tables are made anew for another key only."""

    def __init__(self, queues: int) -> None:
        self._queues = queues
        self._key, self._rss = b"", Rss()

    def steering(self, state: ControlState, pairs: int) -> dict[str, Any]:
        """Arguments of GuestTx.steer. pairs: that are in use; frames for others go to these, since
        the driver may have told its table before it has set up the pairs."""
        hashing, steering = state.hashing, state.steering
        if hashing is None:
            return {}
        table = [0] if steering is None else [entry % pairs for entry in steering.table]
        # Another object: the engine uses the former one until it takes this one.
        if hashing.key != self._key or table != self._rss.table:
            self._rss = Rss(hashing.key, table, queues=self._queues)
            self._key = hashing.key
        found: dict[str, Any] = {"driver": self._rss, "types": hashing.types}
        if steering is not None:
            found["unclassified"] = steering.unclassified % pairs
        return found


def _start_of(ring: Ring, descriptors: RingDescriptors, *, resumed: bool) -> dict[str, Any]:
    """Arguments with which any ring starts."""
    assert ring.addresses is not None
    return {
        "size": ring.size,
        "descriptors": ring.addresses.descriptors,
        "available": ring.addresses.available,
        "used": ring.addresses.used,
        "base": ring.base,
        "resumed": resumed,
        "generation": ring.generation,
        "kick_fd": descriptors.kick,
        "call_fd": descriptors.call,
        "error_fd": descriptors.error,
    }


def _log_address(ring: Ring) -> int | None:
    """Where the ring itself is logged; None: nowhere."""
    assert ring.addresses is not None
    return ring.addresses.log if ring.addresses.logged else None
