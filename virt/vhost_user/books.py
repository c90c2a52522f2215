"""What a front end has told a device: plain data that a supervisor stores, so that the next worker
carries on without a word to the front end.

Descriptors are not in the books; the books name them by role ("memory0", "kick3"), and
`Descriptors` maps roles to numbers of this process.
"""

from __future__ import annotations

import msgspec

from virt.vhost_user.protocol import ProtocolFeature

BOOKS_VERSION = 1


class Region(msgspec.Struct, frozen=True):
    """A region of guest memory. `descriptor`: the role of its file; `offset` into that."""

    guest_address: int
    size: int
    user_address: int
    offset: int
    descriptor: str


class Log(msgspec.Struct, frozen=True):
    """The log of written pages, for a migration: `size` bytes from `offset` of its file, one bit
    for each 4 KiB of guest physical memory."""

    size: int
    offset: int
    descriptor: str = "log"


class Inflight(msgspec.Struct, frozen=True):
    """The memory where buffers in flight are written down."""

    size: int
    offset: int
    queues: int
    queue_size: int
    descriptor: str = "inflight"


class RingAddresses(msgspec.Struct, frozen=True):
    """Addresses in the front end's process. A packed ring's driver event area is `available`, its
    device event area is `used`. log: the guest physical address of the used ring, for the log; it
    counts if `logged`."""

    descriptors: int
    used: int
    available: int
    log: int = 0
    logged: bool = False


class Ring(msgspec.Struct):
    """A virtqueue.

    size         entries; 0 until the front end says
    base         where to carry on, in the form of SET_VRING_BASE: a split ring's next available
                 index; of a packed ring both indices with their wrap counters. What a running
                 device has come to is not here: it is written when the ring stops.
    enabled, started   independent of each other; the device runs a ring that is both
    kick, call, error  roles of descriptors; "": none. A started ring without `kick` is polled.
    generation   counts the starts: what a device keeps elsewhere of a ring (a packed ring's
                 position) carries it, and so is not taken for a later start's
    """

    size: int = 0
    base: int = 0
    addresses: RingAddresses | None = None
    enabled: bool = False
    started: bool = False
    kick: str = ""
    call: str = ""
    error: str = ""
    generation: int = 0


class Answer(msgspec.Struct, frozen=True):
    """A reply that was due when the books were stored, and may not have been sent. `descriptor`:
    the role of the one that goes with it, or ""."""

    data: bytes
    descriptor: str = ""


class Books(msgspec.Struct, kw_only=True):
    """All that is known of a connected front end.

    features  as acknowledged by SET_FEATURES, with the two bits of vhost-user itself
    status    the device's status, as written last by SET_STATUS
    mtu       of NET_SET_MTU; 0: not told
    requests  the role of the socket for the back end's requests, or ""
    log_event the role of the descriptor of SET_LOG_FD, or ""; nothing is signalled there
    """

    version: int = BOOKS_VERSION
    owned: bool = False
    features: int = 0
    protocol_features: int = 0
    status: int = 0
    mtu: int = 0
    memory: list[Region] = []
    rings: list[Ring] = []
    log: Log | None = None
    log_event: str = ""
    inflight: Inflight | None = None
    requests: str = ""
    answer: Answer | None = None

    @classmethod
    def of(cls, rings: int) -> Books:
        """The books of a front end that has said nothing."""
        return cls(rings=[Ring() for _ in range(rings)])

    def agreed(self, feature: ProtocolFeature) -> bool:
        """Whether the front end and the device agreed on these protocol features."""
        return self.protocol_features & feature == feature

    def roles(self) -> set[str]:
        """The roles of all descriptors that the books name."""
        named = {self.requests, self.log_event}
        named.update(region.descriptor for region in self.memory)
        named.update(part.descriptor for part in (self.log, self.inflight) if part)
        for ring in self.rings:
            named.update((ring.kick, ring.call, ring.error))
        return named - {""}

    def encode(self) -> bytes:
        """The books as JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Books:
        """Raises msgspec.ValidationError if these are no books."""
        return msgspec.json.decode(data, type=cls)
