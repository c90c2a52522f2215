"""The device of a virtual machine's NIC: what a vhost-user session asks of it, done to a
VirtioPort."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from dataplane.errors import ConfigError
from virt.guest_memory import DirtyLog, GuestMemory, MemoryRegion
from virt.vhost_user.books import Inflight, Log, Region, Ring
from virt.vhost_user.device import RingDescriptors
from virt.vhost_user.net_config import NetConfig
from virt.vhost_user.protocol import LOG_ALL, Refused
from virt.virtio_port import VirtioPort

T = TypeVar("T")


class Positions:
    """Where the port's packed rings are: shared memory that outlives the process. 16 bytes a ring,
    which the port writes."""

    def __init__(self, rings: int, descriptor: int | None = None) -> None:
        if descriptor is None:
            self.fd = os.memfd_create("vnic-positions", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, 16 * rings)
        else:
            self.fd = descriptor
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
        self, port: VirtioPort, config: NetConfig, positions: Positions, *, owns: bool
    ) -> None:
        self.port, self.config, self.positions, self.owns = port, config, positions, owns
        self.call: Callable[[Callable[[], object]], object] = lambda function: function()
        self.status = self.mtu = 0
        self._features = 0
        self._memory: GuestMemory | None = None
        self._log: DirtyLog | None = None
        if owns:
            port.set_positions(positions.memory)

    def own(self) -> None:
        """This process runs the rings from now on."""
        if not self.owns:
            self.owns = True
            self._run(lambda: self.port.set_positions(self.positions.memory))

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

    def _apply_features(self) -> None:
        logging = LOG_ALL if self._log is not None else 0
        self._run(lambda: self.port.set_features(self._features | logging))

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

    def start_ring(
        self, index: int, ring: Ring, descriptors: RingDescriptors, *, resumed: bool
    ) -> None:
        if index >= 2 * self.port.queues:  # the control ring
            return
        self._run(lambda: self._start(index, ring, descriptors, resumed))

    def _start(self, index: int, ring: Ring, descriptors: RingDescriptors, resumed: bool) -> None:
        places = ring.addresses
        assert places is not None
        self.port.start(
            index,
            size=ring.size,
            descriptors=places.descriptors,
            available=places.available,
            used=places.used,
            base=ring.base,
            resumed=resumed,
            generation=ring.generation,
            kick_fd=descriptors.kick,
            call_fd=descriptors.call,
            error_fd=descriptors.error,
        )
        self.port.log_ring(index, places.log if places.logged else None)
        self.port.enable(index, True)

    def stop_ring(self, index: int) -> int:
        if index >= 2 * self.port.queues:
            return 0
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
        self._apply_features()
        if before is not None:
            before.close()

    def set_inflight(self, inflight: Inflight | None, descriptor: int | None) -> None:
        """Not offered: a frame is copied when its buffer is taken, so that none is in flight."""

    def set_status(self, status: int) -> None:
        self.status = status

    def set_mtu(self, mtu: int) -> None:
        self.mtu = mtu

    def announce(self, mac: bytes) -> None:
        """Not offered: see RARP in the kind's offer."""

    def read_config(self) -> bytes:
        return self.config.packed()
