"""What a session needs of the device behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from virt.vhost_user.books import Inflight, Log, Region, Ring
from virt.vhost_user.protocol import ProtocolFeature

# What the session implements and needs nothing of the device for. INFLIGHT_SHMFD is for devices
# that hold buffers; INBAND_NOTIFICATIONS and DEVICE_STATE are not implemented.
USUAL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.BACKEND_REQ  # without it, User-mode Linux makes no interface
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
IMPLEMENTED = USUAL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device offers to a front end.

    features      Virtio's bits, and LOG_ALL for migrations; PROTOCOL_FEATURES is added
    queue_pairs   1 to 127: SET_VRING_KICK has 8 bits for a ring
    memory_slots  regions of guest memory; a descriptor and a mapping for each
    """

    features: int
    protocol_features: ProtocolFeature = USUAL_FEATURES
    queue_pairs: int = 1
    memory_slots: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.queue_pairs <= 127:
            raise ValueError(f"queue pairs: {self.queue_pairs}: expected 1 to 127")
        if self.protocol_features & ~IMPLEMENTED:
            raise ValueError(f"not implemented: {self.protocol_features & ~IMPLEMENTED!r}")

    @property
    def rings(self) -> int:
        """Receive and transmit rings, and the control ring: the last one, or ring 2 if MQ is not
        acknowledged."""
        return 2 * self.queue_pairs + 1


class RingDescriptors(NamedTuple):
    """The descriptors of a ring, which the session owns. None: polled, not notified, not told."""

    kick: int | None
    call: int | None
    error: int | None


class Device(Protocol):
    """A network device, as a session drives it. The session calls from one thread.

    Descriptors that the session passes stay its own: a device that needs one for longer than the
    documented time duplicates it. What a method refuses, it refuses by Refused or OSError before
    it changes anything.
    """

    def apply_features(self, features: int) -> None:
        """The driver's features, Virtio's bits only. No ring runs."""

    def apply_memory(self, regions: Sequence[Region], descriptors: Sequence[int]) -> None:
        """Maps these regions in place of all former ones; the descriptors may be closed afterwards.
        No ring runs. After an error the former regions are still mapped."""

    def start_ring(
        self, index: int, ring: Ring, descriptors: RingDescriptors, *, resumed: bool
    ) -> None:
        """Runs a ring from now on, and looks at it once without waiting for a kick: one may have
        been lost. Its addresses are translated in the memory applied last. The descriptors stay
        open until stop_ring; after an error they are not used.

        The device takes a split ring's used index from guest memory. For a new packed ring,
        User-mode Linux tells a base of 0, where both wrap counters should be 1; a ring that has
        come round to 0 has the flag USED set in its first descriptor, and a new one has not.

        resumed: a predecessor may have run the ring beyond `ring.base` before it was killed: a
        split ring carries on where its used index is, a packed ring where the device's own memory
        says, if that is of `ring.generation`.
        """

    def stop_ring(self, index: int) -> int:
        """Stops a ring; afterwards the device touches neither it nor its descriptors. Returns where
        it is, in the form of Ring.base."""

    def set_log(self, log: Log | None, descriptor: int | None) -> None:
        """From now on, marks pages that it writes in this log; None: in none. Rings may run. When
        it returns, nothing is written to the former log any more. The descriptor may be closed
        afterwards."""

    def set_inflight(self, inflight: Inflight | None, descriptor: int | None) -> None:
        """Writes buffers in flight down there; None: nowhere any more. No ring runs. The descriptor
        may be closed afterwards. Called only if INFLIGHT_SHMFD is offered."""

    def set_status(self, status: int) -> None:
        """The driver's progress. 0 does not stop rings: QEMU writes it before it asks for their
        positions."""

    def set_mtu(self, mtu: int) -> None:
        """The front end's MTU, 68 to 65535; 0: none was told."""

    def announce(self, mac: bytes) -> None:
        """Sends a RARP with this source address: the guest has moved here, and cannot tell."""

    def read_config(self) -> bytes:
        """The configuration space (net_config.py)."""
